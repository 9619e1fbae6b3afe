"""SQL over the unified table from a laptop: DuckDB reads the table's Iceberg metadata and the files it leaves over.

``iceberg_scan`` and not ``read_parquet`` over a list of files: DuckDB then prunes by the day and by the bounds of every
column for whatever WHERE says (measured: 2 of 25 files opened for one day, against 25 of 25 footers), and a query reads
exactly the snapshot that the catalog named when the connection was made.

The connection opens the files of its tables and nothing else: DuckDB's external access is off but for their folders,
its configuration is locked, and credentials that its extension picked up from the environment are not in its settings.
"""

from __future__ import annotations

import atexit
import importlib.util
import itertools
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import duckdb

from schemahub.errors import BadConfig, BadQuery, QueryOutOfMemory, QueryRefused, QueryTimeout, SchemaHubError
from schemahub.mappings import exchanges, load_mapping
from schemahub.statement import single_select
from schemahub.streams import PRODUCT, Stream
from schemahub.table import COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

EXTENSIONS = ("httpfs", "avro", "iceberg")
_INTERVAL = re.compile(r"([1-9]\d{0,3})([smhd])")
_UNITS = {"s": "second", "m": "minute", "h": "hour", "d": "day"}
_EXCHANGE = re.compile(r"[A-Z][A-Z0-9_]{0,31}")
_DUCKDB_TYPES = {"string": "VARCHAR", "double": "DOUBLE", "timestamptz": "TIMESTAMPTZ"}
_NOBODY = "('', '', 0)"
_ALSO = {"trades": "unified_trades"}
"""The table's name in Athena, so that one query runs on both."""
_LEAKS = ("s3_access_key_id", "s3_secret_access_key", "s3_session_token")
_NO_ARROW = re.compile(r"\b(BIT|BIGNUM|UHUGEINT|UNION|VARIANT|TIME WITH TIME ZONE)\b")
BATCH_ROWS = 20_000
"""Rows in hand at a time when an answer is streamed."""


def connect(
    session: Any,
    table: Any = None,
    *,
    instruments: Any = None,
    snapshot: int | None = None,
    threads: int | None = None,
) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views ``trades`` and ``instruments``: the current snapshots of two PyIceberg tables.

    A view whose table is not given is not there; ``unified_trades`` is ``trades``. With ``snapshot``, both are that
    older one.

    Endpoint, region and credentials are those of the boto3 session's S3 client, whatever chain they come from.

    Raises:
        BadConfig: no credentials, or DuckDB's extension packages are not installed.
    """
    seen = {"trades": table, "instruments": instruments}
    locations = {n: t.metadata_location for n, t in seen.items() if t is not None}
    return open_tables(session, locations, threads=threads, snapshot=snapshot)


def open_view(
    session: Any, location: str, memory_limit: str | None = None, *, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """``trades`` of the table whose metadata file is at ``location``; beyond ``memory_limit`` DuckDB spills."""
    return open_tables(session, {"trades": location}, memory_limit, threads=threads)


def open_tables(
    session: Any,
    locations: Mapping[str, str],
    memory_limit: str | None = None,
    *,
    threads: int | None = None,
    snapshot: int | None = None,
) -> duckdb.DuckDBPyConnection:
    """A connection with a view for each metadata file in ``locations``. DuckDB reads the file; nothing else has to.

    Beyond ``memory_limit`` it spills to a folder of its own.
    """
    db = _open(memory_limit, threads)
    if locations:
        for name in EXTENSIONS:
            db.execute(f"LOAD {_text(str(_extension(name)))}")
        db.execute(_secret_sql(session))
        for setting in _LEAKS:  # httpfs copies them from the environment at LOAD; the secret above is what counts
            db.execute(f"SET {setting} = ''")
    at = {"trades": f", snapshot_from_id = {int(snapshot)}"} if snapshot is not None else {}
    sources = {n: f"iceberg_scan({_text(where)}{at.get(n, '')})" for n, where in locations.items()}
    return _shut(db, sources, folders=[where.rpartition("/metadata/")[0] + "/" for where in locations.values()])


def open_files(paths: Sequence[str], memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
    """A connection whose view ``trades`` is these Parquet files on this machine, without Iceberg or network."""
    db = _open(memory_limit, None)
    columns = ", ".join(f"NULL::{_DUCKDB_TYPES[c.kind]} AS {c.name}" for c in COLUMNS)
    found = f"read_parquet({_list(paths)}, union_by_name = true)" if paths else f"(SELECT {columns} LIMIT 0)"
    return _shut(db, {"trades": found}, files=paths)


def _open(memory_limit: str | None, threads: int | None) -> duckdb.DuckDBPyConnection:
    config: dict[str, Any] = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    if threads:
        config["threads"] = threads
    if memory_limit:
        # A folder of its own: DuckDB lets a query read whatever lies in its spill directory.
        spill = tempfile.mkdtemp(prefix="schemahub-query-")
        atexit.register(shutil.rmtree, spill, ignore_errors=True)
        config |= {"memory_limit": memory_limit, "temp_directory": spill, "preserve_insertion_order": False}
    else:
        config["temp_directory"] = ""
    db = duckdb.connect(config=config)
    db.execute("SET TimeZone = 'UTC'")
    return db


def _shut(
    db: duckdb.DuckDBPyConnection, sources: Mapping[str, str], folders: Iterable[str] = (), files: Iterable[str] = ()
) -> duckdb.DuckDBPyConnection:
    """The views, over a connection that opens these folders and files from now on, and nothing else."""
    db.execute(f"SET allowed_directories = {_list(folders)}")
    db.execute(f"SET allowed_paths = {_list(files)}")
    db.execute("SET python_enable_replacements = false")  # FROM x would read a variable of ours that is called x
    db.execute("SET enable_external_access = false")
    for view, source in sources.items():
        for name in filter(None, (view, _ALSO.get(view))):
            db.execute(f"CREATE VIEW {name} AS SELECT * FROM {source}")  # noqa: S608
    db.execute("SET lock_configuration = true")
    return db


def _extension(name: str) -> Path:
    """The extension's file in its Python package: nothing is downloaded at run time."""
    package = importlib.util.find_spec(f"duckdb_extension_{name}")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder) / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
        if path.exists():
            return path
    raise BadConfig(
        f"DuckDB's extension {name} for version {duckdb.__version__} is not installed",
        remedy=f"Install duckdb-extension-{name}=={duckdb.__version__} (`make setup` does).",
    )


