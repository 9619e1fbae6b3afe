"""Exact prices and quantities against Python's decimal arithmetic, over numbers that are mostly odd."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from schemahub.mappings import load_mapping
from schemahub.streams import Stream
from schemahub.transform import Transformed, transform_files
from tests.lake import coinbase_row, packed, segment_of

digits = st.text("0123456789", min_size=1, max_size=24)
plain = st.builds(lambda whole, rest: f"{whole.lstrip('0') or '0'}.{rest}", digits, digits)
whole = digits.map(lambda text: text.lstrip("0") or "0")
exponent = st.builds(lambda text, e: f"{text}e{e}", st.one_of(plain, whole), st.integers(-40, 40))
edges = st.sampled_from([
    "0.1000000000000000055", "9007199254740993", "1.50", "100", "100.000000000000000000", "1e2", "1e-18", "1e-19",
    "0.123456789012345678", "0.1234567890123456789", "99999999999999999999.999999999999999999",
    "100000000000000000000", "123456789.12345678", "1.2345e-320", "4.9406564584124654e-324", "0.30000000000000004",
    "1E5", "1e+5", "222000.0e17", "1.0e20", "5000000000000000.0", "73271.63000000",
])  # fmt: skip
numbers = st.one_of(plain, whole, exponent, edges).filter(lambda text: 0 < float(text) < float("inf"))
trades = st.lists(st.tuples(numbers, numbers, st.booleans(), st.booleans()), min_size=1, max_size=12)


def line(trade_id: int, price: str, size: str, quote_price: bool, quote_size: bool) -> str:
    """A trade whose numbers stand there character by character, as JSON strings or as JSON numbers."""
    row = json.dumps(coinbase_row(trade_id, price="@p", size="@q"))
    row = row.replace('"@p"', f'"{price}"' if quote_price else price)
    return row.replace('"@q"', f'"{size}"' if quote_size else size)


def transformed(lines: list[str], exact: str) -> tuple[Transformed, dict[int, dict[str, Any]]]:
    mapping = replace(load_mapping("coinbase"), exact=exact)
    body, plain_text = packed(lines)
    segment = segment_of(Stream("coinbase", "BTC-USD"), 1, len(lines), lines, plain_text)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "raw.jsonl.zst").write_bytes(body)
        result = transform_files(mapping, [(segment, folder / "raw.jsonl.zst")], folder / "out", threads=1)
        rows = [row for file in result.files for row in pq.read_table(file.path).to_pylist()]
    assert result.quarantined == 0
    return result, {int(row["trade_id"]): row for row in rows}


def lost(text: str) -> bool:
    """Whether the double's own shortest text is another number."""
    return Decimal(text) != Decimal(repr(float(text)))


def fits(text: str) -> bool:
    """Whether DECIMAL(38, 18) holds the number: at most 20 digits before the point and 18 behind it."""
    with localcontext(prec=2000):
        scaled = Decimal(text).scaleb(18)
        return scaled == scaled.to_integral_value() and scaled < 10**38


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trades)
def test_text_is_what_was_sent_character_by_character(sent: list[tuple[str, str, bool, bool]]) -> None:
    lines = [line(number, *trade) for number, trade in enumerate(sent, 1)]
    result, rows = transformed(lines, "text")
    for number, (price, size, *_) in enumerate(sent, 1):
        assert (rows[number]["price_text"], rows[number]["quantity_text"]) == (price, size)
        assert (rows[number]["price"], rows[number]["quantity"]) == (float(price), float(size))
    assert result.inexact == sum(lost(price) + lost(size) for price, size, *_ in sent)
    event(f"lost: {min(result.inexact, 3)}")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trades)
def test_a_decimal_is_the_number_that_was_sent_or_null(sent: list[tuple[str, str, bool, bool]]) -> None:
    lines = [line(number, *trade) for number, trade in enumerate(sent, 1)]
    result, rows = transformed(lines, "decimal")
    for number, (price, size, *_) in enumerate(sent, 1):
        for text, name in ((price, "price_decimal"), (size, "quantity_decimal")):
            value = rows[number][name]
            assert (value == Decimal(text)) if fits(text) else (value is None)
    assert result.unfit == sum((not fits(price)) + (not fits(size)) for price, size, *_ in sent)
    assert result.inexact == sum(lost(price) + lost(size) for price, size, *_ in sent)
    event(f"does not fit: {min(result.unfit, 3)}")


@pytest.mark.parametrize("quoted", [True, False], ids=["strings", "numbers"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12))
def test_without_exact_columns_the_loss_is_counted_all_the_same(quoted: bool, sent: list[tuple[str, str]]) -> None:
    lines = [line(number, *trade, quoted, quoted) for number, trade in enumerate(sent, 1)]
    result, rows = transformed(lines, "none")
    assert all(len(row) == 8 for row in rows.values())
    assert result.inexact == sum(lost(price) + lost(size) for price, size in sent)
