"""Commands from the shell's point of view: what they print, their exit codes, what they start."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from schemahub import ingest, publishing
from schemahub.rederive import StreamPlan
from schemahub.seed import SEED_KEY, Seed
from schemahub.streams import Stream
from schemahub_cli import executions, live, locks, target
from schemahub_cli.main import app
from schemahub_cli.output import StackUnreachable, clock, dollars

RUNNER = CliRunner()
INGEST = "arn:aws:states:us-east-1:1:stateMachine:schemahub-test-ingest"
TRANSFORM = "arn:aws:states:us-east-1:1:stateMachine:schemahub-test-transform"
START = datetime(2026, 11, 20, 12, tzinfo=UTC)
BTC, ETH = Stream("coinbase", "BTC-USD"), Stream("coinbase", "ETH-USD")


class FakeStates:
    """Step Functions with scripted executions."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.running: list[dict[str, Any]] = []
        self.ends: dict[str, Any] = {"status": "SUCCEEDED", "output": "{}"}
        self.before: list[dict[str, Any]] = [{"executionArn": f"{INGEST}:yesterday"}]
        self.limit = 1000
        self.refuses_limit = ""

    def list_executions(self, stateMachineArn: str = "", maxResults: int = 100, **of: Any) -> dict[str, Any]:
        """The executions of a machine; the children of a Map are none."""
        return {"executions": self.before[:maxResults] if stateMachineArn else []}

    def get_account_settings(self) -> dict[str, Any]:
        """Of Lambda: one fake speaks for all services."""
        if self.refuses_limit:
            raise ClientError({"Error": {"Code": self.refuses_limit}}, "GetAccountSettings")
        return {"AccountLimit": {"ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": self.limit}}

    def get_paginator(self, name: str) -> Any:
        assert name == "list_executions"
        return SimpleNamespace(
            paginate=lambda stateMachineArn, statusFilter: [
                {"executions": [e for e in self.running if e["machine"] == stateMachineArn]}
            ]
        )

    def start_execution(self, **arguments: Any) -> dict[str, Any]:
        self.started.append(arguments)
        return {"executionArn": f"arn:aws:states:us-east-1:1:execution:m:{arguments['name']}"}

    def describe_execution(self, executionArn: str) -> dict[str, Any]:
        ended = {} if self.ends["status"] == "RUNNING" else {"stopDate": START + timedelta(seconds=75)}
        return {"startDate": START, **ended, **self.ends}

    def list_map_runs(self, executionArn: str) -> dict[str, Any]:
        return {"mapRuns": [{"mapRunArn": "a", "startDate": START}]}

    def get_execution_history(self, **asked: Any) -> dict[str, Any]:
        return {"events": []}

    def describe_map_run(self, mapRunArn: str) -> dict[str, Any]:
        return {"itemCounts": {"failed": 1, "timedOut": 1}}


class FakeObjects:
    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.held.get(key)

    def get_with_etag(self, key: str) -> tuple[bytes, str] | None:
        return (self.held[key], "etag") if key in self.held else None

    def modified_s(self, key: str) -> int | None:
        return 1 if key in self.held else None

    def put(self, key: str, body: bytes, metadata: Any = None) -> None:
        self.held[key] = body

    def list(self, prefix: str, start_after: str | None = None) -> Iterator[str]:
        yield from (key for key, _ in self.sizes(prefix, start_after))

    def sizes(self, prefix: str, start_after: str | None = None) -> Iterator[tuple[str, int]]:
        keys = sorted(k for k in self.held if k.startswith(prefix) and k > (start_after or ""))
        yield from ((key, len(self.held[key])) for key in keys)


@pytest.fixture
def states() -> FakeStates:
    return FakeStates()


@pytest.fixture
def objects() -> FakeObjects:
    return FakeObjects()


