"""``schemahub exchange``: look at an exchange through its mapping, before or while adding one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from schemahub.exchanges import Exchange, RequestsHttp
from schemahub.mappings import exchanges as known_exchanges
from schemahub.mappings import load_mapping
from schemahub.streams import Stream
from schemahub_cli.output import JsonOption, Say, command, listing
from schemahub_cli.watch import trades_per_second

app = typer.Typer(no_args_is_help=True, help="Look at exchanges through their mappings (no stack is needed).")


@app.command("list")
@command
def list_exchanges(as_json: JsonOption = False) -> None:
    """The exchanges that have a mapping, with their limits."""
    say = Say(as_json)
    mappings = [load_mapping(name) for name in known_exchanges()]
    table = listing("exchange", "name", "limit", "burst", "most trades/s")
    for m in mappings:
        table.add_row(
            m.exchange,
            m.name,
            f"{m.limits.amount:g} in {m.limits.per_seconds:g} s",
            f"{m.limits.burst:g}",
            f"{trades_per_second(m.exchange):,.0f}",
        )
    say.result(
        [
            {
                "exchange": m.exchange,
                "name": m.name,
                "base_url": m.base_url,
                "amount": m.limits.amount,
                "per_seconds": m.limits.per_seconds,
                "burst": m.limits.burst,
                "trades_per_second": trades_per_second(m.exchange),
            }
            for m in mappings
        ],
        table,
    )


@app.command("try")
@command
def try_exchange(
    name: Annotated[str, typer.Argument(metavar="EXCHANGE", help="Name of a file in mappings/, without .yaml.")],
    product: Annotated[str, typer.Argument(help="For example BTC-USD.")],
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="Ask here instead (a simulator, a mirror).")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Show so many of the newest trades.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Send one real request and show the newest trades as the mapping reads them. Stores nothing.

    schemahub exchange try coinbase BTC-USD
    """
    say = Say(as_json)
    stream = Stream(name, product)
    exchange = Exchange(load_mapping(name), RequestsHttp(), base_url)
    newest = sorted(exchange.newest(stream), key=lambda row: row.position)
    table = listing("id", "time (µs)", title=f"{stream}: {len(newest)} trades in one answer")
    table.add_column("as sent", overflow="fold")
    for row in newest[-rows:]:
        table.add_row(str(row.position), str(row.ts_us), escape(row.text))
    say.result(
        {
            "stream": str(stream),
            "rows": len(newest),
            "newest": [{"id": r.position, "ts_us": r.ts_us, "text": r.text} for r in newest[-rows:]],
        },
        table,
    )
