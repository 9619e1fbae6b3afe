"""``schemahub backfill``: planned as it will run, followed by the ledger alone, paused, resumed and reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from local.exchange_sim.server import Server, running
from schemahub import backfill_notes, coverage
from schemahub.deps import Settings
from schemahub.seed import SEED_KEY, Seed
from schemahub.streams import Interval, Stream, merge
from schemahub_cli import backfill_watch, target
from schemahub_cli.backfill_watch import BackfillWatch, StreamBackfill
from schemahub_cli.backfills import size
from schemahub_cli.main import app
from tests.unit.backfills import Backfill, task
from tests.unit.test_cli import FakeObjects
from tests.unit.worlds import STREAM, Shifted, World, make_world

RUNNER = CliRunner(env={"COLUMNS": "220"})
MACHINE = "arn:aws:states:us-east-1:1:stateMachine:backfill"
NAME = "coinbase:BTC-USD"
QUIET = {"latency_ms": {"mean": 0, "jitter": 0}, "coinbase": {"limit": "none"}, "gemini": {"limit": "none"}}


class Missing(Exception):
    """No execution of that name."""


class States:
    """Step Functions with one backfill a name."""

    exceptions = SimpleNamespace(ExecutionDoesNotExist=Missing)

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.known: dict[str, dict[str, Any]] = {}

    def add(self, arn: str, status: str = "RUNNING", **fields: Any) -> None:
        began = datetime.now(UTC) - timedelta(seconds=60)
        self.known[arn] = {"status": status, "startDate": began, **fields}
        if status != "RUNNING":
            self.known[arn]["stopDate"] = began + timedelta(seconds=60)

    def start_execution(self, stateMachineArn: str, name: str, input: str) -> dict[str, Any]:
        assert stateMachineArn == MACHINE
        self.started.append(json.loads(input))
        arn = f"{MACHINE.replace('stateMachine', 'execution')}:{name}"
        self.add(arn, "SUCCEEDED", output="{}")
        return {"executionArn": arn}

    def describe_execution(self, executionArn: str) -> dict[str, Any]:
        if executionArn not in self.known:
            raise Missing
        return self.known[executionArn]

    def list_executions(self, **asked: Any) -> dict[str, Any]:
        return {"executions": [{"executionArn": arn, **e} for arn, e in self.known.items()]}

    def list_map_runs(self, executionArn: str) -> dict[str, Any]:
        return {"mapRuns": []}

    def get_account_settings(self) -> dict[str, Any]:
        """Of Lambda: one fake speaks for all services."""
        return {"AccountLimit": {"UnreservedConcurrentExecutions": 1000}}

    def get_paginator(self, name: str) -> Any:
        return SimpleNamespace(paginate=lambda **asked: [{"executions": []}])

    def get_execution_history(self, **asked: Any) -> dict[str, Any]:
        return {"events": []}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(QUIET) as server:
        yield server


@pytest.fixture
def world(aws: boto3.Session, server: Server) -> World:
    made = make_world(aws, server.url, Shifted(), cold_start_trades=2_000, backfill_ecs=True, chunk_pages=10)
    made.ingest()
    return made


def reached(deps: Any, states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    where = SimpleNamespace(
        deps=deps, stack="schemahub-test", where="schemahub-test", local=True, client=lambda service: states,
        transform_arn="arn:transform", machine_arn=lambda name: MACHINE,
    )  # fmt: skip
    monkeypatch.setattr(target, "resolve", lambda name: where)


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> States:
    """A stack of fakes, for what is decided before anything is asked."""
    made, objects = States(), FakeObjects()
    streams = ({"exchange": "coinbase", "product": product} for product in ("BTC-USD", "ETH-USD"))
    objects.put(SEED_KEY, Seed(tuple(streams)).to_bytes())
    locks = SimpleNamespace(holder=lambda lock_id: None)
    reached(
        SimpleNamespace(objects=objects, locks=locks, settings=Settings("b", "l", "s", "t", "d")), made, monkeypatch
    )
    return made


@pytest.fixture
def states(world: World, monkeypatch: pytest.MonkeyPatch) -> States:
    """A stack with a real ledger, bucket and exchange, whose state machines are the test's."""
    made = States()
    reached(world.deps, made, monkeypatch)
    return made


