from __future__ import annotations

import gzip
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import duckdb
import pyarrow.parquet as pq
import pytest
import zstandard

from schemahub import datafiles, mapping_sql
from schemahub.batches import Batch, Manifest, make_batches, manifest_key, quarantine_key
from schemahub.errors import BadMapping, BadStateInput, CorruptState, QuarantineExceeded, RawMissing, UnmappedField
from schemahub.mapping_sql import REASONS
from schemahub.mappings import NS, Mapping, load_mapping
from schemahub.streams import Absent, Stream
from schemahub.transform import transform_files
from tests.lake import BTC, COMMITTED_MS, Lake, coinbase_row, packed, segment_of

XRP = Stream("binance", "XRP-ETH")


@pytest.fixture
def lake(aws: boto3.Session, tmp_path: Path) -> Lake:
    return Lake(aws, tmp_path)


Rows = list[dict[str, Any]]


def mapped(tmp_path: Path, rows: list[Any], stream: Stream = BTC, first: int = 1, last: int | None = None,
           mapping: Mapping | None = None, **options: Any) -> tuple[Rows, Rows]:  # fmt: skip
    """(rows of the table, quarantined rows) of one segment."""
    body, plain = packed(rows)
    path = tmp_path / "raw.jsonl.zst"
    path.write_bytes(body)
    segment = segment_of(stream, first, last or first + len(rows) - 1, rows, plain)
    result = transform_files(
        mapping or load_mapping(stream.exchange), [(segment, path)], tmp_path / "out", threads=1, **options
    )
    assert result.rows + result.quarantined == len(rows)
    good = [row for file in result.files for row in pq.read_table(file.path).to_pylist()]
    assert len(good) == result.rows
    bad = [json.loads(line) for line in unpacked(result.quarantine.read_bytes())] if result.quarantine else []
    return good, bad


def unpacked(body: bytes) -> list[bytes]:
    return zstandard.ZstdDecompressor().decompressobj().decompress(body).splitlines()


# --- real data ----------------------------------------------------------------------------------------------------


def test_recorded_binance_trades_equal_what_ccxt_makes_of_them(tmp_path: Path, recorded: Path) -> None:
    raw = gzip.decompress(recorded.read_bytes()).decode().splitlines()
    oracle_path = recorded.with_name("XRPETH-parsed-by-ccxt.jsonl.gz")
    oracle = [json.loads(line) for line in gzip.decompress(oracle_path.read_bytes()).splitlines()]
    good, bad = mapped(tmp_path, raw, XRP, first=13_519_807)
    assert not bad
    assert {(r["exchange"], r["symbol"]) for r in good} == {("BINANCE", "XRP-ETH")}
    ours = {
        r["trade_id"]: (r["side"].lower(), r["price"], r["quantity"], datafiles.micros(r["trade_ts"])) for r in good
    }
    theirs = {t["id"]: (t["side"], t["price"], t["amount"], t["timestamp"] * 1000) for t in oracle}
    assert len(theirs) == 12_477
    assert ours == theirs


def test_recorded_coinbase_matches_are_read_by_the_known_rule(tmp_path: Path, recorded: Path) -> None:
    """Coinbase reports the maker's side; fields are those of the REST trade. Ids are dense for each product."""
    lines = (recorded.parents[1] / "coinbase" / "websocket-matches.jsonl").read_text().splitlines()
    products: dict[str, list[dict[str, Any]]] = {}
    for match in map(json.loads, lines):
        products.setdefault(match["product_id"], []).append(match)
    assert len(products) == 10
    for product, matches in products.items():
        rows = {m["trade_id"]: {k: m[k] for k in ("trade_id", "side", "size", "price", "time")} for m in matches}
        folder = tmp_path / product
        folder.mkdir()
        good, bad = mapped(folder, list(rows.values()), Stream("coinbase", product), min(rows), max(rows))
        assert not bad
        assert {int(r["trade_id"]) for r in good} == rows.keys()
        for row in good:
            sent = rows[int(row["trade_id"])]
            assert row["side"] == {"buy": "SELL", "sell": "BUY"}[sent["side"]]
            assert (row["price"], row["quantity"]) == (float(sent["price"]), float(sent["size"]))
            assert row["trade_ts"].isoformat().replace("+00:00", "Z") == sent["time"]
            assert row["symbol"] == product


