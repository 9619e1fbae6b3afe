"""From raw trades as each exchange sent them to sorted Parquet files of the unified table.

DuckDB parses, checks and sorts; pyarrow writes (the choice is measured in docs/decisions/0001-transform-engine.md). The
SQL is made from the mapping alone. A row that does not map goes to quarantine with its reason and its original text;
nothing is dropped, defaulted or guessed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from schemahub.batches import Batch, DataFile, Manifest, manifest_key, quarantine_key
from schemahub.datafiles import DayFiles, WrittenFile, statistics
from schemahub.errors import BadMapping, CorruptState, QuarantineExceeded, RawMissing, UnmappedField
from schemahub.mappings import Fields, Mapping
from schemahub.objects import ObjectStore
from schemahub.streams import Segment
from schemahub.table import DATA_PREFIX, PARTITION, micros

REASONS = (
    "",
    "trade_id is missing or not an integer",
    "trade_id is outside of the segment",
    "price is not a finite number above 0",
    "quantity is not a finite number above 0",
    "side is not one of the mapping's",
    "time cannot be read",
    "time is out of bounds",
)
"""Index 0 is a good row. The first reason that holds is the one that is given."""

EARLIEST_US = micros(dt.datetime(2009, 1, 3, tzinfo=dt.UTC))
"""No trade is older than Bitcoin's first block: seconds read as milliseconds and the like show here."""
LATEST_AFTER_COMMIT_US = 86_400_000_000
UNIT_US = {"s": 1_000_000.0, "ms": 1000.0, "us": 1.0, "ns": 0.001}
MAX_INT64 = 2**63 - 1
BATCH_ROWS = 125_000
DEFAULT_MEMORY = "320MB"
SIDES = ("BUY", "SELL")

_OFFSET_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d([.,]\d{1,9})?[+-]\d\d:?\d\d"


@dataclass(frozen=True)
class Transformed:
    """Local results of one batch."""

    files: tuple[WrittenFile, ...]
    rows: int
    quarantined: int
    quarantine: Path | None


def transform_sql(mapping: Mapping, source: str) -> str:
    """SELECT that maps ``source`` (see ``rows_sql``) to segment, id, price, quantity, side, trade_us, reason, line.

    A temporary table ``segments`` says for each file the number, range and time bound of its segment. ``side`` is an
    index of SIDES, ``trade_us`` microseconds since the epoch, ``reason`` an index of REASONS.
    """
    fields = mapping.fields
    sides = " ".join(f"WHEN {_text(said)} THEN {SIDES.index(taker)}" for said, taker in fields.side_values.items())
    return f"""
SELECT segment, id, price, quantity, side, trade_us,
    -- The cast takes '1.0' and '1e3' for integers: only what reads back the same is one.
    (CASE WHEN id IS NULL OR id::VARCHAR <> id_text THEN 1
          WHEN id NOT BETWEEN first AND last THEN 2
          WHEN price IS NULL OR NOT (price > 0 AND price < 'infinity'::DOUBLE) THEN 3
          WHEN quantity IS NULL OR NOT (quantity > 0 AND quantity < 'infinity'::DOUBLE) THEN 4
          WHEN side IS NULL THEN 5
          WHEN trade_us IS NULL THEN 6
          WHEN trade_us NOT BETWEEN {EARLIEST_US} AND latest_us THEN 7
          ELSE 0 END)::UTINYINT AS reason, line
FROM (SELECT segment, first, last, latest_us, line, id_text, TRY_CAST(id_text AS BIGINT) AS id,
          TRY_CAST(price_text AS DOUBLE) AS price, TRY_CAST(quantity_text AS DOUBLE) AS quantity,
          (CASE side_text {sides} END)::UTINYINT AS side, {_time_sql(fields)} AS trade_us
      FROM ({source}) JOIN segments USING (file))"""