def call(*arguments: str, code: int = 0) -> Any:
    result = RUNNER.invoke(app, ["backfill", *arguments, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def low_of(world: World) -> int:
    return coverage.watermark(world.deps.ledger, STREAM).low


def below(world: World, trades: int) -> str:
    low = low_of(world)
    return f"{low - trades}..{low - 1}"


def held(world: World) -> list[str]:
    return sorted(world.deps.objects.list(""))


# --- before ---------------------------------------------------------------------------------------------------------


def test_the_plan_says_what_the_run_will_plan_and_writes_nothing(world: World, states: States) -> None:
    before = held(world)
    wanted = below(world, 45_000)
    document = call(NAME, "--ids", wanted, "--plan", "--route", "ecs", "--preset", "medium", "--tasks", "2")
    assert (held(world), states.started) == (before, [])
    [stream] = document["streams"]
    first, last = map(int, wanted.split(".."))
    run = Backfill.start(world, {"ids": [first, last]}, route="ecs", preset="medium", tasks=2)
    assert run.plan()["route"] == "ecs"
    key = f"schemahub/plans/{run.run['id']}/backfill/coinbase/BTC-USD/planned.json"
    planned = json.loads(world.deps.objects.get(key) or b"")
    assert planned == stream["estimate"] | {"files": 0}
    assert (stream["within"], stream["missing_ranges"]) == ([first, last], 1)
    assert document["total"]["trades"] == 45_000
    shown = RUNNER.invoke(
        app, ["backfill", NAME, "--ids", wanted, "--plan", "--route", "ecs", "--threshold", "1"]
    ).output
    assert "ECS × " in shown
    assert "45,000" in shown
    assert "more storage" in shown


def test_only_what_is_missing_is_planned_and_what_is_covered_is_said(world: World, states: States) -> None:
    low = low_of(world)
    Backfill.start(world, {"ids": [low - 10_000, low - 1]}).through()
    document = call(NAME, "--ids", f"{low - 15_000}..{low - 1}", "--plan")
    assert document["streams"][0]["estimate"]["trades"] == 5_000
    assert call(NAME, "--ids", f"{low - 10_000}..{low - 1}", "--plan")["streams"][0]["estimate"] is None
    assert (
        "nothing missing" in RUNNER.invoke(app, ["backfill", NAME, "--ids", f"{low - 9}..{low - 1}", "--plan"]).output
    )


def test_a_stream_that_cannot_be_planned_does_not_hide_the_others(world: World, states: States) -> None:
    # A name of the list is not looked up before the plan: its product may have been delisted since.
    gone = {"exchange": "coinbase", "product": "ETHH-USD"}
    world.deps.objects.put(SEED_KEY, json.dumps({"schema_version": 1, "streams": [gone]}).encode())
    streams = call(NAME, "coinbase:ETHH-USD", "--ids", below(world, 500), "--plan", code=1)["streams"]
    errors = {s["stream"]["product"]: (s["error"] or "").split(":")[0] for s in streams}
    assert errors == {"BTC-USD": "", "ETHH-USD": "UnknownProduct"}
    assert call("coinbase:ETHH-USD", "--all", "--plan", code=1)["streams"][0]["estimate"] is None


def test_a_stream_that_no_run_has_pulled_is_planned_and_nothing_is_written(world: World, states: States) -> None:
    stream = Stream("coinbase", "ETH-USD")
    since = world.deps.clock.now_ms() / 1000 - 6 * 3600
    moment = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds")
    [planned] = call("coinbase:ETH-USD", "--from", moment, "--plan")["streams"]
    assert planned["error"] in (None, "")
    assert planned["estimate"]["trades"] > 500
    assert world.deps.ledger.watermark(stream) is None
    assert not list(world.deps.objects.list(stream.raw_prefix))


def test_tasks_without_a_network_are_refused_before_anything_is_started(stack: States) -> None:
    assert call(NAME, "--all", "--plan", "--route", "ecs", code=1)["error"] == "BadConfig"


# --- starting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "sent"), [
    (["--all"], {"range": "all"}),
    (["--ids", "1..5000000"], {"range": {"ids": [1, 5_000_000]}}),
    (["--from", "2023-01-01"], {"range": {"from": "2023-01-01", "to": None}}),
    (["--from", "2023-01-01", "--to", "2023-02-01T12:00:00Z", "--route", "ecs", "--preset", "large", "--workers", "4",
      "--chunk-concurrency", "7", "--tasks", "3", "--threshold", "0", "--no-archives"],
     {"range": {"from": "2023-01-01", "to": "2023-02-01T12:00:00Z"}, "route": "ecs", "preset": "large", "workers": 4,
      "chunk_concurrency": 7, "tasks": 3, "threshold_seconds": 0.0, "archives": False}),
])  # fmt: skip
def test_what_is_said_is_what_is_asked_for(stack: States, arguments: list[str], sent: dict[str, Any]) -> None:
    from schemahub.events import BackfillInput

    started = call(NAME, "coinbase:ETH-USD", *arguments, "--no-wait")
    assert started["status"] == "RUNNING"
    assert stack.started == [{"schema_version": 1, "products": [NAME, "coinbase:ETH-USD"], **sent}]
    BackfillInput.model_validate(stack.started[0])  # the state machine takes it


