"""``schemahub update-seed``: choose the products that runs pull."""

from __future__ import annotations

from typing import Annotated

import typer

from schemahub.mappings import exchanges as known_exchanges
from schemahub.mappings import load_mapping
from schemahub_cli import seed, target
from schemahub_cli.output import JsonOption, Say, StackOption, command, listing


@command
def update_seed(
    exchange: Annotated[
        list[str] | None,
        typer.Option("--exchange", "-e", help="Exchange to ask; may be repeated. Default: all that have a mapping."),
    ] = None,
    product: Annotated[
        list[str] | None, typer.Option("--product", "-p", help="Exactly this product (BTC-USD); may be repeated.")
    ] = None,
    regex: Annotated[str | None, typer.Option("--regex", help="Only products whose name matches.")] = None,
    quote: Annotated[
        list[str] | None, typer.Option("--quote", "-q", help="Only products quoted in this currency; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most so many of each exchange.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the list, write nothing.")] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the exchanges what they list and choose what runs pull (config/products.json in the bucket).

    Only products that trade now are taken. The entries of the exchanges that are asked are replaced, those of all
    others stay. What was pulled of a product that leaves the list stays in the table.

      schemahub update-seed --quote USD --quote USDT --limit 20
      schemahub update-seed -e coinbase -p BTC-USD -p ETH-USD
      schemahub update-seed --regex '^(BTC|ETH)-' --dry-run
    """
    from schemahub.pacing import PacedExchange

    say = Say(as_json)
    where = target.resolve(stack)
    names = exchange or known_exchanges()
    choice = seed.Choice(tuple(product or ()), regex, tuple(quote or ()), limit)
    chosen: list[seed.Entry] = []
    for name in names:
        load_mapping(name)
        with say.console.status(f"asking {name} what it lists"):
            listed = PacedExchange.of(where.deps, name).products()
        chosen += seed.choose(name, listed, choice)
    old = seed.read(where.deps.objects)
    new = seed.replace(old, chosen, names)
    difference = seed.change(old, new)
    if not dry_run:
        seed.write(where.deps.objects, new)
    table = listing("exchange", "product", "symbol", "status", title=f"seed list of {where.where}")
    for entry in new:
        mark = "[green]+[/] " if f"{entry['exchange']}:{entry['product']}" in difference.added else "  "
        table.add_row(mark + entry["exchange"], entry["product"], entry["symbol"], entry["status"])
    say.result(
        {"stack": where.stack, "written": not dry_run, "streams": new, **difference.to_json()},
        table,
        f"{len(new)} products, {len(difference.added)} added, {len(difference.removed)} removed"
        + (" · dry run, nothing written" if dry_run else ""),
    )