def test_a_coinbase_sell_is_a_buy_of_the_taker(tmp_path: Path) -> None:
    sent = {"trade_id": "18502034", "side": "sell", "size": "0.00007448", "price": "73271.63000000",
            "time": "2024-03-13T11:00:17.710679Z"}  # fmt: skip
    (row,), _ = mapped(tmp_path, [sent], first=18_502_034)
    assert row["side"] == "BUY"
    assert (row["exchange"], row["symbol"], row["trade_id"]) == ("COINBASE", "BTC-USD", "18502034")
    assert row["trade_ts"].isoformat() == "2024-03-13T11:00:17.710679+00:00"
    assert datafiles.micros(row["ingest_ts"]) == COMMITTED_MS * 1000


# --- what does not map --------------------------------------------------------------------------------------------

BAD = [
    ({"trade_id": None}, 1), ({"trade_id": "1.0"}, 1), ({"trade_id": 1.0}, 1), ({"trade_id": "1e0"}, 1),
    ({"trade_id": " 1"}, 1), ({"trade_id": "01"}, 1), ({"trade_id": True}, 1), ({"trade_id": 2**63}, 1),
    ({"trade_id": [1]}, 1), ({"trade_id": 9}, 2), ({"trade_id": -1}, 2), ({"trade_id": 0}, 2),
    ({"price": None}, 3), ({"price": "0"}, 3), ({"price": "-1"}, 3), ({"price": "NaN"}, 3), ({"price": "Infinity"}, 3),
    ({"price": "-Infinity"}, 3), ({"price": "1e400"}, 3), ({"price": "1,5"}, 3), ({"price": ""}, 3), ({"price": {}}, 3),
    ({"price": "0x10"}, 3), ({"size": "nan"}, 4), ({"size": "0.00000000"}, 4), ({"size": None}, 4), ({"size": "x"}, 4),
    ({"side": "BUY"}, 5), ({"side": None}, 5), ({"side": ""}, 5), ({"side": True}, 5),
    ({"time": None}, 6), ({"time": "2024-03-13T11:00:17"}, 6), ({"time": "2024-02-30T11:00:17Z"}, 6),
    ({"time": "2024-03-13"}, 6), ({"time": "2024-03-13Z"}, 6), ({"time": 1710327617}, 6), ({"time": "epoch"}, 6),
    ({"time": "infinity"}, 6), ({"time": "2024-03-13T11:00:17.5 Europe/BerlinZ"}, 6),
    ({"time": "2009-01-02T23:59:59.999999Z"}, 7), ({"time": "2024-03-15T07:06:40.000001Z"}, 7),
    ({"time": "1970-01-20T19:05:27Z"}, 7),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "reason"), BAD, ids=str)
def test_a_row_that_does_not_map_is_quarantined_with_its_reason(
    tmp_path: Path, changes: dict[str, Any], reason: int
) -> None:
    row = coinbase_row(1, **changes)
    good, (bad,) = mapped(tmp_path, [row, coinbase_row(2)], first=1, last=2)
    assert [r["trade_id"] for r in good] == ["2"]
    assert bad["reason"] == REASONS[reason]
    assert json.loads(bad["line"]) == row


@pytest.mark.parametrize("line", ["", "x", "[1]", '"x"', "5", "null", '{"trade_id": 1', "{}"])
def test_a_line_that_is_no_trade_is_quarantined(tmp_path: Path, line: str) -> None:
    if line == "":
        with pytest.raises(CorruptState, match="gave 1 rows"):  # a blank line is no row at all
            mapped(tmp_path, [line, coinbase_row(2)], first=1, last=2)
        return
    good, (bad,) = mapped(tmp_path, [line, coinbase_row(2)], first=1, last=2)
    assert len(good) == 1
    assert (bad["reason"], bad["line"]) == (REASONS[1], line)


GOOD = [
    ({"price": "1e-8"}, "price", 1e-8), ({"price": "1E+3"}, "price", 1000.0), ({"price": 0.1}, "price", 0.1),
    ({"price": "123456789012345678901234567890.123456789"}, "price", 1.2345678901234568e29),
    ({"price": "73271.63000000"}, "price", 73271.63), ({"size": "1e-18"}, "quantity", 1e-18),
    ({"time": "2009-01-03T00:00:00Z"}, "trade_ts", "2009-01-03T00:00:00+00:00"),
    ({"time": "2024-03-15T07:06:40Z"}, "trade_ts", "2024-03-15T07:06:40+00:00"),
    ({"time": "2024-03-13T11:00:17.5Z"}, "trade_ts", "2024-03-13T11:00:17.500000+00:00"),
    ({"time": "2024-03-13T11:00:17.123456789Z"}, "trade_ts", "2024-03-13T11:00:17.123456+00:00"),
    ({"time": "2024-03-13T13:00:17.5+02:00"}, "trade_ts", "2024-03-13T11:00:17.500000+00:00"),
    ({"time": "2024-03-13T06:30:17-0430"}, "trade_ts", "2024-03-13T11:00:17+00:00"),
    ({"trade_id": "1"}, "trade_id", "1"), ({"extra": {"a": [1]}}, "trade_id", "1"), ({"Side": "x"}, "side", "SELL"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "column", "expected"), GOOD, ids=str)
