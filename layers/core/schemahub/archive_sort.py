"""Rows of a file of any order, by id: spilled to compressed buckets on disk, read back one bucket at a time.

A bucket holds the ids of a few neighbouring chunks. Rows wait in memory until ``buffered`` bytes have come together;
then every bucket gets its part as one compressed frame that is appended to its file, which is closed at once. So no
file stays open however many buckets there are, and memory is bounded by what waits and by one bucket, whatever the
order of the file. Rows that are there twice are dropped on the way; two different rows of one id are kept.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from schemahub.archive_read import SCHEMA
from schemahub.errors import ArchiveUnreadable

BUFFERED_BYTES = 4 * 2**20
BUCKET_IDS = 20_000
MOST_ROWS_PER_ID = 4
"""More different rows than ids of a bucket by this factor are no trades."""
_WRITE = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1), use_threads=False)


class Spill:
    """The rows of one file below ``folder``, which must be empty."""

    def __init__(self, folder: Path, width: int, buffered: int = BUFFERED_BYTES) -> None:
        """``width``: ids of a bucket; the bucket of an id is ``id // width``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.width, self.buffered = folder, width, buffered
        self.rows = 0
        self._dropped: Counter[int] = Counter()
        self.disordered = 0
        """Places where an id is followed by a smaller one."""
        self.lowest: int | None = None
        self.highest: int | None = None
        self._waiting: dict[int, list[pa.RecordBatch]] = {}
        self.waiting_bytes = 0
        self._newest: int | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows in (``archive_read.SCHEMA``)."""
        if not len(batch):
            return
        ids = batch.column(0)
        self._watch_order(ids)
        self.rows += len(batch)
        for number, part in self._by_bucket(batch, ids):
            self._waiting.setdefault(number, []).append(part)
        self.waiting_bytes += batch.nbytes
        if self.waiting_bytes >= self.buffered:
            self.flush()

    def _watch_order(self, ids: pa.Array) -> None:
        edges = pc.min_max(ids).as_py()
        self.lowest = edges["min"] if self.lowest is None else min(self.lowest, edges["min"])
        self.highest = edges["max"] if self.highest is None else max(self.highest, edges["max"])
        before = self._newest
        self._newest = ids[-1].as_py()
        self.disordered += before is not None and ids[0].as_py() < before
        if len(ids) > 1:
            self.disordered += pc.sum(pc.cast(pc.less(ids[1:], ids[:-1]), pa.int64())).as_py() or 0

    def _by_bucket(self, batch: pa.RecordBatch, ids: pa.Array) -> Iterator[tuple[int, pa.RecordBatch]]:
        buckets = pc.divide(ids, self.width)
        if self.disordered and len(batch) > 1 and pc.any(pc.less(buckets[1:], buckets[:-1])).as_py():
            order = pc.sort_indices(buckets)
            batch, buckets = batch.take(order), buckets.take(order)
        for first, last in _runs(buckets):
            yield buckets[first].as_py(), batch.slice(first, last - first)

    def flush(self) -> None:
        """Append what waits to the buckets' files."""
        for number, parts in self._waiting.items():
            table, dropped = unique(pa.Table.from_batches(parts, SCHEMA))
            self._dropped[-1] += dropped
            with self._path(number).open("ab") as out, pa.ipc.new_stream(out, SCHEMA, options=_WRITE) as frame:
                frame.write_table(table)
        self._waiting, self.waiting_bytes = {}, 0

    def numbers(self) -> list[int]:
        """Buckets that hold rows, ascending."""
        self.flush()
        return sorted(int(path.stem) for path in self.folder.glob("*.rows"))

    def bucket(self, number: int) -> pa.Table:
        """The rows of a bucket by id, each different one once.

        Raises:
            ArchiveUnreadable: there are far more different rows than ids.
        """
        path, table, dropped = self._path(number), SCHEMA.empty_table(), 0
        if self._waiting:
            self.flush()
        if not path.exists():
            return table
        with path.open("rb") as packed:
            size = path.stat().st_size
            while packed.tell() < size:
                with pa.ipc.open_stream(packed) as frame:
                    table = pa.concat_tables([table, frame.read_all()])
                if len(table) > self.width:
                    table, again = unique(table)
                    dropped += again
                if len(table) > MOST_ROWS_PER_ID * self.width:
                    raise ArchiveUnreadable(f"more than {len(table)} different rows of {self.width} ids")
        table, again = unique(table)
        # A bucket may be read more than once.
        self._dropped[number] = dropped + again
        return table.combine_chunks()

    @property
    def repeated(self) -> int:
        """Rows that were there already, byte by byte, in what was read so far."""
        return self._dropped.total()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.rows"


def unique(table: pa.Table) -> tuple[pa.Table, int]:
    """The rows by id, and then by line; equal ones once. Says how many were dropped."""
    table = table.combine_chunks()
    if len(table) < 2:
        return table, 0
    ids = table["id"].chunk(0)
    if not pc.all(pc.greater_equal(ids[1:], ids[:-1])).as_py():
        table = table.take(pc.sort_indices(table, [("id", "ascending")])).combine_chunks()
        ids = table["id"].chunk(0)
    if not pc.any(pc.equal(ids[1:], ids[:-1])).as_py():
        return table, 0
    table = table.take(pc.sort_indices(table, [("id", "ascending"), ("line", "ascending")])).combine_chunks()
    ids, lines = table["id"].chunk(0), table["line"].chunk(0)
    again = pc.and_(pc.equal(ids[1:], ids[:-1]), pc.equal(lines[1:], lines[:-1]))
    kept = table.filter(pa.concat_arrays([pa.array([True]), pc.invert(again)]))
    return kept, len(table) - len(kept)


def _runs(numbers: pa.Array) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of equal numbers."""
    changes: Iterable[int] = ()
    if len(numbers) > 1 and numbers[0].as_py() != numbers[-1].as_py():
        changes = (i + 1 for i in pc.indices_nonzero(pc.not_equal(numbers[1:], numbers[:-1])).to_pylist())
    return itertools.pairwise([0, *changes, len(numbers)])


def bucket_width(chunk_size: int) -> int:
    """Ids of a bucket: whole chunks of the grid."""
    return chunk_size * max(1, BUCKET_IDS // chunk_size)
