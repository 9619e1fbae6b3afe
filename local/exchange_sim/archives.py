"""An exchange's files of history, from the same world as its API: zips with checksums, and what is wrong with some.

The mapping's ``archive`` read backwards: its columns give the rows, its ``values`` the words, its paths the names.
Files hold whole UTC days or months and appear when the mapping says; from 2025 on, times are in the finest unit that it
lists. What real archives got wrong (binance-public-data's issues) is planted by ``plant``.
"""

from __future__ import annotations

import calendar
import gc
import hashlib
import io
import itertools
import re
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from schemahub.mappings import Mapping as ExchangeMapping

from .archive_rows import KINDS, Plant, Row, blocks_of
from .messages import Answer, Listing

COMPRESSION = 3


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
            self._forget(found)

    def clear(self, begin: date | None = None) -> None:
        """Heal the files that begin on that day, or all of them: they are issued again."""
        with self._guard:
            healed = [p for p in self.plants if begin in (None, p.begin)]
            self.plants = [p for p in self.plants if p not in healed]
            self._forget(healed)

    def _forget(self, plants: Sequence[Plant]) -> None:
        """Make the files anew that these concern; a month takes minutes, so the others are kept."""
        for key in [k for k in self._made if any(self._concerns(p, *k) for p in plants)]:
            del self._made[key]

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
        return [p for p in self.plants if self._concerns(p, exchange, path)]

    def _concerns(self, plant: Plant, exchange: str, path: str) -> bool:
        where = _parse(self.mapping(exchange), path)
        return (
            where is not None
            and plant.exchange == exchange
            and plant.product == where[0]
            and (plant.begin in (None, where[2]))
        )

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
            blocks = blocks_of(mapping, listing, _micros(begin), _micros(end), plants)
            if (head := next(blocks, None)) is None:
                return None
            if len(self._made) > 8:
                self._made.clear()
            # The collector would look at the rows of a block again and again: half of the time of a month.
            gc.disable()
            try:
                self._made[key] = _packed(path.rsplit("/", 1)[-1], itertools.chain([head], blocks), plants)
            finally:
                gc.enable()
        return self._made[key]


def _packed(name: str, blocks: Iterable[list[Row]], plants: Sequence[Plant]) -> bytes:
    kinds = {p.kind: p for p in plants}
    texts: Iterable[bytes] = ("".join(",".join(cells) + "\n" for cells in rows).encode() for rows in blocks)
    member = name.removesuffix(".zip") + ".csv"
    if "not_zip" in kinds:
        return b"<html>maintenance</html>" + b"".join(texts)[:100]
    if "bomb" in kinds:
        texts = (bytes(2**20) for _ in range(kinds["bomb"].args["megabytes"]))
    if "nested" in kinds:
        texts, member = [_zip([member], texts)], f"{member}.zip"
    if "other_member" in kinds:
        member = kinds["other_member"].args["name"]
    body = bytearray(_zip([member, f"1{member}"] if "two_members" in kinds else [member], texts))
    if "corrupt" in kinds:
        body[len(body) // 2] ^= 0xFF
    return bytes(body)


def _zip(names: Sequence[str], texts: Iterable[bytes]) -> bytes:
    """The same bytes for the same content, which the first name has and any further ones too."""
    out = io.BytesIO()
    kept: Iterable[bytes] = list(texts) if len(names) > 1 else texts
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION) as packed:
        for name in names:
            about = zipfile.ZipInfo(name, (2025, 1, 1, 0, 0, 0))
            about.compress_type = zipfile.ZIP_DEFLATED
            with packed.open(about, "w", force_zip64=True) as member:
                for text in kept:
                    member.write(text)
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
