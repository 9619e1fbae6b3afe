"""Rows of an archive against the exchange's API: what a chunk lacks is asked for, what contradicts itself is decided.

The file is believed where it has exactly one row for an id, and that row's time lies in the file's period. Everything
else is the API's to say: ids that are missing (they come, or are proved absent like anywhere else), ids with two
different rows, rows of another day. Both are compared by what they mean, since the file may write finer times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from schemahub.answers import parse_elements
from schemahub.clock import Clock
from schemahub.errors import (
    CircuitOpen,
    EmptyPage,
    ExchangeUnavailable,
    IncompletePage,
    MalformedResponse,
    PageConflict,
    RateLimited,
    ResponseInterrupted,
    SchemaHubError,
    SlotRefused,
    UnknownProduct,
)
from schemahub.fetch import MAX_HOLES, Fetched, fetch_chunk
from schemahub.mappings import NS
from schemahub.mappings import Mapping as ExchangeMapping
from schemahub.pointers import element_of
from schemahub.streams import Absent, Chunk, Interval, Stream, gaps, runs

SILENT = (EmptyPage, IncompletePage, UnknownProduct, PageConflict)
PASSING = (ExchangeUnavailable, RateLimited, MalformedResponse, ResponseInterrupted, SlotRefused, CircuitOpen)
TRIES = 4
PAUSE_S = 2.0
MOST_EXAMPLES = 50


class Paced(Protocol):
    """The exchange's API at its pace; see ``pacing.PacedExchange``."""

    def page(self, stream: Stream, first: int, last: int, *, pages_left: int = 1) -> list[Any]: ...


@dataclass(frozen=True)
class Difference:
    """An id about which the file says two things, or another thing than the API, and what was taken."""

    id: int
    why: str
    archive: tuple[str, ...]
    taken: str | None
    """The row as the API shows it; None where it shows none."""


@dataclass
class Found:
    """What the reconciliation of a file came to."""

    filled: int = 0
    """Trades that the file lacks and the API has."""
    absent: int = 0
    """Ids that neither has."""
    decided: int = 0
    """Ids about which the API decided between different rows."""
    differences: list[Difference] = field(default_factory=list)
    """The first of them."""
    compared: int = 0
    """Ids that both have, and that were looked at in both."""
    silent: list[str] = field(default_factory=list)
    """Why the API could not be asked, the first reasons."""

    def note(self, difference: Difference) -> None:
        self.decided += 1
        if len(self.differences) < MOST_EXAMPLES:
            self.differences.append(difference)


class Rest:
    """The API as the judge: complete answers, or none."""

    def __init__(
        self, paced: Paced, stream: Stream, mapping: ExchangeMapping, clock: Clock, tick: Callable[[], None]
    ) -> None:
        self.paced, self.stream, self.mapping, self.clock, self.tick = paced, stream, mapping, clock, tick
        self.requests = 0
        self.reasons: list[str] = []
        self._down = False

    def fetch(self, span: Interval) -> Fetched | None:
        """Every trade of ``span`` and what is proved absent; None where the API does not say."""
        spec = self.mapping.requests

        def ask() -> Fetched:
            return fetch_chunk(
                self, self.stream, Chunk(*span), page_size=spec.page_size, descending=spec.page.descending,
                pause=self.clock.sleep, tick=self.tick,
            )  # fmt: skip

        fetched: Fetched | None = self._asked(ask)
        return fetched

    def row(self, position: int) -> str | None:
        """The trade of one id; None where the API does not show it."""
        answer = self._asked(lambda: self.page(self.stream, position, position))
        return next((row.text for row in answer or () if row.position == position), None)

    def page(self, stream: Stream, first: int, last: int, *, pages_left: int = 1) -> list[Any]:
        self.requests += 1
        return self.paced.page(stream, first, last, pages_left=pages_left)

    def _asked(self, ask: Callable[[], Any]) -> Any:
        if self._down:
            return None
        for tries_left in reversed(range(TRIES)):
            try:
                return ask()
            except SILENT as error:
                self._said(error)
                return None
            except PASSING as error:
                if tries_left:
                    self.clock.sleep(PAUSE_S * (TRIES - tries_left))
                    continue
                # The rest of the file is stored without it; what it would have decided is left for later.
                self._down = True
                self._said(error)
        return None

    def _said(self, error: SchemaHubError) -> None:
        if len(self.reasons) < MOST_EXAMPLES:
            self.reasons.append(f"{type(error).__name__}: {error.reason}"[:200])


@dataclass(frozen=True)
class Pieces:
    """What of a chunk is whole, and what is left."""

    whole: tuple[Fetched, ...]
    left: tuple[Interval, ...] = ()


