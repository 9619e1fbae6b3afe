"""What is in the footers of the Parquet files that SchemaHub writes: encodings that every listed reader reads."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemahub import instruments_table, seed, table
from schemahub.datafiles import DayFiles
from schemahub.exchanges import Product
from schemahub.instruments import merge
from schemahub.mappings import load_mapping
from schemahub.seed import Seed
from schemahub.transform import transform_files
from tests.lake import BTC, DATABASE, Lake, coinbase_row, make_glue_check_versions, packed, segment_of

READ_BY_ALL = {"PLAIN", "RLE", "RLE_DICTIONARY"}
"""By every reader of docs/decisions/0007-encodings.md, by default. RLE is that of levels and dictionary codes."""


def encodings_of(footer: pq.FileMetaData) -> dict[str, set[str]]:
    """The encodings of each column over all row groups."""
    found: dict[str, set[str]] = {}
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            found.setdefault(column.path_in_schema, set()).update(column.encodings)
    return found


@pytest.mark.parametrize("exact", ["none", "text", "decimal"])
def test_data_files_have_only_encodings_that_every_reader_reads_by_default(tmp_path: Path, exact: str) -> None:
    rows = [coinbase_row(i) for i in range(1, 2000)]
    raw = tmp_path / "raw.jsonl.zst"
    body, plain = packed(rows)
    raw.write_bytes(body)
    mapping = replace(load_mapping("coinbase"), exact=exact)
    done = transform_files(mapping, [(segment_of(BTC, 1, 1999, rows, plain), raw)], tmp_path / "out", threads=1)
    assert len(done.files) > 1
    for file in done.files:
        found = encodings_of(file.footer)
        assert set(found) == {c.name for c in (*table.COLUMNS, *table.EXACT_COLUMNS[exact])}
        assert set().union(*found.values()) <= READ_BY_ALL
        assert all("RLE_DICTIONARY" in found[name] for name in ("exchange", "symbol", "side", "ingest_ts"))


def test_a_dictionary_that_grows_too_large_falls_back_to_what_every_reader_reads(tmp_path: Path) -> None:
    columns = tuple(replace(c, encoding=table.DICTIONARY) if c.kind == "double" else c for c in table.COLUMNS)
    files, count = DayFiles(tmp_path, columns), 150_000
    same = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), count), pa.array(["X"]))
    numbers = pa.array(range(count))
    doubles, times = numbers.cast(pa.float64()), numbers.cast(files.schema.field("trade_ts").type)
    values = [same, same, numbers.cast(pa.string()), same, doubles, doubles, times, times]
    files.write(pa.RecordBatch.from_arrays(values, schema=files.schema))
    (written,) = files.close()
    assert encodings_of(written.footer)["price"] == READ_BY_ALL


def test_the_table_of_instruments_has_only_encodings_that_every_reader_reads_by_default(
    aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_glue_check_versions(monkeypatch)
    lake = Lake(aws, tmp_path)
    listed = [Product(f"A{n}-USD", f"A{n}-USD", "online", True) for n in range(500)]
    seed.update(lake.objects, lambda old: Seed(old.streams, merge(old.instruments, "coinbase", listed, 1_700_000_000)))
    instruments_table.publish(lake.catalog, lake.objects, DATABASE, lake.clock)
    (key,) = [key for key in lake.objects.list(instruments_table.LOCATION) if key.endswith(".parquet")]
    footer = pq.read_metadata(io.BytesIO(lake.objects.get(key) or b""))
    assert set().union(*encodings_of(footer).values()) <= READ_BY_ALL
