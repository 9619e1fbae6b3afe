"""``schemahub query``: SQL over the unified table, by DuckDB here or by Athena there; on the screen, or as a file."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemahub.errors import BadInput
from schemahub_cli import target
from schemahub_cli.formats import Format
from schemahub_cli.output import JsonOption, Say, StackOption, command, listing

if TYPE_CHECKING:
    from schemahub_cli.export import Answer

SCREEN_ROWS = 1000
MEMORY = "1GB"
_MEMORY = re.compile(r"[1-9]\d{0,5} ?[KMGT]i?B", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
STDOUT = Path("-")


def query(
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="One SELECT over `trades` and `instruments`; - reads it from stdin.")
    ],
    form: Annotated[
        Format | None,
        typer.Option(
            "--format", "-f", show_default=False, help="How to write the rows. Default: by the file's name, or table."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", show_default=False, help="Write to this file, whole or not."),
    ] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(
            "--max-rows", min=1, show_default=False, help=f"At most so many rows. Default: {SCREEN_ROWS} on the screen."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Stop the query after so many seconds.")] = 600,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            show_default=False,
            help=f"What DuckDB may take, then it spills. Default: {MEMORY}.",
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Short for --format csv.")] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run one SELECT over the unified table `trades`, and over `instruments`: what is and was listed.

    trades: exchange, symbol, trade_id, side (the taker's: BUY or SELL), price, quantity, trade_ts, ingest_ts (UTC).
    instruments: exchange, exchange_symbol, symbol, base, quote, status (online, offline or delisted), exchange_status,
    listing_epoch, first_seen, listed_since, last_seen (UTC).
    The local stack answers with DuckDB over the Iceberg table, a deployed one with Athena through its workgroup.
    SHOW TABLES, DESCRIBE trades and EXPLAIN answer too. Files, other hosts and settings are out of a query's reach.

      schemahub query "SELECT exchange, symbol, count(*) AS trades FROM trades GROUP BY 1, 2 ORDER BY 3 DESC"
      schemahub query -o btc.parquet "SELECT * FROM trades WHERE symbol = 'BTC-USD'"
      schemahub query --csv "SELECT * FROM trades WHERE symbol = 'BTC-USD' LIMIT 100" > btc.csv
      schemahub query "SELECT * FROM instruments WHERE status = 'delisted' ORDER BY last_seen DESC"
      schemahub query --stack schemahub-prod "SELECT max(trade_ts) FROM trades"
    """
    said = [f for f, wanted in ((Format.CSV, as_csv), (Format.JSON, as_json), (form, form is not None)) if wanted]
    if len({*said}) > 1:
        raise typer.BadParameter(f"say one format, not {' and '.join(f.value for f in said if f)}")
    if memory is not None and not _MEMORY.fullmatch(memory):
        raise typer.BadParameter(f"--memory {memory[:20]!r} is not a size like 512MB or 4GB")
    chosen = said[0] if said else None
    _query(sql, chosen, output, max_rows, timeout, memory, stack, as_json=chosen is Format.JSON)


@command
def _query(
    sql: str,
    chosen: Format | None,
    output: Path | None,
    max_rows: int | None,
    timeout: float,
    memory: str | None,
    stack: str | None,
    *,
    as_json: bool,
) -> None:
    path = None if output is None or output == STDOUT else output
    form = chosen or (Format.of(path) if path else Format.TABLE)
    if form.binary and path is None and sys.stdout.isatty():
        raise BadInput(f"{form} is not for a screen", remedy=f"Name a file with -o FILE.{form}, or pipe it on.")
    if form is Format.TABLE and path is not None:
        raise BadInput("a table is for the screen", remedy="Use --format csv for a file, or redirect with >.")
    where = target.resolve(stack)
    text = sys.stdin.read() if sql == "-" else sql
    limit = max_rows or (SCREEN_ROWS if form is Format.TABLE else None)
    engine = _duckdb if where.local else _athena
    with contextlib.ExitStack() as ends:
        _answer(form, path, limit, lambda: engine(where, text, timeout, memory, ends), asked_rows=max_rows)