def _secret_sql(session: Any) -> str:
    s3 = session.client("s3")
    found = session.get_credentials()
    if found is None:
        raise BadConfig("no AWS credentials were found", remedy="Set AWS_PROFILE, or log in, and try again.")
    keys, endpoint = found.get_frozen_credentials(), urlsplit(s3.meta.endpoint_url)
    options = {"KEY_ID": keys.access_key, "SECRET": keys.secret_key, "REGION": s3.meta.region_name}
    if keys.token:
        options["SESSION_TOKEN"] = keys.token
    if not (endpoint.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
        options |= {"ENDPOINT": endpoint.netloc, "URL_STYLE": "path"}
    listed = "".join(f", {name} {_text(value)}" for name, value in options.items())
    return f"CREATE SECRET (TYPE s3{listed}, USE_SSL {str(endpoint.scheme == 'https').lower()})"


def select(db: duckdb.DuckDBPyConnection, sql: str, max_rows: int | None = None) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows of one statement that only reads.

    Raises:
        BadQuery: not exactly one such statement, or DuckDB does not accept it; its own words are in the message.
        QueryRefused: it reaches for what is not in the lake.
    """
    try:
        answer = db.execute(single_select(sql))
        columns = [column[0] for column in answer.description]
        rows = answer.fetchall() if max_rows is None else answer.fetchmany(max_rows)
    except duckdb.Error as error:
        raise _named(error) from error
    return columns, [list(row) for row in rows]


def stream(
    db: duckdb.DuckDBPyConnection, sql: str, *, timeout_s: float | None = None
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The answer of one statement that only reads, as Arrow batches of at most BATCH_ROWS rows, made as they are taken.

    The first batch is there when this returns, so that most errors come before a caller has written anything. The
    iterator raises the same errors as this does.

    Raises:
        BadQuery: as ``select``; also where a column's type has no Arrow type.
        QueryRefused: as ``select``.
        QueryTimeout: the rows were not all taken within ``timeout_s`` seconds.
        QueryOutOfMemory: the connection's memory limit was not enough.
    """
    running = _run(db, single_select(sql), timeout_s)
    schema: pa.Schema = next(running)
    first = next(running, None)
    return schema, itertools.chain([] if first is None else [first], running)


def _run(db: duckdb.DuckDBPyConnection, sql: str, timeout_s: float | None) -> Iterator[Any]:
    """The answer's schema, then its batches."""
    timer = threading.Timer(timeout_s or 0, db.interrupt)
    timer.daemon = True
    if timeout_s is not None:
        timer.start()
    try:
        answer = db.execute(sql)
        for name, kind, *_ in answer.description:
            if found := _NO_ARROW.search(str(kind)):
                raise BadQuery(f"column {name} is a {found[1]}", remedy="Cast it to VARCHAR in the query.")
        reader = answer.to_arrow_reader(BATCH_ROWS)
        yield reader.schema
        yield from reader
    except (duckdb.Error, OSError) as error:  # through Arrow's interface DuckDB's errors arrive as OSError
        raise _named(error, timeout_s) from error
    finally:
        timer.cancel()


def _named(error: Exception, timeout_s: float | None = None) -> SchemaHubError:
    words = str(error)
    if words.startswith("INTERRUPT Error"):
        return QueryTimeout(f"the query was stopped after {timeout_s:g} s" if timeout_s else "the query was stopped")
    if words.startswith("Out of Memory Error"):
        return QueryOutOfMemory(f"DuckDB: {words.splitlines()[0][:300]}")
    if words.startswith("Permission Error"):
        return QueryRefused(f"DuckDB: {words.splitlines()[0][:300]}")
    return BadQuery(f"DuckDB: {words[:800]}")


def ohlcv_sql(symbol: str, interval: str, exchange: str | None = None) -> str:
    """SELECT of bars: open, high, low, close, volume (base currency), vwap and trades for each ``interval`` (``5m``).

    Bars without trades are not made up. Trades of the same microsecond are ordered by their number.
    """
    found = _INTERVAL.fullmatch(interval)
    if not found:
        raise BadQuery(f"the interval {interval[:20]!r} is not a number and s, m, h or d")
    where = f"symbol = {_text(_checked(PRODUCT, symbol, 'symbol'))}"
    if exchange is not None:
        where += f" AND exchange = {_text(_checked(_EXCHANGE, exchange.upper(), 'exchange'))}"
    order = "ORDER BY trade_ts, TRY_CAST(trade_id AS BIGINT), trade_id"
    return f"""
SELECT exchange, symbol, time_bucket(INTERVAL {found[1]} {_UNITS[found[2]]}, trade_ts) AS bar,
    first(price {order}) AS open, max(price) AS high, min(price) AS low, last(price {order}) AS close,
    sum(quantity) AS volume, sum(price * quantity) / sum(quantity) AS vwap, count(*) AS trades
FROM trades WHERE {where} GROUP BY ALL ORDER BY exchange, symbol, bar"""  # noqa: S608


def coverage_sql(explained: Mapping[Stream, int] | None = None) -> str:
    """SELECT of what the table has of each product: ids, rows, duplicates and ids that are missing.

    ``explained`` says for each stream how many ids between its first and last are accounted for elsewhere: those that
    the exchange never issued and those in quarantine. ``missing`` and ``duplicates`` must then be 0. Where ids skip
    numbers, ``missing`` is NULL: only ``schemahub verify``, which knows what was committed, can tell.
    """
    dense = ", ".join(_text(name.upper()) for name in exchanges() if load_mapping(name).counted)
    rows = [f"({_text(s.exchange.upper())}, {_text(s.product)}, {n})" for s, n in (explained or {}).items()]
    known = f"(VALUES {', '.join(rows or [_NOBODY])}) AS known(exchange, symbol, ids)"
    return f"""
SELECT exchange, symbol, first_id, last_id, first_ts, last_ts, trades, trades - distinct_ids AS duplicates,
    CASE WHEN exchange IN ({dense}) THEN last_id - first_id + 1 - distinct_ids - coalesce(known.ids, 0) END AS missing
FROM (SELECT exchange, symbol, min(TRY_CAST(trade_id AS BIGINT)) AS first_id,
          max(TRY_CAST(trade_id AS BIGINT)) AS last_id,
          min(trade_ts) AS first_ts, max(trade_ts) AS last_ts, count(*) AS trades,
          count(DISTINCT trade_id) AS distinct_ids
      FROM trades GROUP BY exchange, symbol) AS held
LEFT JOIN {known} USING (exchange, symbol) ORDER BY exchange, symbol"""  # noqa: S608


def _checked(pattern: re.Pattern[str], value: str, name: str) -> str:
    if not pattern.fullmatch(value):
        raise BadQuery(f"the {name} {value[:40]!r} is not valid")
    return value


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(map(_text, values))}]"