def rows_sql(mapping: Mapping, files: Sequence[str], *, with_lines: bool = False) -> str:
    """SELECT of the mapping's source fields as text from JSON-lines files, one row a line, with ``file`` and ``line``.

    The quick way leaves ``line`` NULL. Both give NULLs for a line that is not a JSON object.
    """
    fields = mapping.fields
    names = list(dict.fromkeys(fields.sources))
    if len({n.lower() for n in names}) < len(names):
        raise BadMapping(f"{mapping.exchange}: the transform cannot tell apart source fields that differ only in case")
    listed = "[" + ", ".join(_text(f) for f in files) + "]"
    if with_lines:
        shape = _text(json.dumps(dict.fromkeys(names, "VARCHAR")))
        # \x01 cannot stand in JSON text, so that the one CSV column is the whole line.
        inner = (
            f"SELECT filename, line, CASE WHEN json_valid(line) THEN json_transform(line, {shape}) END AS row "
            f"FROM read_csv({listed}, filename = true, header = false, auto_detect = false, delim = '\x01', "
            f"quote = '', escape = '', columns = {{'line': 'VARCHAR'}}, compression = 'zstd')"
        )
        prefix, line = "row.", "line"
    else:
        shape = "{" + ", ".join(f"{_text(n)}: 'VARCHAR'" for n in names) + "}"
        inner = (
            f"SELECT * FROM read_json({listed}, filename = true, format = 'newline_delimited', columns = {shape}, "
            f"ignore_errors = true, compression = 'zstd')"
        )
        prefix, line = "", "NULL::VARCHAR"
    chosen = ", ".join(
        f"{prefix}{_quoted(getattr(fields, role))} AS {alias}"
        for role, alias in (
            ("trade_id", "id_text"),
            ("price", "price_text"),
            ("quantity", "quantity_text"),
            ("side", "side_text"),
            ("trade_ts", "time_text"),
        )
    )
    return f"SELECT {chosen}, filename AS file, {line} AS line FROM ({inner})"


def _time_sql(fields: Fields) -> str:
    """``time_text`` as microseconds since the epoch; finer digits are cut off. A time without its zone is no time."""
    if fields.ts_type == "iso8601":
        return (
            f"epoch_us(TRY_CAST(CASE WHEN time_text LIKE '____-__-__T__:__:__%Z' "
            f"OR regexp_full_match(time_text, {_text(_OFFSET_TIME)}) THEN time_text END AS TIMESTAMPTZ))"
        )
    unit = UNIT_US[str(fields.ts_unit)]
    whole = "TRY_CAST(time_text AS BIGINT)"
    scaled = f"{whole} * {int(unit)}" if unit >= 1 else f"{whole} // {round(1 / unit)}"
    most = int(MAX_INT64 // unit) if unit >= 1 else MAX_INT64
    fraction = "TRY_CAST(time_text AS DECIMAL(38, 12))"
    return (
        f"(CASE WHEN {whole}::VARCHAR = time_text THEN CASE WHEN {whole} BETWEEN 0 AND {most} THEN {scaled} END "
        f"WHEN {fraction} BETWEEN 0 AND {most} THEN TRY_CAST(floor({fraction} * {unit:.3f}) AS BIGINT) END)"
    )


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


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
    folder.mkdir(parents=True, exist_ok=True)
    segments = [segment for segment, _ in inputs]
    paths = [str(path) for _, path in inputs]
    with _engine(folder, memory_limit, threads) as db:
        _register_segments(db, inputs)
        if mapping.on_new_field == "fail":
            _refuse_new_fields(db, mapping, paths)
        db.execute(
            f"CREATE TEMP TABLE mapped AS SELECT * EXCLUDE (line) FROM "
            f"({transform_sql(mapping, rows_sql(mapping, paths))})"
        )
        bad = _count(db, segments)
        files = DayFiles(folder)
        ascending = _write_sorted(db, files, segments)
        if bad or not ascending:
            _refuse_duplicates(db, segments)
        quarantine = _quarantine(db, mapping, paths, bad, folder) if bad else None
        written = files.close()
    return Transformed(tuple(written), sum(s.count for s in segments) - bad, bad, quarantine)


def _engine(folder: Path, memory_limit: str, threads: int | None) -> duckdb.DuckDBPyConnection:
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


def _register_segments(db: duckdb.DuckDBPyConnection, inputs: Sequence[tuple[Segment, Path]]) -> None:
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
        "SELECT DISTINCT unnest(json_keys(CASE WHEN json_valid(line) THEN line END)) AS name "
        f"FROM ({rows_sql(mapping, paths, with_lines=True)}) ORDER BY name"
    ).fetchall()
    new = [name for (name,) in rows if name not in mapping.fields.sources]
    if new:
        raise UnmappedField(f"{mapping.exchange} sends {', '.join(new)[:200]}, which its mapping does not name")


