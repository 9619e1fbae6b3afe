"""The documentation against the code: links, names, tables. docs/cli.md and the examples have tests of their own."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from schemahub import cost, errors, verify
from tests.unit.pages import ROOT, prose, rows_under, text_of

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("**/*.md"))]
TEMPLATE: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text())
MACHINES = {
    name: json.loads((ROOT / "statemachines" / f"{name}.asl.json").read_text())
    for name in ("ingest", "transform", "backfill", "maintain")
}


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
    assert names == set(
        re.findall(r"`(schemahub-\{stage\}-[a-z-]+-(?:failed|look|start))`", text_of("docs/operations.md"))
    )


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


def test_every_finding_of_verify_has_a_row_with_its_remedy() -> None:
    assert {row[0]: row[2] for row in rows_under("docs/operations.md", "Verify")} == verify.REMEDIES


# --- cost -------------------------------------------------------------------------------------------------------


def test_the_prices_are_those_of_the_model() -> None:
    for name, price, *_ in rows_under("docs/cost.md", "Prices used"):
        assert float(price) == pytest.approx(getattr(cost, name), rel=1e-9), name


def test_the_example_bills_are_those_of_the_model() -> None:
    for row in rows_under("docs/cost.md", "What runs cost by that model"):
        streams, chunks, requests, trades, seconds = (int(n) for n in row[:5])
        bill = cost.bill(cost.Work(streams, chunks, requests, trades, float(seconds)))
        assert (f"{bill.usd:.4f}", f"{bill.storage_month_usd:.4f}") == (row[5], row[6]), row


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
