"""The state machines against the template, the error tree and the rules that make redrive work."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemahub import errors
from tests.deploy.conftest import MACHINES, ROOT, definition, substituted, substitutions

NAMES = list(MACHINES.values())
THROTTLED = "Lambda.TooManyRequestsException"
TRANSIENT = [
    "Lambda.ServiceException",
    "Lambda.AWSLambdaException",
    "Lambda.SdkClientException",
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.Unknown",
    "Runtime.ExitError",
    "Sandbox.Timedout",
    "States.Timeout",
]
FOREIGN = ("Lambda.", "Runtime.", "Sandbox.", "States.", "StepFunctions.", "ECS.")
# What a retry cannot cure: somebody must look, or another run has taken over.
FINAL = (
    errors.BadInput,
    errors.StateError,
    errors.TransformError,
    errors.LockLost,
    errors.PageConflict,
    errors.HeadBehindWatermark,
    errors.ExchangeRefused,
    errors.StaleBatch,
)


def states(machine: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All states, children of Maps included."""
    for name, state in machine["States"].items():
        yield name, state
        if state["Type"] == "Map":
            yield from states(state["ItemProcessor"])


def tasks(name: str) -> list[tuple[str, dict[str, Any]]]:
    return [(n, s) for n, s in states(definition(name)) if s["Type"] == "Task"]


def is_lambda(state: dict[str, Any]) -> bool:
    return state["Resource"] == "arn:aws:states:::lambda:invoke"


def is_task_of_ecs(state: dict[str, Any]) -> bool:
    return state["Resource"] == "arn:aws:states:::ecs:runTask.sync"