@pytest.fixture
def stack(states: FakeStates, objects: FakeObjects, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A reachable stack of fakes, whose seed list has two products; both were pulled before."""
    objects.put(SEED_KEY, Seed(tuple({"exchange": s.exchange, "product": s.product} for s in (BTC, ETH))).to_bytes())
    ledger = SimpleNamespace(
        last_run=lambda stream, kind="run": None, watermark=lambda stream: stream if stream in (BTC, ETH) else None,
        lowest=lambda stream: None, pending=lambda: iter(()), newest_segments=lambda stream: iter(()),
    )  # fmt: skip
    deps = SimpleNamespace(
        objects=objects, ledger=ledger, locks=SimpleNamespace(holder=lambda lock_id: None),
        settings=SimpleNamespace(products=(), functions_at_a_time=32),
    )  # fmt: skip
    found = SimpleNamespace(
        stack="schemahub-test",
        where="schemahub-test (local)",
        local=True,
        ingest_arn=INGEST,
        transform_arn=TRANSFORM,
        deps=deps,
        client=lambda service: states,
        database="db",
        outputs={"AthenaWorkgroupName": "wg"},
    )
    monkeypatch.setattr(target, "resolve", lambda name: found)
    return found


def document(result: Any) -> Any:
    return json.loads(result.stdout)


def test_an_unreachable_stack_is_exit_code_3_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str | None) -> None:
        raise StackUnreachable("there is no such stack")

    monkeypatch.setattr(target, "resolve", nothing)
    assert RUNNER.invoke(app, ["run"]).exit_code == 3
    result = RUNNER.invoke(app, ["status", "--json"])
    assert result.exit_code == 3
    assert document(result)["error"] == "StackUnreachable"
    assert "local up" in document(result)["remedy"]


def test_wrong_usage_is_exit_code_2(stack: SimpleNamespace) -> None:
    assert RUNNER.invoke(app, ["run", "--no-such-option"]).exit_code == 2
    assert RUNNER.invoke(app, ["query"]).exit_code == 2


def test_a_run_is_started_followed_and_reported(stack: SimpleNamespace, states: FakeStates) -> None:
    result = RUNNER.invoke(app, ["run", "--json", "-p", "coinbase:BTC-USD"])
    assert result.exit_code == 0, result.output
    [started] = states.started
    assert started["stateMachineArn"] == INGEST
    assert json.loads(started["input"]) == {"schema_version": 1, "products": ["coinbase:BTC-USD"]}
    assert ":" not in started["name"]
    assert "/" not in started["name"]
    assert document(result)["execution"]["seconds"] == 75
    assert document(result)["progress"]["failed_children"] == 2


def test_a_running_execution_is_joined_and_not_doubled(stack: SimpleNamespace, states: FakeStates) -> None:
    states.running = [
        {"machine": INGEST, "executionArn": f"{INGEST}:later", "startDate": START + timedelta(1)},
        {"machine": INGEST, "executionArn": f"{INGEST}:first", "startDate": START},
    ]
    result = RUNNER.invoke(app, ["run", "--json"])
    assert result.exit_code == 0
    assert states.started == []
    assert document(result)["joined"] is True
    assert document(result)["execution"]["execution"].endswith(":first")


def test_no_follow_only_starts(stack: SimpleNamespace, states: FakeStates) -> None:
    states.ends = {"status": "RUNNING"}
    result = RUNNER.invoke(app, ["ingest", "--no-follow", "--json"])
    assert result.exit_code == 0
    assert len(states.started) == 1
    assert document(result)["status"] == "RUNNING"


def test_a_failed_execution_is_exit_code_1_and_says_why(stack: SimpleNamespace, states: FakeStates) -> None:
    states.ends = {"status": "FAILED", "error": "IncompleteChunks", "cause": "3 chunks are missing"}
    result = RUNNER.invoke(app, ["run", "--json"])
    assert result.exit_code == 1
    assert document(result)["execution"]["error"] == "IncompleteChunks"
    plain = RUNNER.invoke(app, ["run"])
    assert plain.exit_code == 1
    assert "3 chunks are missing" in plain.output


def test_a_skipped_run_is_exit_code_4(stack: SimpleNamespace, states: FakeStates) -> None:
    states.ends = {"status": "SUCCEEDED", "output": json.dumps({"status": "skipped", "skipped": ["coinbase"]})}
    assert RUNNER.invoke(app, ["run", "--json"]).exit_code == 4


def test_a_run_without_a_seed_says_how_to_write_one(stack: SimpleNamespace, states: FakeStates) -> None:
    output = {"status": "skipped", "reason": "no_seed", "message": "there is no seed list"}
    states.ends = {"status": "SUCCEEDED", "output": json.dumps(output)}
    plain = RUNNER.invoke(app, ["run"])
    assert plain.exit_code == 1
    assert "schemahub update-seed" in plain.output
    assert "busy" not in plain.output
    assert document(RUNNER.invoke(app, ["run", "--json"]))["error"] == "NoSeed"


def test_a_small_account_is_read_and_the_run_keeps_below_its_limit(stack: SimpleNamespace, states: FakeStates) -> None:
    states.limit = 10
    result = RUNNER.invoke(app, ["run", "-p", "coinbase:BTC-USD"])
    assert result.exit_code == 0, result.output
    assert json.loads(states.started[0]["input"])["functions_at_a_time"] == 8
    said = " ".join(result.output.split())
    assert "only 10 functions at a time: this run uses 8 instead of 32" in said
    assert "FunctionsAtATime=8" in said
    assert "L-B99A9384" in said


def test_a_first_run_says_what_limit_it_found_and_a_later_one_does_not(
    stack: SimpleNamespace, states: FakeStates
) -> None:
    assert "functions at a time" not in RUNNER.invoke(app, ["run"]).output
    states.before = []
    assert "the account runs 1,000 functions at a time, an execution uses 32" in RUNNER.invoke(app, ["run"]).output
    assert all("functions_at_a_time" not in json.loads(started["input"]) for started in states.started)


def test_a_limit_that_may_not_be_read_stops_nobody(stack: SimpleNamespace, states: FakeStates) -> None:
    states.refuses_limit = "AccessDeniedException"
    result = RUNNER.invoke(app, ["run"])
    assert result.exit_code == 0, result.output
    assert "AccessDeniedException" in result.output
    assert len(states.started) == 1


def test_a_dry_run_shows_the_limit_and_what_follows(
    stack: SimpleNamespace, states: FakeStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    states.limit = 10
    monkeypatch.setattr(ingest, "select_streams", lambda deps, asked: [])
    result = RUNNER.invoke(app, ["run", "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    assert document(result)["lambda"] == {"account_limit": 10, "configured": 32, "functions_at_a_time": 8}
    assert "this run uses 8" in " ".join(RUNNER.invoke(app, ["run", "--dry-run"]).output.split())


def test_ctrl_c_leaves_the_execution_running_and_says_how_to_follow(
    stack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "follow", interrupted)
    result = RUNNER.invoke(app, ["run"])
    assert result.exit_code == 130
    assert "schemahub run" in result.output
    assert "goes on" in result.output


def test_locks_of_dead_runs_are_released_and_those_of_live_ones_stay(
    stack: SimpleNamespace, states: FakeStates
) -> None:
    released: list[str] = []
    stack.deps.locks = SimpleNamespace(
        holder=lambda lock_id: SimpleNamespace(run="arn:x:dead") if lock_id == "ingest#coinbase" else None,
        release_run=lambda run: released.append(run) or ["ingest#coinbase", "stream#coinbase#BTC-USD#trades"],
    )
    states.ends = {"status": "RUNNING"}
    assert locks.release_dead(stack) == []  # type: ignore[arg-type]
    states.ends = {"status": "FAILED"}
    assert len(locks.release_dead(stack)) == 2  # type: ignore[arg-type]
    assert released == ["arn:x:dead"]


def test_executions_know_how_long_they_took(states: FakeStates, stack: SimpleNamespace) -> None:
    states.ends = {"status": "SUCCEEDED", "output": "[1]"}
    assert executions.describe(stack, "arn:a:b").seconds() == 75  # type: ignore[arg-type]


def test_time_and_money_read_well() -> None:
    assert [clock(s) for s in (0.4, 59, 61, 3725)] == ["0 s", "59 s", "1:01", "1:02:05"]
    assert [dollars(d) for d in (0.00421, 12.3)] == ["$0.0042", "$12.30"]


def test_a_stack_that_dies_while_it_is_followed_is_exit_code_3(stack: SimpleNamespace, states: FakeStates) -> None:
    states.describe_execution = lambda executionArn: {}  # type: ignore[method-assign]
    result = RUNNER.invoke(app, ["run", "--json"])
    assert result.exit_code == 3
    assert "StackUnreachable" in result.output


# --- transform --rederive -----------------------------------------------------------------------------------------

REPLACED = {
    "status": "replaced", "snapshot_id": 2, "previous_snapshot_id": 1, "rows": 1800, "rows_before": 1799, "files": 4,
    "files_before": 5, "quarantined": 1, "inexact": 3, "unfit": 0,
}  # fmt: skip


@pytest.mark.parametrize(("since", "sent"), [
    ([], {}), (["--since", "17"], {"since": 17}), (["--since", "2024-01-01"], {"since": "2024-01-01"}),
])  # fmt: skip
def test_a_rederivation_is_started_even_beside_a_running_transform(
    stack: SimpleNamespace, states: FakeStates, since: list[str], sent: dict[str, Any]
) -> None:
    states.running = [{"machine": TRANSFORM, "executionArn": f"{TRANSFORM}:now", "startDate": START}]
    states.ends["output"] = json.dumps(REPLACED)
    named = ["--stream", "coinbase:BTC-USD", "--stream", "coinbase:ETH-USD"]
    result = RUNNER.invoke(app, ["transform", "--rederive", *named, *since])
    assert result.exit_code == 0, result.output
    [started] = states.started
    assert json.loads(started["input"]) == {
        "schema_version": 1, "rederive": {"streams": ["coinbase:BTC-USD", "coinbase:ETH-USD"], **sent}}  # fmt: skip
    shown = " ".join(result.output.split())
    assert "1,800 rows in 4 files instead of 1,799 in 5" in shown
    assert "snapshot 2, before it 1" in shown
    assert "1 rows in quarantine" in shown
    assert "3 values that a double does not carry exactly" in shown


@pytest.mark.parametrize("words", [
    ["--rederive"], ["--stream", "coinbase:BTC-USD"], ["--since", "1"], ["--rederive", "--since", "2024-01-01"],
    ["--rederive", "--stream", "coinbase:BTC-USD", "--since", "tomorrow"],
    ["--rederive", "--stream", "coinbase:BTC-USD", "--since", str(2**63)],
])  # fmt: skip
def test_a_rederivation_that_cannot_be_meant_starts_nothing(
    stack: SimpleNamespace, states: FakeStates, words: list[str]
) -> None:
    assert RUNNER.invoke(app, ["transform", *words]).exit_code == 2
    assert states.started == []


def test_a_dry_rederivation_shows_what_would_be_made_anew(
    stack: SimpleNamespace, states: FakeStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def plan(wanted: Any, deps: Any) -> list[StreamPlan]:
        asked.append(wanted)
        one = SimpleNamespace(first=901, last=1000, count=100)
        return [StreamPlan(Stream("coinbase", "BTC-USD"), 901, "", (one,), 99, 2)]  # type: ignore[arg-type]

    monkeypatch.setattr(publishing, "plan_rederivation", plan)
    words = ["transform", "--rederive", "--stream", "coinbase:BTC-USD", "--since", "950", "--dry-run"]
    [shown] = document(RUNNER.invoke(app, [*words, "--json"]))["streams"]
    assert (shown["first"], shown["last"], shown["rows"], shown["quarantined"], shown["files"]) == (901, 1000, 99, 1, 2)
    assert "901  1000 " in RUNNER.invoke(app, words).output
    assert asked[0].since == 950
    assert states.started == []
