"""A new account: ten functions at a time, for whatever runs in it. The pipeline waits for them and loses nothing."""

from __future__ import annotations

import io
import json
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from local import ministack
from local import stack as local_stack
from local.exchange_sim.world import build_world
from local.stack import Stack
from schemahub.streams import Stream
from schemahub_cli.capacity import Capacity
from schemahub_cli.session import LocalSession
from schemahub_cli.target import Target
from tests import generated_truth
from tests.integration.conftest import WAIT_SCALE, WORLD, Simulator
from tests.integration.test_end_to_end import assert_exactly_the_exchange, ended, run

pytestmark = pytest.mark.timeout(600)  # it deploys a stack of its own
LIMIT = 10
# Many small chunks, all of them for functions: 8 streams with 2 chunks each want 16 of them.
PARAMETERS = {
    "ColdStartHours": "200000",
    "ColdStartTrades": "2000",
    "ChunkPages": "1",
    "BackfillThresholdSeconds": "43200",
}


@pytest.fixture(scope="module")
def new_account(tmp_path_factory: pytest.TempPathFactory, simulator_process: Simulator) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("new-account")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMBDA_ACCOUNT_CONCURRENCY", str(LIMIT))
        yield local_stack.up(
            home,
            port=ministack.free_port(),
            endpoints=simulator_process.endpoints,
            wait_scale=WAIT_SCALE,
            parameters=PARAMETERS,
            progress=lambda message: print(message, file=sys.stderr),
        )
    local_stack.down(home)


def streams() -> list[Stream]:
    world = build_world(WORLD)
    return [
        Stream(exchange, product)
        for exchange in ("coinbase", "binance")
        for product in generated_truth.streams_of(world, exchange)[:4]
    ]


def throttles(stack: Stack, *names: str) -> float:
    """How often the account's limit kept one of these functions out so far."""
    cloudwatch, now = stack.client("cloudwatch"), datetime.now(UTC)
    total = 0.0
    for name in names or ("fetch-chunk", "plan-stream", "commit-segments", "lock"):
        answer = cloudwatch.get_metric_statistics(
            Namespace="AWS/Lambda",
            MetricName="Throttles",
            Dimensions=[{"Name": "FunctionName", "Value": f"schemahub-{stack.stage}-{name}"}],
            StartTime=now - timedelta(hours=1),
            EndTime=now + timedelta(minutes=1),
            Period=3600,
            Statistics=["Sum"],
        )
        total += sum(point["Sum"] for point in answer["Datapoints"])
    return total


def test_a_run_in_a_new_account_waits_for_its_ten_functions_and_brings_everything(
    new_account: Stack, simulator: Simulator
) -> None:
    wanted = streams()
    outcome = run(new_account, products=[f"{s.exchange}:{s.product}" for s in wanted], timeout_s=400)
    assert outcome["status"] == "SUCCEEDED", (outcome.get("error"), outcome.get("cause"))
    closed = json.loads(outcome["output"])
    assert (closed["streams"], closed["failed"]) == (len(wanted), 0)
    assert throttles(new_account) > 0, "the limit was never reached: this proves nothing"
    machines = new_account.client("stepfunctions")
    for child in machines.list_map_runs(executionArn=outcome["executionArn"])["mapRuns"]:
        counts = machines.describe_map_run(mapRunArn=child["mapRunArn"])["itemCounts"]
        assert counts["failed"] == 0
    for stream in (wanted[0], wanted[-1]):
        assert assert_exactly_the_exchange(new_account, simulator, stream) > 1000


SLEEPER = "import time\n\ndef handler(event, context):\n    time.sleep(event['seconds'])\n"


@contextmanager
def somebody_else(stack: Stack, seconds: float) -> Iterator[None]:
    """Other functions of the same account take all that may run, for so long."""
    functions, package = stack.client("lambda"), io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("app.py", SLEEPER)
    role = stack.client("iam").list_roles()["Roles"][0]["Arn"]
    functions.create_function(
        FunctionName="somebody-else", Runtime="python3.13", Handler="app.handler", Role=role, Timeout=60,
        Code={"ZipFile": package.getvalue()},
    )  # fmt: skip
    payload = json.dumps({"seconds": seconds}).encode()
    with ThreadPoolExecutor(LIMIT) as pool:
        sleeping = [
            pool.submit(stack.client("lambda").invoke, FunctionName="somebody-else", Payload=payload)
            for _ in range(LIMIT)
        ]
        time.sleep(seconds / 4)
        yield
        assert all(not one.result().get("FunctionError") for one in sleeping)
    functions.delete_function(FunctionName="somebody-else")


def test_a_run_that_finds_the_account_full_waits_until_it_is_not(new_account: Stack) -> None:
    """Ten seconds here are more than five attempts last (6.2 s at a tenth of the waits), and less than twenty do."""
    [stream, *_] = streams()
    before = throttles(new_account, "open-run")
    with somebody_else(new_account, 12):
        outcome = run(new_account, products=[f"{stream.exchange}:{stream.product}"])
    assert outcome["status"] == "SUCCEEDED", (outcome.get("error"), outcome.get("cause"))
    assert throttles(new_account, "open-run") > before


def test_the_command_line_reads_the_limit_and_keeps_below_it(new_account: Stack) -> None:
    where = Target(new_account.name, True, LocalSession(new_account.endpoint), dict(new_account.outputs))
    capacity = Capacity.of(where)
    assert (capacity.limit, capacity.functions_at_a_time) == (LIMIT, 8)
    before = throttles(new_account)
    started = new_account.client("stepfunctions").start_execution(
        stateMachineArn=new_account.outputs["IngestStateMachineArn"],
        input=json.dumps({"schema_version": 1, **capacity.to_input(),
                          "products": [f"{s.exchange}:{s.product}" for s in streams()]}),
    )  # fmt: skip
    assert ended(new_account, started["executionArn"])["status"] == "SUCCEEDED"
    assert throttles(new_account) == before
