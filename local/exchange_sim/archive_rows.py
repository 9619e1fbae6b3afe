"""Rows of an archive's files, from the same history as the API, and what spoils them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

from schemahub.mappings import NS
from schemahub.mappings import Mapping as ExchangeMapping

from . import generator
from .messages import Listing
from .sources import Generated

MICROSECONDS_FROM = date(2025, 1, 1)
BLOCK_ROWS = 250_000
_AS_SENT = json.JSONDecoder(parse_float=str, parse_int=str)
_WORDS = {True: "true", False: "false", None: "null"}
KINDS: dict[str, dict[str, Any]] = {
    "no_file": {},  # 404 although it is time
    "no_checksum": {},
    "wrong_checksum": {"times": None},  # so many answers; then the right one
    "break_off": {"times": 1},  # half of the answer, then the connection ends
    "corrupt": {},  # a byte in the middle of the packed data is another one
    "not_zip": {},
    "bomb": {"megabytes": 80},  # zeros
    "nested": {},  # a zip in the zip
    "two_members": {},
    "other_member": {"name": "../../etc/passwd"},
    "skip": {"ids": None},  # rows that the API has
    "truncate": {"share": 0.4},  # only the first part of the rows, the last one in half
    "repeat": {"ids": None, "times": 1},
    "conflict": {"ids": None},  # a second row of the same id with another quantity
    "other_quantity": {"ids": None},  # another quantity than in the API
    "other_trades": {"ids": None},  # the rows of other trades under these ids
    "another_day": {"rows": 5},  # rows of the day after between those of the day
    "reverse": {},
    "interleave": {"ways": 7},
    "unit": {"unit": "us", "ids": None},  # None: all rows
    "garbage": {"rows": 3},
    "header": {},
    "bad_price": {"ids": None},
}
"""Each kind with its arguments; ``ids`` is a closed range."""
Row = list[str]


@dataclass
class Plant:
    """Something wrong with the files of one product; without ``begin`` with all of them."""

    kind: str
    exchange: str
    product: str
    begin: date | None
    args: dict[str, Any]
    fired: int = 0


def blocks_of(
    mapping: ExchangeMapping, listing: Listing, begin_us: int, end_us: int, plants: Sequence[Plant]
) -> Iterator[list[Row]]:
    """The rows of a file as cells of text, with what is planted among them; never a whole month in memory.

    Disorder that is planted is that of ``BLOCK_ROWS`` neighbours, which a day's file of a test is whole.
    """
    source = listing.source
    first, last = source.first_at_or_after(begin_us), source.first_at_or_after(end_us) - 1
    last = min(last, source.head(end_us))
    default = mapping.archive.trade_ts_units[-1] if mapping.archive and mapping.archive.trade_ts_units else "ms"
    is_new = datetime.fromtimestamp(begin_us / 1e6, UTC).date() >= MICROSECONDS_FROM
    writer = _Writer(mapping, listing, default if is_new else str(mapping.fields.ts_unit))
    if any(p.kind == "header" for p in plants) and first <= last:
        yield [writer.names]
    for begin in range(first, last + 1, BLOCK_ROWS):
        end = min(last, begin + BLOCK_ROWS - 1)
        rows = writer.rows(begin, end)
        for plant in plants:
            low, high = plant.args.get("ids") or (begin, end)
            if plant.kind in _SPOIL and rows and low <= end and high >= begin:
                rows = _SPOIL[plant.kind](_Scene(writer, rows, plant.args, (first, last)))
        yield [cells for _, cells in rows]


class _Writer:
    """Trades as the archive of an exchange writes them; times as finely as the generator knows them."""

    def __init__(self, mapping: ExchangeMapping, listing: Listing, unit: str) -> None:
        assert mapping.archive is not None
        self.mapping, self.listing, self.unit = mapping, listing, unit
        self.names = list(mapping.archive.columns)
        columns = mapping.archive.columns
        self._elements: list[Any] = list(columns.values() if isinstance(columns, dict) else columns)
        words = mapping.archive.values
        self._words = [
            (at, {ours: theirs for theirs, ours in reversed(words[name].items())})
            for at, name in enumerate(self._elements)
            if name in words
        ]
        self._time_at = self._elements.index(mapping.fields.trade_ts)

    def at(self, element: Any) -> int:
        return self.names.index(str(element))

    def rows(self, first: int, last: int, unit: str | None = None) -> list[tuple[int, Row]]:
        source = self.listing.source
        texts = source.oldest(first, last, last - first + 1)
        ticks = generator.ticks(source.product, first, last) if isinstance(source, Generated) else None
        return [(n, self._cells(text, unit or self.unit, next(ticks)[1] if ticks else None)) for n, text in texts]

    def cells(self, number: int, unit: str) -> Row:
        ((_, found),) = self.rows(number, number, unit)
        return found

    def _cells(self, text: str, unit: str, time_us: int | None) -> Row:
        row = _AS_SENT.decode(text)
        cells = [row.get(name, "") for name in self._elements]
        us = time_us
        if us is None:
            us = int(cells[self._time_at]) * NS[str(self.mapping.fields.ts_unit)] // 1000
        cells[self._time_at] = str(us * 1000 // NS[unit])
        cells = [cell if cell.__class__ is str else _WORDS[cell] for cell in cells]
        for at, back in self._words:
            cells[at] = back.get(cells[at], cells[at])
        return cells


@dataclass(frozen=True)
class _Scene:
    """Rows of a file (id, cells) and what a pathology needs to know to spoil them."""

    writer: _Writer
    rows: list[tuple[int, Row]]
    args: dict[str, Any]
    file: tuple[int, int]
    """The first and the last id of the whole file."""

    def holds(self, number: int) -> bool:
        """Whether this is the block of the file's row of that id."""
        return (number - self.file[0]) // BLOCK_ROWS == (self.rows[0][0] - self.file[0]) // BLOCK_ROWS

    def touched(self, number: int) -> bool:
        ids = self.args.get("ids")
        return ids is not None and ids[0] <= number <= ids[1]

    def changed(self, change: Callable[[int, Row], Row]) -> list[tuple[int, Row]]:
        return [(n, change(n, c) if self.touched(n) else c) for n, c in self.rows]

    def with_cell(self, element: Any, text: Callable[[int, str], str]) -> Callable[[int, Row], Row]:
        at = self.writer.at(element)

        def change(number: int, cells: Row) -> Row:
            return [*cells[:at], text(number, cells[at]), *cells[at + 1 :]]

        return change


