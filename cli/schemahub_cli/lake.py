"""The unified table on the local stack: opened by DuckDB, counted against the ledger, drawn as bars."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from schemahub.errors import BadQuery
from schemahub.holes import absent_now
from schemahub.ledger import Ledger
from schemahub.streams import Stream
from schemahub_cli.positions import by_time
from schemahub_cli.target import Target

COUNT = """
WITH marks(exchange, symbol, low, high, by_time) AS (VALUES {marks}),
     rows AS (SELECT exchange, symbol, low, high, trade_id,
                     CASE WHEN by_time THEN epoch_us(trade_ts) * 1000 ELSE TRY_CAST(trade_id AS BIGINT) END AS place
              FROM trades JOIN marks USING (exchange, symbol))
SELECT lower(exchange), symbol, count(*), count(DISTINCT trade_id) FILTER (place BETWEEN low AND high)
FROM rows GROUP BY 1, 2
"""


TABLES = {"trades": "unified_trades", "instruments": "instruments"}
"""The views of a query, each with its table in Glue, whose name is a view too."""
_LISTS = re.compile(r"\b(show|information_schema|duckdb_(tables|views|columns)|pg_\w+|sqlite_\w+)\b", re.IGNORECASE)


class NoTable(BadQuery):
    """Nothing was published yet, so the table is not there."""

    remedy = "Pull something first: `schemahub run`. Instruments are written by `schemahub update-seed`."


def views_in(sql: str) -> tuple[str, ...]:
    """Which of the views a query may mean: a table that was not written yet matters only where it is asked for."""
    return tuple(v for v, table in TABLES.items() if re.search(rf"\b({v}|{table})\b", sql, re.IGNORECASE))


def lists_views(sql: str) -> bool:
    """Whether a query may ask what tables there are."""
    return bool(_LISTS.search(sql))


def connect(
    target: Target, views: Iterable[str] = ("trades",), *, present: bool = False, memory_limit: str | None = None
) -> Any:
    """A DuckDB connection with these of the TABLES: each table as it is now. ``present``: and all others that exist.

    Raises:
        NoTable: one of ``views`` was not written yet.
    """
    from schemahub import query

    needed, locations = tuple(views), {}
    for view in TABLES if present else needed:
        try:
            locations[view] = _metadata_file(target, TABLES[view])
        except NoTable:
            if view in needed:
                raise
    return query.open_tables(target.session, locations, memory_limit)


def _metadata_file(target: Target, table: str) -> str:
    """Where the table's newest metadata is, by one question to Glue: PyIceberg would read the file that DuckDB reads.

    Raises NoTable.
    """
    from botocore.exceptions import ClientError

    try:
        found = target.client("glue").get_table(DatabaseName=target.database, Name=table)["Table"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "EntityNotFoundException":
            raise
        raise NoTable(f"the table {target.database}.{table} does not exist yet") from error
    return str(found["Parameters"]["metadata_location"])


@dataclass(frozen=True)
class Proof:
    """One stream of the table against what the ledger says must be there."""

    stream: Stream
    first: int
    last: int
    trades: int
    absent: int
    """Positions in the range that no segment and no later fill holds: ids, or nanoseconds."""
    missing: int
    duplicates: int
    new: int
    """Trades that the last run committed."""

    @property
    def whole(self) -> bool:
        return self.missing == self.duplicates == 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "stream": self.stream.to_json()}


def prove(connection: Any, ledger: Ledger, streams: Iterable[Stream], run: str) -> list[Proof]:
    """Compare the table with the ledger, stream by stream; streams that were never committed are left out.

    A row outside the committed range counts as a duplicate: nobody can say where it comes from.
    """
    marks = {stream: mark for stream in streams if (mark := ledger.watermark(stream)) is not None}
    if not marks:
        return []
    # Names of streams are letters, digits and dashes (streams.Stream), numbers are integers: safe to write into SQL.
    # What a backfill has committed below the watermark counts like the rest.
    lows = {s: m.low if (lowest := ledger.lowest(s)) is None else min(m.low, lowest) for s, m in marks.items()}
    values = ", ".join(
        f"('{s.exchange.upper()}', '{s.product}', {lows[s]}, {m.high}, {by_time(s)})" for s, m in marks.items()
    )
    found = {
        (exchange, symbol): counts
        for exchange, symbol, *counts in connection.execute(COUNT.format(marks=values)).fetchall()
    }
    proofs = []
    for stream, mark in marks.items():
        segments, fills = list(ledger.segments(stream)), list(ledger.segments(stream.fills))
        absent = sum(part.size for part in absent_now(segments, fills))
        rows, distinct = found.get((stream.exchange, stream.product), (0, 0))
        proofs.append(
            Proof(
                stream,
                mark.low,
                mark.high,
                rows,
                absent,
                missing=sum(s.count for s in [*segments, *fills]) - distinct,
                duplicates=rows - distinct,
                new=sum(s.count for s in segments if s.run_id == run),
            )
        )
    return proofs


@dataclass(frozen=True)
class Bar:
    """An interval that begins at ``bar``; ``volume`` in the base currency, ``vwap`` the price weighed by it."""

    bar: Any
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float
    trades: int


def bars(connection: Any, stream: Stream, minutes: int, count: int) -> list[Bar]:
    """The newest ``count`` bars of a stream, oldest first."""
    from schemahub import query

    newest = f"FROM ({query.ohlcv_sql(stream.product, f'{minutes}m', stream.exchange)}) ORDER BY bar DESC LIMIT {count}"
    _, rows = query.select(connection, f"SELECT bar, open, high, low, close, volume, vwap, trades {newest}")
    return [Bar(*row) for row in reversed(rows)]