def test_the_word_start_may_be_said_and_a_whole_exchange_may_be_named(stack: States) -> None:
    call("start", "--exchange", "coinbase", "--all", "--no-wait")
    assert stack.started == [{"schema_version": 1, "exchanges": ["coinbase"], "range": "all"}]


@pytest.mark.parametrize("arguments", [
    [NAME], [NAME, "--all", "--ids", "1..2"], [NAME, "--ids", "1-2"], [NAME, "--ids", "2..1"],
    [NAME, "--to", "2024-01-01"], [NAME, "--ids", f"1..{2**63}"], [NAME, "--from", "tomorrow"],
    [NAME, "--from", "2024-02-01", "--to", "2024-01-01"],
    ["--all"], [NAME, "--all", "--preset", "huge"], [NAME, "--all", "--workers", "0"],
])  # fmt: skip
def test_what_cannot_be_meant_is_wrong_usage_and_starts_nothing(stack: States, arguments: list[str]) -> None:
    assert RUNNER.invoke(app, ["backfill", *arguments]).exit_code == 2
    assert stack.started == []


def test_names_that_nobody_knows_start_nothing(stack: States) -> None:
    assert call("mtgox:BTC-USD", "--all", code=1)["error"] == "UnknownExchange"
    assert call("BTC-USD", "--all", code=1)["error"] == "BadProductId"
    assert stack.started == []


def test_an_older_stack_has_no_backfills(stack: States, monkeypatch: pytest.MonkeyPatch) -> None:
    target.resolve(None).machine_arn = lambda name: None  # type: ignore[method-assign]
    assert call(NAME, "--all", code=3)["error"] == "StackUnreachable"


# --- meanwhile ------------------------------------------------------------------------------------------------------


def begun(world: World, states: States, trades: int = 45_000, **request: Any) -> tuple[Backfill, dict[str, Any]]:
    low = low_of(world)
    # One page at a time a task, so that the limit feeds two of them.
    small = {"route": "ecs", "tasks": 2, "workers": 1, "chunk_concurrency": 1}
    run = Backfill.start(world, {"ids": [low - trades, low - 1]}, **small, **request)
    states.add(run.base["execution"]["Id"], input=json.dumps(run.request))
    return run, run.plan()


