"""Recorded trades as a product's history: the objects of the file, byte for byte.

Three forms, told apart by content: JSON Lines (`.gz` or not) of raw trades, one JSON array of raw
trades, and lines of the Coinbase websocket channel `matches`, whose REST trade is the five fields
that the REST endpoint has.
"""

from __future__ import annotations

import gzip
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path

from schemahub.answers import parse_elements
from schemahub.errors import MalformedResponse
from schemahub.mappings import Mapping

from .sources import Row

_REST_FIELDS = ("trade_id", "side", "size", "price", "time")


class BadRecording(ValueError):
    """The file cannot be served as this product's history; the message says which line and why."""


class Recorded:
    """A recorded file as a `Source`: its last id is the head, whatever the time is."""

    def __init__(self, rows: list[Row], times_us: list[int]) -> None:
        self._rows = rows
        self._ids = [row[0] for row in rows]
        self._times_us = times_us

    @property
    def first_id(self) -> int:
        return self._ids[0]

    def head(self, now_us: int) -> int:
        return self._ids[-1]

    def oldest(self, first: int, last: int, limit: int) -> list[Row]:
        low, high = bisect_left(self._ids, first), bisect_right(self._ids, last)
        return self._rows[low : min(high, low + limit)]

    def newest(self, first: int, last: int, limit: int) -> list[Row]:
        low, high = bisect_left(self._ids, first), bisect_right(self._ids, last)
        return self._rows[max(low, high - limit) : high]

    def first_at_or_after(self, time_us: int) -> int:
        for trade_id, trade_time_us in zip(self._ids, self._times_us, strict=True):
            if trade_time_us >= time_us:
                return trade_id
        return self._ids[-1] + 1


def load(mapping: Mapping, product: str, path: Path) -> Recorded:
    """Read one product's trades from a recorded file.

    Raises BadRecording when the file has none of them, or the same id twice with different content.
    """
    found: dict[int, tuple[str, int]] = {}
    for text in _trades(path.read_bytes(), product, path):
        try:
            (trade,) = parse_elements(f"[{text}]".encode(), mapping)
        except MalformedResponse as error:
            raise BadRecording(f"{path}: {error.reason}") from error
        trade_id, row = int(trade.trade_id), (text, trade.ts_us or 0)
        if found.setdefault(trade_id, row) != row:
            raise BadRecording(f"{path}: {product} has id {trade_id} twice, with different content")
    if not found:
        raise BadRecording(f"{path}: no trade of {product}")
    ids = sorted(found)
    return Recorded([(i, found[i][0]) for i in ids], [found[i][1] for i in ids])


def _trades(content: bytes, product: str, path: Path) -> Iterator[str]:
    """Each trade of the product in its own text."""
    text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8")
    pieces = _array(text) if text.lstrip().startswith("[") else text.splitlines()
    for number, piece in enumerate(pieces, 1):
        if not piece.strip():
            continue
        try:
            trade = json.loads(piece)
        except ValueError as error:
            raise BadRecording(f"{path}: record {number}: {error}") from error
        if "product_id" not in trade:
            yield piece
        elif trade["type"] in ("match", "last_match") and trade["product_id"] == product:
            rest = {field: trade[field] for field in _REST_FIELDS}
            yield json.dumps(rest, separators=(",", ":"))


def _array(text: str) -> Iterator[str]:
    """The elements of a JSON array, each exactly as written."""
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    while True:
        while text[at] in ", \t\r\n":
            at += 1
        if text[at] == "]":
            return
        _, end = decoder.raw_decode(text, at)
        yield text[at:end]
        at = end
