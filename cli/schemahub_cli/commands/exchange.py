"""``schemahub exchange``: look at an exchange through its mapping, before or while adding one."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from schemahub.exchanges import Http, RequestsHttp
from schemahub.mappings import Mapping, load_mapping, mappings_dir
from schemahub.mappings import exchanges as known_exchanges
from schemahub.streams import Stream
from schemahub_cli.kit import golden as goldens
from schemahub_cli.kit import lint as linting
from schemahub_cli.kit.pages import SIMULATED_NOW_S, Page, Reading, SavedAnswer, SimulatedHttp, newest_page, readings
from schemahub_cli.kit.scaffold import Asks, scaffold
from schemahub_cli.output import Exit, JsonOption, Say, command, listing
from schemahub_cli.watch import trades_per_second

app = typer.Typer(
    no_args_is_help=True, help="Add exchanges, and look at them through their mappings (no stack needed)."
)

SimulatorOption = Annotated[
    bool, typer.Option("--simulator", help="Ask the simulator that the mapping makes, in this process: no network.")
]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", exists=True, dir_okay=False, help="Read a saved answer of the exchange; nobody is asked."),
]
BaseUrlOption = Annotated[
    str | None, typer.Option("--base-url", help="Ask here instead (a running simulator, a mirror).")
]


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


@app.command("new")
@command
def new_exchange(
    name: Annotated[str, typer.Argument(metavar="EXCHANGE", help="Lower case, digits and _: the file's name too.")],
    base_url: Annotated[str | None, typer.Option("--base-url", help="Where its public API answers (https).")] = None,
    asks: Annotated[
        Asks, typer.Option("--asks", help="How it is asked for trades; docs/adding-an-exchange.md tells them apart.")
    ] = Asks.IDS_BELOW,
    as_json: JsonOption = False,
) -> None:
    """Write a mapping file to begin with: every key, with what it means. Nothing that is there is overwritten.

    It goes to the mappings of this checkout, or to the folder that SCHEMAHUB_MAPPINGS names. It is a whole mapping of
    an imaginary exchange: `try EXCHANGE BTC-USD --simulator` works at once, and `lint` names what is left to say.

      schemahub exchange new examplex --base-url https://api.examplex.example --asks ids_from
    """
    say = Say(as_json)
    path = scaffold(name, mappings_dir(), base_url, asks)
    say.result(
        {"exchange": name, "path": str(path)},
        f"{escape(str(path))} is written. Next: fill it in until `schemahub exchange lint {name}` is content.",
    )


@app.command("lint")
@command
def lint_exchanges(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXCHANGE|FILE", help="Names of mappings, or paths that end in .yaml. Default: all."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check mappings: form, contradictions, and what their example answers become. Exit code 2 if something is wrong.

    The example answers are mapped value by value, the product's symbol must lead back to the product, and the simulator
    that the mapping makes must be read without loss. Each problem is shown with its line and its key.

      schemahub exchange lint
      schemahub exchange lint examplex drafts/other.yaml
    """
    say = Say(as_json)
    paths = [_path_of(name) for name in names or known_exchanges()]
    found = {path: linting.lint(path) for path in paths}
    for path, problems in found.items():
        say.line(f"[green]good[/]  {escape(path.name)}" if not problems else f"[red]wrong[/] {escape(str(path))}")
        for problem in problems:
            say.line(f"      {escape(str(problem))}")
    say.result([{"file": str(p), "problems": [asdict(problem) for problem in found[p]]} for p in paths])
    if any(found.values()):
        raise typer.Exit(Exit.USAGE)


def _path_of(name: str) -> Path:
    """The file that is meant: a path, or the name of a mapping. Raises UnknownExchange."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    if name not in known_exchanges():
        load_mapping(name)
    return mappings_dir() / f"{name}.yaml"


@app.command("try")
@command
def try_exchange(
    name: Annotated[str, typer.Argument(metavar="EXCHANGE", help="Name of a file in mappings/, without .yaml.")],
    product: Annotated[str, typer.Argument(help="For example BTC-USD.")],
    base_url: BaseUrlOption = None,
    simulator: SimulatorOption = False,
    file: FileOption = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Show so many of the newest trades.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Send one real request and show the newest trades: each row as sent, and what the table will hold. Stores nothing.

    The unified rows are made by the transform itself; a row that it would quarantine is shown with the reason.

      schemahub exchange try coinbase BTC-USD
      schemahub exchange try kraken BTC-USD --simulator
      schemahub exchange try okx BTC-USDT --file answer.json
    """
    say = Say(as_json)
    mapping = load_mapping(name)
    _, read, source, _ = _page(mapping, product, base_url, simulator, file)
    refused = sum(reading.unified is None for reading in read)
    title = f"{name} {product}: {len(read)} trades in one answer ({source})" + (
        f", {refused} refused" if refused else ""
    )
    say.result(
        {
            "stream": f"{name}#{product}#trades",
            "source": source,
            "rows": len(read),
            "refused": refused,
            "newest": [{"position": r.row.position, "ts_us": r.row.ts_us, **goldens.shown(r)} for r in read[-rows:]],
        },
        _beside(read[-rows:], title),
    )