def look(world: World, run: Backfill) -> Any:
    return BackfillWatch.of(target.resolve(None), run.base["execution"]["Id"]).look()


def test_progress_is_what_the_ledger_holds_across_all_tasks(world: World, states: States) -> None:
    run, plan = begun(world, states)
    nothing = look(world, run)
    assert (nothing.trades, nothing.trades_done, nothing.phase) == (45_000, 0, "fetching")
    first, second, *more = run.specs(plan)
    assert not more
    task(world.deps, replace(first, chunks=first.chunks[:1]), world.deps.clock)
    [stream] = look(world, run).streams
    assert (stream.tasks_done, stream.trades_done) == (0, first.chunks[0].size)
    task(world.deps, first, world.deps.clock)
    half = look(world, run)
    [stream] = half.streams
    assert half.trades_done == sum(c.size for c in first.chunks)
    assert (stream.tasks_done, stream.note, stream.phase) == (1, "1/2 tasks", "fetching")
    task(world.deps, second, world.deps.clock)
    whole = look(world, run)
    assert (whole.trades_done, whole.streams[0].tasks_done, whole.finished) == (45_000, 2, 0)
    run.commit(plan)
    run.release("covered")
    assert look(world, run).streams[0].phase == "committed"


def test_what_functions_have_made_durable_is_progress_before_its_commit(world: World, states: States) -> None:
    low = low_of(world)
    run = Backfill.start(world, {"ids": [low - 25_000, low - 1]}, route="lambda")
    states.add(run.base["execution"]["Id"], input=json.dumps(run.request))
    plan = run.plan()
    chunks = world.chunks(plan["chunks_key"])
    run.fetch(chunks[0])
    size = chunks[0]["last"] - chunks[0]["first"] + 1
    seen = look(world, run)
    assert (seen.trades, seen.trades_done, seen.phase) == (25_000, size, "fetching")
    for chunk in chunks[1:]:
        run.fetch(chunk)
    assert look(world, run).trades_done == 25_000
    run.commit(plan)
    assert look(world, run).trades_done == 25_000, "counted once"


def test_what_was_there_before_is_no_progress_of_this_run(world: World, states: States) -> None:
    low = low_of(world)
    Backfill.start(world, {"ids": [low - 15_000, low - 10_001]}).through()  # an island in the range that follows
    run, _ = begun(world, states, 15_000)
    [stream] = look(world, run).streams
    assert (stream.trades, stream.trades_done) == (10_000, 0)


def test_the_time_left_is_at_the_pace_of_the_whole_run(world: World, states: States) -> None:
    run, plan = begun(world, states, 120_000)
    assert look(world, run).eta_s == pytest.approx(12, abs=0.1)  # at the published limit: 10 pages of 1,000 a second
    first, *_ = run.specs(plan)
    task(world.deps, first, world.deps.clock)
    seen = look(world, run)
    left = seen.trades - seen.trades_done
    assert seen.eta_s == pytest.approx(left / seen.trades_done * seen.elapsed_s, rel=0.1)


def test_a_second_plan_is_counted_by_its_own_tasks(world: World, states: States) -> None:
    run, plan = begun(world, states)
    first, _ = run.specs(plan)
    task(world.deps, first, world.deps.clock)
    watch = BackfillWatch.of(target.resolve(None), run.base["execution"]["Id"])
    assert watch.look().streams[0].note == "1/2 tasks"
    run.commit(plan)
    run.plan()
    [stream] = watch.look().streams
    assert (stream.note, stream.trades) == ("0/2 tasks", 45_000)
    assert stream.trades_done == sum(c.size for c in first.chunks)


