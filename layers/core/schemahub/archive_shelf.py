"""Where the files of an archive begin on a stream's line, asked of the files: for products that no API shows any more.

A file's name gives its days, its first row the id that it begins with, and the next file's first row where it ends.
Such a position decides what is looked for in which file and nothing else: what is committed comes from the whole file,
proved by its checksum. What it lacks stays missing, since nobody is left to say that the exchange skipped it.
"""

from __future__ import annotations

import datetime as dt
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemahub.archive_download import ABSENT, PASSING, Files, Opened, RequestsFiles
from schemahub.archives import ArchiveFile, Kind, address_of, archive_of, file_of, read_state
from schemahub.backfill_plan import Wanted
from schemahub.deps import Deps
from schemahub.errors import ArchiveUnreadable, ExchangeRefused, ExchangeUnavailable, ResponseInterrupted
from schemahub.mappings import Mapping, load_mapping
from schemahub.streams import Interval, Stream

EARLIEST = dt.date(2017, 1, 1)
"""No archive of the mappings is older: a product that is in none of them costs a question a month since then."""
MAX_HEAD_BYTES = 1 << 20
"""Of a packed file, until its first row has come."""
TRIES, PAUSE_S = 5, 1.0
DAY = dt.timedelta(days=1)
TAIL = 62 * DAY
"""How long days may be out whose month is not."""


@dataclass(frozen=True)
class Held:
    """A file that is there, and the id of its first row."""

    file: ArchiveFile
    first: int


