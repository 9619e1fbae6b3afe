"""From raw trades as each exchange sent them to sorted Parquet files of the unified table.

DuckDB parses, checks and sorts; pyarrow writes (the choice is measured in docs/decisions/0001-transform-engine.md). The
SQL is made from the mapping alone. A row that does not map goes to quarantine with its reason and its original text;
nothing is dropped, defaulted or guessed.
"""

# ruff: noqa: S608  the SQL comes from mapping_sql, which quotes what it takes from a mapping
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from schemahub import exactness
from schemahub.batches import Batch, DataFile, Manifest, manifest_key, quarantine_key
from schemahub.datafiles import DayFiles, WrittenFile, statistics
from schemahub.errors import CorruptState, QuarantineExceeded, RawMissing, UnmappedField
from schemahub.mapping_sql import (
    LATEST_AFTER_COMMIT_US,
    REASONS,
    SIDES,
    reads_characters,
    rows_sql,
    transform_sql,
    unsigned_sql,
)
from schemahub.mappings import Mapping
from schemahub.objects import ObjectStore
from schemahub.streams import TRADES, Segment
from schemahub.table import COLUMNS, DATA_PREFIX, EXACT_COLUMNS, PARTITION, Column

BATCH_ROWS = 125_000
DEFAULT_MEMORY = "320MB"
TEXTS = ", price_text, quantity_text"


@dataclass(frozen=True)
class Transformed:
    """Local results of one batch."""

    files: tuple[WrittenFile, ...]
    rows: int
    quarantined: int
    quarantine: Path | None
    inexact: int
    unfit: int


def transform_files(
    mapping: Mapping,
    inputs: Sequence[tuple[Segment, Path]],
    folder: Path,
    *,
    memory_limit: str = DEFAULT_MEMORY,
    threads: int | None = None,
) -> Transformed:
    """Map verified raw files of neighbouring segments to sorted Parquet files below ``folder``.

    Memory stays near ``memory_limit`` plus two row groups: beyond it DuckDB spills to ``folder``.

    Raises:
        UnmappedField: the contract says to fail on fields that the mapping does not name, and there is one.
        CorruptState: rows are missing, or an id stands twice.
    """
    # Arrow's default pool gives pages back and faults them in again: a third of the writer's time.
    pa.set_memory_pool(pa.system_memory_pool())
    folder.mkdir(parents=True, exist_ok=True)
    segments = [segment for segment, _ in inputs]
    paths = [str(path) for _, path in inputs]
    with open_engine(folder, memory_limit, threads) as db:
        register_segments(db, inputs)
        if mapping.on_new_field == "fail":
            _refuse_new_fields(db, mapping, paths)
        source = _Source(db, mapping, paths)
        texts = TEXTS if mapping.exact != "none" else ""
        db.execute(
            f"CREATE TEMP TABLE mapped AS SELECT segment, id, price, quantity, side, trade_us, reason, odd{texts} FROM "
            f"({transform_sql(mapping, source.rows())})"
        )
        bad, odd = _count(db, segments)
        files = DayFiles(folder, (*COLUMNS, *EXACT_COLUMNS[mapping.exact]))
        ascending = _write_sorted(db, files, segments, mapping)
        if bad or not ascending:
            _refuse_duplicates(db, segments)
        quarantine = _quarantine(db, mapping, source, bad, folder) if bad else None
        inexact = source.inexact(odd)
        written = files.close()
    good = sum(s.count for s in segments) - bad
    unfit = sum(sum(statistics(f.footer, files.columns)["nulls"].values()) for f in written)
    return Transformed(tuple(written), good, bad, quarantine, inexact, unfit)


