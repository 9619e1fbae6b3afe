"""The interpreter itself: data flow, retries, tolerance and redrive as AWS documents them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.simulation.asl import FAILED, SUCCEEDED, Execution, Invocation, Service, StateFailed, load, run, tasks

STREAM = {"exchange": "coinbase", "product": "BTC-USD", "dataset": "trades"}


class Script:
    """Answers of the functions, made up; it fails where it is told to, and remembers who was called."""

    def __init__(self, streams: int = 1, chunks: int = 3) -> None:
        self.now_ms, self.called = 1_000_000, list[tuple[str, Any]]()
        self.failing: dict[str, str] = {}
        self.ended: list[Execution] = []
        lines = {"streams": streams, "failed": 0, "chunks": chunks, "remaining": 1, "batches": 2}
        self.service = Service(
            read=lambda bucket, key: b"".join(
                json.dumps({"n": n, **STREAM}).encode() + b"\n" for n in range(lines[key])
            ),
            now_ms=lambda: self.now_ms,
            closed=self.ended.append,
        )
        self.answers: dict[str, Any] = {
            "open_run": {
                "status": "open",
                "run": {"id": "r"},
                "bucket": "b",
                "streams_key": "streams",
                "results_prefix": "plans/r/results",
                "streams_at_a_time": 8,
            },
            "lock": {"status": "held", "fence": 1},
            "plan_stream": {
                "status": "planned",
                "bucket": "b",
                "chunks_key": "chunks",
                "route": "lambda",
                "results_prefix": "plans/r/x/results",
                "chunks_at_a_time": 2,
            },
            "fetch_chunk": {},
            "commit_segments": {"status": "covered", "bucket": "b", "remaining_key": "remaining"},
            "close_run": {"failed": 0, "bucket": "b", "failed_key": "failed"},
            "list_pending": {
                "run": {"id": "t"},
                "bucket": "b",
                "batches_key": "batches",
                "mode": "append",
                "batches": 2,
                "round": 1,
                "results_prefix": "plans/t/results",
                "batches_at_a_time": 4,
            },
            "transform_batch": {},
            "publish": {"status": "published"},
        }

    def call(self, invocation: Invocation) -> Any:
        place = invocation.execution.place
        self.called.append((place, invocation.payload))
        if place in self.failing:
            raise StateFailed(self.failing[place])
        return self.answers[invocation.function]

    def wait(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)

    def run(self, execution: Execution) -> list[str]:
        """The places of the Tasks that it called."""
        self.called.clear()
        run(execution, self.call, self.wait)
        return [place for place, _ in self.called]


CHILD = "IngestStreams[0]/"


def test_a_run_goes_through_both_machines() -> None:
    script = Script()
    execution = script.service.start("ingest", {"schema_version": 1})
    assert script.run(execution) == [
        "OpenRun",
        *(CHILD + p for p in ("AcquireLock", "PlanStream", *(f"FetchChunks[{n}]/FetchChunk" for n in range(3)))),
        *(CHILD + p for p in ("CommitSegments", "ReleaseLock")),
        "ListPending", "TransformBatches[0]/TransformBatch", "TransformBatches[1]/TransformBatch", "Publish",
        "CloseRun",
    ]  # fmt: skip
    assert (execution.status, execution.output) == (SUCCEEDED, script.answers["close_run"])


def test_payloads_carry_what_the_paths_name() -> None:
    script = Script()
    execution = script.service.start("ingest", {"schema_version": 1})
    script.run(execution)
    payload = dict(script.called)[CHILD + "FetchChunks[1]/FetchChunk"]
    assert payload["lock"] == script.answers["lock"]
    assert payload["chunk"]["n"] == 1
    opened = dict(script.called)["OpenRun"]
    assert opened["execution"] == {
        "Id": execution.arn, "Input": {"schema_version": 1}, "Name": "x-1", "RedriveCount": 0,
    }  # fmt: skip


def test_a_failed_chunk_is_tolerated_in_the_first_round() -> None:
    script = Script()
    script.failing[CHILD + "FetchChunks[1]/FetchChunk"] = "BadMapping"
    execution = script.service.start("ingest", {})
    assert CHILD + "CommitSegments" in script.run(execution)
    assert execution.status == SUCCEEDED


def test_retries_back_off_and_come_to_an_end() -> None:
    script = Script()
    script.failing["Publish"] = "CommitConflict"
    execution = script.service.start("transform", {})
    called = script.run(execution)
    assert called.count("Publish") == 9
    assert (execution.status, execution.error) == (FAILED, "CommitConflict")
    assert script.now_ms > 1_000_000 + 5 * 60_000


def test_a_redrive_runs_only_what_was_not_exited() -> None:
    script = Script()
    script.answers["commit_segments"] = {"status": "partial", "bucket": "b", "remaining_key": "chunks"}
    script.failing[CHILD + "FetchRemaining[1]/FetchRemainingChunk"] = "BadMapping"
    script.service.read = lambda bucket, key: (
        json.dumps(STREAM).encode() + b"\n" if key == "streams" else b"{}\n{}\n{}\n"
    )
    execution = script.service.start("ingest", {})
    script.answers["close_run"] = {"failed": 1, "bucket": "b", "failed_key": "streams"}
    script.failing["RetryFailedStreams[0]/RefetchChunks[1]/RefetchChunk"] = "BadMapping"
    script.run(execution)
    assert execution.status == FAILED
    script.failing.clear()
    script.answers["close_run"] = {"failed": 0}
    execution.redrive()
    again = script.run(execution)
    assert again[0] == "RetryFailedStreams[0]/RefetchChunks[1]/RefetchChunk"
    assert "RetryFailedStreams[0]/RefetchChunks[0]/RefetchChunk" not in again
    assert "RetryFailedStreams[0]/ReacquireLock" not in again
    assert execution.status == SUCCEEDED
    child = next(p for place, p in script.called if place.endswith("CommitRefetched"))
    assert child["execution"]["RedriveCount"] == 1


def test_a_state_that_failed_in_the_nested_machine_starts_a_new_execution_of_it() -> None:
    script = Script()
    script.failing["Publish"] = "CorruptState"
    execution = script.service.start("ingest", {})
    script.run(execution)
    assert (execution.status, execution.error) == (FAILED, "States.TaskFailed")
    first = dict(script.called)["ListPending"]["execution"]["Id"]
    script.failing.clear()
    execution.redrive()
    assert script.run(execution)[0] == "ListPending"
    assert dict(script.called)["ListPending"]["execution"]["Id"] != first


def test_what_another_execution_published_in_part_is_listed_anew_five_times_at_most() -> None:
    script = Script()
    script.failing["Publish"] = "StaleBatch"
    execution = script.service.start("transform", {"rederive": None})

    def answer(invocation: Invocation) -> Any:
        if invocation.function == "list_pending":
            script.answers["list_pending"]["round"] = invocation.payload["round"]
            assert invocation.payload["input"] == {"rederive": None}
        return Script.call(script, invocation)

    script.call = answer  # type: ignore[method-assign]
    assert script.run(execution).count("Publish") == 5
    assert (execution.status, execution.error) == (FAILED, "StaleBatch")
    again = script.service.start("transform", {"rederive": None})
    seen = 0

    def stale_once(invocation: Invocation) -> Any:
        nonlocal seen
        if invocation.function == "publish" and (seen := seen + 1) == 2:
            script.failing.clear()
        return answer(invocation)

    script.call = stale_once  # type: ignore[method-assign]
    assert [place for place in script.run(again) if "/" not in place] == ["ListPending", "Publish"] * 2
    assert again.status == SUCCEEDED


def test_a_run_without_a_seed_ends_well_and_rings_no_alarm() -> None:
    script = Script()
    rung: list[Execution] = []
    script.service.stopped = rung.append
    script.answers["open_run"] = {"status": "skipped", "reason": "no_seed", "message": "no seed list", "streams": 0}
    execution = script.service.start("ingest", {"schema_version": 1})
    assert script.run(execution) == ["OpenRun"]
    assert (execution.status, execution.output["reason"], rung) == (SUCCEEDED, "no_seed", [])


def test_children_of_a_map_run_side_by_side_as_many_as_the_plan_says() -> None:
    script = Script(streams=6)
    script.answers["open_run"]["streams_at_a_time"] = 3
    execution = script.service.start("ingest", {"schema_version": 1})
    execution.invoke().succeed(script.answers["open_run"])
    assert len(execution.ready()) == 3


def test_an_aborted_execution_hears_no_late_answer() -> None:
    script = Script()
    stopped: list[Execution] = []
    script.service.stopped = stopped.append
    execution = script.service.start("ingest", {})
    invocation = execution.invoke()
    execution.abort()
    invocation.succeed(script.answers["open_run"])
    assert execution.status == "ABORTED"
    assert stopped == [execution]
    execution.redrive()
    assert script.run(execution)[0] == "OpenRun"
    assert execution.redrives == 1


def test_a_payload_too_large_is_refused() -> None:
    script = Script()
    script.answers["open_run"]["run"]["id"] = "x" * 300_000
    with pytest.raises(AssertionError, match="DataLimitExceeded"):
        script.run(script.service.start("ingest", {}))


def test_every_task_of_both_machines_is_known() -> None:
    assert len(list(tasks(load("ingest")))) == 19
    assert [path[-1] for path in tasks(load("transform"))] == ["ListPending", "TransformBatch", "Publish"]
