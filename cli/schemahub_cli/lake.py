"""The unified table on the local stack: opened by DuckDB, counted against the ledger, drawn as bars."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from schemahub.errors import BadQuery
from schemahub.holes import absent_now
from schemahub.ledger import Ledger
from schemahub.streams import Stream
from schemahub_cli.target import Target

COUNT = """
WITH marks(exchange, symbol, low, high) AS (VALUES {marks}),
     rows AS (SELECT exchange, symbol, CAST(trade_id AS BIGINT) AS id FROM trades)
SELECT lower(exchange), symbol, count(*), count(DISTINCT id) FILTER (id BETWEEN low AND high),
       count(*) FILTER (id NOT BETWEEN low AND high)
FROM rows JOIN marks USING (exchange, symbol) GROUP BY 1, 2
"""


class NoTable(BadQuery):
    """Nothing was published yet, so the table is not there."""

    remedy = "Pull something first: `schemahub run`."


def connect(target: Target) -> Any:
    """A DuckDB connection with the view ``trades``: the table as it is now.

    Raises:
        NoTable: nothing was published yet.
    """
    from pyiceberg.exceptions import NoSuchTableError

    from schemahub import query
    from schemahub.catalog import LakeCatalog

    settings = target.deps.settings
    try:
        table = LakeCatalog(target.session).load_table((settings.database, settings.table))
    except NoSuchTableError as error:
        raise NoTable(f"the table {settings.database}.{settings.table} does not exist yet") from error
    return query.connect(target.session, table)


@dataclass(frozen=True)
class Proof:
    """One stream of the table against what the ledger says must be there."""

    stream: Stream
    first: int
    last: int
    trades: int
    absent: int
    """Ids in the range that no segment and no later fill holds."""
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
    values = ", ".join(f"('{s.exchange.upper()}', '{s.product}', {m.low}, {m.high})" for s, m in marks.items())
    found = {
        (exchange, symbol): counts
        for exchange, symbol, *counts in connection.execute(COUNT.format(marks=values)).fetchall()
    }
    proofs = []
    for stream, mark in marks.items():
        segments = list(ledger.segments(stream))
        absent = sum(part.size for part in absent_now(segments, ledger.segments(stream.fills)))
        rows, distinct, _strays = found.get((stream.exchange, stream.product), (0, 0, 0))
        proofs.append(
            Proof(
                stream,
                mark.low,
                mark.high,
                rows,
                absent,
                missing=mark.high - mark.low + 1 - absent - distinct,
                duplicates=rows - distinct,
                new=sum(s.count for s in segments if s.run_id == run),
            )
        )
    return proofs


@dataclass(frozen=True)
class Bar:
    """Open, high, low, close and volume of an interval that begins at ``bar``."""

    bar: Any
    open: float
    high: float
    low: float
    close: float
    volume: float
    trades: int


def bars(connection: Any, stream: Stream, minutes: int, count: int) -> list[Bar]:
    """The newest ``count`` bars of a stream, oldest first."""
    from schemahub import query

    newest = f"FROM ({query.ohlcv_sql(stream.product, f'{minutes}m', stream.exchange)}) ORDER BY bar DESC LIMIT {count}"
    _, rows = query.select(connection, f"SELECT bar, open, high, low, close, volume, trades {newest}")
    return [Bar(*row) for row in reversed(rows)]
