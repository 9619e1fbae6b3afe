"""A fake exchange for the fetching of chunks: it answers as a real one would, then may spoil its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from schemahub.answers import Row
from schemahub.streams import Stream

STREAM = Stream("coinbase", "BTC-USD")

Spoil = Callable[["Asked", list[Row]], list[Row]]


def text_of(trade_id: int) -> str:
    return f'{{"trade_id":{trade_id},"price":"1.10"}}'


def row(trade_id: int, ts_us: int | None = None) -> Row:
    """A trade whose time, unless given, is its id in seconds."""
    return Row(trade_id, trade_id * 1_000_000 if ts_us is None else ts_us, text_of(trade_id))


@dataclass(frozen=True)
class Asked:
    """One request: its number, its range, and whether it came after the pause that precedes second looks."""

    number: int
    first: int
    last: int
    again: bool


@dataclass
class FakeSource:
    """Trades by id behind pages of ``page_size``; ``spoil`` changes true answers."""

    ids: Iterable[int]
    page_size: int = 4
    descending: bool = True
    spoil: Spoil = lambda asked, page: page
    asked: list[Asked] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    limit: int = 500

    def __post_init__(self) -> None:
        self.ids = sorted(self.ids)

    def page(self, stream: Stream, first: int, last: int, *, pages_left: int = 1) -> list[Row]:
        """As ``exchanges.Exchange.page``: from one end of the range on, whatever lies there."""
        assert pages_left > 0
        assert len(self.asked) < self.limit, "too many requests"
        size = min(self.page_size, last - first + 1)
        if self.descending:
            page = [i for i in self.ids if i <= last][-size:][::-1]
        else:
            page = [i for i in self.ids if i >= first][:size]
        asked = Asked(len(self.asked), first, last, bool(self.pauses))
        self.asked.append(asked)
        return self.spoil(asked, [row(i) for i in page])

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