def _count(db: duckdb.DuckDBPyConnection, segments: Sequence[Segment]) -> int:
    """How many rows do not map, after a check that every segment's rows are all here."""
    counted = {
        number: (rows, bad)
        for number, rows, bad in db.execute(
            "SELECT segment, count(*), count(*) FILTER (reason > 0) FROM mapped GROUP BY segment"
        ).fetchall()
    }
    for number, segment in enumerate(segments):
        rows = counted.get(number, (0, 0))[0]
        if rows != segment.count:
            raise CorruptState(
                f"{segment.raw_key} gave {rows} rows, its segment says {segment.count}",
                stream=segment.stream,
                span=segment.interval,
            )
    return sum(bad for _, bad in counted.values())


def _write_sorted(db: duckdb.DuckDBPyConnection, files: DayFiles, segments: Sequence[Segment]) -> bool:
    """Stream the good rows, sorted, into ``files``. True if the ids only ever grew, which proves them distinct."""
    stream = segments[0].stream
    committed = pa.array([s.committed_at * 1000 for s in segments], pa.timestamp("us", "UTC"))
    reader = db.execute(
        "SELECT trade_us, id, price, quantity, side, segment FROM mapped WHERE reason = 0 ORDER BY trade_us, id"
    ).to_arrow_reader(BATCH_ROWS)
    ascending, highest = True, -1
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
                ],
                schema=files.schema,
            )
        )
    return ascending


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


def _quarantine(db: duckdb.DuckDBPyConnection, mapping: Mapping, paths: Sequence[str], bad: int, folder: Path) -> Path:
    """The rows that do not map as compressed JSON lines: reason, segment, original text."""
    rows = db.execute(
        f"SELECT segment, reason, line FROM ({transform_sql(mapping, rows_sql(mapping, paths, with_lines=True))}) "
        "WHERE reason > 0 ORDER BY segment, line"
    )
    path, written = folder / "quarantine.jsonl.zst", 0
    with path.open("wb") as out, zstandard.ZstdCompressor(level=3).stream_writer(out) as packed:
        while chunk := rows.fetchmany(10_000):
            for segment, reason, line in chunk:
                packed.write(
                    json.dumps({"reason": REASONS[reason], "raw": Path(paths[segment]).name, "line": line}).encode()
                    + b"\n"
                )
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
        key = quarantine_key(batch)
        objects.put(key, result.quarantine.read_bytes(), {"rows": str(result.quarantined)})
        if result.quarantined > mapping.quarantine_max_share * batch.count:
            raise QuarantineExceeded(
                f"{result.quarantined} of {batch.count} rows do not map (allowed: "
                f"{mapping.quarantine_max_share:.2%}); see {key}",
                stream=batch.stream,
                span=batch.interval,
            )
    manifest = Manifest(batch, tuple(_upload(objects, batch, f) for f in result.files), result.quarantined, key)
    objects.put(manifest_key(run_id, batch.batch_id), json.dumps(manifest.to_json()).encode())
    return manifest


def _download(objects: ObjectStore, batch: Batch, folder: Path) -> Iterator[tuple[Segment, Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    for segment in batch.segments:
        path = folder / segment.raw_key.rsplit("/", 1)[-1]
        if not objects.get_to_file(segment.raw_key, path):
            raise RawMissing(f"{segment.raw_key} is gone", stream=segment.stream, span=segment.interval)
        verify_raw(segment, path)
        yield segment, path


def _upload(objects: ObjectStore, batch: Batch, file: WrittenFile) -> DataFile:
    stream, (first, last) = batch.stream, batch.interval
    key = (
        f"{DATA_PREFIX}{PARTITION}={file.day.isoformat()}/{stream.exchange.upper()}_{stream.product}_{first:020d}_"
        f"{last:020d}_{file.sha256[:8]}.parquet"
    )
    objects.put_new(key, file.path)  # False: the same bytes are there already
    return DataFile(
        key=key,
        day=file.day.isoformat(),
        sha256=file.sha256,
        record_count=file.footer.num_rows,
        file_size=file.path.stat().st_size,
        **statistics(file.footer),
    )
