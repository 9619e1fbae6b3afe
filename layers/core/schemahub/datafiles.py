"""Writing sorted rows as Parquet files, one a day, with the statistics that Iceberg wants."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemahub.table import COLUMNS, DICTIONARY, EPOCH, ROW_GROUP_ROWS, Column, arrow_schema, day_of, micros

DAY_US = 86_400_000_000


@dataclass(frozen=True)
class WrittenFile:
    """A finished local file and its Parquet footer."""

    path: Path
    day: dt.date
    sha256: str
    footer: pq.FileMetaData


class DayFiles:
    """Cuts a stream of record batches that is sorted by ``trade_ts`` into a file a day.

    Holds at most two row groups in memory. The row groups have a fixed size whatever the incoming batches have, so
    the same rows make the same bytes.
    """

    def __init__(self, folder: Path, columns: Sequence[Column] = COLUMNS) -> None:
        self.folder = folder
        self.columns = columns
        self.schema = arrow_schema(columns)
        self.finished: list[WrittenFile] = []
        self._writer: pq.ParquetWriter | None = None
        self._day: dt.date | None = None
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self._footers: list[pq.FileMetaData] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows; none may be earlier than those before."""
        times = batch.column("trade_ts").cast(pa.int64())
        start = 0
        while start < len(batch):
            day = day_of(times[start].as_py())
            end = _first_after(times, start, (day - EPOCH.date()).days * DAY_US + DAY_US)
            if day != self._day:
                self.close()
                self._open(day)
            self._hold(batch.slice(start, end - start))
            start = end

    def close(self) -> list[WrittenFile]:
        """Finish the open file; returns all files so far."""
        if self._writer is not None and self._day is not None:
            if self._held:
                self._flush(self._held_rows)
            self._writer.close()
            path = self._path(self._day)
            digest = hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
            self.finished.append(WrittenFile(path, self._day, digest, self._footers.pop()))
            self._writer = self._day = None
        return self.finished

    def _path(self, day: dt.date) -> Path:
        return self.folder / f"{day.isoformat()}.parquet"

    def _open(self, day: dt.date) -> None:
        self._day = day
        self._writer = pq.ParquetWriter(
            self._path(day),
            self.schema,
            compression="zstd",
            compression_level=3,
            # Whatever else Parquet can do to a column, zstd does better if it sees many rows at once; pyarrow's default
            # is 20,000.
            max_rows_per_page=ROW_GROUP_ROWS,
            store_schema=False,
            use_dictionary=[c.name for c in self.columns if c.encoding == DICTIONARY],
            column_encoding={c.name: c.encoding for c in self.columns if c.encoding != DICTIONARY},
            metadata_collector=self._footers,
        )

    def _hold(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._held_rows += len(batch)
        while self._held_rows >= ROW_GROUP_ROWS:
            self._flush(ROW_GROUP_ROWS)

    def _flush(self, rows: int) -> None:
        table = pa.Table.from_batches(self._held)
        assert self._writer is not None
        self._writer.write_table(table.slice(0, rows), row_group_size=ROW_GROUP_ROWS)
        rest = table.slice(rows)
        self._held, self._held_rows = rest.to_batches(), rest.num_rows


def _first_after(times: pa.Array, start: int, limit_us: int) -> int:
    """The index of the first time that is not before ``limit_us``, by bisection of the sorted array."""
    low, high = start, len(times)
    if times[high - 1].as_py() < limit_us:
        return high
    while low < high:
        middle = (low + high) // 2
        if times[middle].as_py() < limit_us:
            low = middle + 1
        else:
            high = middle
    return low


def statistics(footer: pq.FileMetaData, columns: Sequence[Column] = COLUMNS) -> dict[str, Any]:
    """Column sizes (bytes), bounds, NULLs and split offsets of a footer, in the shape of ``batches.DataFile``.

    Optional columns have no bounds: those of the doubles beside them prune as well.
    """
    groups = [footer.row_group(g) for g in range(footer.num_row_groups)]
    sizes: dict[str, int] = {}
    lower: dict[str, Any] = {}
    upper: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for index, column in enumerate(columns):
        chunks = [group.column(index) for group in groups]
        sizes[column.name] = sum(chunk.total_compressed_size for chunk in chunks)
        if not column.required:
            nulls[column.name] = sum(chunk.statistics.null_count for chunk in chunks)
            continue
        lower[column.name] = min(_plain(chunk.statistics.min) for chunk in chunks)
        upper[column.name] = max(_plain(chunk.statistics.max) for chunk in chunks)
    return {
        "column_sizes": sizes,
        "lower": lower,
        "upper": upper,
        "nulls": nulls,
        "split_offsets": tuple(_offset(group.column(0)) for group in groups),
    }


def _plain(value: Any) -> Any:
    return micros(value) if isinstance(value, dt.datetime) else value


def _offset(chunk: Any) -> int:
    pages: Iterable[int | None] = (chunk.dictionary_page_offset, chunk.data_page_offset)
    return min(p for p in pages if p is not None)
