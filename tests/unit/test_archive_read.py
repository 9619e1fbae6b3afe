"""Zips that are not what they say, rows of every kind, and the lines that raw keeps of them."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from schemahub import archive_read
from schemahub.archive_layout import layout_of, whole_numbers
from schemahub.archive_read import Read, member_of, read_rows
from schemahub.archive_reconcile import same_trade
from schemahub.archives import ArchiveFile, file_of
from schemahub.errors import ArchiveBomb, ArchiveError, ArchiveUnreadable
from schemahub.mappings import Mapping, mappings_dir, parse_mapping
from tests.unit.archive_worlds import MAPPING, NEW, OLD
from tests.unit.pipelines import BINANCE

FILE = file_of(MAPPING, BINANCE, "daily", OLD)
ROW = "26129,0.01633102,4.70443515,27781,27782,1717200000123,True,True"
LINE = '{"a":26129,"p":"0.01633102","q":"4.70443515","f":27781,"l":27782,"T":1717200000123,"m":true,"M":true}'


def lines(text: str | bytes, mapping: Mapping = MAPPING, file: ArchiveFile = FILE) -> tuple[list[str], Read]:
    read, found = Read(), list[str]()
    body = text.encode() if isinstance(text, str) else text
    for batch in read_rows(io.BytesIO(body), file, layout_of(mapping, file), read):
        assert batch.schema.names == archive_read.SCHEMA.names
        found += batch.column(2).to_pylist()
    return found, read


def zipped(path: Path, *members: tuple[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as packed:
        for name, body in members:
            packed.writestr(name, body)
    return path


# --- rows -------------------------------------------------------------------------------------------------------


def test_a_row_becomes_the_line_that_the_api_would_send() -> None:
    found, read = lines(ROW + "\n")
    assert found == [LINE]
    assert (read.rows, read.refused, read.units) == (1, {}, {"ms": 1})


def test_digits_are_kept_as_they_are_written() -> None:
    texts = ["1.10", "0.000000010000000000", "100000000000000000000.5", "3"]
    found, _ = lines(
        "".join(ROW.replace("0.01633102", t).replace("26129", str(n)) + "\n" for n, t in enumerate(texts, 1))
    )
    assert [json.loads(line)["p"] for line in found] == texts


def test_microseconds_become_milliseconds_with_a_point_and_lose_nothing() -> None:
    """binance-public-data#474."""
    new = file_of(MAPPING, BINANCE, "daily", NEW)
    found, read = lines(ROW.replace("1717200000123", "1741564800123456") + "\n", file=new)
    assert json.loads(found[0])["T"] == "1741564800123.456"
    assert read.units == {"us": 1}
    api = LINE.replace("1717200000123", "1741564800123")
    assert same_trade(MAPPING, found[0], api)
    assert not same_trade(MAPPING, found[0], api.replace("1741564800123", "1741564800124"))
    assert not same_trade(MAPPING, found[0], api.replace("true,", "false,", 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"26129": "026129"}, "trade id is not an integer"),
        ({"26129": "-26129"}, "trade id is not an integer"),
        ({"26129": "26129.0"}, "trade id is not an integer"),
        ({"26129": "9" * 25}, "trade id is not an integer"),
        ({"26129": ""}, "trade id is not an integer"),
        ({"0.01633102": "0"}, "price is not above 0"),
        ({"0.01633102": "-1"}, "price is not above 0"),
        ({"0.01633102": "nan"}, "price is not above 0"),
        ({"0.01633102": "inf"}, "price is not above 0"),
        ({"0.01633102": "1,5"}, "not a row of the mapping's columns"),
        ({"4.70443515": "0x10"}, "quantity is not above 0"),
        ({"1717200000123": "1717200000"}, "time is in no unit that the mapping knows"),
        ({"1717200000123": "1717200000123456789"}, "time is in no unit that the mapping knows"),
        ({"1717200000123": "2024-06-01"}, "time is in no unit that the mapping knows"),
        ({"True,True": "yes,True"}, "m is not one of the mapping's values"),
        ({"True,True": "True,Tru"}, "M is not one of the mapping's values"),
        ({"27781": '"27781'}, "f is no number"),
        ({"27781": "27781}"}, "f is no number"),
        ({",27782,1717200000123,True,True": ""}, "not a row of the mapping's columns"),
    ],
)
def test_a_row_that_the_mapping_could_not_read_is_counted_by_its_reason(change: dict[str, str], reason: str) -> None:
    bad = ROW.replace("26129", "26130")
    for old, new in change.items():
        bad = ROW.replace(old, new, 1)
    found, read = lines(f"{ROW}\n{bad}\n{ROW}\n")
    assert found == [LINE, LINE]
    assert read.refused == {reason: 1}
    assert (read.rows, len(read.examples)) == (3, 1)


