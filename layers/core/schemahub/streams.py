"""Words and arithmetic of a stream's line: positions, intervals, chunks, segments and how they tile.

Everything here is a pure function over values. Intervals are closed: ``Interval(3, 5)`` holds 3, 4 and 5.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from schemahub.errors import BadProductId, BadStateInput, CorruptState

PREFIX = "schemahub/"
MAX_POSITION = 2**63 - 1
TRADES, FILLS = "trades", "fills"
ABSENT_CLASSES = ("exchange_skipped", "halted", "not_yet", "lost")

_EXCHANGE = re.compile(r"[a-z][a-z0-9_]{0,31}")
PRODUCT = re.compile(r"[A-Z0-9]{1,20}-[A-Z0-9]{1,20}")
"""Our name of a product: what is traded, and what it is paid in."""
_DATASET = re.compile(r"[a-z]{1,16}")
_QUOTES = ("USDT", "USDC", "FDUSD", "USD", "EUR", "GBP", "BTC", "ETH")
"""What most products are paid in: where a name without its dash is to be cut. Only for examples in messages."""


class Interval(NamedTuple):
    """A closed range of positions."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1


class Absent(NamedTuple):
    """A range of ids that the exchange did not deliver twice, with the class of the hole."""

    first: int
    last: int
    kind: str


@dataclass(frozen=True, order=True)
class Stream:
    """One (exchange, product, dataset): the unit of locking, of watermarks and of proof."""

    exchange: str
    product: str
    dataset: str = "trades"

    def __post_init__(self) -> None:
        for value, pattern, name in (
            (self.exchange, _EXCHANGE, "exchange"),
            (self.product, PRODUCT, "product"),
            (self.dataset, _DATASET, "dataset"),
        ):
            if not isinstance(value, str) or not pattern.fullmatch(value):
                remedy = f"Write it as BASE-QUOTE, for example {example_product(value)}." if name == "product" else None
                raise BadProductId(f"{name} {str(value)[:60]!r} is not valid", remedy=remedy)

    def __str__(self) -> str:
        return f"{self.exchange}#{self.product}#{self.dataset}"

    @property
    def label(self) -> str:
        """As a person reads it: ``coinbase BTC-USD``."""
        return f"{self.exchange} {self.product}"

    @classmethod
    def parse(cls, text: str) -> Stream:
        """The inverse of ``str``; also takes ``exchange:PRODUCT``.

        Raises:
            BadProductId: it is neither; the remedy writes what was probably meant.
        """
        parts = re.split("[#:]", text) if isinstance(text, str) else []
        remedy = f"Write it as exchange:PRODUCT, for example {example_name(text)}."
        if not 2 <= len(parts) <= 3:
            raise BadProductId(f"{str(text)[:60]!r} is not exchange:PRODUCT", remedy=remedy)
        try:
            return cls(*parts)
        except BadProductId as error:
            raise BadProductId(error.reason, remedy=remedy) from None

    @classmethod
    def from_json(cls, value: Any) -> Stream:
        if not isinstance(value, dict) or not {"exchange", "product"} <= value.keys():
            raise BadStateInput(f"{str(value)[:80]!r} is not a stream")
        return cls(value["exchange"], value["product"], value.get("dataset", "trades"))

    def to_json(self) -> dict[str, str]:
        return {"exchange": self.exchange, "product": self.product, "dataset": self.dataset}

    @property
    def fills(self) -> Stream:
        """The line of what filled this stream's holes later: islands without a watermark, published like segments."""
        return Stream(self.exchange, self.product, FILLS)

    @property
    def trades(self) -> Stream:
        """The stream that a line of fills belongs to; itself otherwise."""
        return Stream(self.exchange, self.product)

    @property
    def lock_id(self) -> str:
        return f"stream#{self}"

    @property
    def backfill_lock_id(self) -> str:
        """The lock of what is committed below the watermark."""
        return f"backfill#{self}"

    @property
    def raw_prefix(self) -> str:
        return f"{PREFIX}raw_{self.exchange}_{self.dataset}/{self.product}/"

    @property
    def mirror_key(self) -> str:
        """The mirror's key. Only ``trades`` exists today, so the dataset is not part of it (design §11)."""
        return f"{PREFIX}checkpoints/{self.exchange}/{self.product}.json"


def example_product(text: Any) -> str:
    """A well-formed product, as near to what was written as can be told: ``btc/usd`` and ``BTCUSD`` are ``BTC-USD``."""
    parts = re.findall(r"[A-Z0-9]{1,20}", str(text)[:60].upper())
    if len(parts) >= 2:
        return f"{parts[-2]}-{parts[-1]}"
    name = parts[0] if parts else "BTC"
    quote = next((q for q in _QUOTES if name.endswith(q) and name != q), None)
    return f"{name.removesuffix(quote)}-{quote}" if quote else f"{name}-USD"


