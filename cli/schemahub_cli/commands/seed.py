"""``schemahub update-seed``: choose the products that runs pull, and note everything that is listed."""

from __future__ import annotations

import functools
from typing import Annotated

import typer
from rich.markup import escape

from schemahub.errors import BadInput, SchemaHubError
from schemahub.mappings import exchanges as known_exchanges
from schemahub.mappings import load_mapping
from schemahub.seed import read
from schemahub_cli import probes, seed, target
from schemahub_cli.output import Exit, JsonOption, Say, StackOption, command, listing


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
    accept_delisted: Annotated[
        bool, typer.Option("--accept-delisted", help="Believe an answer from which most known products are gone.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the list, write nothing.")] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the exchanges what they list and choose what runs pull (config/products.json in the bucket).

    Only products that trade now are taken. The entries of the exchanges that are asked are replaced, those of all
    others stay. What was pulled of a product that leaves the list stays in the table. Everything that is listed, taken
    or not, is noted in the table `instruments`; what is gone stays there as delisted. An exchange that does not answer,
    that refuses the region of the stack, or whose mapping is not finished, keeps its entries and stops no other.

      schemahub update-seed --quote USD --quote USDT --limit 20
      schemahub update-seed -e coinbase -p BTC-USD -p ETH-USD
      schemahub update-seed --regex '^(BTC|ETH)-' --dry-run
    """
    say = Say(as_json)
    where = target.resolve(stack)
    names = sorted(set(exchange or known_exchanges()))
    choice = seed.Choice(tuple(product or ()), regex, tuple(quote or ()), limit)
    if unknown := set(exchange or ()) - set(known_exchanges()):
        load_mapping(min(unknown))  # raises UnknownExchange, with the nearest name
    old = read(where.deps.objects)
    with say.console.status(f"asking {', '.join(names)} what they list"):
        failures = _unfinished(names)
        probed = probes.ask_all(where, [name for name in names if name not in failures])
        failures |= {name: error for name, x in (probed or {}).items() if (error := probes.failure(x))}
        asked = [name for name in names if name not in failures]
        looks, unusable = seed.look_at_all(where, asked, old.instruments, accept_delisted=accept_delisted)
        failures |= unusable
    if not looks:
        raise next(iter(failures.values()))
    seed.check_choice(looks, choice)
    new = functools.reduce(lambda so_far, seen: seed.merged(so_far, seen, choice), looks, old)
    if not dry_run:
        old, new = seed.store(where, [(seen, choice) for seen in looks])
    difference = seed.change(old, new)
    table = listing("exchange", "product", "symbol", "status", title=f"seed list of {where.where}")
    for entry in new.streams:
        mark = "[green]+[/] " if f"{entry['exchange']}:{entry['product']}" in difference.added else "  "
        table.add_row(mark + entry["exchange"], entry["product"], entry.get("symbol", ""), entry.get("status", ""))
    for name in difference.removed:
        table.add_row(f"[red]-[/] {name.partition(':')[0]}", name.partition(":")[2], "", "[red]removed[/]")
    say.result(
        {
            "stack": where.stack,
            "written": not dry_run,
            "streams": list(new.streams),
            **difference.to_json(),
            "probes": probed
            and {name: _failure(x) if isinstance(x, SchemaHubError) else x.model_dump() for name, x in probed.items()},
            "failed": {name: _failure(error) for name, error in failures.items()},
        },
        table,
        f"{len(new.streams)} products, {len(difference.added)} added, {len(difference.removed)} removed"
        f" · {difference.instruments} instruments known, {len(difference.changed)} changed,"
        f" {len(difference.delisted)} delisted" + (" · dry run, nothing written" if dry_run else ""),
        f"[dim]{escape(probes.line(probed))}[/]",
        *(f"[bold red]{type(e).__name__}[/]  {escape(str(e))} Its entries stay." for e in failures.values()),
    )
    if set(failures) & set(exchange or ()):
        raise typer.Exit(int(Exit.FAILED))


def _unfinished(names: list[str]) -> dict[str, SchemaHubError]:
    """The exchanges whose mapping somebody is still writing: nobody need ask them."""
    found = dict[str, SchemaHubError]()
    for name in names:
        try:
            load_mapping(name)
        except BadInput as error:
            found[name] = error
    return found


def _failure(error: SchemaHubError) -> dict[str, str]:
    return {"error": type(error).__name__, "message": error.reason, "remedy": error.remedy}
