"""One page of an exchange, live, saved or simulated, and the rows that the transform makes of it."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

import zstandard

from local.exchange_sim.simulator import Simulator
from local.exchange_sim.world import BadWorld, world_of
from schemahub.answers import Row
from schemahub.commit import segment_of
from schemahub.errors import BadInput
from schemahub.exchanges import Answer, Exchange, Http
from schemahub.mappings import Mapping
from schemahub.raw import content_of, raw_key
from schemahub.streams import RawObject, Stream

SIMULATED_NOW_S = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC).timestamp()
"""The simulator's clock stands still, so that its page is the same on every day."""
SIMULATED_TRADES_PER_DAY = 1_000
"""Few enough for a window of an hour to be read by a person."""


@dataclass(frozen=True)
class Page:
    """One answer: its exact bytes, and its rows as the mapping cuts them."""

    body: bytes
    rows: list[Row]


@dataclass(frozen=True)
class Reading:
    """A row as sent, and what the table will hold: a unified row, or the reason why it goes to quarantine."""

    row: Row
    unified: dict[str, Any] | None
    reason: str = ""


class SavedAnswer:
    """An ``Http`` that gives one saved answer to every question."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def get(self, url: str, params: dict[str, str]) -> Answer:
        return Answer(200, {"content-type": "application/json"}, self.body)


class SimulatedHttp:
    """An ``Http`` whose other end is the simulator that the mapping makes, in this process."""

    base_url = "http://simulator"

    def __init__(self, mapping: Mapping, product: str) -> None:
        self.exchange = mapping.exchange
        config = {"products": [product], "trades_per_day": SIMULATED_TRADES_PER_DAY, "limit": None}
        try:
            self.simulator = Simulator(world_of(mapping, config), real_s=lambda: SIMULATED_NOW_S)
        except BadWorld as error:
            raise BadInput(f"the simulator cannot play {product}: {error}") from error

    def get(self, url: str, params: dict[str, str]) -> Answer:
        answer = self.simulator.get(self.exchange, unquote(urlsplit(url).path), params, "kit")
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Answer(answer.status, {"content-type": answer.content_type, **headers}, answer.body)


class _Kept:
    """Hands an ``Http``'s answers on and keeps the last one's bytes."""

    def __init__(self, http: Http) -> None:
        self.http = http
        self.body = b""

    def get(self, url: str, params: dict[str, str]) -> Answer:
        answer = self.http.get(url, params)
        self.body = answer.body
        return answer


def newest_page(
    mapping: Mapping, product: str, http: Http, base_url: str | None = None, most_rows: int | None = None
) -> Page:
    """The newest trades of a product, by one request.

    Args:
        most_rows: ask for so many, where the exchange has a parameter for it.
    """
    if most_rows is not None:
        size = min(most_rows, mapping.requests.page_size)
        mapping = replace(mapping, requests=replace(mapping.requests, page_size=size))
    kept = _Kept(http)
    rows = Exchange(mapping, kept, base_url).newest(Stream(mapping.exchange, product))
    return Page(kept.body, sorted(rows, key=lambda row: row.position))


def readings(mapping: Mapping, product: str, rows: Sequence[Row], now_ms: int) -> list[Reading]:
    """What the transform makes of the rows if they are committed at ``now_ms``, in the rows' order.

    Raises:
        CorruptState: a trade stands twice. UnmappedField: the contract refuses a field.
    """
    if not rows:
        return []
    unified, refused = _transformed(mapping, Stream(mapping.exchange, product), rows, now_ms)
    found = []
    for row in rows:
        if reasons := refused.get(row.text):
            found.append(Reading(row, None, reasons.pop()))
        else:
            found.append(Reading(row, unified[row.trade_id].pop(0)))
    return found


def _transformed(
    mapping: Mapping, stream: Stream, rows: Sequence[Row], now_ms: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[str]]]:
    """Unified rows by their trade id, and reasons by the text of the row that was refused."""
    from schemahub.transform import transform_files  # the engines take a second to load

    content = content_of(row.text for row in rows)
    first, last = min(row.position for row in rows), max(row.position for row in rows)
    key = raw_key(stream, first, last, len(rows))
    kept = RawObject(key, first, last, len(rows), hashlib.sha256(content).hexdigest(), (), False)
    unified: dict[str, list[dict[str, Any]]] = {}
    refused: dict[str, list[str]] = {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "page.jsonl.zst"
        path.write_bytes(zstandard.ZstdCompressor().compress(content))
        result = transform_files(
            mapping, [(segment_of(stream, kept, "kit", "rest", now_ms), path)], Path(folder) / "out", threads=1
        )
        for file in result.files:
            for row in _rows_of(file.path):
                unified.setdefault(row["trade_id"], []).append(row)
        for line in _lines_of(result.quarantine):
            refused.setdefault(line["line"], []).append(line["reason"])
    return unified, refused


def _rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a data file but for ``ingest_ts``, which says when and not what. Exact decimals as text."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().drop_columns(["ingest_ts"]).to_pylist()
    for row in rows:
        row["trade_ts"] = row["trade_ts"].astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        row.update({name: f"{value:f}" for name, value in row.items() if isinstance(value, Decimal)})
    return rows


def _lines_of(path: Path | None) -> Iterator[dict[str, str]]:
    if path is None:
        return
    with zstandard.ZstdDecompressor().stream_reader(path.read_bytes()) as plain:
        for line in plain.read().splitlines():
            yield json.loads(line)