def test_what_maps_maps_exactly(tmp_path: Path, changes: dict[str, Any], column: str, expected: Any) -> None:
    (row,), bad = mapped(tmp_path, [coinbase_row(1, side="buy", **changes)])
    assert not bad
    value = row[column]
    assert (value.isoformat() if column == "trade_ts" else value) == expected


EPOCHS = [
    ("s", 1_710_327_617, 1_710_327_617_000_000), ("s", "1710327617.710679", 1_710_327_617_710_679),
    ("s", 1710327617.25, 1_710_327_617_250_000), ("ms", 1_710_327_617_710, 1_710_327_617_710_000),
    ("ms", "1710327617710.5", 1_710_327_617_710_500), ("us", 1_710_327_617_710_679, 1_710_327_617_710_679),
    ("ns", 1_710_327_617_710_679_999, 1_710_327_617_710_679), ("ns", "1710327617710679999", 1_710_327_617_710_679),
    # another unit than the mapping says
    ("s", 1_710_327_617_710, REASONS[7]), ("ms", 1_710_327_617, REASONS[7]), ("ms", 1_710_327_617_710_679, REASONS[7]),
    ("us", 1_710_327_617_710, REASONS[7]), ("ns", 1_710_327_617_710_679, REASONS[7]),
    ("ms", 1_710_327_617_710_679_999, REASONS[6]), ("ms", "now", REASONS[6]), ("ms", -5, REASONS[6]),
    ("s", "NaN", REASONS[6]), ("ms", 10**40, REASONS[6]),
]  # fmt: skip


@pytest.mark.parametrize(("unit", "sent", "expected"), EPOCHS)
def test_epoch_times_are_exact_and_units_are_guarded(tmp_path: Path, unit: str, sent: Any, expected: Any) -> None:
    mapping = load_mapping("binance")
    mapping = replace(mapping, fields=replace(mapping.fields, ts_unit=unit))
    row = {"a": 1, "p": "1", "q": "1", "T": sent, "m": False, "M": True}
    good, bad = mapped(tmp_path, [row], XRP, mapping=mapping)
    assert (datafiles.micros(good[0]["trade_ts"]) if good else bad[0]["reason"]) == expected


# --- shape of the output ------------------------------------------------------------------------------------------


def test_rows_are_sorted_by_time_then_by_id_as_a_number_and_split_by_day(tmp_path: Path) -> None:
    last = "2024-03-01T23:59:59.999999Z"
    times = {8: "2024-03-02T00:00:00Z", 9: last, 10: "2024-03-01T00:00:00Z", 11: last, 100: last}
    times[12] = "2024-03-03T00:00:00Z"
    good, _ = mapped(tmp_path, [coinbase_row(i, time=t) for i, t in times.items()], first=8, last=100)
    assert [r["trade_id"] for r in good] == ["10", "9", "11", "100", "8", "12"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.parquet")) == [
        "2024-03-01.parquet", "2024-03-02.parquet", "2024-03-03.parquet"]  # fmt: skip


def test_files_have_the_field_ids_and_types_that_the_design_names(tmp_path: Path) -> None:
    mapped(tmp_path, [coinbase_row(i) for i in range(1, 2000)])
    footer = pq.ParquetFile(next((tmp_path / "out").glob("*.parquet"))).metadata
    columns = [footer.row_group(0).column(i) for i in range(8)]
    assert {c.compression for c in columns} == {"ZSTD"}
    schema = footer.schema.to_arrow_schema()
    assert [schema.field(i).metadata[b"PARQUET:field_id"] for i in range(8)] == [b"%d" % i for i in range(1, 9)]
    assert str(schema.field("trade_ts").type) == "timestamp[us, tz=UTC]"
    assert str(schema.field("side").type) == "string"


