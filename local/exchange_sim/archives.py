"""An exchange's files of history, from the same world as its API: zips with checksums, and what is wrong with some.

The mapping's ``archive`` read backwards: its columns give the rows, its ``values`` the words, its paths the names. Files
hold whole UTC days or months and appear when the mapping says; from 2025 on, times are in the finest unit that it
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
    made = {number: _cells(mapping, listing, number, unit) for number in range(first, last + 1)}
    rows = [[number, cells] for number, cells in made.items()]
    for plant in plants:
        rows = _spoiled(plant, rows, mapping, listing)
    if any(p.kind == "header" for p in plants):
        rows.insert(0, [-1, _columns(mapping)])
    return [cells for _, cells in rows]


def _columns(mapping: ExchangeMapping) -> Row:
    columns = mapping.archive.columns if mapping.archive else []
    return list(columns)


def _cells(mapping: ExchangeMapping, listing: Listing, number: int, unit: str) -> Row:
    """A trade as the archive writes it."""
    assert mapping.archive is not None
    ((_, text),) = listing.source.oldest(number, number, 1)
    row = json.loads(text, parse_float=str)
    names = mapping.archive.columns.values() if isinstance(mapping.archive.columns, dict) else mapping.archive.columns
    cells = []
    for name in names:
        value = row.get(name, "")
        said = json.dumps(value) if isinstance(value, bool) else str(value)
        back = {ours: theirs for theirs, ours in reversed(mapping.archive.values.get(name, {}).items())}
        if name == mapping.fields.trade_ts:
            said = _time(mapping, listing, number, said, unit)
        cells.append(back.get(said, said))
    return cells


def _time(mapping: ExchangeMapping, listing: Listing, number: int, said: str, unit: str) -> str:
    us = int(said) * NS[str(mapping.fields.ts_unit)] // 1000
    if isinstance(listing.source, Generated):
        us = generator.time_of(listing.source.product, number)
    return str(us * 1000 // NS[unit])


def _spoiled(plant: Plant, rows: list[Any], mapping: ExchangeMapping, listing: Listing) -> list[Any]:
    """The rows after one pathology."""
    args, kind = plant.args, plant.kind
    ids = range(args["ids"][0], args["ids"][1] + 1) if args.get("ids") else None
    touched = [row for row in rows if ids is not None and row[0] in ids]
    fields = mapping.fields
    at = {name: n for n, name in enumerate(_columns(mapping))}
    quantity, price, time = (at[str(e)] for e in (fields.quantity, fields.price, fields.trade_ts))
    if kind == "skip":
        return [row for row in rows if ids is None or row[0] not in ids]
    if kind == "truncate":
        kept = rows[: max(1, round(len(rows) * args["share"]))]
        return [*kept[:-1], [kept[-1][0], kept[-1][1][: len(kept[-1][1]) // 2]]]
    if kind == "repeat":
        place = max(n for n, row in enumerate(rows) if row in touched) + 1
        return rows[:place] + touched * args["times"] + rows[place:]
    if kind in ("conflict", "other_quantity"):
        others = [[number, [*c[:quantity], _other(c[quantity]), *c[quantity + 1 :]]] for number, c in touched]
        if kind == "conflict":
            return rows + others
        changed = {number: row for number, row in ((o[0], o) for o in others)}
        return [changed.get(row[0], row) for row in rows]
    if kind == "other_trades":
        return [
            [n, [str(n), *_cells(mapping, listing, n + 7, "ms")[1:]]] if ids is not None and n in ids else [n, c]
            for n, c in rows
        ]
    if kind == "another_day":
        last = max(row[0] for row in rows)
        unit = "us" if len(rows[0][1][time]) > 14 else "ms"
        strange = [[n, _cells(mapping, listing, n, unit)] for n in range(last + 1, last + 1 + args["rows"])]
        step = max(1, len(rows) // (len(strange) + 1))
        for number, row in enumerate(strange, 1):
            rows.insert(number * step, row)
        return rows
    if kind == "reverse":
        return rows[::-1]
    if kind == "interleave":
        return [row for way in range(args["ways"]) for row in rows[way :: args["ways"]]]
    if kind == "unit":
        wanted = {row[0] for row in touched} if ids is not None else {row[0] for row in rows}
        return [[n, [*c[:time], _time(mapping, listing, n, "0", args["unit"]), *c[time + 1 :]]] if n in wanted else [n, c]
                for n, c in rows]  # fmt: skip
    if kind == "garbage":
        bad = [["not a number", "\x00", '"'], ["1", "2"], [*rows[0][1], "one too many"]]
        return rows[:5] + [[-1, bad[n % len(bad)]] for n in range(args["rows"])] + rows[5:]
    if kind == "bad_price":
        return [[n, [*c[:price], "0", *c[price + 1 :]]] if ids is not None and n in ids else [n, c] for n, c in rows]
    return rows


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