def _answer(
    form: Format, path: Path | None, limit: int | None, run: Callable[[], Any], *, asked_rows: int | None
) -> None:
    """Run the query and write its rows to where they are wanted."""
    began = time.monotonic()
    with Say(form is not Format.TABLE).console.status("running the query"):
        answer: Answer = run()(limit)
        rows = _table(answer) if form is Format.TABLE else None

    def ended() -> dict[str, Any]:
        return {"seconds": round(time.monotonic() - began, 3), "scanned_bytes": answer.scanned_bytes}

    footer: Console | None = None
    if rows is not None:
        say = Say()
        say.console.print(rows, soft_wrap=isinstance(rows, Text))
        footer = say.console
    else:
        from schemahub_cli.export import write

        with _sink(form, path) as sink:
            write(answer, form, sink, ended)
        footer = Console(stderr=True, highlight=False) if path else None
    if footer is not None:
        footer.print(_footer(answer, time.monotonic() - began, path), soft_wrap=True, markup=False, emoji=False)
    if answer.truncated:
        warning = f"only the first {answer.rows:,} rows: there are more"
        remedy = (
            "--max-rows N reads more; -o FILE.parquet or --csv writes all" if asked_rows is None else "see --max-rows"
        )
        Console(stderr=True, highlight=False).print(f"[yellow]warning:[/] {warning} ({remedy})", soft_wrap=True)


def _duckdb(where: target.Target, sql: str, timeout: float, memory: str | None, ends: contextlib.ExitStack) -> Any:
    from schemahub.query import stream
    from schemahub.statement import single_select
    from schemahub_cli.export import Answer
    from schemahub_cli.lake import connect, lists_views, views_in

    single_select(sql)  # before a table is looked for: what may not run has no need of one
    db = connect(where, views_in(sql), present=lists_views(sql), memory_limit=memory or MEMORY)
    # Left to the end of the process, DuckDB's threads outlive what they work with now and then, and abort it.
    ends.callback(db.close)
    schema, batches = stream(db, sql, timeout_s=timeout)
    return lambda limit: Answer(schema, batches, limit)


def _athena(where: target.Target, sql: str, timeout: float, memory: str | None, _: contextlib.ExitStack) -> Any:
    from schemahub_cli import athena
    from schemahub_cli.export import Answer

    if memory is not None:
        raise BadInput("--memory is for the local stack's DuckDB", remedy="Leave it out: Athena has its own limits.")
    result = athena.run(where, sql, timeout_s=timeout)
    return lambda limit: Answer(result.schema, result.batches, limit, result.scanned_bytes)


@contextlib.contextmanager
def _sink(form: Format, path: Path | None) -> Iterator[IO[bytes]]:
    """Where the bytes go: a file, whole or not there; or stdout, which gets a JSON document whole or not at all."""
    from schemahub_cli.export import whole_document, whole_file

    if path is not None:
        with whole_file(path) as sink:
            yield sink
    elif form is Format.JSON:
        with whole_document(sys.stdout.buffer) as sink:
            yield sink
    else:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


def _table(answer: Answer) -> Table | Text:
    """The answer for people: numbers to the right; the plan of an EXPLAIN as it is drawn."""
    from schemahub_cli import cells

    shown = listing()
    plan = answer.schema.names == ["explain_key", "explain_value"]
    for field in answer.schema:
        shown.add_column(Text(field.name), justify="right" if cells.is_number(field.type) else "left", overflow="fold")
    plans: list[str] = []
    for batch in answer.batches():
        for row in zip(*(cells.text(column).to_pylist() for column in batch.columns), strict=True):
            shown.add_row(*(_cell(value) for value in row))
            plans.append(row[-1] or "")
    return Text("\n".join(plans)) if plan else shown


def _cell(value: str | None) -> Text:
    """A value as it is: no markup, no emoji; what would move the cursor or colour the screen is shown as ``\\x1b``."""
    if value is None:
        return Text("null", style="dim")
    return Text(_CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), value))


def _footer(answer: Answer, seconds: float, path: Path | None) -> str:
    parts = [f"{answer.rows:,} rows in {seconds:.2f} s"]
    if answer.scanned_bytes is not None:
        parts.append(f"{answer.scanned_bytes / 1e6:,.1f} MB scanned")
    if path is not None:
        parts.append(f"{path.stat().st_size:,} bytes in {path}")
    return " · ".join(parts)