def _skip(s: _Scene) -> list[tuple[int, Row]]:
    return [row for row in s.rows if not s.touched(row[0])]


def _truncate(s: _Scene) -> list[tuple[int, Row]]:
    first, last = s.file
    broken = first + max(1, round((last - first + 1) * s.args["share"])) - 1
    return [(n, cells[: len(cells) // 2] if n == broken else cells) for n, cells in s.rows if n <= broken]


def _repeat(s: _Scene) -> list[tuple[int, Row]]:
    again = [row for row in s.rows if s.touched(row[0])]
    if not again:
        return s.rows
    place = s.rows.index(again[-1]) + 1
    return s.rows[:place] + again * int(s.args["times"]) + s.rows[place:]


def _other_quantity(s: _Scene) -> list[tuple[int, Row]]:
    return s.changed(s.with_cell(s.writer.mapping.fields.quantity, lambda _, text: _other(text)))


def _other_trades(s: _Scene) -> list[tuple[int, Row]]:
    at = s.writer.at(s.writer.mapping.fields.trade_id)

    def change(number: int, cells: Row) -> Row:
        other = s.writer.cells(number + 7, "ms")
        return [*other[:at], cells[at], *other[at + 1 :]]

    return s.changed(change)


def _another_day(s: _Scene) -> list[tuple[int, Row]]:
    if not s.holds(s.file[0]):
        return s.rows
    last, rows = s.file[1], list(s.rows)
    step = max(1, len(rows) // (s.args["rows"] + 1))
    for number in range(1, s.args["rows"] + 1):
        rows.insert(number * step, (last + number, s.writer.cells(last + number, s.writer.unit)))
    return rows


def _unit(s: _Scene) -> list[tuple[int, Row]]:
    whole = replace(s, args={"ids": s.args["ids"] or (0, 2**63)})
    field = s.writer.mapping.fields.trade_ts
    at = s.writer.at(field)
    return whole.changed(s.with_cell(field, lambda number, _: s.writer.cells(number, s.args["unit"])[at]))


def _garbage(s: _Scene) -> list[tuple[int, Row]]:
    if not s.holds(s.file[0]):
        return s.rows
    bad = [["not a number", "\x00", '"'], ["1", "2"], [*s.rows[0][1], "one too many"]]
    return s.rows[:5] + [(-1, bad[n % len(bad)]) for n in range(s.args["rows"])] + s.rows[5:]


_SPOIL: dict[str, Callable[[_Scene], list[tuple[int, Row]]]] = {
    "skip": _skip,
    "truncate": _truncate,
    "repeat": _repeat,
    "conflict": lambda s: s.rows + [row for row in _other_quantity(s) if s.touched(row[0])],
    "other_quantity": _other_quantity,
    "other_trades": _other_trades,
    "another_day": _another_day,
    "reverse": lambda s: s.rows[::-1],
    "interleave": lambda s: [row for way in range(s.args["ways"]) for row in s.rows[way :: s.args["ways"]]],
    "unit": _unit,
    "garbage": _garbage,
    "bad_price": lambda s: s.changed(s.with_cell(s.writer.mapping.fields.price, lambda _, text: "0")),
}
"""What each kind does to the rows of a file."""


def _other(text: str) -> str:
    return text[:-1] + str((int(text[-1]) + 1) % 10)
