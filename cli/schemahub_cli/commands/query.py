"""``schemahub query``: SQL over the unified table, by DuckDB here or by Athena there."""

from __future__ import annotations

import csv
import io
import sys
import time
from typing import Annotated, Any

import typer
from rich.table import Table

from schemahub_cli import athena, target
from schemahub_cli.athena import Answer
from schemahub_cli.output import JsonOption, Say, StackOption, command, listing


@command
def query(
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="One SELECT over `trades` and `instruments`; - reads it from stdin.")
    ],
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, help="Read at most so many rows.")] = 1000,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run one SELECT over the unified table `trades`, and over `instruments`: what is and was listed.

    trades: exchange, symbol, trade_id, side (the taker's: BUY or SELL), price, quantity, trade_ts, ingest_ts (UTC).
    instruments: exchange, exchange_symbol, symbol, base, quote, status (online, offline or delisted), exchange_status,
    listing_epoch, first_seen, listed_since, last_seen (UTC).
    The local stack answers with DuckDB over the Iceberg table, a deployed one with Athena through its workgroup.

      schemahub query "SELECT exchange, symbol, count(*) AS trades FROM trades GROUP BY 1, 2 ORDER BY 3 DESC"
      schemahub query --csv "SELECT * FROM trades WHERE symbol = 'BTC-USD' LIMIT 100" > btc.csv
      schemahub query "SELECT * FROM instruments WHERE status = 'delisted' ORDER BY last_seen DESC"
      schemahub query --stack schemahub-prod "SELECT max(trade_ts) FROM trades"
    """
    say = Say(as_json or as_csv)
    where = target.resolve(stack)
    text = sys.stdin.read() if sql == "-" else sql
    with Say(as_json or as_csv).console.status("running the query"):
        answer = _duckdb(where, text, max_rows) if where.local else athena.run(where, text, max_rows=max_rows)
    if as_csv and not as_json:
        print(to_csv(answer), end="")
        return
    say.result(
        {
            "columns": answer.columns,
            "rows": answer.rows,
            "seconds": round(answer.seconds, 3),
            "scanned_bytes": answer.scanned_bytes,
        },
        table(answer),
        _footer(answer, max_rows),
    )


def _duckdb(where: target.Target, sql: str, max_rows: int) -> Answer:
    from schemahub.query import select
    from schemahub_cli.lake import connect, views_in

    began = time.monotonic()
    columns, rows = select(connect(where, views_in(sql)), sql, max_rows)
    return Answer(columns, rows, seconds=time.monotonic() - began)


def to_csv(answer: Answer) -> str:
    """The answer as CSV (RFC 4180, but with bare line feeds)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(answer.columns)
    writer.writerows(answer.rows)
    return text.getvalue()


def table(answer: Answer) -> Table:
    """The answer for people: numbers to the right."""
    shown = listing()
    for index, name in enumerate(answer.columns):
        numeric = all(isinstance(row[index], int | float) for row in answer.rows) and bool(answer.rows)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in answer.rows:
        shown.add_row(*(_cell(value) for value in row))
    return shown


def _cell(value: Any) -> str:
    if value is None:
        return "[dim]null[/]"
    if isinstance(value, float):
        return f"{value:,.8g}" if abs(value) < 1e6 else f"{value:,.2f}"
    return str(value).replace("[", r"\[")


def _footer(answer: Answer, max_rows: int) -> str:
    parts = [f"{len(answer.rows):,} rows in {answer.seconds:.2f} s"]
    if answer.scanned_bytes is not None:
        parts.append(f"{answer.scanned_bytes / 1e6:,.1f} MB scanned")
    if len(answer.rows) == max_rows:
        parts.append(f"[yellow]cut at --max-rows {max_rows}[/]")
    return " · ".join(parts)
