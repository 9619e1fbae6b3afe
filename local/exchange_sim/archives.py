"""An exchange's files of history, from the same world as its API: zips with checksums, and what is wrong with some.

The mapping's ``archive`` read backwards: its columns give the rows, its ``values`` the words, its paths the names.
Files hold whole UTC days or months and appear when the mapping says; from 2025 on, times are in the finest unit that it
lists. What real archives got wrong (binance-public-data's issues) is planted by ``plant``.
"""

from __future__ import annotations

import calendar
import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from schemahub.mappings import NS
from schemahub.mappings import Mapping as ExchangeMapping

from . import generator
from .messages import Answer, Listing
from .sources import Generated

MICROSECONDS_FROM = date(2025, 1, 1)
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


@dataclass
class Archives:
    """The files of all exchanges of a world. Safe to call from many threads."""

    listings: Callable[[str], Mapping[str, Listing]]
    mapping: Callable[[str], ExchangeMapping]
    plants: list[Plant] = field(default_factory=list)
    requests: list[tuple[str, int]] = field(default_factory=list)
    """Path and first byte of every request."""
    _made: dict[tuple[str, str], bytes] = field(default_factory=dict)
    _guard: Any = field(default_factory=threading.Lock)

    def plant(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Add pathologies: kind, exchange, product, optionally begin (ISO date) and the kind's arguments."""
        found = []
        for config in configs:
            given = dict(config)
            kind, exchange, product = (given.pop(name) for name in ("kind", "exchange", "product"))
            begin = given.pop("begin", None)
            if kind not in KINDS or given.keys() - KINDS[kind].keys():
                raise ValueError(f"{kind}: possible are {KINDS.get(kind, sorted(KINDS))}")
            symbol = self.mapping(exchange).symbol_of(product)
            day = date.fromisoformat(begin) if begin else None
            found.append(Plant(kind, exchange, symbol, day, {**KINDS[kind], **given}))
        with self._guard:
            self.plants += found
            self._made.clear()

    def clear(self) -> None:
        with self._guard:
            self.plants.clear()
            self._made.clear()

    def get(self, exchange: str, path: str, headers: Mapping[str, str], now_us: int) -> Answer:
        """Answer a GET of a file or its checksum, whole or from a byte on."""
        mapping = self.mapping(exchange)
        archive = mapping.archive
        suffix = (archive.checksum or "").removeprefix("{file}") if archive else ""
        is_checksum = bool(suffix) and path.endswith(suffix)
        name = path.removesuffix(suffix) if is_checksum else path
        with self._guard:
            body = self._file(exchange, name, now_us)
            if body is None:
                return Answer(404, b"<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml")
            plants = self._plants_of(exchange, name)
            if is_checksum:
                return _checksum(body, name.rsplit("/", 1)[-1], plants)
            answer = _part(body, headers)
            self.requests.append((path, int(answer.headers.get("X-First", 0))))
            if any(p.kind == "break_off" and _fires(p) for p in plants):
                answer.cut = "close"
            return answer

    def _plants_of(self, exchange: str, path: str) -> list[Plant]:
        where = _parse(self.mapping(exchange), path)
        return [
            p
            for p in self.plants
            if where and p.exchange == exchange and p.product == where[0] and p.begin in (None, where[2])
        ]

    def _file(self, exchange: str, path: str, now_us: int) -> bytes | None:
        mapping = self.mapping(exchange)
        where = _parse(mapping, path)
        if where is None or mapping.archive is None:
            return None
        symbol, kind, begin = where
        listing = self.listings(exchange).get(symbol)
        end = begin + timedelta(days=1) if kind == "daily" else _next_month(begin)
        out_us = _micros(end) + int(mapping.archive.available_after_hours * 3600e6)
        plants = self._plants_of(exchange, path)
        if listing is None or now_us < out_us or any(p.kind == "no_file" for p in plants):
            return None
        key = (exchange, path)
        if key not in self._made:
            rows = rows_of(mapping, listing, _micros(begin), _micros(end), plants)
            if not rows:
                return None
            if len(self._made) > 8:
                self._made.clear()
            self._made[key] = _packed(path.rsplit("/", 1)[-1], rows, plants)
        return self._made[key]


def rows_of(
    mapping: ExchangeMapping, listing: Listing, begin_us: int, end_us: int, plants: Sequence[Plant]
) -> list[Row]:
    """The rows of a file as cells of text, with what is planted among them."""
    source = listing.source
    first, last = source.first_at_or_after(begin_us), source.first_at_or_after(end_us) - 1
    last = min(last, source.head(end_us))
    if last < first:
        return []
    default = mapping.archive.trade_ts_units[-1] if mapping.archive and mapping.archive.trade_ts_units else "ms"
    is_new = datetime.fromtimestamp(begin_us / 1e6, UTC).date() >= MICROSECONDS_FROM
    unit = default if is_new else str(mapping.fields.ts_unit)
    texts = source.oldest(first, last, last - first + 1)
    times_us = (t[1] for t in generator.ticks(source.product, first, last)) if isinstance(source, Generated) else None
    rows = [(number, _row(mapping, text, unit, next(times_us) if times_us else None)) for number, text in texts]
    for plant in plants:
        if plant.kind in _SPOIL:
            rows = _SPOIL[plant.kind](_Scene(mapping, listing, rows, plant.args))
    if any(p.kind == "header" for p in plants):
        rows.insert(0, (-1, _columns(mapping)))
    return [cells for _, cells in rows]


def _columns(mapping: ExchangeMapping) -> Row:
    columns = mapping.archive.columns if mapping.archive else []
    return list(columns)


def _cells(mapping: ExchangeMapping, listing: Listing, number: int, unit: str) -> Row:
    """One trade as the archive writes it."""
    ((_, text),) = listing.source.oldest(number, number, 1)
    time_us = generator.time_of(listing.source.product, number) if isinstance(listing.source, Generated) else None
    return _row(mapping, text, unit, time_us)


def _row(mapping: ExchangeMapping, text: str, unit: str, time_us: int | None) -> Row:
    """A row of the API as the archive writes it; times as finely as ``time_us`` knows them."""
    assert mapping.archive is not None
    row = json.loads(text, parse_float=str)
    names = mapping.archive.columns.values() if isinstance(mapping.archive.columns, dict) else mapping.archive.columns
    cells = []
    for name in names:
        value = row.get(name, "")
        said = json.dumps(value) if isinstance(value, bool) else str(value)
        if name == mapping.fields.trade_ts:
            us = int(said) * NS[str(mapping.fields.ts_unit)] // 1000 if time_us is None else time_us
            said = str(us * 1000 // NS[unit])
        back = {ours: theirs for theirs, ours in reversed(mapping.archive.values.get(name, {}).items())}
        cells.append(back.get(said, said))
    return cells


@dataclass(frozen=True)
class _Scene:
    """A file's rows (id, cells) and what a pathology needs to know to spoil them."""

    mapping: ExchangeMapping
    listing: Listing
    rows: list[tuple[int, Row]]
    args: dict[str, Any]

    def at(self, element: Any) -> int:
        return _columns(self.mapping).index(str(element))

    def touched(self, number: int) -> bool:
        ids = self.args.get("ids")
        return ids is not None and ids[0] <= number <= ids[1]

    def changed(self, change: Callable[[int, Row], Row]) -> list[tuple[int, Row]]:
        return [(n, change(n, c) if self.touched(n) else c) for n, c in self.rows]

    def with_cell(self, element: Any, text: Callable[[int, str], str]) -> Callable[[int, Row], Row]:
        at = self.at(element)

        def change(number: int, cells: Row) -> Row:
            return [*cells[:at], text(number, cells[at]), *cells[at + 1 :]]

        return change


def _skip(s: _Scene) -> list[tuple[int, Row]]:
    return [row for row in s.rows if not s.touched(row[0])]


def _truncate(s: _Scene) -> list[tuple[int, Row]]:
    *kept, (number, cells) = s.rows[: max(1, round(len(s.rows) * s.args["share"]))]
    return [*kept, (number, cells[: len(cells) // 2])]


def _repeat(s: _Scene) -> list[tuple[int, Row]]:
    again = [row for row in s.rows if s.touched(row[0])]
    place = s.rows.index(again[-1]) + 1
    return s.rows[:place] + again * int(s.args["times"]) + s.rows[place:]


def _other_quantity(s: _Scene) -> list[tuple[int, Row]]:
    return s.changed(s.with_cell(s.mapping.fields.quantity, lambda _, text: _other(text)))


def _other_trades(s: _Scene) -> list[tuple[int, Row]]:
    at = s.at(s.mapping.fields.trade_id)

    def change(number: int, cells: Row) -> Row:
        other = _cells(s.mapping, s.listing, number + 7, "ms")
        return [*other[:at], cells[at], *other[at + 1 :]]

    return s.changed(change)


def _another_day(s: _Scene) -> list[tuple[int, Row]]:
    last = max(number for number, _ in s.rows)
    unit = "us" if len(s.rows[0][1][s.at(s.mapping.fields.trade_ts)]) > 14 else "ms"
    rows = list(s.rows)
    step = max(1, len(rows) // (s.args["rows"] + 1))
    for number in range(1, s.args["rows"] + 1):
        rows.insert(number * step, (last + number, _cells(s.mapping, s.listing, last + number, unit)))
    return rows


def _unit(s: _Scene) -> list[tuple[int, Row]]:
    whole = _Scene(s.mapping, s.listing, s.rows, {"ids": s.args["ids"] or (0, 2**63)})
    at = s.at(s.mapping.fields.trade_ts)

    def text(number: int, _: str) -> str:
        return _cells(s.mapping, s.listing, number, s.args["unit"])[at]

    return whole.changed(s.with_cell(s.mapping.fields.trade_ts, text))


def _garbage(s: _Scene) -> list[tuple[int, Row]]:
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
    "bad_price": lambda s: s.changed(s.with_cell(s.mapping.fields.price, lambda _, text: "0")),
}
"""What each kind does to the rows of a file."""


def _other(text: str) -> str:
    return text[:-1] + str((int(text[-1]) + 1) % 10)


def _packed(name: str, rows: Sequence[Row], plants: Sequence[Plant]) -> bytes:
    kinds = {p.kind: p for p in plants}
    text = "".join(",".join(cells) + "\n" for cells in rows).encode()
    member = name.removesuffix(".zip") + ".csv"
    if "not_zip" in kinds:
        return b"<html>maintenance</html>" + text[:100]
    if "bomb" in kinds:
        text = bytes(kinds["bomb"].args["megabytes"] * 2**20)
    if "nested" in kinds:
        text = _zip([(member, text)])
    if "other_member" in kinds:
        member = kinds["other_member"].args["name"]
    members = [(member, text)] * (1 + ("two_members" in kinds))
    members = [(f"{n}{where}" if n else where, what) for n, (where, what) in enumerate(members)]
    body = bytearray(_zip([(f"{member}.zip" if "nested" in kinds else where, what) for where, what in members]))
    if "corrupt" in kinds:
        body[len(body) // 2] ^= 0xFF
    return bytes(body)


def _zip(members: Sequence[tuple[str, bytes]]) -> bytes:
    """The same bytes for the same content."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in members:
            packed.writestr(zipfile.ZipInfo(name, (2025, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _checksum(body: bytes, name: str, plants: Sequence[Plant]) -> Answer:
    if any(p.kind == "no_checksum" for p in plants):
        return Answer(404, b"<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml")
    digest = hashlib.sha256(body).hexdigest()
    if any(p.kind == "wrong_checksum" and _fires(p) for p in plants):
        digest = digest[::-1]
    return Answer(200, f"{digest}  {name}\n".encode(), content_type="text/plain")


def _fires(plant: Plant) -> bool:
    plant.fired += 1
    return plant.args["times"] is None or plant.fired <= plant.args["times"]


def _part(body: bytes, headers: Mapping[str, str]) -> Answer:
    """The file from the byte that is asked for on, as S3 answers."""
    tag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
    said = {"ETag": tag, "Accept-Ranges": "bytes"}
    match = re.fullmatch(r"bytes=(\d+)-", headers.get("Range") or "")
    if match is None or headers.get("If-Range", tag) != tag:
        return Answer(200, body, said, content_type="application/zip")
    first = int(match[1])
    if first >= len(body):
        return Answer(416, b"", {**said, "Content-Range": f"bytes */{len(body)}"}, content_type="application/zip")
    said |= {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}", "X-First": str(first)}
    return Answer(206, body[first:], said, content_type="application/zip")


def _parse(mapping: ExchangeMapping, path: str) -> tuple[str, str, date] | None:
    """Symbol, kind and first day of a file's path."""
    archive = mapping.archive
    for kind, template in (("daily", archive.daily), ("monthly", archive.monthly)) if archive else ():
        if template and (match := _pattern(template).fullmatch(path)):
            found = match.groupdict()
            try:
                return found["symbol"], kind, date(int(found["yyyy"]), int(found["mm"]), int(found.get("dd") or 1))
            except ValueError:
                return None
    return None


def _pattern(template: str) -> re.Pattern[str]:
    digits = {"symbol": "[^/]+?", "yyyy": r"\d{4}", "mm": r"\d\d", "dd": r"\d\d"}
    text, seen = "", set[str]()
    for part in re.split(r"(\{\w+\})", template):
        name = part.strip("{}")
        if not part.startswith("{"):
            text += re.escape(part)
        elif name in seen:
            text += f"(?P={name})"
        else:
            text += f"(?P<{name}>{digits[name]})"
            seen.add(name)
    return re.compile(text)


def _micros(day: date) -> int:
    return calendar.timegm(day.timetuple()) * 1_000_000


def _next_month(day: date) -> date:
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1)
