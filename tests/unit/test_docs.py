"""The documentation against the code: links, names, tables and examples. docs/cli.md has tests of its own."""

from __future__ import annotations

import ast
import datetime as dt
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import duckdb
import pyarrow as pa
import pytest
import yaml
from samtranslator.yaml_helper import yaml_parse

from local.exchange_sim.server import running
from schemahub import cost, errors, raw, table, transform
from schemahub.commit import segment_of
from schemahub.exchanges import Answer, Exchange
from schemahub.fetch import fetch_chunk
from schemahub.mappings import SCHEMA, Mapping, parse_mapping
from schemahub.objects import ObjectStore
from schemahub.streams import Chunk, Stream
from tests.unit.test_ingest import FAST, Hurried
from tests.unit.worlds import STREAM, make_world

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("**/*.md"))]
TEMPLATE: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text())
MACHINES = {
    name: json.loads((ROOT / "statemachines" / f"{name}.asl.json").read_text()) for name in ("ingest", "transform")
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def rows_under(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head; backticks are taken off the first cell."""
    section = re.split(rf"^#+ {re.escape(heading)}$", text_of(page), flags=re.MULTILINE)[1]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert lines, f"{page} has no table under {heading}"
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines[0].splitlines()[2:]]
    return [[row[0].strip("| ").replace("`", ""), *(c.strip("| ") for c in row[1:])] for row in cells]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)


def engine() -> duckdb.DuckDBPyConnection:
    """A DuckDB whose times are UTC, whatever this machine's are."""
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    return db


# --- links and names --------------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
            if not target.startswith(("http://", "https://")):
                yield page, target


@pytest.mark.parametrize(("page", "target"), [pytest.param(p, t, id=f"{p.name}:{t}") for p, t in links()])
def test_a_link_leads_somewhere(page: Path, target: str) -> None:
    path, _, fragment = target.partition("#")
    there = (page.parent / path).resolve() if path else page
    assert there.exists()
    assert there.is_relative_to(ROOT)
    if fragment:
        assert fragment in {anchor(h) for h in re.findall(r"^#+ (.+)$", prose(there), re.MULTILINE)}


def named_tests() -> list[tuple[str, str]]:
    return sorted({pair for page in PAGES for pair in re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", page.read_text())})


@pytest.mark.parametrize(("file", "name"), named_tests())
def test_a_named_test_exists(file: str, name: str) -> None:
    functions = {n.name for n in ast.walk(ast.parse(text_of(file))) if isinstance(n, ast.FunctionDef)}
    assert name in functions


def test_each_invariant_names_tests() -> None:
    for section in re.split(
        r"^### \d\. ", text_of("docs/correctness.md").split("## What is not promised")[0], flags=re.MULTILINE
    )[1:]:
        assert "::test_" in section, section.splitlines()[0]


def test_a_named_file_exists() -> None:
    for page in PAGES:
        for path in re.findall(
            r"`((?:local|tests|functions|layers|mappings|statemachines|bench)/[\w./-]+)`", prose(page)
        ):
            assert (ROOT / path).exists() or path == "mappings/examplex.yaml", f"{page.name}: {path}"


def test_a_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert (target[0] or target[1]) in targets, page.name


def test_every_module_is_described() -> None:
    modules = {p.stem for p in (ROOT / "layers/core/schemahub").glob("*.py")} - {"__init__"}
    described = [row[0] for row in rows_under("docs/architecture.md", "Modules, in the order of the data")]
    assert sorted(described) == sorted(modules)


# --- state machines, template -----------------------------------------------------------------------------------


def states(machine: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, state in machine["States"].items():
        yield name, state
        if "ItemProcessor" in state:
            yield from states(state["ItemProcessor"])


@pytest.mark.parametrize("machine", MACHINES)
def test_every_state_is_described_in_order(machine: str) -> None:
    described = [row[0] for row in rows_under("docs/architecture.md", f"State machine `{machine}`")]
    assert sorted(described) == sorted(name for name, _ in states(MACHINES[machine]))


def test_every_parameter_is_described_with_its_default() -> None:
    described = {row[0]: row[1].strip("`") for row in rows_under("docs/operations.md", "Parameters")}
    defaults = {name: str(p.get("Default", "")) for name, p in TEMPLATE["Parameters"].items()}
    assert described == {name: default or "(empty)" for name, default in defaults.items()}


def test_every_alarm_is_named() -> None:
    alarms = [
        r["Properties"]["AlarmName"] for r in TEMPLATE["Resources"].values() if r["Type"] == "AWS::CloudWatch::Alarm"
    ]
    names = {(a["Fn::Sub"] if isinstance(a, dict) else str(a)).replace("${Stage}", "{stage}") for a in alarms}
    assert names == set(re.findall(r"`(schemahub-\{stage\}-[a-z-]+-failed)`", text_of("docs/operations.md")))


def test_every_function_is_in_the_table_of_roles() -> None:
    assert sorted(row[0] for row in rows_under("docs/security.md", "Roles")) == sorted(
        p.parent.name.replace("_", "-") for p in (ROOT / "functions").glob("*/app.py")
    )


# --- errors -----------------------------------------------------------------------------------------------------


def tree(error: type[errors.SchemaHubError]) -> set[str]:
    return {error.__name__}.union(*(tree(e) for e in error.__subclasses__() if e.__module__ == "schemahub.errors"))


def test_every_error_has_a_row_that_says_what_to_do() -> None:
    rows = rows_under("docs/operations.md", "Named errors")
    assert sorted(row[0] for row in rows) == sorted(tree(errors.SchemaHubError))
    assert all(len(row) == 4 and row[2] and row[3] for row in rows)


def test_the_table_of_errors_says_what_the_state_machines_retry() -> None:
    retried = {
        name
        for machine in MACHINES.values()
        for _, state in states(machine)
        for retry in state.get("Retry", ())
        for name in retry["ErrorEquals"]
    }
    rows = rows_under("docs/operations.md", "Named errors")
    assert {row[0] for row in rows if row[1] == "yes"} == retried & tree(errors.SchemaHubError)


# --- cost -------------------------------------------------------------------------------------------------------


def test_the_prices_are_those_of_the_model() -> None:
    for name, price, *_ in rows_under("docs/cost.md", "Prices used"):
        assert float(price) == pytest.approx(getattr(cost, name), rel=1e-9), name


def test_the_example_bills_are_those_of_the_model() -> None:
    for row in rows_under("docs/cost.md", "What runs cost by that model"):
        streams, chunks, requests, trades, seconds = (int(n) for n in row[:5])
        bill = cost.bill(cost.Work(streams, chunks, requests, trades, float(seconds)))
        assert (f"{bill.usd:.4f}", f"{bill.storage_month_usd:.4f}") == (row[5], row[6]), row


# --- the example exchange ---------------------------------------------------------------------------------------

EXAMPLE = "docs/adding-an-exchange.md"


@pytest.fixture
def example() -> Mapping:
    return parse_mapping(blocks(EXAMPLE, "yaml")[0], "the example")


def keys(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, bool]]:
    """Every key of the mapping's schema as a dotted path, and whether it may be left out."""
    for name, child in schema.get("properties", {}).items():
        if "$ref" in child:
            child = SCHEMA["$defs"][child["$ref"].rsplit("/", 1)[1]]
        yield f"{path}{name}", name not in schema.get("required", ())
        yield from keys(child, f"{path}{name}.")


def test_every_key_of_the_mapping_is_described() -> None:
    described = [(row[0].removesuffix(" *"), row[0].endswith(" *")) for row in rows_under(EXAMPLE, "Every key")]
    assert sorted(described) == sorted(keys(SCHEMA))


def test_the_example_has_every_key(example: Mapping) -> None:
    def paths(value: Any, path: str = "") -> Iterator[str]:
        for name, child in value.items() if isinstance(value, dict) else ():
            yield f"{path}{name}"
            yield from paths(child, f"{path}{name}.")

    written = set(paths(yaml.safe_load(blocks(EXAMPLE, "yaml")[0])))
    assert written >= {path for path, _ in keys(SCHEMA)}


class Recorded:
    """An HTTP that knows one answer and remembers what was asked."""

    def __init__(self, body: str) -> None:
        self.body = body
        self.asked: list[tuple[str, dict[str, str]]] = []

    def get(self, url: str, params: dict[str, str]) -> Answer:
        self.asked.append((url, params))
        return Answer(200, {"content-type": "application/json"}, self.body.encode())


def test_the_example_answer_becomes_the_rows_shown(example: Mapping, aws: boto3.Session, tmp_path: Path) -> None:
    http = Recorded(blocks(EXAMPLE, "json")[0])
    exchange, stream, chunk = Exchange(example, http), Stream("examplex", "BTC-USD"), Chunk(1000, 1002)

    class Source:
        def page(self, stream: Stream, first: int, last: int, *, pages_left: int) -> Any:
            return exchange.page(stream, first, last)

    fetched = fetch_chunk(
        Source(),
        stream,
        chunk,
        page_size=example.requests.page_size,
        descending=example.requests.cursor.descending,
        pause=lambda seconds: None,
    )
    assert http.asked == [
        ("https://api.examplex.example/v2/trades", {"market": "BTC_USD", "after_id": "1000", "count": "3"})
    ]
    aws.client("s3").create_bucket(Bucket="examples")
    objects = ObjectStore("examples", aws.client("s3"))
    stored = raw.store(objects, stream, fetched)
    segment = segment_of(stream, stored, "run", "rest", 1_732_200_000_000)
    path = tmp_path / "raw.jsonl.zst"
    assert objects.get_to_file(segment.raw_key, path)
    result = transform.transform_files(example, [(segment, path)], tmp_path / "out")
    assert result.quarantined == 0
    got = (
        engine()
        .execute(
            "SELECT exchange, symbol, trade_id, side, price, quantity, strftime(trade_ts, '%Y-%m-%d %H:%M:%S.%f') "
            "FROM read_parquet(?) ORDER BY trade_ts",
            [str(result.files[0].path)],
        )
        .fetchall()
    )
    assert [[str(value) for value in row] for row in got] == rows_under(EXAMPLE, "A complete example")


# --- queries ----------------------------------------------------------------------------------------------------


def squeezed(sql: str) -> str:
    return " ".join(sql.split())


def test_the_athena_example_is_the_saved_query() -> None:
    shown = re.findall(r"<!-- saved query: (\w+) -->\n```sql\n(.*?)```", text_of("README.md"), re.DOTALL)
    assert shown
    for name, sql in shown:
        assert squeezed(sql) == squeezed(TEMPLATE["Resources"][name]["Properties"]["QueryString"])


def example_trades() -> pa.Table:
    """Three recent trades of two exchanges."""
    now = dt.datetime.now(dt.UTC).replace(microsecond=123_456)
    rows = [
        ("COINBASE", "BTC-USD", "9", "BUY", 100.0, 1.0),
        ("COINBASE", "BTC-USD", "10", "SELL", 102.0, 3.0),
        ("BINANCE", "BTC-USDT", "7", "BUY", 101.0, 2.0),
    ]
    columns: dict[str, Any] = {c.name: [r[i] for r in rows] for i, c in enumerate(table.COLUMNS[:6])}
    times = pa.array([now] * 3, pa.timestamp("us", "UTC"))
    schema = pa.schema(
        [
            pa.field(c.name, {"string": pa.string(), "double": pa.float64()}.get(c.kind, times.type), nullable=False)
            for c in table.COLUMNS
        ]
    )
    return pa.table({**columns, "trade_ts": times, "ingest_ts": times}, schema=schema)


@pytest.mark.parametrize(
    "name", [n for n, r in TEMPLATE["Resources"].items() if r["Type"] == "AWS::Athena::NamedQuery"]
)
def test_a_saved_query_runs_on_duckdb(name: str) -> None:
    """DuckDB understands the functions that Athena has here; that Athena does, only Athena can say."""
    sql = TEMPLATE["Resources"][name]["Properties"]["QueryString"]
    with engine() as db:
        db.register("unified_trades", example_trades())
        assert db.execute(sql).fetchall()


def test_the_command_line_example_runs() -> None:
    sql = re.search(r'^schemahub query "([^"]+)"', text_of("README.md"), re.MULTILINE)
    assert sql
    with engine() as db:
        db.register("trades", example_trades())
        assert db.execute(sql[1]).fetchall() == [("COINBASE", "BTC-USD", 2), ("BINANCE", "BTC-USDT", 1)]


@pytest.fixture
def published(aws: boto3.Session, tmp_path: Path) -> None:
    """The unified table in Glue, its files on this machine's disk."""
    from pyiceberg.catalog import load_catalog

    aws.client("glue").create_database(DatabaseInput={"Name": "schemahub_dev"})
    made = load_catalog("glue", type="glue").create_table(
        "schemahub_dev.unified_trades",
        table.iceberg_schema(),
        location=f"file://{tmp_path}",
        partition_spec=table.partition_spec(),
        sort_order=table.sort_order(),
    )
    made.append(example_trades())


CHECKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "duckdb": lambda names: [row[1:] for row in names["bars"]] == [(100.0, 102.0, 100.0, 102.0, 4.0)],
    "polars": lambda names: names["vwap"].select("vwap", "trades").rows() == [(101.5, 2)],
}


@pytest.mark.parametrize("library", CHECKS)
def test_a_python_example_runs(library: str, published: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    code = next(block for block in blocks("README.md", "python") if f"import {library}" in block)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert CHECKS[library](names)


# --- lost state (docs/operations.md) ----------------------------------------------------------------------------


def test_the_lines_that_rebuild_a_lost_table_run(
    aws: boto3.Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from schemahub_cli import target

    with running(FAST) as server:
        world = make_world(aws, server.url, Hurried(), cold_start_trades=3_000)
        world.ingest()
    before = world.deps.ledger.watermark(STREAM), world.committed()
    items = world.deps.ledger.table
    for item in items.scan()["Items"]:
        items.delete_item(Key={"stream": item["stream"], "item": item["item"]})
    monkeypatch.setattr(target, "resolve", lambda stack: SimpleNamespace(deps=world.deps))
    (code,) = (block for block in blocks("docs/operations.md", "python") if "rebuild" in block)
    exec(compile(code, "operations.md", "exec"), {})
    assert str(before[0].high) in capsys.readouterr().out  # type: ignore[union-attr]
    assert world.committed() == []
    exec(compile(code.replace(", dry_run=True", ""), "operations.md", "exec"), {})
    restored = world.deps.ledger.watermark(STREAM)
    assert restored is not None
    assert (restored.low, restored.high) == (before[0].low, before[0].high)  # type: ignore[union-attr]
    assert world.committed() == before[1]


# --- one door per table (docs/decisions/0006) -------------------------------------------------------------------


def test_only_the_doors_write_items() -> None:
    doors = {"conditional.py", "ledger.py", "locks.py"}
    sources = [
        *(ROOT / "layers/core/schemahub").glob("*.py"),
        *(ROOT / "cli").glob("**/*.py"),
        *(ROOT / "functions").glob("*/*.py"),
    ]
    writers = {
        p.name
        for p in sources
        if re.search(r"\b(update_item|put_item|transact_write_items|delete_item)\(", p.read_text())
    }
    assert writers <= doors
