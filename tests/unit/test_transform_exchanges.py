"""Rows of every exchange that has a mapping, as its simulator writes them, through the transform."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from local.exchange_sim.generator import UNIT, Tick
from local.exchange_sim.protocol import Protocol, sparse
from schemahub.answers import parse_elements
from schemahub.datafiles import micros
from schemahub.errors import CorruptState, UnmappedField
from schemahub.mapping_sql import REASONS
from schemahub.mappings import Mapping, exchanges, load_mapping
from schemahub.streams import Stream
from schemahub.transform import transform_files
from tests.lake import packed, segment_of

START_US = 1_710_327_600_000_000
TICKS: list[Tick] = [
    # Pairs of trades share a time; the last digits of a double's 17 are used.
    (1000 + n, START_US + n // 2 * 1_234_567, 6_500_012_345_678 + n, 12_345_678 + n, n % 3 == 0, n, n)
    for n in range(200)
]
Rows = list[dict[str, Any]]


def mapped(folder: Path, mapping: Mapping, lines: list[str], first: int, last: int) -> tuple[Rows, Rows]:
    """(rows of the table, quarantined rows) of one segment of the positions first to last."""
    body, plain = packed(lines)
    path = folder / "raw.jsonl.zst"
    path.write_bytes(body)
    segment = replace(segment_of(Stream(mapping.exchange, "BTC-USD"), first, last, lines, plain), counted=False)
    result = transform_files(mapping, [(segment, path)], folder / "out", threads=1)
    bad = []
    if result.quarantine:
        import zstandard

        plain = zstandard.ZstdDecompressor().decompressobj().decompress(result.quarantine.read_bytes())
        bad = [json.loads(line) for line in plain.splitlines()]
    return [row for file in result.files for row in pq.read_table(file.path).to_pylist()], bad


def positions(mapping: Mapping, lines: list[str]) -> list[int]:
    return [row.position for row in parse_elements(f"[{','.join(lines)}]".encode(), mapping)]


@pytest.mark.parametrize("exchange", exchanges())
def test_every_field_of_every_exchange_is_what_was_traded(tmp_path: Path, exchange: str) -> None:
    mapping = load_mapping(exchange)
    lines = [text for _, text in Protocol(mapping).render(mapping.symbol_of("BTC-USD"), TICKS)]
    at = positions(mapping, lines)
    rows, bad = mapped(tmp_path, mapping, lines[::-1], min(at), max(at))
    assert not bad
    tick_us = max(1, mapping.fields.tick_ns // 1000)
    number = (lambda n: n) if mapping.requests.ids == "dense" else sparse
    assert [
        (r["trade_id"], micros(r["trade_ts"]), r["price"], r["quantity"], r["side"]) for r in rows
    ] == [
        (str(number(n)), us - us % tick_us, price / UNIT, size / UNIT, "SELL" if maker else "BUY")
        for n, us, price, size, maker, _, _ in TICKS
    ]  # fmt: skip
    assert {(r["exchange"], r["symbol"]) for r in rows} == {(exchange.upper(), "BTC-USD")}


@pytest.mark.parametrize("exchange", [e for e in exchanges() if load_mapping(e).by_time])
def test_a_trade_of_another_time_than_the_segment_s_is_quarantined(tmp_path: Path, exchange: str) -> None:
    """The position is computed from the exact text, as the fetcher did, to the nanosecond."""
    mapping = load_mapping(exchange)
    lines = [text for _, text in Protocol(mapping).render(mapping.symbol_of("BTC-USD"), TICKS[:6])]
    at = sorted(set(positions(mapping, lines)))
    inside = [
        line for line, position in zip(lines, positions(mapping, lines), strict=True) if at[0] < position < at[-1]
    ]
    (tmp_path / "exact").mkdir()
    rows, bad = mapped(tmp_path / "exact", mapping, lines, at[1], at[-2])
    assert (len(rows), [b["line"] for b in bad]) == (len(inside), sorted({*lines} - {*inside}))
    assert {b["reason"] for b in bad} == {REASONS[2]}
    (tmp_path / "none").mkdir()
    rows, bad = mapped(tmp_path / "none", mapping, lines, at[1] + 1, at[-1] - 1)
    assert (rows, len(bad)) == ([], len(lines))


KRAKEN = '["30243.40000","0.34507674",{time},"b","m","",{id}]'


@pytest.mark.parametrize(
    ("time", "ns"),
    [
        ("1688669597.827736912", 1688669597_827736912), ("1688669597.8277369", 1688669597_827736900),
        ("1688669597.9999999", 1688669597_999999900), ("1688669597.999999999", 1688669597_999999999),
        ("1688669597", 1688669597_000000000), ("1688669597.0", 1688669597_000000000),
        ('"1688669597.827736912"', 1688669597_827736912), ("1688669597.000000001", 1688669597_000000001),
    ],
)  # fmt: skip
def test_no_digit_of_a_fractional_time_is_lost(tmp_path: Path, time: str, ns: int) -> None:
    """A double steps by 238 ns here, and a row must lie in the segment that it was fetched for."""
    mapping, line = load_mapping("kraken"), KRAKEN.format(time=time, id=7)
    assert positions(mapping, [line]) == [ns]
    (row,), bad = mapped(tmp_path, mapping, [line], ns, ns)
    assert (bad, micros(row["trade_ts"])) == ([], ns // 1000)


def test_an_array_s_texts_are_read_whatever_stands_in_them(tmp_path: Path) -> None:
    lines = [
        '["1.5","2",1688669597.1,"b","m","",1]', '[1.5,2.0,1688669597.2,"s","l,\\"1]",[1,{"a":[2]}],2]',
        ' [ "1.5" , 2e0 , "1688669597.3" , "b" , "-1" , null , "3" ] ',
        '["1.5","2",1688669597.4,"\\u0062","","\\\\",4]',
    ]  # fmt: skip
    rows, bad = mapped(tmp_path, load_mapping("kraken"), lines, 1688669597 * 10**9, 1688669598 * 10**9)
    assert not bad
    assert [(r["trade_id"], r["price"], r["quantity"], r["side"]) for r in rows] == [
        ("1", 1.5, 2.0, "BUY"), ("2", 1.5, 2.0, "SELL"), ("3", 1.5, 2.0, "BUY"), ("4", 1.5, 2.0, "BUY")
    ]  # fmt: skip
    assert [micros(r["trade_ts"]) % 10**6 for r in rows] == [100_000, 200_000, 300_000, 400_000]


BAD_ARRAYS = [
    ("[]", 1), ("{}", 1), ("7", 1), ('"7"', 1), ("[1,2", 1), ("null", 1),
    (KRAKEN.format(time="1688669597.5", id='"x"'), 1),
    (KRAKEN.format(time="1688669597.5", id="-1"), 1), (KRAKEN.format(time="1688669597.5", id="7.0"), 1),
    (KRAKEN.format(time="1688669597.5", id="null"), 1), (KRAKEN.format(time="1688669590", id="7"), 2),
    ('["-1","1",1688669597.5,"b","m","",7]', 3), ('["1",{},1688669597.5,"b","m","",7]', 4),
    ('["1","1",1688669597.5,true,"m","",7]', 5), (KRAKEN.format(time="null", id="7"), 6),
    (KRAKEN.format(time='"2023-07-06T18:53:17Z"', id="7"), 6), ("[NaN,1,1688669597.5,\"b\",\"m\",\"\",7]", 3),
    ("[1,-Infinity,1688669597.5,\"b\",\"m\",\"\",7]", 4),
]  # fmt: skip


@pytest.mark.parametrize(("line", "reason"), BAD_ARRAYS)
def test_an_array_that_does_not_map_is_quarantined_with_its_reason(tmp_path: Path, line: str, reason: int) -> None:
    good = KRAKEN.format(time="1688669597.25", id="8")
    rows, (bad,) = mapped(tmp_path, load_mapping("kraken"), [line, good], 1688669597 * 10**9, 1688669598 * 10**9)
    assert [r["trade_id"] for r in rows] == ["8"]
    assert (bad["reason"], bad["line"]) == (REASONS[reason], line)


def test_zero_is_an_id(tmp_path: Path) -> None:
    """Kraken sent it for some stretches before 2024-06-13."""
    lines = [KRAKEN.format(time="1688669597.25", id="0"), KRAKEN.format(time="1688669597.5", id="7")]
    rows, bad = mapped(tmp_path, load_mapping("kraken"), lines, 1688669597 * 10**9, 1688669598 * 10**9)
    assert ([r["trade_id"] for r in rows], bad) == (["0", "7"], [])


BITFINEX = "[{id},1688669597000,{amount},16575]"


def test_the_sign_of_a_quantity_is_the_side_and_zero_has_none(tmp_path: Path) -> None:
    mapping, at = load_mapping("bitfinex"), 1688669597 * 10**9
    amounts = ("7.152e-05", "-0.00007152", "-1", "0", "-0.0", '"-2"', '"--2"')
    lines = [BITFINEX.format(id=n, amount=amount) for n, amount in enumerate(amounts, 1)]
    rows, bad = mapped(tmp_path, mapping, lines, at, at)
    assert [(r["quantity"], r["side"]) for r in rows] == [
        (0.00007152, "BUY"), (0.00007152, "SELL"), (1.0, "SELL"), (2.0, "SELL")
    ]  # fmt: skip
    assert [(b["reason"], json.loads(b["line"])[0]) for b in bad] == [(REASONS[4], n) for n in (4, 5, 7)]


@pytest.mark.parametrize("exact", ["text", "decimal"])
def test_exact_columns_of_arrays_hold_the_number_s_own_characters_without_the_sign(tmp_path: Path, exact: str) -> None:
    mapping, at = replace(load_mapping("bitfinex"), exact=exact), 1688669597 * 10**9
    lines = [BITFINEX.format(id=1, amount="-0.100000000000000005").replace("16575", "16575.10")]
    (row,), bad = mapped(tmp_path, mapping, lines, at, at)
    assert not bad
    kept = [str(row[f"{name}_{exact}"]) for name in ("price", "quantity")]
    assert kept == (["16575.10", "0.100000000000000005"] if exact == "text" else
                    ["16575.100000000000000000", "0.100000000000000005"])  # fmt: skip


def test_an_id_that_is_a_text_stands_once_and_sorts_by_its_number(tmp_path: Path) -> None:
    mapping, at = load_mapping("bybit"), 1672052955758 * 10**6
    row = '{{"execId":"{0}","symbol":"BTCUSDT","price":"1","size":"1","side":"Buy","time":"1672052955758"}}'
    ids = ("9", "2100000000007764263", "10", "a-7", "11")
    rows, bad = mapped(tmp_path, mapping, [row.format(i) for i in ids], at, at)
    assert [r["trade_id"] for r in rows] == ["9", "10", "11", "a-7", "2100000000007764263"]
    assert not bad
    (tmp_path / "twice").mkdir()
    with pytest.raises(CorruptState, match="twice"):
        mapped(tmp_path / "twice", mapping, [row.format(i) for i in ("x1", "x2", "x1")], at, at)
    (tmp_path / "bad").mkdir()
    rows, bad = mapped(tmp_path / "bad", mapping, [row.format(i) for i in ("", "a b", "x" * 65, "ok")], at, at)
    assert ([r["trade_id"] for r in rows], {b["reason"] for b in bad}) == (["ok"], {REASONS[1]})


def test_an_array_that_grew_is_a_new_field(tmp_path: Path) -> None:
    strict, at = replace(load_mapping("bitfinex"), on_new_field="fail"), 1688669597 * 10**9
    assert len(mapped(tmp_path, strict, [BITFINEX.format(id=1, amount=1)], at, at)[0]) == 1
    with pytest.raises(UnmappedField, match="sends 4, which"):
        mapped(tmp_path, strict, ["[1,1688669597000,1,16575,null]"], at, at)