@pytest.mark.parametrize("name", NAMES)
def test_asl_validator_accepts_it(name: str, tmp_path: Path) -> None:
    validator = ROOT / "node_modules" / ".bin" / "asl-validator"
    if not validator.exists():
        pytest.skip("no asl-validator (npm): run `make node_modules/.stamp` where npm is installed")
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(substituted(name)))
    result = subprocess.run([str(validator), "--json-path", str(file)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_target_exists_in_its_own_scope_and_everything_is_reached(name: str) -> None:
    """What asl-validator says too; here for machines without npm."""

    def check(machine: dict[str, Any]) -> None:
        reached, todo = set(), [machine["StartAt"]]
        while todo:
            here = todo.pop()
            assert here in machine["States"], f"no state {here}"
            if here in reached:
                continue
            reached.add(here)
            state = machine["States"][here]
            todo += [state[key] for key in ("Next", "Default") if key in state]
            todo += [choice["Next"] for choice in [*state.get("Choices", []), *state.get("Catch", [])]]
            if state["Type"] == "Map":
                check(state["ItemProcessor"])
        assert reached == set(machine["States"])

    check(definition(name))


@pytest.mark.parametrize("name", NAMES)
def test_state_names_are_unique_and_so_are_map_labels(name: str) -> None:
    names = [state for state, _ in states(definition(name))]
    labels = [s["Label"] for _, s in states(definition(name)) if s["Type"] == "Map"]
    assert len(names) == len(set(names))
    assert len(labels) == len(set(labels))
    assert all(len(label) <= 40 for label in labels)


@pytest.mark.parametrize("name", NAMES)
def test_no_catch_leads_to_a_failure(name: str) -> None:
    """A caught state has exited: the console's redrive could only enter the failure again. After a task on Spot
    capacity comes another attempt, which fails where it fails. Batches that do not fit the table any more are listed
    anew; after five times a redrive of the same batches could help even less."""
    caught = {state: body["Catch"] for state, body in states(definition(name)) if "Catch" in body}
    if name == "transform":
        assert caught == {"Publish": [{"ErrorEquals": ["StaleBatch"], "ResultPath": "$.stale", "Next": "MayListAgain"}]}
        assert dict(states(definition(name)))["CountRound"]["Next"] == "ListPending"
        return
    spot = {
        "ingest": ["RunTaskOnSpot"],
        "backfill": ["RunTaskOnSpot", "RerunTaskOnSpot"],
        "maintain": ["CorrectOnSpot"],
    }
    assert list(caught) == spot.get(name, [])
    for catchers in caught.values():
        [catcher] = catchers
        assert (catcher["ErrorEquals"], catcher["ResultPath"]) == (["States.ALL"], None)
        assert dict(states(definition(name)))[catcher["Next"]]["Type"] == "Task"


@pytest.mark.parametrize("name", NAMES)
def test_maps_have_no_retry_and_run_standard_children(name: str) -> None:
    """A Retry on a Distributed Map runs every child again; the Retry belongs inside the child."""
    for state, body in states(definition(name)):
        if body["Type"] == "Map":
            assert "Retry" not in body, state
            assert body["ItemProcessor"]["ProcessorConfig"] == {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}
            assert body.get("MaxConcurrency", 0) > 0 or body["MaxConcurrencyPath"].startswith("$."), state
            assert body["ItemReader"]["ReaderConfig"] == {"InputType": "JSONL"}, state


def test_only_the_first_round_tolerates_failures() -> None:
    tolerant = {n for n, s in states(definition("ingest")) if s.get("ToleratedFailurePercentage")}
    assert tolerant == {"IngestStreams", "FetchChunks", "RunTasks"}
    tolerant = {n for n, s in states(definition("backfill")) if s.get("ToleratedFailurePercentage")}
    assert tolerant == {"BackfillStreams", "FetchChunks", "RunTasks"}
    tolerant = {n for n, s in states(definition("maintain")) if s.get("ToleratedFailurePercentage")}
    assert tolerant == {"RepairStreams", "CorrectFiles", "RederiveCorrections"}
    assert not [n for n, s in states(definition("transform")) if s.get("ToleratedFailurePercentage")]


@pytest.mark.parametrize("name", NAMES)
def test_every_task_outlives_its_function(name: str, template: dict[str, Any]) -> None:
    """Otherwise Step Functions gives up while the Lambda still works, as a zombie."""
    for state, body in tasks(name):
        if is_lambda(body):
            function = body["Parameters"]["FunctionName"].strip("${}").removesuffix("Arn")
            assert body["TimeoutSeconds"] > template["Resources"][function]["Properties"]["Timeout"], state
        else:
            assert body["TimeoutSeconds"] > definition("transform")["TimeoutSeconds"], state


@pytest.mark.parametrize("name", NAMES)
def test_retries_name_errors_that_exist_and_that_a_retry_can_cure(name: str) -> None:
    for state, body in tasks(name):
        for retrier in body["Retry"]:
            for error in retrier["ErrorEquals"]:
                if error.startswith(FOREIGN):
                    continue
                kind = getattr(errors, error, None)
                assert inspect.isclass(kind), f"{state} retries {error}, which schemahub.errors does not have"
                assert not issubclass(kind, FINAL), f"{state} retries {error}, which no retry cures"


@pytest.mark.parametrize("name", NAMES)
def test_retries_go_from_the_specific_to_the_rest_with_full_jitter(name: str) -> None:
    for state, body in tasks(name):
        *specific, last = body["Retry"]
        if is_lambda(body):
            assert last["ErrorEquals"] == TRANSIENT, state
            assert specific.pop(0)["ErrorEquals"] == [THROTTLED], state
        assert not [e for r in specific for e in r["ErrorEquals"] if e.startswith(FOREIGN)], state
        named = [e for r in body["Retry"] for e in r["ErrorEquals"]]
        assert len(named) == len(set(named)), state
        for retrier in body["Retry"]:
            assert retrier["JitterStrategy"] == "FULL", state
            assert retrier["IntervalSeconds"] <= retrier["MaxDelaySeconds"] <= 300, state
            assert 0 < retrier["MaxAttempts"] <= (20 if retrier["ErrorEquals"] == [THROTTLED] else 10), state


@pytest.mark.parametrize("name", NAMES)
def test_each_function_waits_for_minutes_for_an_account_that_is_at_its_limit(name: str) -> None:
    """A new account may run 10 functions at a time: five attempts within 31 s failed up to three quarters of chunks."""
    for state, body in tasks(name):
        if is_lambda(body):
            first = body["Retry"][0]
            waits = [
                min(first["IntervalSeconds"] * 2**n, first["MaxDelaySeconds"]) for n in range(first["MaxAttempts"])
            ]
            assert (first["ErrorEquals"], len(waits), first["MaxDelaySeconds"]) == ([THROTTLED], 20, 60), state
            assert sum(waits) / 2 > 6 * 60, state


def test_whoever_talks_to_an_exchange_retries_what_the_exchange_does() -> None:
    curable = {
        "EmptyPage",
        "IncompletePage",
        "SlotRefused",
        "CircuitOpen",
        "ExchangeUnavailable",
        "RateLimited",
        "MalformedResponse",
        "ResponseInterrupted",
    }
    talking = {"PlanStreamFunctionArn", "PlanBackfillFunctionArn", "FetchChunkFunctionArn"}
    for state, body in [*tasks("ingest"), *tasks("backfill"), *tasks("maintain")]:
        retried = {e for r in body["Retry"] for e in r["ErrorEquals"]}
        talks = is_lambda(body) and body["Parameters"]["FunctionName"].strip("${}") in talking
        talks = talks or state == "RepairHoles"
        assert (curable <= retried) if talks else not (curable & retried), state


@pytest.mark.parametrize("name", NAMES)
def test_every_payload_carries_the_schema_version(name: str) -> None:
    for state, body in tasks(name):
        if is_task_of_ecs(body):
            continue  # its payload is the object that SCHEMAHUB_TASK names
        payload = body["Parameters"]["Payload" if is_lambda(body) else "Input"]
        assert payload["schema_version"] == 1, state


@pytest.mark.parametrize("name", NAMES)
def test_children_return_nothing(name: str) -> None:
    """A Map collects its children's outputs in a payload of at most 256 KiB: thousands of chunks must not fill it."""
    for state, body in states(definition(name)):
        if body["Type"] == "Map":
            assert body["ResultPath"] is None, state
            assert not {"ResultSelector", "OutputPath"} & set(body), state
            for child, last in body["ItemProcessor"]["States"].items():
                if last.get("End"):
                    assert last["OutputPath"] is None, child


@pytest.mark.parametrize("name", NAMES)
def test_results_of_children_go_to_the_plans_and_not_through_the_payload(name: str) -> None:
    """A failed child comes back whole, some 3 kB of it, and 250,000 that succeed as `{}` each: beyond 256 KiB a Map
    fails before what it did is committed. Nothing reads the results: MiniStack writes none."""
    for state, body in states(definition(name)):
        if body["Type"] == "Map":
            writer, reader = body["ResultWriter"], body["ItemReader"]["Parameters"]
            assert writer["Resource"] == "arn:aws:states:::s3:putObject", state
            assert set(writer) == {"Resource", "Parameters"}, state
            assert writer["Parameters"]["Prefix.$"].endswith(".results_prefix"), state
            assert writer["Parameters"]["Bucket.$"].removesuffix(".bucket") in ("$", "$.plan.Payload"), state
            assert set(reader) == {"Bucket.$", "Key.$"}, state


@pytest.mark.parametrize("name", NAMES)
def test_maps_whose_children_are_functions_take_their_concurrency_from_the_parameter(name: str) -> None:
    """Tasks of ECS, and the one committer of the table, have bounds of their own."""
    own = {"RunTasks": "$.plan.Payload.tasks_at_a_time", "RerunTasks": "$.plan.Payload.tasks_at_a_time",
           "CorrectFiles": 2, "RederiveCorrections": 1}  # fmt: skip
    for state, body in states(definition(name)):
        if body["Type"] == "Map":
            bound = body.get("MaxConcurrencyPath", body.get("MaxConcurrency"))
            if state in own:
                assert bound == own[state]
            else:
                assert re.fullmatch(r"\$\.(plan\.Payload\.chunks|streams|batches)_at_a_time", str(bound)), state


def test_no_string_that_is_split_can_be_empty(template: dict[str, Any]) -> None:
    """AWS's StringSplit makes no members of an empty string, and ECS refuses a task without subnets."""
    for resource, name in MACHINES.items():
        text = (ROOT / "statemachines" / f"{name}.asl.json").read_text()
        split = set(re.findall(r"States\.StringSplit\('\$\{(\w+)\}'", text))
        assert text.count("States.StringSplit(") == len(re.findall(r"States\.StringSplit\('\$\{\w+\}', ','\)", text))
        given = template["Resources"][resource]["Properties"]["DefinitionSubstitutions"]
        for key in split:
            condition, value, otherwise = given[key]["Fn::If"]
            assert condition == "HasBackfillSubnets", name
            assert value == {"Ref": "BackfillSubnets"}, name
            assert otherwise, name


@pytest.mark.parametrize(("resource", "name"), MACHINES.items())
def test_substitutions_are_all_used_and_all_provided(template: dict[str, Any], resource: str, name: str) -> None:
    given = template["Resources"][resource]["Properties"]["DefinitionSubstitutions"]
    assert set(given) == substitutions(name)
    for key, value in given.items():
        assert re.sub("(Arn|Id)$", "", key) in str(value), key


def test_a_backfill_runs_on_spot_first_and_never_judges_by_a_task() -> None:
    found = dict(states(definition("backfill")))
    for spot, demand in (("RunTaskOnSpot", "RunTaskOnDemand"), ("RerunTaskOnSpot", "RerunTaskOnDemand")):
        first, second = found[spot], found[demand]
        assert first["Parameters"]["CapacityProviderStrategy"][0]["CapacityProvider"] == "FARGATE_SPOT"
        assert second["Parameters"]["CapacityProviderStrategy"][0]["CapacityProvider"] == "FARGATE"
        same = [{k: v for k, v in s["Parameters"].items() if k != "CapacityProviderStrategy"} for s in (first, second)]
        assert same[0] == same[1]
        assert first["ResultPath"] is None
        assert second["ResultPath"] is None
    assert found["RunTasks"]["Next"] == found["FetchChunks"]["Next"] == "CommitBackfill"
    assert found["RerunTasks"]["Next"] == found["RefetchChunks"]["Next"] == "CommitLast"
    last = [found[state]["Parameters"]["Payload"]["final"] for state in ("CommitBackfill", "CommitLast")]
    assert last == [False, True]


def test_corrections_run_as_tasks_of_backfills_do_and_are_never_judged_by_them() -> None:
    found, backfills = dict(states(definition("maintain"))), dict(states(definition("backfill")))
    for ours, theirs in (("CorrectOnSpot", "RunTaskOnSpot"), ("CorrectOnDemand", "RunTaskOnDemand")):
        assert found[ours]["Parameters"] == backfills[theirs]["Parameters"]
        assert found[ours]["ResultPath"] is None
    assert found["CorrectFiles"]["Next"] == "ListCorrections"
    rows = found["RederiveRows"]
    assert rows["Parameters"]["Input"]["rederive.$"] == "$.item.rederive"
    assert (rows["Next"], found["RederiveCorrections"]["MaxConcurrency"]) == ("MarkPublished", 1)


def test_an_ingest_too_large_for_functions_runs_as_tasks_and_commits_as_ever() -> None:
    found, backfills = dict(states(definition("ingest"))), dict(states(definition("backfill")))
    for state in ("RunTaskOnSpot", "RunTaskOnDemand"):
        assert found[state]["Parameters"] == backfills[state]["Parameters"]
        assert found[state]["TimeoutSeconds"] < definition("ingest")["TimeoutSeconds"]
    assert found["RunTasks"]["Next"] == found["FetchChunks"]["Next"] == "CommitSegments"
    assert {c["Next"] for c in found["HasChunks"]["Choices"]} == {"ReleaseLock", "RunTasks"}


def test_maintain_looks_and_lists_whatever_came_of_the_holes() -> None:
    found = dict(states(definition("maintain")))
    assert found["HasHoles"]["Choices"][0]["Next"] == found["RepairStreams"]["Next"] == "LookForReissues"
    # What an earlier run committed is listed also where nothing is due now.
    assert found["HasDueFiles"]["Choices"][0]["Next"] == "ListCorrections"
    assert found["HasCorrections"]["Choices"][0]["Next"] == "CloseMaintenance"


def test_the_rounds_of_a_backfill_end() -> None:
    found = dict(states(definition("backfill")))
    again, unfinished = found["IsCovered"]["Choices"]
    assert again["And"][1] == {"Variable": "$.round.number", "NumericLessThan": 3}
    assert again["Next"] == "CountRound"
    assert (found["CountRound"]["Parameters"]["source"], found["CountRound"]["Next"]) == ("rest", "PlanBackfill")
    assert found[unfinished["Next"]]["Parameters"]["Payload"]["outcome"] == "failed"
