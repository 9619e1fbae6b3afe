"""Streams that somebody names: a slip is an error that writes what was meant, in every command that takes names."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from local.exchange_sim.server import Server, running
from schemahub.errors import BadProductId
from schemahub.mappings import exchanges
from schemahub.seed import SEED_KEY, Seed
from schemahub.streams import Stream, example_name
from schemahub_cli import executions, names, target
from schemahub_cli.main import app
from tests.unit.pages import ROOT
from tests.unit.pipelines import FAST
from tests.unit.test_docs_cli import COMMANDS
from tests.unit.worlds import STREAM, Shifted, World, make_world

RUNNER = CliRunner(env={"COLUMNS": "200"})
NAMED = [
    ["gaps", "-s"], ["verify", "-s"], ["status", "-s"], ["run", "-p"], ["run", "--dry-run", "-p"], ["ingest", "-p"],
    ["transform", "--rederive", "--stream"], ["backfill", "start", "--all"], ["backfill", "corrections"],
]  # fmt: skip
"""Every place where a command takes a stream."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(FAST) as server:
        yield server


@pytest.fixture
def world(aws: boto3.Session, server: Server, monkeypatch: pytest.MonkeyPatch) -> World:
    """BTC-USD is pulled, ETH-USD is in the seed list and not pulled yet; nothing may be started."""
    made = make_world(aws, server.url, Shifted(), cold_start_trades=50)
    made.ingest()
    streams = ({"exchange": "coinbase", "product": product} for product in ("BTC-USD", "ETH-USD"))
    made.deps.objects.put(SEED_KEY, Seed(tuple(streams)).to_bytes())
    where = SimpleNamespace(
        deps=made.deps, stack="schemahub-test", where="schemahub-test", local=True, session=aws, client=aws.client,
        ingest_arn="arn:i", transform_arn="arn:t", machine_arn=lambda name: f"arn:{name}",
    )  # fmt: skip
    monkeypatch.setattr(target, "resolve", lambda name: where)
    monkeypatch.setattr(executions, "find_running", lambda where, arn: None)

    def started(*arguments: Any, **keys: Any) -> None:
        pytest.fail(f"something was started: {keys}")

    monkeypatch.setattr(executions, "start", started)
    return made


def test_every_option_that_takes_a_stream_is_tried_here() -> None:
    taking = {
        name
        for name, command in COMMANDS.items()
        for p in command.params  # type: ignore[attr-defined]
        if p.name == "stream" or "EXCHANGE:PRODUCT" in str(p.metavar)
    }
    assert taking == {" ".join(w for w in words if not w.startswith("-")) for words in NAMED}


@pytest.mark.parametrize("words", NAMED, ids=" ".join)
def test_a_stream_that_is_not_there_is_an_error_with_the_nearest_names(words: list[str], world: World) -> None:
    result = RUNNER.invoke(app, [*words, "coinbase:BTX-USD", "--json"])
    assert result.exit_code == 1, result.output
    said = json.loads(result.stdout)
    assert said["error"] in ("UnknownStream", "UnknownProduct")
    assert "did you mean coinbase:BTC-USD" in said["message"]
    result = RUNNER.invoke(app, [*words, "coinbsae:BTC-USD"])
    assert result.exit_code == 1
    assert "coinbase" in result.output


@pytest.mark.parametrize("words", NAMED, ids=" ".join)
@pytest.mark.parametrize("slip", ["BTC-USD", "coinbase/BTC-USD", "coinbase:btc-usd", "COINBASE:BTC-USD"])
def test_a_name_in_another_form_is_an_error_that_writes_it_as_it_was_meant(words: list[str], slip: str) -> None:
    result = RUNNER.invoke(app, [*words, slip], env={"SCHEMAHUB_HOME": "/nonexistent"})
    assert result.exit_code == 1, result.output
    assert "BadProductId" in result.output
    assert "for example coinbase:BTC-USD" in result.output


@pytest.mark.parametrize(("words", "code"), [(["gaps", "-s"], 1), (["verify", "-s"], 1), (["status", "-s"], 1)])
def test_a_stream_that_was_never_pulled_is_an_error_that_says_how(words: list[str], code: int, world: World) -> None:
    result = RUNNER.invoke(app, [*words, "coinbase:ETH-USD"])
    assert result.exit_code == code
    assert "nothing of coinbase:ETH-USD is committed yet" in result.output
    assert "`schemahub run -p coinbase:ETH-USD`" in result.output