class _Source:
    """The rows of a batch's raw files, read the quick way, or by Python where DuckDB would print numbers anew."""

    def __init__(self, db: duckdb.DuckDBPyConnection, mapping: Mapping, paths: Sequence[str]) -> None:
        self.db, self.mapping, self.paths = db, mapping, paths
        self.exact = reads_characters(mapping)
        self.parsed = mapping.exact != "none" and not self.exact and exactness.holds_numbers(db, mapping, paths)

    def rows(self, *, with_lines: bool = False) -> str:
        """A FROM clause's query; good for one reading."""
        if not self.parsed:
            return rows_sql(self.mapping, self.paths, with_lines=with_lines)
        self.db.register("parsed", exactness.parsed_rows(self.mapping, self.paths))
        return unsigned_sql(self.mapping, "SELECT * FROM parsed")

    def inexact(self, odd: int) -> int:
        """Prices and quantities of good rows that a double cannot carry; ``odd`` rows may have some."""
        if not (self.parsed or self.exact) and exactness.sends_numbers(self.mapping, map(Path, self.paths)):
            return exactness.count_inexact_numbers(self.db, self.mapping, self.paths)
        return exactness.count_inexact(self.db, self.mapping, self.rows()) if odd else 0


def open_engine(
    folder: Path, memory_limit: str = DEFAULT_MEMORY, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """A DuckDB of its own that spills to ``folder`` beyond ``memory_limit``."""
    return duckdb.connect(
        config={
            "threads": threads or len(os.sched_getaffinity(0)),
            "memory_limit": memory_limit,
            "temp_directory": str(folder / "spill"),
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )


def register_segments(db: duckdb.DuckDBPyConnection, inputs: Sequence[tuple[Segment, Path]]) -> None:
    """The table ``segments`` that ``mapping_sql.transform_sql`` joins: number, range and time bound of each file."""
    table = pa.table(
        {
            "file": [str(path) for _, path in inputs],
            "segment": pa.array(range(len(inputs)), pa.uint16()),
            "first": pa.array([s.first for s, _ in inputs], pa.int64()),
            "last": pa.array([s.last for s, _ in inputs], pa.int64()),
            "latest_us": pa.array([s.committed_at * 1000 + LATEST_AFTER_COMMIT_US for s, _ in inputs], pa.int64()),
        }
    )
    db.register("registered", table)
    db.execute("CREATE TEMP TABLE segments AS SELECT * FROM registered")
    db.unregister("registered")


def _refuse_new_fields(db: duckdb.DuckDBPyConnection, mapping: Mapping, paths: Sequence[str]) -> None:
    rows = db.execute(
        "SELECT DISTINCT unnest(CASE WHEN NOT json_valid(line) THEN [] WHEN json_type(line) = 'ARRAY' "
        "THEN range(json_array_length(line)::BIGINT)::VARCHAR[] ELSE json_keys(line) END) AS name "
        f"FROM ({rows_sql(mapping, paths, with_lines=True)}) ORDER BY name"
    ).fetchall()
    new = [name for (name,) in rows if name not in map(str, mapping.fields.named)]
    if new:
        raise UnmappedField(f"{mapping.exchange} sends {', '.join(new)[:200]}, which its mapping does not name")


def _count(db: duckdb.DuckDBPyConnection, segments: Sequence[Segment]) -> tuple[int, int]:
    """How many rows do not map and how many others are odd, after a check that every segment's rows are all here."""
    counted = {
        number: (rows, bad, odd)
        for number, rows, bad, odd in db.execute(
            "SELECT segment, count(*), count(*) FILTER (reason > 0), count(*) FILTER (odd AND reason = 0) "
            "FROM mapped GROUP BY segment"
        ).fetchall()
    }
    for number, segment in enumerate(segments):
        rows = counted.get(number, (0, 0, 0))[0]
        if rows != segment.count:
            raise CorruptState(
                f"{segment.raw_key} gave {rows} rows, its segment says {segment.count}",
                stream=segment.stream,
                span=segment.interval,
            )
    return sum(bad for _, bad, _ in counted.values()), sum(odd for *_, odd in counted.values())


def _write_sorted(
    db: duckdb.DuckDBPyConnection, files: DayFiles, segments: Sequence[Segment], mapping: Mapping
) -> bool:
    """Stream the good rows, sorted, into ``files``. True if the ids only ever grew, which proves them distinct."""
    stream, exact = segments[0].stream, mapping.exact
    committed = pa.array([s.committed_at * 1000 for s in segments], pa.timestamp("us", "UTC"))
    numbers = mapping.fields.id_type == "integer"
    reader = db.execute(
        f"SELECT trade_us, id, price, quantity, side, segment{TEXTS if exact != 'none' else ''} "
        f"FROM mapped WHERE reason = 0 ORDER BY trade_us, {'id' if numbers else 'strlen(id), id'}"
    ).to_arrow_reader(BATCH_ROWS)
    ascending, highest = numbers, -1
    for batch in reader:
        ids = batch.column("id")
        if ascending and len(batch):
            ascending = ids[0].as_py() > highest and _grows(ids)
            highest = ids[-1].as_py()
        files.write(
            pa.RecordBatch.from_arrays(
                [
                    _repeated(stream.exchange.upper(), len(batch)),
                    _repeated(stream.product, len(batch)),
                    pc.cast(ids, pa.string()),
                    pa.DictionaryArray.from_arrays(batch.column("side").cast(pa.int8()), pa.array(SIDES)),
                    batch.column("price"),
                    batch.column("quantity"),
                    batch.column("trade_us").cast(pa.timestamp("us", "UTC")),
                    committed.take(batch.column("segment")),
                    *_exact_columns(batch, exact),
                ],
                schema=files.schema,
            )
        )
    return ascending


def _exact_columns(batch: pa.RecordBatch, exact: str) -> list[pa.Array]:
    if exact == "none":
        return []
    texts = [batch.column("price_text"), batch.column("quantity_text")]
    return texts if exact == "text" else [exactness.decimals(t) for t in texts]


def _grows(ids: pa.Array) -> bool:
    return pc.all(pc.less(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py() is not False


def _repeated(value: str, times: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), times), pa.array([value]))


def _refuse_duplicates(db: duckdb.DuckDBPyConnection, segments: Sequence[Segment]) -> None:
    twice = db.execute(
        "SELECT id FROM mapped WHERE reason NOT IN (1, 2) GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT 1"
    ).fetchone()
    if twice:
        raise CorruptState(
            f"the trade id {twice[0]} stands twice in committed raw objects",
            stream=segments[0].stream,
            span=(segments[0].first, segments[-1].last),
        )


def _quarantine(db: duckdb.DuckDBPyConnection, mapping: Mapping, source: _Source, bad: int, folder: Path) -> Path:
    """The rows that do not map as compressed JSON lines: reason, segment, original text."""
    rows = db.execute(
        f"SELECT segment, reason, line FROM ({transform_sql(mapping, source.rows(with_lines=True))}) "
        "WHERE reason > 0 ORDER BY segment, line"
    )
    path, written = folder / "quarantine.jsonl.zst", 0
    with path.open("wb") as out, zstandard.ZstdCompressor(level=3).stream_writer(out) as packed:
        while chunk := rows.fetchmany(10_000):
            for segment, reason, line in chunk:
                raw = Path(source.paths[segment]).name
                packed.write(json.dumps({"reason": REASONS[reason], "raw": raw, "line": line}).encode() + b"\n")
            written += len(chunk)
    if written != bad:
        raise CorruptState(f"{mapping.exchange}: {bad} rows do not map, but {written} were found again")
    return path


def verify_raw(segment: Segment, path: Path) -> None:
    """Check a downloaded raw object against what was committed.

    Raises:
        RawMissing: it cannot be unpacked, or SHA-256 or count differ.
    """
    digest, lines = hashlib.sha256(), 0
    try:
        with path.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as plain:
            while block := plain.read(1 << 18):
                digest.update(block)
                lines += block.count(b"\n")
    except zstandard.ZstdError as error:
        raise RawMissing(f"{segment.raw_key} cannot be unpacked: {error}", stream=segment.stream) from error
    if digest.hexdigest() != segment.sha256 or lines != segment.count:
        raise RawMissing(
            f"{segment.raw_key} does not match what was committed ({lines} rows, sha256 "
            f"{digest.hexdigest()[:12]}, expected {segment.count}, {segment.sha256[:12]})",
            stream=segment.stream,
            span=segment.interval,
        )


def transform_batch(
    objects: ObjectStore,
    load_mapping: Callable[[str], Mapping],
    batch: Batch,
    run_id: str,
    workdir: Path,
    *,
    rederive: bool = False,
    memory_limit: str = DEFAULT_MEMORY,
    threads: int | None = None,
) -> Manifest:
    """Transform a batch into data files that no snapshot names yet, and write the manifest that tells of them.

    Repeating it writes the same objects: names are functions of range and content.

    Raises:
        RawMissing: a raw object is gone or is not what was committed.
        QuarantineExceeded: more rows do not map than the contract allows; they are in quarantine, nothing else is.
    """
    mapping = load_mapping(batch.stream.exchange)
    inputs = list(_download(objects, batch, workdir / "raw"))
    result = transform_files(mapping, inputs, workdir / "out", memory_limit=memory_limit, threads=threads)
    key = None
    if result.quarantine is not None:
        key = quarantine_key(batch, run_id if rederive else None)
        objects.put(key, result.quarantine.read_bytes(), {"rows": str(result.quarantined)})
        if result.quarantined > (allowed := tolerated(mapping, batch.count)):
            raise QuarantineExceeded(
                f"{result.quarantined} of {batch.count} rows do not map (allowed: {allowed}); see {key}",
                stream=batch.stream,
                span=batch.interval,
            )
    columns = (*COLUMNS, *EXACT_COLUMNS[mapping.exact])
    files = tuple(_upload(objects, batch, f, columns) for f in result.files)
    manifest = Manifest(batch, files, result.quarantined, key, result.inexact, result.unfit)
    objects.put(manifest_key(run_id, batch.batch_id), json.dumps(manifest.to_json()).encode())
    return manifest


def tolerated(mapping: Mapping, rows: int) -> int:
    """How many of a batch's rows the contract lets go to quarantine."""
    if mapping.on_bad_row == "fail":
        return 0
    most = int(mapping.quarantine_max_share * rows)
    return most if mapping.quarantine_max_rows is None else min(most, mapping.quarantine_max_rows)


def _download(objects: ObjectStore, batch: Batch, folder: Path) -> Iterator[tuple[Segment, Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    for segment in batch.segments:
        path = folder / segment.raw_key.rsplit("/", 1)[-1]
        if not objects.get_to_file(segment.raw_key, path):
            raise RawMissing(f"{segment.raw_key} is gone", stream=segment.stream, span=segment.interval)
        verify_raw(segment, path)
        yield segment, path


def _upload(objects: ObjectStore, batch: Batch, file: WrittenFile, columns: Sequence[Column]) -> DataFile:
    stream, (first, last) = batch.stream, batch.interval
    # A re-derivation finds a line's files by their names, and a fill lies inside the range of its stream's.
    kind = "" if stream.dataset == TRADES else f"{stream.dataset}_"
    key = (
        f"{DATA_PREFIX}{PARTITION}={file.day.isoformat()}/{stream.exchange.upper()}_{stream.product}_{kind}"
        f"{first:020d}_{last:020d}_{file.sha256[:8]}.parquet"
    )
    objects.put_new(key, file.path)  # False: the same bytes are there already
    return DataFile(
        key=key,
        day=file.day.isoformat(),
        sha256=file.sha256,
        record_count=file.footer.num_rows,
        file_size=file.path.stat().st_size,
        **statistics(file.footer, columns),
    )