def reconcile(
    chunk: Chunk,
    lines: Iterable[tuple[int, int, str]],
    period_us: tuple[int, int],
    rest: Rest,
    found: Found,
    *,
    suspect: bool = False,
) -> Pieces:
    """The rows of a chunk, whole or with what is left open.

    Args:
        lines: (id, microseconds since the epoch, line) of the file by id, each different one once.
        suspect: the API is asked for all of it.
    """
    said: dict[int, list[str]] = {}
    strange: dict[int, str] = {}
    for number, ts_us, line in lines:
        said.setdefault(number, []).append(line)
        if not period_us[0] <= ts_us < period_us[1]:
            strange[number] = "the row is of another day"
    strange |= {number: "two different rows of one id" for number, rows in said.items() if len(rows) > 1}
    if suspect:
        strange |= {number: "a row near it is another one in the API" for number in said if number not in strange}
    rows = {number: texts[0] for number, texts in said.items() if number not in strange}
    before = len(rows)
    todo = gaps([*runs(rows)], (chunk.first, chunk.last))
    absent: list[Absent] = []
    left: list[Interval] = []
    for span in spans_of(todo, rest.mapping.requests.page_size):
        fetched = rest.fetch(span)
        if fetched is None:
            left.append(span)
            continue
        _merge(fetched, rows, said, strange, rest.mapping, found)
        for hole in fetched.absent:
            kept = runs(number for number in rows if hole.first <= number <= hole.last)
            absent += [Absent(*part, hole.kind) for part in gaps(kept, (hole.first, hole.last))]
    left = [part for span in left for part in _still_open(span, todo)]
    found.filled += len(rows) - before - sum(1 for number in strange if number in rows)
    found.absent += sum(a.last - a.first + 1 for a in absent)
    parts = gaps(left, (chunk.first, chunk.last))
    return Pieces(tuple(piece for part in parts for piece in _cut(part, rows, absent)), tuple(left))


def _merge(
    fetched: Fetched,
    rows: dict[int, str],
    said: Mapping[int, Sequence[str]],
    strange: Mapping[int, str],
    mapping: ExchangeMapping,
    found: Found,
) -> None:
    """Take over what the API shows; where the file has the same trade, its own words stay."""
    for row in parse_elements(b"[" + ",".join(fetched.texts).encode() + b"]", mapping):
        there = said.get(row.position, ())
        found.compared += bool(there)
        same = [line for line in there if same_trade(mapping, line, row.text)]
        rows[row.position] = same[0] if len(same) == 1 else row.text
        if there and (len(there) > 1 or not same):
            why = strange.get(row.position, "the API shows another trade")
            found.note(Difference(row.position, why, tuple(there), row.text))
    for gone in fetched.absent:
        for number in [n for n in said if gone.first <= n <= gone.last]:
            # A row that nothing speaks against stays: the API may have lost what the file still has.
            why = strange.get(number, "the API shows no such trade")
            found.note(Difference(number, why, tuple(said[number]), None))


def spans_of(missing: Sequence[Interval], page_size: int) -> Iterator[Interval]:
    """Questions for the API: neighbours of what is missing together, as far as one more answer pays for it."""
    group: list[Interval] = []
    for part in missing:
        if group and (part.first - group[-1].last > page_size or len(group) >= MAX_HOLES):
            yield Interval(group[0].first, group[-1].last)
            group = []
        group.append(part)
    if group:
        yield Interval(group[0].first, group[-1].last)


def _still_open(span: Interval, todo: Sequence[Interval]) -> list[Interval]:
    return [Interval(max(p.first, span.first), min(p.last, span.last)) for p in todo
            if p.first <= span.last and p.last >= span.first]  # fmt: skip


def _cut(part: Interval, rows: Mapping[int, str], absent: Sequence[Absent]) -> Iterator[Fetched]:
    """A range whose every id is a row or absent, in pieces that name no more holes than a raw object can."""
    inside = sorted(a for a in absent if part.first <= a.first and a.last <= part.last)
    first = part.first
    while inside or first <= part.last:
        some, inside = inside[:MAX_HOLES], inside[MAX_HOLES:]
        last = some[-1].last if inside else part.last
        texts = tuple(rows[number] for number in range(first, last + 1) if number in rows)
        yield Fetched(Chunk(first, last), texts, tuple(some), 0)
        first = last + 1


def same_trade(mapping: ExchangeMapping, one: str, other: str) -> bool:
    """Whether two rows mean the same trade, at the precision of the API's times."""
    try:
        return one == other or _meaning(mapping, one) == _meaning(mapping, other)
    except (ValueError, InvalidOperation, KeyError, TypeError):
        return False


def _meaning(mapping: ExchangeMapping, text: str) -> tuple[Any, ...]:
    fields, row = mapping.fields, json.loads(text, parse_float=str, parse_int=str)

    def said(element: Any) -> str:
        value = element_of(row, element)
        return json.dumps(value) if isinstance(value, bool) else str(value)

    ticks = int(Decimal(said(fields.trade_ts)) * NS[str(fields.ts_unit)]) // fields.tick_ns
    side = fields.side_values.get(said(fields.side), "")
    return said(fields.trade_id), Decimal(said(fields.price)), Decimal(said(fields.quantity)), ticks, side