def example_name(text: Any) -> str:
    """A well-formed ``exchange:PRODUCT``, as near to what was written as can be told.

    ``XYZ/btc-usd`` is ``xyz:BTC-USD``; where no exchange is named it says ``exchange``.
    """
    exchange, *rest = re.split(r"[:/#,\s]", str(text)[:60], maxsplit=1)
    if not rest or not _EXCHANGE.fullmatch(exchange.lower()):
        return f"exchange:{example_product(text)}"
    return f"{exchange.lower()}:{example_product(re.split('[#:]', rest[0])[0])}"


def position(value: Any, name: str = "position") -> int:
    """``value`` as a position, refusing floats, booleans, strings and what does not fit 63 bits."""
    if type(value) is not int or not 0 <= value <= MAX_POSITION:
        raise BadStateInput(f"{name} {str(value)[:40]!r} is not an integer between 0 and 2^63-1")
    return value


class Known(NamedTuple):
    """What a plan knows of the trades around its chunks, where counting ids does not prove them."""

    base: int | None
    """A trade before the first chunk (the newest committed one), or the trade that a first run begins with."""
    head: int
    """The last trade of the last chunk, or the next one behind it."""
    pace: int
    """Positions between two trades, roughly."""

    @classmethod
    def from_json(cls, value: Any) -> Known:
        if not isinstance(value, dict) or value.keys() != {"base", "head", "pace"}:
            raise BadStateInput(f"{str(value)[:80]!r} is not what a plan knows")
        base = None if value["base"] is None else position(value["base"], "base")
        return cls(base, position(value["head"], "head"), position(value["pace"], "pace"))


@dataclass(frozen=True, order=True)
class Chunk:
    """A planned closed range of positions that one worker fetches."""

    first: int
    last: int
    known: Known | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        position(self.first, "first")
        position(self.last, "last")
        if self.first > self.last:
            raise BadStateInput(f"chunk begins at {self.first}, after its end {self.last}")

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    @classmethod
    def from_json(cls, value: Any) -> Chunk:
        if not isinstance(value, dict) or value.keys() - {"known"} != {"first", "last"}:
            raise BadStateInput(f"{str(value)[:80]!r} is not a chunk")
        return cls(value["first"], value["last"], Known.from_json(value["known"]) if "known" in value else None)

    def to_json(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last} | ({"known": self.known._asdict()} if self.known else {})


class Edges(NamedTuple):
    """The trades at both ends of a chunk whose answers were linked: neighbours must agree on the one between them."""

    before: int | None
    """Position of the trade before the chunk; None where no answer showed it."""
    newest: int | None
    """Position of the newest trade up to the chunk's end: one of its own, or the one before it."""


@dataclass(frozen=True)
class RawObject:
    """A durable raw object and what is known of its content.

    ``sha256`` is that of the uncompressed lines, so that it does not depend on a compressor's version.
    """

    key: str
    first: int
    last: int
    count: int
    sha256: str
    absent: tuple[Absent, ...] = ()
    counted: bool = True
    """Each position of the range is a trade or named absent; not so where positions are times or sparse ids."""
    edges: Edges | None = field(default=None, compare=False)

    def check(self) -> None:
        """Count and holes must explain every position of a counted range.

        Raises:
            CorruptState: they do not, or a hole is none.
        """
        at = self.first - 1
        for hole in self.absent:
            if not at < hole.first <= hole.last <= self.last or hole.kind not in ABSENT_CLASSES:
                raise CorruptState(f"{self.key} names an impossible hole: {tuple(hole)}", span=(self.first, self.last))
            at = hole.last
        missing = sum(a.last - a.first + 1 for a in self.absent)
        if self.counted and self.count + missing != self.last - self.first + 1:
            raise CorruptState(
                f"{self.key} holds {self.count} rows and {missing} absent ids, which do not fill the range",
                span=(self.first, self.last),
            )


