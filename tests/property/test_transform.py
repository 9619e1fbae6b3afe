"""The transform against a slow, obvious Python reading of the same mapping, over rows that are mostly odd."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import zstandard
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from schemahub.datafiles import micros
from schemahub.mapping_sql import EARLIEST_US, LATEST_AFTER_COMMIT_US, REASONS
from schemahub.mappings import load_mapping
from schemahub.streams import Stream
from schemahub.transform import transform_files
from tests.lake import COMMITTED_MS, packed, segment_of

FIRST, LAST = 95, 130
LATEST_US = COMMITTED_MS * 1000 + LATEST_AFTER_COMMIT_US

fine = st.decimals(min_value="0.00000001", max_value="1e9", places=8).map(lambda d: f"{d:f}")
odd = st.sampled_from(
    [None, "", "0", "-1", "NaN", "Infinity", "1e-8", "2E5", "1e999", "x", True, 0.25, 7, [], "0.0", ".5"]
)
numbers = st.one_of(fine, fine, fine, odd)
whole_second = st.integers(EARLIEST_US // 1_000_000 - 5, LATEST_US // 1_000_000 + 5)
edges = st.sampled_from([EARLIEST_US, EARLIEST_US - 1, LATEST_US, LATEST_US + 1])
moments = st.one_of(st.builds(lambda s, us: s * 1_000_000 + us, whole_second, st.integers(0, 999_999)), edges)


def iso(us: int) -> str:
    moment = dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=us)  # noqa: DTZ001  formatted with its Z
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + f".{us % 1_000_000:06d}Z"


spoiled = st.sampled_from([None, "", "2024-03-01T00:00:00", 5, "2024-13-01T00:00:00Z"])
times = st.one_of(moments.map(iso), moments.map(iso), spoiled)
sides = st.one_of(st.sampled_from(["buy", "sell"]), st.sampled_from(["buy", "sell", "BUY", None, True]))


def number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None or isinstance(value, list):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) and found > 0 else None


def moment(value: Any) -> int | None:
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", value):
        return None
    try:
        return micros(dt.datetime.fromisoformat(value))
    except ValueError:
        return None


def expected(row: dict[str, Any]) -> tuple[Any, ...]:
    """(reason,) of a bad row, (0, price, quantity, side, µs) of a good one."""
    price, quantity, at = number(row["price"]), number(row["size"]), moment(row["time"])
    if not FIRST <= row["trade_id"] <= LAST:
        return (2,)
    if price is None:
        return (3,)
    if quantity is None:
        return (4,)
    if row["side"] not in ("buy", "sell"):
        return (5,)
    if at is None:
        return (6,)
    if not EARLIEST_US <= at <= LATEST_US:
        return (7,)
    return (0, price, quantity, "SELL" if row["side"] == "buy" else "BUY", at)


ids = st.integers(FIRST - 2, LAST + 2)
row_of_trade = st.fixed_dictionaries({"trade_id": ids, "price": numbers, "size": numbers, "time": times, "side": sides})
rows_of_trades = st.lists(row_of_trade, min_size=1, max_size=30, unique_by=lambda row: row["trade_id"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows_of_trades)
def test_every_row_is_mapped_or_quarantined_exactly_as_an_obvious_reader_would(rows: list[dict[str, Any]]) -> None:
    mapping = replace(load_mapping("coinbase"), quarantine_max_share=1.0)
    body, plain = packed(rows)
    segment = segment_of(Stream("coinbase", "BTC-USD"), FIRST, LAST, rows, plain)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "raw.jsonl.zst").write_bytes(body)
        result = transform_files(mapping, [(segment, folder / "raw.jsonl.zst")], folder / "out", threads=1)
        tables = [pq.read_table(file.path).to_pylist() for file in result.files]
        bad = []
        if result.quarantine:
            unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(result.quarantine.read_bytes())
            bad = [json.loads(line) for line in unpacked.splitlines()]
    good = [row for table in tables for row in table]
    found: dict[int, tuple[Any, ...]] = {
        int(r["trade_id"]): (0, r["price"], r["quantity"], r["side"], micros(r["trade_ts"])) for r in good
    }
    found |= {json.loads(b["line"])["trade_id"]: (REASONS.index(b["reason"]),) for b in bad}
    assert found == {row["trade_id"]: expected(row) for row in rows}
    assert len(good) + len(bad) == len(rows)
    order = [(micros(r["trade_ts"]), int(r["trade_id"])) for r in good]
    assert order == sorted(order)
    for file, table in zip(result.files, tables, strict=True):
        assert {row["trade_ts"].date() for row in table} == {file.day}
    event(f"good rows: {min(len(good), 5)}")
    event(f"files: {min(len(tables), 3)}")