def test_text_that_json_would_have_to_escape_never_gets_into_a_line() -> None:
    for evil in ('1.0"', "1.0\\", '1","a":2,"x":"'.replace(",", "")):
        found, read = lines(f"{ROW}\n{ROW.replace('0.01633102', evil)}\n")
        assert found == [LINE]
        assert read.refused.total() == 1


def test_windows_lines_and_a_missing_last_break_are_fine() -> None:
    assert lines(f"{ROW}\r\n{ROW}")[0] == [LINE, LINE]
    assert lines("")[0] == lines("\n")[0] == []


def test_a_header_may_be_there_or_not() -> None:
    header = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker,best"
    found, read = lines(f"{header}\n{ROW}\n")
    assert (found, read.header, read.rows) == ([LINE], True, 1)
    assert lines(f"{header}\n")[0] == []


@pytest.mark.parametrize("text", ["a,b,c\n", f"{ROW},extra\n{ROW},extra\n", "<html>\n<body>\n", b"\xff\xfe1,2\n"])
def test_another_format_is_refused(text: str | bytes) -> None:
    with pytest.raises(ArchiveUnreadable):
        lines(text)


def test_a_line_without_an_end_is_refused_not_collected() -> None:
    with pytest.raises(ArchiveUnreadable):
        lines(ROW + "\n" + "1" * (3 * archive_read.BLOCK_BYTES))


def test_more_rows_of_another_width_than_can_be_slips_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_read, "MAX_UNREADABLE", 5)
    assert lines(ROW + "\n" + "1,2\n" * 5)[1].refused.total() == 5
    with pytest.raises(ArchiveUnreadable):
        lines(ROW + "\n" + "1,2\n" * 6)


def test_whole_numbers_are_those_that_json_writes() -> None:
    texts = ["1", "0", "01", "+1", " 1", "1e3", "", "x", "9223372036854775807", "99999999999999999999"]
    assert whole_numbers(pa.array(texts)).to_pylist() == [1, 0, *[None] * 6, None, None]
    assert whole_numbers(pa.array(["9223372036854775807"])).to_pylist() == [2**63 - 1]


# --- the other layout -------------------------------------------------------------------------------------------