@dataclass(frozen=True)
class Segment:
    """A committed chunk: a tile on the stream's line, naming the raw object that proves it."""

    stream: Stream
    first: int
    last: int
    count: int
    absent: tuple[Absent, ...]
    raw_key: str
    sha256: str
    source: str
    run_id: str
    commit_id: str
    committed_at: int
    """Milliseconds since the epoch; it becomes ``ingest_ts``, so that a replayed transform writes the same bytes."""
    counted: bool = True
    """See ``RawObject.counted``."""
    published_in: str | None = field(default=None, compare=False)

    @property
    def interval(self) -> Interval:
        return Interval(self.first, self.last)

    @property
    def raw(self) -> RawObject:
        """The raw object that the segment says there is."""
        return RawObject(self.raw_key, self.first, self.last, self.count, self.sha256, self.absent, self.counted)

    def to_json(self) -> dict[str, Any]:
        return {
            "stream": self.stream.to_json(),
            "first": self.first,
            "last": self.last,
            "count": self.count,
            "absent": [list(a) for a in self.absent],
            "raw_key": self.raw_key,
            "sha256": self.sha256,
            "source": self.source,
            "run_id": self.run_id,
            "commit_id": self.commit_id,
            "committed_at": self.committed_at,
            **({} if self.counted else {"counted": False}),
        }

    @classmethod
    def from_json(cls, value: Any) -> Segment:
        """Raises BadStateInput for what is not a segment, CorruptState for one that does not fill its range."""
        try:
            segment = cls(
                stream=Stream.from_json(value["stream"]),
                absent=tuple(Absent(position(a), position(b), str(kind)) for a, b, kind in value["absent"]),
                first=position(value["first"], "first"),
                last=position(value["last"], "last"),
                count=position(value["count"], "count"),
                committed_at=position(value["committed_at"], "committed_at"),
                raw_key=_text(value["raw_key"], "raw_key"),
                sha256=_text(value["sha256"], "sha256"),
                source=_text(value["source"], "source"),
                run_id=_text(value["run_id"], "run_id"),
                commit_id=_text(value["commit_id"], "commit_id"),
                counted=value.get("counted", True) is not False,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadStateInput(f"{str(value)[:80]!r} is not a segment: {error!r}") from error
        segment.check()
        return segment

    def check(self) -> None:
        """Raises CorruptState where rows and holes do not fill the range exactly, or raw is not this stream's."""
        for name in _SEGMENT_TEXTS:
            if not isinstance(getattr(self, name), str):
                raise CorruptState(f"{name} of a segment is not text", stream=self.stream, span=self.interval)
        if not self.raw_key.startswith(self.stream.raw_prefix):
            raise CorruptState(f"raw_key {self.raw_key[:200]} is another's", stream=self.stream, span=self.interval)
        self.raw.check()


_SEGMENT_TEXTS = ("raw_key", "sha256", "source", "run_id", "commit_id")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadStateInput(f"{name} {str(value)[:40]!r} is not text")
    return value


def merge(intervals: Iterable[tuple[int, int]]) -> list[Interval]:
    """Sorted, disjoint, with neighbours that touch joined."""
    merged: list[Interval] = []
    for first, last in sorted((i[0], i[1]) for i in intervals):
        if merged and first <= merged[-1].last + 1:
            merged[-1] = Interval(merged[-1].first, max(merged[-1].last, last))
        else:
            merged.append(Interval(first, last))
    return merged


def minus(intervals: Iterable[tuple[int, int]], taken: Iterable[tuple[int, int]]) -> list[Interval]:
    """The positions of ``intervals`` that ``taken`` does not hold."""
    left: list[Interval] = []
    away = merge(taken)
    at = 0
    for first, last in merge(intervals):
        while at < len(away) and away[at].last < first:
            at += 1
        begin, index = first, at
        while index < len(away) and away[index].first <= last:
            if away[index].first > begin:
                left.append(Interval(begin, away[index].first - 1))
            begin = away[index].last + 1
            index += 1
        if begin <= last:
            left.append(Interval(begin, last))
    return left


def common(one: Iterable[tuple[int, int]], other: Iterable[tuple[int, int]]) -> list[Interval]:
    """The positions that both hold."""
    listed = list(one)
    return minus(listed, minus(listed, other))


def gaps(intervals: Iterable[tuple[int, int]], within: tuple[int, int]) -> list[Interval]:
    """What of ``within`` the intervals leave open."""
    return minus([within], intervals)


def covers(intervals: Iterable[tuple[int, int]], wanted: tuple[int, int]) -> bool:
    """Whether every position of ``wanted`` is in one of the intervals."""
    return not gaps(intervals, wanted)


def overlapping(intervals: Sequence[tuple[int, int]]) -> list[tuple[Interval, Interval]]:
    """Neighbouring pairs that share a position: must be empty for committed segments."""
    ordered = sorted(Interval(*i[:2]) for i in intervals)
    return [(a, b) for a, b in itertools.pairwise(ordered) if b.first <= a.last]


def runs(positions: Iterable[int]) -> list[Interval]:
    """Sorted positions as intervals."""
    return merge((p, p) for p in positions)


def continuous_prefix(base: int, chunks: Sequence[Chunk], finished: set[Chunk]) -> list[Chunk]:
    """The longest run of finished chunks that follows ``base`` without a hole (design §5, Commit)."""
    prefix: list[Chunk] = []
    end = base
    for chunk in sorted(chunks):
        if chunk.first != end + 1 or chunk not in finished:
            break
        prefix.append(chunk)
        end = chunk.last
    return prefix