def test_row_groups_do_not_depend_on_the_size_of_incoming_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datafiles, "ROW_GROUP_ROWS", 1000)
    rows = [coinbase_row(i, time=f"2024-03-01T00:{i // 60 % 60:02d}:{i % 60:02d}Z") for i in range(1, 3501)]
    digests = set()
    for size in (100, 700, 5000):
        monkeypatch.setattr("schemahub.transform.BATCH_ROWS", size)
        folder = tmp_path / str(size)
        folder.mkdir()
        mapped(folder, rows)
        file = next((folder / "out").glob("*.parquet"))
        footer = pq.ParquetFile(file).metadata
        assert [footer.row_group(g).num_rows for g in range(footer.num_row_groups)] == [1000, 1000, 1000, 500]
        digests.add(file.read_bytes())
    assert len(digests) == 1


# --- guards of a batch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [{}, {"price": "0"}], ids=["both good", "one bad"])
def test_an_id_that_stands_twice_is_corrupt(tmp_path: Path, spoil: dict[str, Any]) -> None:
    with pytest.raises(CorruptState, match="twice"):
        mapped(tmp_path, [coinbase_row(1), coinbase_row(2), coinbase_row(1, time="2024-03-09T00:00:00Z", **spoil)])


def test_a_new_field_fails_only_where_the_contract_says_so(tmp_path: Path) -> None:
    strict = replace(load_mapping("coinbase"), on_new_field="fail")
    with pytest.raises(UnmappedField, match="liquidation, venue"):
        mapped(tmp_path, [coinbase_row(1), coinbase_row(2, venue=1, liquidation=True)], mapping=strict)
    assert len(mapped(tmp_path, [coinbase_row(1)], mapping=strict)[0]) == 1


def test_source_fields_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    mapping = load_mapping("coinbase")
    with pytest.raises(BadMapping, match="case"):
        mapped(tmp_path, [coinbase_row(1)], mapping=replace(mapping, fields=replace(mapping.fields, price="Size")))


def test_quotes_in_a_mapping_stay_text(tmp_path: Path) -> None:
    mapping = load_mapping("coinbase")
    fields = replace(mapping.fields, side_values={"b'uy": "SELL", "sell": "BUY"})
    (row,), _ = mapped(tmp_path, [coinbase_row(1, side="b'uy")], mapping=replace(mapping, fields=fields))
    assert row["side"] == "SELL"


# --- batches against the store ------------------------------------------------------------------------------------


def test_a_batch_writes_files_named_by_range_and_content_and_a_manifest(lake: Lake) -> None:
    manifest = lake.transform(lake.commit(1, 900), lake.commit(901, 1000), run="run-9")
    assert [f.day for f in manifest.files] == ["2024-03-01", "2024-03-02"]
    for file in manifest.files:
        name = f"COINBASE_BTC-USD_{1:020d}_{1000:020d}_{file.sha256[:8]}.parquet"
        assert file.key == f"schemahub/unified_trades/data/trade_day={file.day}/{name}"
        assert lake.objects.head(file.key)["size"] == file.file_size  # type: ignore[index]
    body = lake.objects.get(manifest_key("run-9", manifest.batch.batch_id))
    assert Manifest.from_json(json.loads(body or b"")) == manifest
    assert manifest.rows == 1000


def test_repeating_a_batch_writes_the_same_objects(lake: Lake) -> None:
    segments = (lake.commit(1, 900), lake.commit(901, 1000))
    first = lake.transform(*segments)
    before = {key: lake.objects.head(key) for key in lake.objects.list("schemahub/unified_trades/")}
    assert lake.transform(*segments, run="run-2") == first
    assert {key: lake.objects.head(key) for key in lake.objects.list("schemahub/unified_trades/")} == before


def test_ingest_ts_is_when_the_row_s_own_segment_was_committed(lake: Lake) -> None:
    early = lake.commit(1, 10)
    late = replace(lake.commit(11, 20), committed_at=COMMITTED_MS + 60_000)
    lake.publish(lake.transform(early, late))
    assert {int(r["trade_id"]) <= 10: r["ingest_us"] for r in lake.rows()} == {
        True: COMMITTED_MS * 1000, False: (COMMITTED_MS + 60_000) * 1000}  # fmt: skip


def test_absent_ids_are_not_missed(lake: Lake) -> None:
    gone = (Absent(4, 6, "exchange_skipped"),)
    assert lake.transform(lake.commit(1, 10, absent=gone)).rows == 7


