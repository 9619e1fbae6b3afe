"""``schemahub replay``: what failed, what of it is still undone, and how it is run again."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from schemahub import coverage
from schemahub.streams import Stream
from schemahub_cli import failures, target
from schemahub_cli.failures import Reader
from schemahub_cli.main import app
from tests.unit.test_cli import FakeObjects

RUNNER = CliRunner(env={"COLUMNS": "200"})
ARN = "arn:aws:states:us-east-1:1"
MACHINES = {name: f"{ARN}:stateMachine:schemahub-test-{name}" for name in ("ingest", "transform", "backfill")}
NOW = datetime.now(UTC)
BTC, ETH, SOL = Stream("coinbase", "BTC-USD"), Stream("coinbase", "ETH-USD"), Stream("binance", "SOL-USDT")


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, "RedriveExecution")


class States:
    """Step Functions with executions, Map Runs and children; pages of two."""

    def __init__(self) -> None:
        self.executions: dict[str, dict[str, Any]] = {}
        self.map_runs: dict[str, list[dict[str, Any]]] = {}
        self.histories: dict[str, str] = {}
        self.redriven: list[str] = []
        self.started: list[tuple[str, dict[str, Any]]] = []
        self.refuses: str | None = None
        self.described: list[str] = []
        self.limit = 1000

    def ended(
        self, machine: str, name: str, hours_ago: float, status: str = "FAILED", *, state: str = "RetryFailedStreams",
        of: str | None = None, **fields: Any,
    ) -> str:  # fmt: skip
        arn = f"{ARN}:execution:schemahub-test-{machine}:{name}"
        stop = NOW - timedelta(hours=hours_ago)
        given = {"error": "States.ExceedToleratedFailureThreshold"} if status == "FAILED" else {}
        given["input"] = json.dumps({"schema_version": 1, **fields.pop("input", {})})
        self.executions[arn] = {
            "executionArn": arn, "stateMachineArn": MACHINES.get(machine), "status": status, "mapRunArn": of,
            "startDate": stop - timedelta(minutes=10), "stopDate": stop if status != "RUNNING" else None,
            **given, **fields,
        }  # fmt: skip
        self.histories[arn] = state
        return arn

    def map_run(self, parent: str, label: str) -> str:
        arn = f"{parent}/{label}"
        start = NOW - timedelta(hours=1) + timedelta(seconds=len(self.map_runs.get(parent, ())))
        self.map_runs.setdefault(parent, []).append({"mapRunArn": arn, "startDate": start})
        return arn

    def list_executions(self, **asked: Any) -> dict[str, Any]:
        def fits(e: dict[str, Any]) -> bool:
            if "mapRunArn" in asked:
                return bool(e["mapRunArn"] == asked["mapRunArn"])
            return e["stateMachineArn"] == asked["stateMachineArn"] and e["mapRunArn"] is None

        status = asked.get("statusFilter")
        found = [e for e in self.executions.values() if fits(e) and status in (None, e["status"])]
        found.sort(key=lambda e: e["stopDate"] or NOW, reverse=True)
        at = int(asked.get("nextToken", 0))
        more = {"nextToken": str(at + 2)} if at + 2 < len(found) else {}
        keys = ("executionArn", "status", "startDate", "stopDate")
        return {"executions": [{k: e[k] for k in keys if e[k]} for e in found[at : at + 2]], **more}

    def get_paginator(self, name: str) -> Any:
        assert name == "list_executions"
        return SimpleNamespace(paginate=lambda **asked: [self.list_executions(**asked)])

    def list_map_runs(self, executionArn: str, **token: str) -> dict[str, Any]:
        return {"mapRuns": self.map_runs.get(executionArn, [])}

    def describe_execution(self, executionArn: str) -> dict[str, Any]:
        self.described.append(executionArn)
        return {k: v for k, v in self.executions[executionArn].items() if v is not None}

    def get_execution_history(self, executionArn: str, **asked: Any) -> dict[str, Any]:
        assert asked["reverseOrder"]
        name = self.histories[executionArn]
        return {"events": [{"type": "TaskFailed"}, {"stateEnteredEventDetails": {"name": name}}]}

    def get_account_settings(self) -> dict[str, Any]:
        """Of Lambda: one fake speaks for all services."""
        return {"AccountLimit": {"UnreservedConcurrentExecutions": self.limit}}

    def redrive_execution(self, executionArn: str) -> None:
        if self.refuses:
            raise refusal(self.refuses)
        self.redriven.append(executionArn)

    def start_execution(self, stateMachineArn: str, name: str, input: str) -> dict[str, Any]:
        machine = next(m for m, arn in MACHINES.items() if arn == stateMachineArn)
        self.started.append((machine, json.loads(input)))
        return {"executionArn": f"{ARN}:execution:schemahub-test-{machine}:{name}"}


class World:
    def __init__(self) -> None:
        self.states, self.objects, self.notes = States(), FakeObjects(), dict[tuple[Stream, str], dict[str, Any]]()

    def run(
        self, name: str, hours_ago: float, bad: dict[Stream, str], good: tuple[Stream, ...] = (), **fields: Any
    ) -> str:
        """An ingest that ended badly: ``bad`` streams failed in both rounds, by an error of one chunk each."""
        arn = self.states.ended("ingest", name, hours_ago, **fields)
        self.lines(f"schemahub/plans/{name}/streams.jsonl", [*bad, *good])
        self.lines(f"schemahub/plans/{name}/streams.failed.jsonl", list(bad))
        for label in ("IngestStreams", "RetryFailedStreams"):
            run = self.states.map_run(arn, label)
            for stream, error in bad.items():
                child = self.states.ended(
                    "ingest/c", f"{name}-{label}-{stream.product}", hours_ago + 0.01, of=run,
                    input={"stream": stream.to_json()}, error="IncompleteChunks",
                )  # fmt: skip
                tolerated = self.states.map_run(child, "FetchChunks")
                self.states.ended(
                    "ingest/d", f"{child[-40:]}-first-try", hours_ago + 0.03, of=tolerated, error="EmptyPage"
                )
                for number in range(7):
                    self.states.ended(
                        "ingest/d", f"{child[-40:]}-{number}", hours_ago + 0.02, error=error,
                        of=self.states.map_run(child, "FetchRemaining") if number == 0 else f"{child}/FetchRemaining",
                        input={"stream": stream.to_json(), "chunk": {"first": number * 10, "last": number * 10 + 9}},
                        cause=json.dumps({"errorMessage": f"chunk {number} broke", "errorType": error}),
                    )  # fmt: skip
        for stream in good:
            self.note(stream, arn, hours_ago)
        return arn

    def lines(self, key: str, streams: list[Stream]) -> None:
        self.objects.put(key, "".join(json.dumps(s.to_json()) + "\n" for s in streams).encode())

    def note(self, stream: Stream, run: str, hours_ago: float, outcome: str = "done") -> None:
        at = NOW - timedelta(hours=hours_ago)
        self.notes[stream, "backfill" if "backfill" in run else "run"] = {
            "run": run,
            "outcome": outcome,
            "finished_at": int(at.timestamp() * 1000),
        }


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    locks = SimpleNamespace(holder=lambda lock_id: None)
    deps = SimpleNamespace(
        objects=made.objects, ledger=SimpleNamespace(last_run=lambda *of: made.notes.get(of)), locks=locks,
        settings=SimpleNamespace(products=("coinbase:BTC-USD", "coinbase:ETH-USD"), functions_at_a_time=32),
    )  # fmt: skip
    where = SimpleNamespace(
        deps=deps, stack="schemahub-test", local=True, client=lambda service: made.states,
        machine_arn=MACHINES.get, ingest_arn=MACHINES["ingest"], transform_arn=MACHINES["transform"],
    )  # fmt: skip
    monkeypatch.setattr(target, "resolve", lambda name: where)
    return made


def replay(*arguments: str, code: int = 0) -> Any:
    result = RUNNER.invoke(app, ["replay", *arguments, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def actions(document: Any) -> dict[str, str]:
    return {
        f"{f['execution'].rsplit(':')[-1]} {f['stream']['product'] if f['stream'] else f['kind']}": f["action"]
        for f in document["failures"]
    }


def test_what_failed_is_shown_with_stream_chunk_and_error_and_redriven_as_a_whole(world: World) -> None:
    arn = world.run("run-1", 5, {BTC: "ExchangeUnavailable", SOL: "PageConflict"}, good=(ETH,))
    document = replay("--dry-run")
    assert actions(document) == {"run-1 BTC-USD": "redrive", "run-1 SOL-USDT": "redrive"}
    [btc] = [f for f in document["failures"] if f["stream"]["product"] == "BTC-USD"]
    first = btc["problems"][0]
    assert (first["error"], first["cause"], first["chunk"]) == (
        "ExchangeUnavailable", "chunk 0 broke", {"first": 0, "last": 9})  # fmt: skip
    assert [p["error"] for p in btc["problems"][-2:]] == ["IncompleteChunks", "States.ExceedToleratedFailureThreshold"]
    assert btc["more_failed_chunks"] == 2
    assert world.states.redriven == world.states.started == []
    shown = RUNNER.invoke(app, ["replay", "--dry-run"]).output
    assert "0..9 and 6 more" in shown
    assert "ExchangeUnavailable" in shown
    assert replay()["started"] == [{"machine": "ingest", "execution": arn, "redriven": True}]
    assert (world.states.redriven, world.states.started) == ([arn], [])


@pytest.mark.parametrize("arguments", [["--product", "BTC-*"], ["--product", "coinbase:*"], ["--error", "Exchange*"],
                                       ["--error", "*chunk 0 broke*", "--product", "*-USD"]])  # fmt: skip
def test_a_part_of_what_failed_is_started_anew_and_nothing_else(world: World, arguments: list[str]) -> None:
    world.run("run-1", 5, {BTC: "ExchangeUnavailable", SOL: "PageConflict"}, input={"exchanges": ["coinbase"]})
    assert actions(replay(*arguments)) == {"run-1 BTC-USD": "start"}
    assert world.states.redriven == []
    assert world.states.started == [("ingest", {"schema_version": 1, "products": ["coinbase:BTC-USD"]})]


def test_a_filter_that_nothing_fits_starts_nothing(world: World) -> None:
    world.run("run-1", 5, {BTC: "ExchangeUnavailable"})
    for arguments in (["--error", "PageConflict"], ["--product", "ETH-*"], ["--since", "4h"], ["--state", "aborted"],
                      ["--machine", "transform"]):  # fmt: skip
        assert replay(*arguments)["failures"] == []
    assert "nothing to replay" in RUNNER.invoke(app, ["replay", "--since", "4h"]).output
    assert world.states.redriven == world.states.started == []


@pytest.mark.parametrize("refuses", ["InvalidAction", "ExecutionNotRedrivable"])
def test_where_a_redrive_is_refused_a_new_execution_takes_the_failed_streams(world: World, refuses: str) -> None:
    world.states.refuses = refuses
    world.run("run-1", 5, {BTC: "ExchangeUnavailable", SOL: "PageConflict"}, good=(ETH,))
    [started] = replay()["started"]
    assert started["redriven"] is False
    products = ["binance:SOL-USDT", "coinbase:BTC-USD"]
    assert world.states.started == [("ingest", {"schema_version": 1, "products": products})]


def test_an_error_that_is_no_refusal_is_not_taken_for_one(world: World) -> None:
    world.states.refuses = "AccessDeniedException"
    world.run("run-1", 5, {BTC: "ExchangeUnavailable"})
    assert replay(code=1)["error"] == "ClientError"
    assert world.states.started == []


@pytest.mark.parametrize("fields", [{"hours_ago": 14 * 24 + 1}, {"hours_ago": 5, "redriveStatus": "NOT_REDRIVABLE"}])
def test_what_cannot_be_redriven_is_not_tried(world: World, fields: dict[str, Any]) -> None:
    world.run("run-1", bad={BTC: "ExchangeUnavailable"}, **fields)
    world.states.refuses = "ExecutionNotRedrivable"
    assert actions(replay("--since", "30d", "--dry-run")) == {"run-1 BTC-USD": "start"}


def test_what_a_later_run_has_done_is_not_done_twice(world: World) -> None:
    world.run("run-1", 5, {BTC: "ExchangeUnavailable", SOL: "PageConflict"})
    world.note(BTC, f"{ARN}:execution:m:run-2", 4)
    world.note(SOL, f"{ARN}:execution:m:run-2", 4, "busy")  # it only found the stream held by another
    document = replay()
    assert actions(document) == {"run-1 BTC-USD": "recovered", "run-1 SOL-USDT": "start"}
    assert world.states.started == [("ingest", {"schema_version": 1, "products": ["binance:SOL-USDT"]})]
    world.note(SOL, f"{ARN}:execution:m:run-3", 4)
    assert set(actions(replay()).values()) == {"recovered"}
    assert len(world.states.started) == 1


def test_a_success_before_the_failure_heals_nothing(world: World) -> None:
    world.run("run-1", 5, {BTC: "ExchangeUnavailable"})
    world.note(BTC, f"{ARN}:execution:m:run-0", 11)
    assert actions(replay("--dry-run")) == {"run-1 BTC-USD": "redrive"}


def test_a_stream_that_failed_again_is_replayed_once_with_its_newest_failure(world: World) -> None:
    world.run("run-1", 11, {BTC: "ExchangeUnavailable", SOL: "PageConflict"})
    newer = world.run("run-2", 5, {BTC: "EmptyPage"})
    assert actions(replay()) == {
        "run-1 BTC-USD": "superseded", "run-1 SOL-USDT": "start", "run-2 BTC-USD": "redrive"}  # fmt: skip
    assert world.states.redriven == [newer]
    assert world.states.started == [("ingest", {"schema_version": 1, "products": ["binance:SOL-USDT"]})]


def test_a_stream_that_the_second_round_finished_is_no_failure(world: World) -> None:
    arn = world.run("run-1", 5, {BTC: "ExchangeUnavailable", SOL: "PageConflict"})
    world.note(SOL, arn, 5)
    assert actions(replay("--dry-run")) == {"run-1 BTC-USD": "redrive"}


def test_a_stream_that_the_run_finished_stays_finished_though_a_later_run_found_it_busy(world: World) -> None:
    world.run("run-1", 5, {BTC: "ExchangeUnavailable"}, good=(ETH,))
    world.note(ETH, f"{ARN}:execution:m:run-2", 4, "busy")
    assert actions(replay("--dry-run")) == {"run-1 BTC-USD": "redrive"}


def test_while_a_run_is_running_nothing_is_doubled(world: World) -> None:
    world.run("run-1", 5, {BTC: "ExchangeUnavailable"})
    world.states.ended("ingest", "now", 0, "RUNNING")
    assert actions(replay(code=4)) == {"run-1 BTC-USD": "busy"}
    assert world.states.redriven == world.states.started == []


def test_somebody_who_was_quicker_with_the_redrive_is_not_followed_by_a_new_execution(world: World) -> None:
    arn = world.run("run-1", 5, {BTC: "ExchangeUnavailable"})

    def quicker(executionArn: str) -> None:
        world.states.executions[arn]["status"] = "RUNNING"
        raise refusal("ExecutionNotRedrivable")

    world.states.redrive_execution = quicker  # type: ignore[method-assign]
    assert actions(replay()) == {"run-1 BTC-USD": "recovered"}
    assert world.states.started == []


# --- what can only fail again ---------------------------------------------------------------------------------------


def test_what_can_only_fail_again_is_not_started_and_says_which_and_why(world: World) -> None:
    world.run("run-1", 5, {BTC: "UnknownProduct", SOL: "ExchangeUnavailable"})
    assert actions(replay()) == {"run-1 BTC-USD": "permanent", "run-1 SOL-USDT": "start"}
    assert world.states.redriven == []
    assert world.states.started == [("ingest", {"schema_version": 1, "products": ["binance:SOL-USDT"]})]
    shown = " ".join(RUNNER.invoke(app, ["replay", "--product", "BTC-*"]).output.split())
    assert "UnknownProduct fails again until something is changed" in shown
    assert "update-seed --dry-run" in shown
    assert "run this again with --force" in shown
    replay("--product", "BTC-*", code=1)
    assert len(world.states.started) == 1


def test_forced_it_is_run_again_all_the_same(world: World) -> None:
    arn = world.run("run-1", 5, {BTC: "UnknownProduct", SOL: "ExchangeUnavailable"})
    assert set(actions(replay("--force", "--dry-run")).values()) == {"redrive"}
    replay("--force")
    assert world.states.redriven == [arn]


def test_a_publishing_is_judged_by_the_error_inside_the_causes_that_are_nested_in_it(world: World) -> None:
    inner = {"errorType": "QuarantineExceeded", "errorMessage": "9 rows of 10 do not map"}
    cause = json.dumps({"Error": "QuarantineExceeded", "Cause": json.dumps(inner), "Status": "FAILED"})
    world.run("run-1", 5, {}, good=(BTC,), state="TransformSegments", error="States.TaskFailed", cause=cause)
    [failure] = replay(code=1)["failures"]
    assert failure["action"] == "permanent"
    [problem] = failure["problems"]
    assert (problem["error"], problem["cause"]) == ("QuarantineExceeded", "9 rows of 10 do not map")


def test_a_product_filter_that_no_stream_fits_is_an_error_with_the_nearest_names(world: World) -> None:
    world.run("run-1", 5, {BTC: "ExchangeUnavailable"})
    said = replay("--product", "BTX-USD", code=1)
    assert said["error"] == "UnknownStream"
    assert "BTC-USD" in said["message"]
    assert world.states.started == world.states.redriven == []


# --- failures that are about no single stream -----------------------------------------------------------------------


def test_a_failed_publishing_is_replayed_once_and_needs_no_ingest(world: World) -> None:
    world.states.refuses = "InvalidAction"
    by = {"AWS_STEP_FUNCTIONS_STARTED_BY_EXECUTION_ID": "x", "run": {"id": "run-1"}}
    world.run("run-1", 5, {}, good=(BTC,), state="TransformSegments", error="States.TaskFailed")
    world.states.ended("transform", "t-1", 5.1, error="CommitConflict", input=by)
    assert actions(replay("--error", "CommitConflict", "--dry-run")) == {"t-1 publish": "superseded"}
    assert actions(replay()) == {"run-1 publish": "start", "t-1 publish": "superseded"}
    assert world.states.started == [("transform", {"schema_version": 1})]


def test_a_failed_publishing_rides_along_where_streams_are_replayed(world: World) -> None:
    world.run("run-1", 5, {BTC: "ExchangeUnavailable"})
    world.states.ended("transform", "t-1", 3, error="CommitConflict")
    assert actions(replay()) == {"run-1 BTC-USD": "redrive", "t-1 publish": "with"}
    assert world.states.started == []


def test_a_publishing_that_succeeded_since_is_done(world: World) -> None:
    world.states.ended("transform", "t-1", 5, error="CommitConflict")
    world.states.ended("transform", "began-before", 4.95, "SUCCEEDED")
    world.states.ended("transform", "of-a-mapping", 4, "SUCCEEDED", input={"rederive": {"streams": ["coinbase:X-Y"]}})
    assert actions(replay("--dry-run")) == {"t-1 publish": "redrive"}
    world.states.ended("transform", "t-2", 3, "SUCCEEDED")
    assert actions(replay()) == {"t-1 publish": "recovered"}


def test_a_rederivation_is_asked_for_again_as_it_was(world: World) -> None:
    world.states.refuses = "InvalidAction"
    wanted = {"rederive": {"streams": ["coinbase:BTC-USD"], "since": 17}}
    world.states.ended("transform", "t-1", 5, input=wanted)
    world.states.ended("transform", "t-2", 4, "SUCCEEDED")
    assert actions(replay()) == {"t-1 rederivation": "start"}
    assert world.states.started == [("transform", {"schema_version": 1, **wanted})]


def test_a_run_that_did_not_come_to_a_list_is_started_with_its_own_input(world: World) -> None:
    world.states.refuses = "InvalidAction"
    world.states.ended(
        "ingest", "run-1", 5, state="OpenRun", error="StoreUnavailable", input={"exchanges": ["binance"]}
    )
    assert actions(replay("--product", "BTC-*")) == {}
    assert actions(replay()) == {"run-1 whole": "start"}
    assert world.states.started == [("ingest", {"schema_version": 1, "exchanges": ["binance"]})]
    world.states.ended("ingest", "run-2", 4, "SUCCEEDED", output=json.dumps({"status": "skipped"}))
    assert actions(replay("--dry-run")) == {"run-1 whole": "redrive"}
    world.states.ended("ingest", "run-3", 3, "SUCCEEDED")
    assert actions(replay("--dry-run")) == {"run-1 whole": "recovered"}


def test_one_new_execution_holds_everything_that_ingest_has_to_do_again(world: World) -> None:
    world.states.refuses = "InvalidAction"
    world.run("run-1", 5, {BTC: "ExchangeUnavailable"})
    world.states.ended("ingest", "run-2", 4, state="OpenRun", error="States.Timeout", input={"products": ["okx:A-B"]})
    replay()
    assert world.states.started == [("ingest", {"schema_version": 1, "products": ["coinbase:BTC-USD", "okx:A-B"]})]
    world.states.ended("ingest", "run-3", 3, state="OpenRun", error="StoreUnavailable")
    replay()
    assert world.states.started[1:] == [("ingest", {"schema_version": 1})]


def test_streams_of_a_run_that_was_stopped_are_undone_though_no_child_says_so(world: World) -> None:
    arn = world.states.ended("ingest", "run-1", 5, "ABORTED", state="IngestStreams")
    world.lines("schemahub/plans/run-1/streams.jsonl", [BTC, ETH])
    world.note(ETH, arn, 5)
    assert replay()["failures"] == []
    assert actions(replay("--state", "aborted", "--dry-run")) == {"run-1 BTC-USD": "redrive"}


# --- backfill, bounds, usage ----------------------------------------------------------------------------------------


def backfilled(world: World, name: str = "b-1", hours_ago: float = 5.0) -> str:
    """A backfill of two streams: what one wanted is not all there, the other is done."""
    wanted = {"products": ["coinbase:BTC-USD", "coinbase:ETH-USD"], "range": {"ids": [1, 10]}, "preset": "small"}
    arn = world.states.ended("backfill", name, hours_ago, state="RetryFailedStreams", input=wanted)
    world.lines(f"schemahub/plans/{name}/streams.jsonl", [BTC, ETH])
    world.lines(f"schemahub/plans/{name}/streams.failed.jsonl", [BTC])
    world.objects.put(f"schemahub/plans/{name}/backfill/coinbase/BTC-USD/range.json", b"[1, 10]")
    run = world.states.map_run(arn, "RetryFailedStreams")
    world.states.ended(
        "backfill/c", f"{name}-c", hours_ago, of=run, input={"stream": BTC.to_json()}, error="PageConflict"
    )
    world.note(BTC, arn, hours_ago, "failed")  # of its first round
    return arn


def test_a_backfill_is_asked_for_again_with_the_failed_streams_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "missing", lambda ledger, stream, within: [within])
    world.states.refuses = "InvalidAction"
    backfilled(world)
    assert actions(replay("--error", "PageConflict")) == {"b-1 BTC-USD": "start"}
    again = {"products": ["coinbase:BTC-USD"], "range": {"ids": [1, 10]}, "preset": "small"}
    assert world.states.started == [("backfill", {"schema_version": 1, **again})]


def test_a_backfill_whose_range_is_covered_by_now_is_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(coverage, "missing", lambda ledger, stream, within: asked.append((stream, *within)) or [])
    backfilled(world)
    assert actions(replay()) == {"b-1 BTC-USD": "recovered"}
    assert asked == [(BTC, 1, 10)]


def test_a_backfill_of_another_range_is_other_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "missing", lambda ledger, stream, within: [within])
    backfilled(world)
    world.run("run-1", 3, {BTC: "ExchangeUnavailable"})
    other = backfilled(world, "b-2", 4)
    wanted = {"products": ["coinbase:BTC-USD"], "range": "all"}
    world.states.executions[other]["input"] = json.dumps({"schema_version": 1, **wanted})
    assert set(actions(replay("--dry-run")).values()) == {"redrive"}


def test_an_older_stack_without_a_machine_is_searched_for_what_it_has(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(MACHINES, "backfill")
    assert replay()["failures"] == []


def test_pages_are_followed_and_the_number_of_looks_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        world.states.ended("transform", f"t-{number}", 5 + number)
    assert len(replay("--dry-run")["failures"]) == 7
    monkeypatch.setattr(Reader.__init__, "__defaults__", (3, *Reader.__init__.__defaults__[1:]))  # type: ignore[index]
    document = replay("--dry-run")
    assert [f["execution"].rsplit(":")[-1] for f in document["failures"]] == ["t-0", "t-1", "t-2"]
    assert document["truncated"] is True
    assert "older failures were not looked at" in RUNNER.invoke(app, ["replay", "--dry-run"]).output
    assert failures.MAX_LOOKS >= 1_000


@pytest.mark.parametrize("arguments", [["--since", "tomorrow"], ["--since", "999999w"], ["--state", "sad"],
                                       ["--machine", "washing"]])  # fmt: skip
def test_what_cannot_be_meant_is_wrong_usage(world: World, arguments: list[str]) -> None:
    assert RUNNER.invoke(app, ["replay", *arguments]).exit_code == 2