@app.command("golden")
@command
def golden(
    name: Annotated[
        str | None, typer.Argument(metavar="EXCHANGE", help="Name of a mapping; with --check: only this exchange.")
    ] = None,
    product: Annotated[str | None, typer.Argument(help="For example BTC-USD.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Read all kept answers again and compare.")] = False,
    base_url: BaseUrlOption = None,
    simulator: SimulatorOption = False,
    file: FileOption = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Ask for so many trades, where that can be asked.")] = 20,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where fixtures lie. Default: tests/golden beside the mappings.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Keep an answer and the rows it became as a golden fixture, or (--check) compare all that are kept.

    Look at the rows once, then commit both files: a later change that reads the answer in another way is exit code 1.
    An answer of a real exchange is its data: see whether its terms let you publish it.

      schemahub exchange golden kraken BTC-USD --simulator
      schemahub exchange golden okx BTC-USDT --file answer.json
      schemahub exchange golden --check
    """
    say = Say(as_json)
    home = folder or goldens.default_folder()
    if check:
        if product or base_url or simulator or file:
            raise typer.BadParameter("--check takes no more than the name of an exchange and --folder")
        _check(say, home, name)
        return
    if name is None or product is None:
        raise typer.BadParameter("say EXCHANGE and PRODUCT, or --check")
    mapping = load_mapping(name)
    page, read, source, now_ms = _page(mapping, product, base_url, simulator, file, rows)
    path = goldens.keep(home, mapping, product, page, read, source, now_ms)
    say.result(
        {"path": str(path), "rows": len(read), "refused": sum(r.unified is None for r in read), "source": source},
        _beside(read[-5:], f"{name} {product}: {len(read)} rows ({source})"),
        f"{escape(str(path))} is kept.",
    )


def _check(say: Say, folder: Path, name: str | None) -> None:
    compared = list(goldens.compare(folder, name))
    for one in compared:
        say.line(f"{'[red]differs[/]' if one.differences else '[green]same[/]   '} {escape(one.name)}: {one.rows} rows")
        for difference in one.differences[:10]:
            say.line(f"        {escape(difference)}")
    say.result([asdict(one) for one in compared])
    if any(one.differences for one in compared):
        raise typer.Exit(Exit.FAILED)


def _page(
    mapping: Mapping, product: str, base_url: str | None, simulator: bool, file: Path | None, most: int | None = None
) -> tuple[Page, list[Reading], str, int]:
    """One page from where the options say, what it becomes, its source, and when it was taken (ms)."""
    if sum((bool(base_url), simulator, file is not None)) > 1:
        raise typer.BadParameter("only one of --base-url, --simulator and --file")
    Stream(mapping.exchange, product)  # refused before anything is asked where it is no product
    now_ms, source = int(time.time() * 1000), base_url or mapping.base_url
    http: Http = RequestsHttp()
    if simulator:
        http, base_url, source = SimulatedHttp(mapping, product), SimulatedHttp.base_url, "simulator"
        now_ms = int(SIMULATED_NOW_S * 1000)
    elif file is not None:
        http, source = SavedAnswer(file.read_bytes()), f"file {file.name}"
    page = newest_page(mapping, product, http, base_url, most)
    return page, readings(mapping, product, page.rows, now_ms), source, now_ms


def _beside(read: list[Reading], title: str) -> Table:
    """Rows as sent beside what the table will hold."""
    table = listing(title=title)
    table.add_column("as sent", overflow="fold", ratio=1)
    table.add_column("in the table", overflow="fold", ratio=1)
    for reading in read:
        became = f"[red]quarantine: {escape(reading.reason)}[/]"
        if reading.unified is not None:
            became = "\n".join(f"{column}: {escape(str(value))}" for column, value in _columns(reading.unified))
        table.add_row(escape(reading.row.text), became)
    return table


def _columns(unified: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(column, value) for column, value in unified.items() if column not in ("exchange", "symbol")]