@dataclass
class Shelf:
    """The files of one stream. Asks for each only once; writes nothing."""

    deps: Deps
    stream: Stream
    source: Files = field(default_factory=RequestsFiles)
    _known: dict[tuple[Kind, dt.date], Held | None] = field(default_factory=dict)
    _all: list[Held] | None = None

    @property
    def mapping(self) -> Mapping:
        return load_mapping(self.stream.exchange)

    def held(self) -> list[Held]:
        """Every month that is there, then the days behind the newest of them, ascending.

        Raises:
            ExchangeUnavailable, ResponseInterrupted, ExchangeRefused: the archive cannot be asked now.
            ArchiveUnreadable: a file does not begin as the mapping says.
        """
        if self._all is None:
            today = dt.datetime.fromtimestamp(self.deps.clock.now_ms() / 1000, dt.UTC).date()
            archive = archive_of(self.mapping)
            months = []
            if archive is not None and archive.monthly:
                months = [m for at in _months(EARLIEST, today) if (m := self._at("monthly", at))]
            tail = months[-1].file.end if months else today - TAIL
            days = [d for at in _days(tail, min(today, tail + TAIL)) if (d := self._at("daily", at))]
            self._all = months + days
        return self._all

    def newest_day(self) -> Held | None:
        """The newest daily file; None where the archive holds nothing of the product."""
        held = self.held()
        if not held or held[-1].file.kind == "daily":
            return held[-1] if held else None
        return next(reversed(self._days_of(held[-1].file)), None)

    def position_at(self, when_us: int, within: Interval) -> int:
        """The position that the first file begins with whose day is not over before ``when_us`` (µs since the epoch).

        ``within.last + 1`` where there is none. Files are whole days: an earlier hour is that day's beginning.
        """
        day = dt.datetime.fromtimestamp(when_us // 1_000_000, dt.UTC).date()
        for held in self.held():
            if held.file.end <= day:
                continue
            if held.file.kind == "monthly" and held.file.begin < day:
                inside = [d for d in self._days_of(held.file) if d.file.begin >= day]
                if not inside:
                    continue
                held = inside[0]
            return min(max(held.first, within.first), within.last + 1)
        return within.last + 1

    def resolve(self, asked: Wanted, low: int) -> Interval | None:
        """The positions of what is wanted below ``low``, as ``backfill.resolve`` finds them by the API."""
        held = self.held()
        if not held or not low:
            return None
        whole = Interval(0, low - 1)
        first, last = asked.ids or whole
        if asked.since_us is not None:
            first = self.position_at(asked.since_us, whole)
        if asked.until_us is not None:
            # Up to the end of the day that the time lies in.
            last = self.position_at(-(-asked.until_us // 86_400_000_000) * 86_400_000_000, whole) - 1
        first, last = max(first, held[0].first), min(last, low - 1)
        return Interval(first, last) if first <= last else None

    def files(self, parts: Sequence[Interval]) -> list[tuple[dict[str, Any], Interval]]:
        """The files that hold the missing ``parts``: months of which all is missing, otherwise their days.

        What a day's file lacks is looked for in its month the next time: the second look, by another path.
        """
        hull = Interval(parts[0].first, parts[-1].last)
        found = list[tuple[dict[str, Any], Interval]]()
        for held, part in _spans(self.held(), hull.last):
            lacking = _common(parts, part)
            some = held.file.kind == "monthly" and 0 < lacking < part.size
            days = self._days_of(held.file) if some else []
            again = list[Interval]()
            for one, span in _spans(days, part.last) if days else [(held, part)]:
                if not _common(parts, span):
                    continue
                wanted = Interval(max(span.first, hull.first), min(span.last, hull.last))
                if one is not held and self._taken(one.file):
                    again.append(wanted)
                else:
                    found.append((one.file.to_json(), wanted))
            if again:
                found.append((held.file.to_json(), Interval(again[0].first, again[-1].last)))
        return found

    def _taken(self, file: ArchiveFile) -> bool:
        """Whether all that the file has was committed."""
        state = read_state(self.deps.objects, file, self.mapping)
        return state is not None and state.status == "ingested"

    def _days_of(self, month: ArchiveFile) -> list[Held]:
        return [d for at in _days(month.begin, month.end) if (d := self._at("daily", at))]

    def _at(self, kind: Kind, begin: dt.date) -> Held | None:
        """The file, where it is there and has a row."""
        if (kind, begin) not in self._known:
            file = file_of(self.mapping, self.stream, kind, begin)
            first = self._first_id(file)
            self._known[kind, begin] = None if first is None else Held(file, first)
        return self._known[kind, begin]

    def _first_id(self, file: ArchiveFile) -> int | None:
        url = address_of(self.mapping, self.deps.settings.endpoints.get(file.stream.exchange)) + file.path
        for tries_left in reversed(range(TRIES)):
            try:
                with self.source.open(url, {}) as answer:
                    if answer.status in ABSENT:
                        return None
                    if answer.status == 200:
                        return _first_id_of(self.mapping, file, _lines(answer, file))
                    if answer.status < 500 and answer.status not in PASSING:
                        raise ExchangeRefused(f"status {answer.status} for {file.path}", stream=file.stream)
            except (ExchangeUnavailable, ResponseInterrupted):
                if not tries_left:
                    raise
            self.deps.clock.sleep(PAUSE_S * 2 ** (TRIES - 1 - tries_left))
        raise ExchangeUnavailable(f"no answer for {file.path}", stream=file.stream)


def _spans(held: Sequence[Held], last: int) -> list[tuple[Held, Interval]]:
    """Each file with its positions: up to where the next one begins, the newest up to ``last``."""
    ends = [*(h.first - 1 for h in held[1:]), last]
    return [(h, Interval(h.first, end)) for h, end in zip(held, ends, strict=True) if h.first <= end]


def _common(parts: Sequence[Interval], span: Interval) -> int:
    return sum(max(0, min(p.last, span.last) - max(p.first, span.first) + 1) for p in parts)


def _lines(answer: Opened, file: ArchiveFile) -> list[str]:
    """The first two lines of a zip's first member, from the beginning of its bytes."""
    packed, plain = b"", b""
    for block in answer.blocks:
        packed += block
        plain = _unpacked(packed, file)
        if plain.count(b"\n") >= 2 or len(packed) > MAX_HEAD_BYTES:
            break
    return [line.strip() for line in plain.decode("utf-8", "replace").split("\n")[:2]]


def _unpacked(packed: bytes, file: ArchiveFile) -> bytes:
    if len(packed) < 30:
        return b""
    magic, flags, method, names, extra = struct.unpack("<4s2xHH16xHH", packed[:30])
    if magic != b"PK\x03\x04" or flags & 1 or method not in (0, 8):
        raise ArchiveUnreadable(f"{file.name} is not a zip", stream=file.stream)
    body = packed[30 + names + extra :]
    try:
        return body[:4096] if method == 0 else zlib.decompressobj(-15).decompress(body, 4096)
    except zlib.error as error:
        raise ArchiveUnreadable(f"{file.name} cannot be unpacked: {error}", stream=file.stream) from error


def _first_id_of(mapping: Mapping, file: ArchiveFile, lines: Sequence[str]) -> int | None:
    """The id in the first row behind a header, if there is one; None for a file without rows."""
    archive = archive_of(mapping)
    columns, name = archive.columns if archive else [], str(mapping.fields.trade_id)
    for number, line in enumerate(filter(None, lines)):
        cells = line.split(",")
        names = list(columns) if not isinstance(columns, dict) else [columns.get(c) for c in lines[0].split(",")]
        at = names.index(name) if name in names else len(cells)
        if at < len(cells) and cells[at].isascii() and cells[at].isdecimal() and len(cells[at]) < 19:
            return int(cells[at])
        if number:
            raise ArchiveUnreadable(f"{file.member} begins with {lines[0][:80]!r}", stream=file.stream)
    return None


def _days(first: dt.date, end: dt.date) -> Iterator[dt.date]:
    return (first + n * DAY for n in range((end - first).days))


def _months(first: dt.date, last: dt.date) -> Iterator[dt.date]:
    while first <= last:
        yield first
        first = (first + 32 * DAY).replace(day=1)