def test_a_task_is_done_when_all_of_its_chunks_are() -> None:
    watch = BackfillWatch(SimpleNamespace(), "arn:a:b", FakeObjects(), None)  # type: ignore[arg-type]
    stream = StreamBackfill(STREAM, tasks=[[Interval(1, 5), Interval(11, 15)], [Interval(21, 25)]])
    for covered, done in (([], 0), ([(1, 5)], 0), ([(1, 5), (11, 14)], 0), ([(1, 15)], 1), ([(1, 30)], 2)):
        watch._count_tasks(stream, "home/", merge(covered))
        assert stream.tasks_done == done


def test_a_stream_that_failed_in_the_first_round_is_not_over(world: World, states: States) -> None:
    run, _ = begun(world, states)
    run.release("failed")
    assert look(world, run).finished == 0


def test_the_pause_between_two_looks_grows_with_what_a_look_takes() -> None:
    slept: list[float] = []
    watch = BackfillWatch(SimpleNamespace(), "arn:a:b", None, None)  # type: ignore[arg-type]
    for took in (0.0, 4.0):
        watch.took_s = took
        watch.pause(slept.append)(1.5)
    assert slept == [1.5, 4.0 * backfill_watch.PATIENCE]


# --- pause, cancel, resume ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_run_is_told_to_end_early_and_goes_on_as_a_new_execution(
    world: World, states: States, word: str, status: str
) -> None:
    run, plan = begun(world, states)
    name = run.run["id"]
    assert call(word, name)["wanted"] == word
    assert backfill_notes.wanted(world.deps, name) == word
    task(world.deps, run.specs(plan)[0], world.deps.clock)
    assert run.commit(plan)["status"] == status
    run.release(status)
    assert call("resume", name, code=1)["error"] == "BadInput"  # it has not come to its halt yet
    states.add(run.base["execution"]["Id"], "SUCCEEDED", output=json.dumps(run.close()), input=json.dumps(run.request))
    document = call("status", name)
    assert document["report"]["status"] == status
    assert document["report"]["streams"][0]["actual"]["missing_ranges"] == 1
    assert status in RUNNER.invoke(app, ["backfill", "status", name]).output
    call("resume", name, "--no-wait")
    assert states.started == [run.request]


def test_only_a_running_backfill_can_be_told_anything(world: World, states: States) -> None:
    run, _ = begun(world, states)
    states.add(run.base["execution"]["Id"], "SUCCEEDED")
    assert call("pause", run.run["id"], code=1)["error"] == "TooLate"
    assert call("pause", "nobody", code=1)["error"] == "BadInput"
    assert backfill_notes.wanted(world.deps, run.run["id"]) == "run"


def test_a_paused_backfill_says_what_is_missing_and_how_to_go_on(world: World, states: States) -> None:
    run, plan = begun(world, states)
    call("pause")  # the newest that runs
    task(world.deps, run.specs(plan)[0], world.deps.clock)
    run.commit(plan)
    run.release("paused")
    states.add(run.base["execution"]["Id"], "SUCCEEDED", output=json.dumps(run.close()), input=json.dumps(run.request))
    [left] = call("status")["report"]["streams"][0]["actual"]["missing"]
    shown = " ".join(RUNNER.invoke(app, ["backfill", "status"]).output.split())
    ids = left[1] - left[0] + 1
    assert f"coinbase BTC-USD: {ids:,} ids are missing in 1 ranges: {left[0]}..{left[1]}" in shown
    assert f"schemahub backfill resume {run.run['id']}" in shown
    call("resume", "--no-wait")  # the newest
    assert states.started == [run.request]


@pytest.mark.parametrize("word", ["pause", "cancel"])
def test_pause_and_cancel_mean_the_newest_run_that_is_running(world: World, states: States, word: str) -> None:
    run, _ = begun(world, states)
    later = datetime.now(UTC)
    states.known["arn:e:later"] = {"status": "SUCCEEDED", "startDate": later, "stopDate": later}
    assert call(word)["run"] == run.run["id"]
    assert backfill_notes.wanted(world.deps, run.run["id"]) == word


