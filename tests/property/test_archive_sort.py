"""Whatever the order, the repeats and the conflicts of a file: by id come exactly its different rows."""

from __future__ import annotations

import itertools
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemahub.archive_read import SCHEMA
from schemahub.archive_sort import Spill, bucket_width, unique
from schemahub.errors import ArchiveUnreadable

Row = tuple[int, int, str]
ROWS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), st.sampled_from("ab")), max_size=80)


def batch(rows: list[Row]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) if rows else ((), (), ())
    return pa.record_batch([pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)


@given(rows=ROWS, size=st.integers(1, 20), width=st.integers(1, 25), buffered=st.sampled_from([1, 300, 10**6]))
def test_rows_come_back_by_id_each_different_one_once(rows: list[Row], size: int, width: int, buffered: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spill = Spill(Path(folder) / "rows", width, buffered)
        for at in range(0, len(rows), size):
            spill.add(batch(rows[at : at + size]))
        found: list[Row] = []
        try:
            for number in spill.numbers():
                table = spill.bucket(number)
                ids = table["id"].to_pylist()
                assert ids == sorted(ids)
                assert {i // width for i in ids} == {number}
                found += zip(*(table[n].to_pylist() for n in ("id", "ts_us", "line")), strict=True)
        except ArchiveUnreadable:
            assert len({(i, line) for i, _, line in rows}) > 4 * width or width == 1
            return
        wanted = {(i, line) for i, _, line in rows}
        assert sorted((i, line) for i, _, line in found) == sorted(wanted)
        assert spill.rows == len(rows)
        assert spill.repeated == len(rows) - len(wanted)
        if rows:
            assert (spill.lowest, spill.highest) == (min(r[0] for r in rows), max(r[0] for r in rows))
        assert spill.disordered == sum(b[0] < a[0] for a, b in itertools.pairwise(rows))


@given(rows=ROWS)
def test_unique_drops_only_what_is_there_already(rows: list[Row]) -> None:
    table, dropped = unique(pa.Table.from_batches([batch(rows)], SCHEMA))
    kept = list(zip(table["id"].to_pylist(), table["line"].to_pylist(), strict=True))
    assert len(kept) == len(set(kept)) == len(rows) - dropped
    assert set(kept) == {(i, line) for i, _, line in rows}


def test_a_bucket_is_whole_chunks_of_the_grid() -> None:
    for size in (1, 999, 1_000, 10_000, 1_000_000):
        assert bucket_width(size) % size == 0


def test_far_more_rows_than_ids_are_refused_not_collected(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "rows", 10, 1)
    for n in range(100):
        spill.add(batch([(3, 0, f"{n}")]))
    with pytest.raises(ArchiveUnreadable):
        spill.bucket(0)


def test_a_shuffled_file_waits_in_bounded_memory_and_leaves_no_file_open(tmp_path: Path) -> None:
    dice, numbers = random.Random(3), list(range(40_000))
    dice.shuffle(numbers)
    spill, most = Spill(tmp_path / "rows", 100, 100_000), 0
    before = len(list(Path("/proc/self/fd").iterdir()))
    for at in range(0, len(numbers), 1_000):
        spill.add(batch([(n, 0, "x" * 90) for n in numbers[at : at + 1_000]]))
        most = max(most, spill.waiting_bytes)
    assert len(spill.numbers()) == 400
    assert most < 300_000
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert sum(len(spill.bucket(n)) for n in spill.numbers()) == 40_000