def test_a_raw_object_that_is_gone_or_changed_is_named(lake: Lake) -> None:
    segment = lake.commit(1, 10)
    with pytest.raises(RawMissing, match=r"_20\.jsonl\.zst is gone"):
        lake.transform(replace(segment, raw_key=segment.raw_key.replace("_10.", "_20.")))
    with pytest.raises(RawMissing, match=segment.raw_key):
        lake.transform(replace(segment, sha256="0" * 64))
    lake.objects.put(segment.raw_key, packed([coinbase_row(i) for i in range(1, 10)])[0])
    with pytest.raises(RawMissing, match="9 rows"):
        lake.transform(segment)
    lake.objects.put(segment.raw_key, b"not zstandard")
    with pytest.raises(RawMissing, match="unpacked"):
        lake.transform(segment)
    whole = packed([coinbase_row(i) for i in range(1, 11)])[0]
    lake.objects.put(segment.raw_key, whole[:-20])
    with pytest.raises(RawMissing):
        lake.transform(segment)
    assert not list(lake.objects.list("schemahub/unified_trades/"))


def test_too_much_quarantine_publishes_nothing_but_the_evidence(lake: Lake) -> None:
    rows = [coinbase_row(i, **({"side": "?"} if i == 7 else {})) for i in range(1, 101)]
    segment = lake.commit(1, 100, rows=rows)
    with pytest.raises(QuarantineExceeded, match="1 of 100"):
        lake.transform(segment)
    key = quarantine_key(Batch.of([segment]))
    assert key == f"schemahub/quarantine/coinbase/BTC-USD/{1:020d}_{100:020d}.jsonl.zst"
    (line,) = unpacked(lake.objects.get(key) or b"")
    assert json.loads(json.loads(line)["line"])["trade_id"] == 7
    assert not list(lake.objects.list("schemahub/unified_trades/"))
    assert not list(lake.objects.list("schemahub/plans/"))


def test_a_tolerated_share_of_quarantine_is_counted(lake: Lake) -> None:
    mapping = replace(load_mapping("coinbase"), quarantine_max_share=0.01)
    lake.mapping = lambda _: mapping
    rows = [coinbase_row(i, **({"side": "?"} if i == 7 else {})) for i in range(1, 101)]
    manifest = lake.transform(lake.commit(1, 100, rows=rows))
    assert (manifest.rows, manifest.quarantined) == (99, 1)
    assert manifest.quarantine_key is not None


def test_the_manifest_s_bounds_are_those_of_the_rows(lake: Lake) -> None:
    manifest = lake.transform(lake.commit(1, 2000))
    for file in manifest.files:
        path = lake.workdir / "x.parquet"
        lake.objects.get_to_file(file.key, path)
        table = pq.read_table(path)
        for name in ("price", "quantity", "trade_id", "side"):
            values = table[name].to_pylist()
            assert (file.lower[name], file.upper[name]) == (min(values), max(values))
        times = [datafiles.micros(t) for t in table["trade_ts"].to_pylist()]
        assert (file.lower["trade_ts"], file.upper["trade_ts"]) == (min(times), max(times))
        assert sum(file.column_sizes.values()) < file.file_size


@pytest.mark.parametrize(("contract", "allowed"), [
    ({"quarantine_max_share": 0.1}, 10), ({"quarantine_max_share": 0.1, "quarantine_max_rows": 3}, 3),
    ({"quarantine_max_share": 0.02, "quarantine_max_rows": 3}, 2), ({"quarantine_max_share": 0.0}, 0),
    ({"quarantine_max_share": 1.0, "quarantine_max_rows": 0}, 0),
    ({"quarantine_max_share": 1.0, "quarantine_max_rows": 9, "on_bad_row": "fail"}, 0),
])  # fmt: skip
def test_the_contract_says_how_many_rows_may_be_bad(lake: Lake, contract: dict[str, Any], allowed: int) -> None:
    lake.mapping = lambda _: replace(load_mapping("coinbase"), **contract)
    for bad in (allowed, allowed + 1):
        first = 1 + 100 * bad
        rows = [coinbase_row(i, **({"side": "?"} if i < first + bad else {})) for i in range(first, first + 100)]
        segment = lake.commit(first, first + 99, rows=rows)
        if bad == allowed:
            assert lake.transform(segment).quarantined == allowed
            continue
        with pytest.raises(QuarantineExceeded, match=rf"{bad} of 100 rows do not map \(allowed: {allowed}\)"):
            lake.transform(segment)
        assert lake.objects.head(quarantine_key(Batch.of([segment]))) is not None