def test_a_cancel_that_comes_too_late_says_so(world: World, states: States) -> None:
    run, plan = begun(world, states)
    for spec in run.specs(plan):
        task(world.deps, spec, world.deps.clock)
    run.release(run.commit(plan)["status"])
    said = call("cancel", code=1)
    assert (said["error"], "has done all of its streams" in said["message"]) == ("TooLate", True)
    run.close()
    states.add(run.base["execution"]["Id"], "SUCCEEDED", output="{}")
    assert "it ended at" in call("cancel", code=1)["message"]


def test_a_run_that_was_cancelled_too_late_is_done_and_says_that_too(
    world: World, states: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended(world, states)
    arn = run.base["execution"]["Id"]
    backfill_notes.want(world.deps, run.run["id"], "cancel")
    monkeypatch.setattr(States, "start_execution", lambda self, **asked: {"executionArn": arn})
    shown = RUNNER.invoke(app, ["backfill", NAME, "--all"])
    assert shown.exit_code == 0
    assert "cancel came too late" in shown.output


# --- afterwards -----------------------------------------------------------------------------------------------------


def ended(world: World, states: States, status: str = "SUCCEEDED", **fields: Any) -> Backfill:
    run, plan = begun(world, states)
    for spec in run.specs(plan):
        task(world.deps, spec, world.deps.clock)
    backfill_notes.count(world.deps, STREAM, run.run["id"], requests=46, bytes=1_234_567, seconds=9.5)
    run.release(run.commit(plan)["status"])
    run.close()
    states.add(run.base["execution"]["Id"], status, **fields)
    return run


def test_the_report_gives_planned_against_actual(world: World, states: States) -> None:
    run = ended(world, states)
    document = call("status")  # the newest
    assert document["run"] == run.run["id"]
    [stream] = document["report"]["streams"]
    assert (stream["planned"]["trades"], stream["actual"]["trades"]) == (45_000, 45_000)
    shown = " ".join(RUNNER.invoke(app, ["backfill", "status", run.run["id"]]).output.split())
    assert "45,000 → 45,000" in shown
    assert "→ 46" in shown
    assert f"→ {size(stream['actual']['bytes'])}" in shown
    assert stream["actual"]["bytes"] > 100_000
    assert "lower bounds" in shown


def test_following_to_the_end_is_exit_code_0_1_or_4(
    world: World, states: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended(world, states)
    arn = run.base["execution"]["Id"]
    monkeypatch.setattr(States, "start_execution", lambda self, **asked: {"executionArn": arn})
    assert call(NAME, "--all")["report"]["status"] == "done"
    states.add(arn, "FAILED", error="IncompleteChunks", cause="3 ranges are missing")
    failed = RUNNER.invoke(app, ["backfill", NAME, "--all"])
    assert failed.exit_code == 1
    assert "3 ranges are missing" in failed.output
    assert call(NAME, "--all", code=1)["exit_code"] == 1
    states.add(arn, "SUCCEEDED")
    world.deps.ledger.finish_run(STREAM, arn, "busy", 1, "backfill")
    assert "busy" in RUNNER.invoke(app, ["backfill", NAME, "--all"]).output
    call(NAME, "--all", code=4)


def test_without_any_backfill_the_status_says_so(stack: States) -> None:
    assert call("status", code=1)["error"] == "BadInput"


def test_bytes_read_well() -> None:
    assert [size(n) for n in (812, 3_400, 3_400_000, 1.2e9, 1.25e12)] == [
        "812 B",
        "3.4 kB",
        "3.4 MB",
        "1.2 GB",
        "1.25 TB",
    ]


def test_a_stream_has_a_lock_of_its_own_for_its_history() -> None:
    assert Stream("coinbase", "BTC-USD").backfill_lock_id != STREAM.lock_id