def trades_mapping() -> Mapping:
    """Binance's raw trades: the layout of `trades` files, as docs/adding-an-exchange.md shows it."""
    text = (mappings_dir() / "binance.yaml").read_text()
    begin, end = text.index("requests:"), text.index("errors:")
    asked = """requests:
  path: /api/v3/historicalTrades
  query: {symbol: "{symbol}"}
  rows: ""
  example: >-
    [{"id":28457,"price":"4.00000100","qty":"12.00000000","quoteQty":"48.000012","time":1499865549590,"isBuyerMaker":true,"isBestMatch":true}]
  ids: dense
  page: {asks: ids_from, parameter: fromId}
  page_size: 1000
  size_parameter: limit
  settle_seconds: 5
  unknown_product_status: [400]

"""
    text = text[:begin] + asked + text[end:]
    begin, end = text.index("fields:"), text.index("archive:")
    fields = """fields:
  trade_id: {from: id, type: integer}
  price: {from: price, type: decimal}
  quantity: {from: qty, type: decimal}
  trade_ts: {from: time, type: epoch, unit: ms}
  side: {from: isBuyerMaker, values: {"true": SELL, "false": BUY}}

"""
    text = text[:begin] + fields + text[end:]
    words = '{"True": "true", "False": "false", "true": "true", "false": "false"}'
    for old, new in {
        "/aggTrades/": "/trades/",
        "-aggTrades-": "-trades-",
        "columns: [a, p, q, f, l, T, m, M]": "columns: [id, price, qty, quoteQty, time, isBuyerMaker, isBestMatch]",
        f"    m: {words}": f"    isBuyerMaker: {words}",
        f"    M: {words}": f"    isBestMatch: {words}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    return parse_mapping(text)


def test_files_of_raw_trades_are_read_by_their_own_columns() -> None:
    """ccxt#28672: live and archived aggTrades may differ in quantity; raw trades are the truth."""
    mapping = trades_mapping()
    file = file_of(mapping, BINANCE, "monthly", OLD)
    assert file.path == "/data/spot/monthly/trades/BTCUSDT/BTCUSDT-trades-2024-06.zip"
    found, read = lines("28457,4.00000100,12.00000000,48.00001200,1717200000590,True,True\n", mapping, file)
    assert found == [
        '{"id":28457,"price":"4.00000100","qty":"12.00000000","quoteQty":"48.00001200","time":1717200000590,'
        '"isBuyerMaker":true,"isBestMatch":true}'
    ]
    assert read.refused == {}


def test_a_text_that_nobody_reads_as_a_number_cannot_break_out_of_its_line() -> None:
    mapping = trades_mapping()
    file = file_of(mapping, BINANCE, "monthly", OLD)
    good = "28457,4.00000100,12.00000000,48.00001200,1717200000590,True,True\n"
    for evil in ('48"', "48\\", '48"}{"id":1', "48\x01"):
        found, read = lines(good + good.replace("48.00001200", evil), mapping, file)
        assert len(found) == 1
        assert read.refused == {"quoteQty is no text": 1}


# --- zips -------------------------------------------------------------------------------------------------------


def refusal(path: Path) -> ArchiveError:
    with pytest.raises(ArchiveError) as raised, member_of(path, FILE) as plain:
        while plain.read(1 << 16):
            pass
    return raised.value


def test_the_one_member_is_streamed(tmp_path: Path) -> None:
    for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with member_of(zipped(tmp_path / "a.zip", (FILE.member, ROW.encode()), kind=kind), FILE) as plain:
            assert plain.read() == ROW.encode()


@pytest.mark.parametrize(
    "members",
    [
        [],
        [("../../etc/passwd", b"x")],
        [(f"x/{FILE.member}", b"x")],
        [(FILE.member, b"x"), ("other.csv", b"x")],
        [(f"{FILE.name}", b"PK\x03\x04")],
        [(f"{FILE.member}/", b"")],
    ],
)
def test_anything_but_the_one_member_is_refused(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    assert isinstance(refusal(zipped(tmp_path / "a.zip", *members)), ArchiveUnreadable)


def test_a_bomb_is_refused_by_its_ratio_before_it_is_unpacked(tmp_path: Path) -> None:
    assert isinstance(refusal(zipped(tmp_path / "a.zip", (FILE.member, bytes(20_000_000)))), ArchiveBomb)
    assert not isinstance(zipped(tmp_path / "b.zip", (FILE.member, b"1,2\n" * 1000)), ArchiveBomb)


def test_a_bomb_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_read, "MAX_PLAIN_BYTES", 1_000)
    path = zipped(tmp_path / "a.zip", (FILE.member, b"1" * 1_001), kind=zipfile.ZIP_STORED)
    assert isinstance(refusal(path), ArchiveBomb)


def test_a_size_that_is_too_small_unpacks_no_more_than_it_says(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", (FILE.member, b"1" * 100_000))
    body = bytearray(path.read_bytes())
    at = body.rindex(b"PK\x01\x02")
    body[at + 24 : at + 28] = struct.pack("<I", 100)  # the directory's uncompressed size
    path.write_bytes(body)
    error = refusal(path)
    assert isinstance(error, ArchiveUnreadable)  # its CRC is not that of the first 100 bytes


def test_a_directory_of_a_million_entries_is_not_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", *[(f"{n}" * 40, b"") for n in range(2_000)])
    assert isinstance(refusal(path), ArchiveBomb)


def test_a_sixty_four_bit_directory_is_looked_at_too(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as packed, packed.open(FILE.member, "w", force_zip64=True) as out:
        out.write(ROW.encode())
    body = path.read_bytes()
    end = body.rindex(b"PK\x05\x06")
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 10**9, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    path.write_bytes(body[:end] + record + locator + body[end:])
    assert isinstance(refusal(path), ArchiveBomb)
    path.write_bytes(body[:end] + b"PK\x06\x07" + bytes(16) + body[end:])
    assert isinstance(refusal(path), ArchiveUnreadable)


@pytest.mark.parametrize("change", ["flip", "short", "empty", "text"])
def test_a_damaged_zip_is_refused_by_name(tmp_path: Path, change: str) -> None:
    """binance-public-data#469: corrupt zips."""
    path = zipped(tmp_path / "a.zip", (FILE.member, (ROW + "\n").encode() * 5_000))
    body = bytearray(path.read_bytes())
    body[len(body) // 3] ^= 0xFF
    made: dict[str, Any] = {"flip": body, "short": body[: len(body) // 2], "empty": b"", "text": b"<html></html>" * 10}
    path.write_bytes(made[change])
    assert isinstance(refusal(path), ArchiveUnreadable)