def test_what_a_double_loses_is_in_the_manifest_and_in_the_snapshot(lake: Lake) -> None:
    lake.mapping = lambda _: replace(load_mapping("coinbase"), exact="decimal")
    odd = {2: {"price": "0.1000000000000000055"}, 3: {"size": "9007199254740993"}, 4: {"price": "1e-30"}}
    manifest = lake.transform(lake.commit(1, 10, rows=[coinbase_row(i, **odd.get(i, {})) for i in range(1, 11)]))
    assert (manifest.inexact, manifest.unfit) == (2, 2)
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    outcome = lake.publish(manifest)
    assert (outcome.inexact, outcome.unfit) == (2, 2)
    summary = lake.table().current_snapshot().summary.additional_properties
    assert (summary["schemahub.inexact"], summary["schemahub.unfit"]) == ("2", "2")
    (task,) = [t for t in lake.table().scan().plan_files() if t.file.record_count]
    assert task.file.null_value_counts[11] == 2


# --- batches ------------------------------------------------------------------------------------------------------


def test_batches_are_neighbours_of_one_stream(lake: Lake) -> None:
    eth = Stream("coinbase", "ETH-USD")
    segments = [
        lake.commit(21, 30),
        lake.commit(1, 10),
        lake.commit(11, 20),
        lake.commit(41, 50),
        lake.commit(1, 5, stream=eth),
    ]
    spans = lambda batches: [(b.stream.product, *b.interval) for b in batches]  # noqa: E731
    assert spans(make_batches(segments)) == [
        ("BTC-USD", 1, 30), ("BTC-USD", 41, 50), ("ETH-USD", 1, 5)]  # fmt: skip
    assert spans(make_batches(segments[:3], max_rows=20)) == [
        ("BTC-USD", 1, 20), ("BTC-USD", 21, 30)]  # fmt: skip
    assert len(make_batches(segments[:3], max_bytes=700)) == 3
    assert make_batches(segments) == make_batches(reversed(segments))
    assert [Batch.from_json(json.loads(json.dumps(b.to_json()))) for b in make_batches(segments)] == make_batches(
        segments
    )


def test_batches_that_cannot_be_are_refused(lake: Lake) -> None:
    one, two, three = lake.commit(1, 10), lake.commit(11, 20), lake.commit(21, 30)
    with pytest.raises(BadStateInput, match="neighbours"):
        Batch.of([one, three])
    with pytest.raises(BadStateInput):
        Batch.of([])
    with pytest.raises(BadStateInput, match="batch id"):
        Batch("0" * 32, (one, two))
    with pytest.raises(CorruptState, match="overlap"):
        make_batches([one, replace(two, first=10)])
    for broken in ({}, {"batch_id": "x", "segments": [{}]}, {"batch_id": "x", "segments": 5}, None):
        with pytest.raises(BadStateInput):
            Batch.from_json(broken)


def test_a_manifest_that_lost_rows_is_refused(lake: Lake) -> None:
    manifest = lake.transform(lake.commit(1, 10))
    with pytest.raises(CorruptState, match="are not the 10"):
        replace(manifest, quarantined=1)
    with pytest.raises(CorruptState, match="not readable"):
        Manifest.from_json({"batch": manifest.batch.to_json(), "files": [{}], "quarantined": 0, "quarantine_key": None})


@pytest.mark.parametrize("step_ns", [1, 1000])
@pytest.mark.parametrize(("unit", "in_ns"), NS.items())
def test_times_with_fractions_are_cut_exactly_however_they_are_written(unit: str, in_ns: int, step_ns: int) -> None:
    texts = [
        "1791158400000.12",
        "0.5",
        "1791158400.999999999",
        "007.5",
        "1.5e3",
        "12.3456789012",
        "9007199254740993.125",
    ]
    sql = mapping_sql._time_sql(replace(load_mapping("binance").fields, ts_unit=unit), step_ns)
    rows = duckdb.execute(f"SELECT time_text, {sql} FROM unnest(?) t(time_text)", [texts]).fetchall()
    for text, found in rows:
        exact = int(Decimal(text) * in_ns // step_ns)
        assert found == (exact if exact < 2**63 else None), text
    for text in ("-1.5", ".", "1.5.2", "soon.5", "1 .5"):
        assert duckdb.execute(f"SELECT {sql} FROM (SELECT ? AS time_text)", [text]).fetchone() == (None,), text