def test_nothing_is_whole_where_nothing_was_pulled(aws: boto3.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_world(aws, "http://127.0.0.1:9")
    where = SimpleNamespace(deps=made.deps, stack="t", where="t", local=True, session=aws, client=aws.client)
    monkeypatch.setattr(target, "resolve", lambda name: where)
    result = RUNNER.invoke(app, ["verify", "--dry-run"])
    assert result.exit_code == 1
    assert "nothing of t is committed or published yet" in result.output
    assert "whole" not in result.output
    shown = RUNNER.invoke(app, ["gaps"]).output
    assert "nothing is committed yet" in shown
    assert "no hole is open" not in shown


def test_a_product_that_the_exchange_lists_may_be_pulled_though_no_list_of_ours_has_it(world: World) -> None:
    names.pullable(target.resolve(None), [Stream("coinbase", "SOL-USD")])
    world.deps.objects.put(SEED_KEY, Seed().to_bytes())
    names.pullable(target.resolve(None), [STREAM])  # the ledger has it


def test_a_dry_run_with_an_error_is_exit_code_1_and_shows_the_plan_of_the_others(world: World) -> None:
    streams = ({"exchange": "coinbase", "product": product} for product in ("BTC-USD", "NOT-THERE"))
    world.deps.objects.put(SEED_KEY, Seed(tuple(streams)).to_bytes())
    result = RUNNER.invoke(app, ["run", "--dry-run"])
    assert result.exit_code == 1, result.output
    assert "UnknownProduct" in result.output
    assert "coinbase BTC-USD" in result.output


def test_shells_complete_exchanges_and_the_beginnings_of_streams_without_a_stack() -> None:
    assert names.complete_exchange("bin") == ["binance", "binance_us"]
    assert names.complete_stream("co") == ["coinbase:"]
    assert len(names.complete_stream("")) == len(exchanges())
    asked = {"_SCHEMAHUB_COMPLETE": "complete_bash", "COMP_WORDS": "schemahub run --ex", "COMP_CWORD": "2"}
    assert RUNNER.invoke(app, [], prog_name="schemahub", env=asked).output.split() == ["--exchange"]
    asked |= {"COMP_WORDS": "schemahub run --exchange kra", "COMP_CWORD": "3"}
    assert RUNNER.invoke(app, [], prog_name="schemahub", env=asked).output.split() == ["kraken"]
    asked |= {"COMP_WORDS": "schemahub ver", "COMP_CWORD": "1"}
    assert RUNNER.invoke(app, [], prog_name="schemahub", env=asked).output.split() == ["verify"]
    shown = RUNNER.invoke(app, ["--help"]).output
    assert "--install-completion" in shown


@given(st.text(max_size=80))
def test_any_text_has_an_example_that_is_a_stream(text: str) -> None:
    Stream.parse(example_name(text))
    with contextlib.suppress(BadProductId):
        Stream.parse(text)


def test_times_and_names_are_read_in_one_place() -> None:
    for path in sorted(Path(ROOT, "cli").rglob("*.py")):
        source = path.read_text()
        # Athena's own instants and a schedule's are nobody's input.
        if path.name not in ("times.py", "schedules.py", "athena_result.py") and path.parent.name != "kit":
            assert "fromisoformat" not in source, path
        if path.name not in ("names.py", "state.py"):
            assert "Stream.parse(name" not in source, path


TAKING_A_TIME = {
    "backfill start since": ["backfill", "start", "coinbase:BTC-USD", "--from"],
    "backfill start until": ["backfill", "start", "coinbase:BTC-USD", "--from", "2020-01", "--to"],
    "replay since": ["replay", "--since"],
    "transform since": ["transform", "--rederive", "--stream", "coinbase:BTC-USD", "--since"],
}


def test_every_option_that_takes_a_time_is_tried_here() -> None:
    assert TAKING_A_TIME.keys() == {
        f"{name} {p.name}"
        for name, command in COMMANDS.items()
        for p in command.params  # type: ignore[attr-defined]
        if "TIME" in str(p.metavar)
    }


@pytest.mark.parametrize("words", TAKING_A_TIME.values(), ids=TAKING_A_TIME)
def test_every_option_that_takes_a_time_takes_every_form(words: list[str]) -> None:
    nowhere = {"SCHEMAHUB_HOME": "/nonexistent"}
    for form in ("7d", "12h", "now", "today", "yesterday", "2026-11", "2026-11-03T10:00"):
        assert RUNNER.invoke(app, [*words, form], env=nowhere).exit_code == 3, (
            form
        )  # read, and then the stack is missed
    result = RUNNER.invoke(app, [*words, "the 3rd"], env=nowhere)
    assert result.exit_code == 2
    assert "is not a time: write 12h, 7d" in " ".join(result.output.split())
