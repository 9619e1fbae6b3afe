"""The local stack: what `up` deploys, what survives a stop and a kill, and that AWS's behaviours are there."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from local import ministack
from local import stack as local_stack
from local.stack import NotRunning, PortInUse, Stack, StackError
from schemahub.mappings import exchanges
from tests.integration.conftest import FIRST_RUNS

OUTPUTS = {
    "BucketName",
    "LocksTableName",
    "StreamsTableName",
    "ThrottleTableName",
    "IngestStateMachineArn",
    "TransformStateMachineArn",
    "MaintainStateMachineArn",
    "GlueDatabaseName",
    "AthenaWorkgroupName",
    "AlarmTopicArn",
}


@pytest.mark.end_to_end
def test_the_template_deploys_whole(stack: Stack) -> None:
    assert set(stack.outputs) >= OUTPUTS
    assert stack.client("s3").list_objects_v2(Bucket=stack.bucket)["KeyCount"] >= 0
    machine = stack.client("stepfunctions").describe_state_machine(
        stateMachineArn=stack.outputs["IngestStateMachineArn"]
    )
    assert "${" not in machine["definition"], "a substitution is missing"
    functions = stack.client("lambda").list_functions()["Functions"]
    assert len([f for f in functions if f["FunctionName"].startswith("schemahub-local-")]) >= 10


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    begin = time.monotonic()
    messages: list[str] = []
    again = local_stack.up(
        stack.home,
        port=stack.port,
        auth=stack.auth,
        endpoints=json.loads(stack.parameters["ExchangeEndpoints"]),
        parameters=FIRST_RUNS,
        wait_scale=0.1,
        progress=messages.append,
    )
    assert again.daemon == stack.daemon
    assert messages == ["the stack is up to date"]
    assert time.monotonic() - begin < 5


def test_status_tells_what_runs(stack: Stack) -> None:
    status = local_stack.status(stack.home)
    assert (status.running, status.crashed, status.pid) == (True, False, stack.daemon.pid)
    assert status.stack_status in ("CREATE_COMPLETE", "UPDATE_COMPLETE")
    assert status.parameters["ExchangeEndpoints"] == stack.parameters["ExchangeEndpoints"]
    assert status.memory_mib > 10
    assert local_stack.attach(stack.home).outputs == stack.outputs


def test_functions_get_the_endpoints_of_the_simulator(stack: Stack) -> None:
    configuration = stack.client("lambda").get_function_configuration(FunctionName="schemahub-local-fetch-chunk")
    environment = configuration["Environment"]["Variables"]
    assert set(json.loads(environment["SCHEMAHUB_ENDPOINTS"])) == set(exchanges())
    assert environment["SCHEMAHUB_BUCKET"] == stack.bucket


@pytest.mark.end_to_end
def test_every_function_starts_and_names_its_errors(stack: Stack) -> None:
    """An event without a schema version is refused by name: so the layers import and the names arrive."""
    client = stack.client("lambda")
    names = [f["FunctionName"] for f in client.list_functions()["Functions"]]
    for name in sorted(n for n in names if n.startswith("schemahub-local-") and "release" not in n):
        answer = client.invoke(FunctionName=name, Payload=b'{"schema_version": 999}')
        error = json.loads(answer["Payload"].read())
        assert answer.get("FunctionError"), name
        assert error["errorType"] in ("SchemaVersionMismatch", "BadStateInput"), (name, error)


def test_another_program_on_the_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(PortInUse, match="--port"):
            ministack.start(tmp_path, port=listener.getsockname()[1])


def test_a_home_without_stack_says_what_to_do(tmp_path: Path) -> None:
    assert not local_stack.status(tmp_path).running
    assert local_stack.down(tmp_path) is False
    with pytest.raises(NotRunning, match="schemahub local up"):
        local_stack.attach(tmp_path)


def test_a_missing_environment_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEMAHUB_AWS_PYTHON", str(tmp_path / "none"))
    with pytest.raises(StackError, match="make setup"):
        ministack.start(tmp_path, port=ministack.free_port())


# --- the process alone, without the template: small machines show its behaviour ---------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    ministack.stop(tmp_path)


def client_of(daemon: ministack.Daemon, service: str) -> Any:
    from local import deploy

    return deploy.client(daemon, service)


def put_lock(daemon: ministack.Daemon, fence: str) -> None:
    table = client_of(daemon, "dynamodb")
    if "locks" not in table.list_tables()["TableNames"]:
        table.create_table(
            TableName="locks",
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "lock_id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "lock_id", "KeyType": "HASH"}],
        )
    table.put_item(TableName="locks", Item={"lock_id": {"S": "a"}, "fence": {"N": fence}})


def fence_of(daemon: ministack.Daemon) -> str:
    item = client_of(daemon, "dynamodb").get_item(TableName="locks", Key={"lock_id": {"S": "a"}})["Item"]
    return str(item["fence"]["N"])


def test_state_survives_a_stop(home: Path) -> None:
    daemon = ministack.start(home, port=ministack.free_port())
    put_lock(daemon, "7")
    assert ministack.stop(home) is True
    assert not psutil.pid_exists(daemon.pid)
    again = ministack.start(home, port=ministack.free_port())
    assert fence_of(again) == "7"


def test_a_killed_process_is_noticed_and_keeps_its_checkpoint(home: Path) -> None:
    daemon = ministack.start(home, port=ministack.free_port())
    put_lock(daemon, "7")
    ministack.checkpoint(daemon)
    put_lock(daemon, "8")
    os.kill(daemon.pid, signal.SIGKILL)
    psutil.Process(daemon.pid).wait(timeout=5)
    assert ministack.died(home)
    again = ministack.start(home, port=ministack.free_port())
    assert fence_of(again) == "7", "later than the checkpoint is lost, and nothing else"


def test_a_lost_state_is_deployed_around_its_objects(stack: Stack, tmp_path: Path) -> None:
    """After a kill that leaves only S3: the bucket's name is taken, and its objects must stay."""
    from local import deploy

    port = ministack.free_port()
    daemon = ministack.start(tmp_path, port=port, auth=stack.auth)
    s3 = client_of(daemon, "s3")
    s3.create_bucket(Bucket=stack.bucket)
    s3.put_object(Bucket=stack.bucket, Key="schemahub/kept", Body=b"raw", Metadata={"sha256": "ab"})
    os.kill(daemon.pid, signal.SIGKILL)
    psutil.Process(daemon.pid).wait(timeout=5)
    try:
        rebuilt = local_stack.up(tmp_path, port=port, auth=stack.auth)
        assert (rebuilt.after_crash, rebuilt.rebuilt) == (True, True)
        kept = rebuilt.client("s3").get_object(Bucket=rebuilt.bucket, Key="schemahub/kept")
        assert (kept["Body"].read(), kept["Metadata"]) == (b"raw", {"sha256": "ab"})
        assert deploy.stack_status(rebuilt.daemon) == "CREATE_COMPLETE"
    finally:
        local_stack.down(tmp_path)


SLOW = {"StartAt": "Slow", "States": {"Slow": {"Type": "Wait", "Seconds": 300, "End": True}}}


def test_a_running_execution_does_not_hold_up_the_stop(home: Path) -> None:
    daemon = ministack.start(home, port=ministack.free_port())
    states = client_of(daemon, "stepfunctions")
    machine = states.create_state_machine(
        name="slow", definition=json.dumps(SLOW), roleArn="arn:aws:iam::000000000000:role/any"
    )["stateMachineArn"]
    execution = states.start_execution(stateMachineArn=machine)["executionArn"]
    begin = time.monotonic()
    assert ministack.stop(home) is True
    assert time.monotonic() - begin < 20
    again = ministack.start(home, port=ministack.free_port())
    found = client_of(again, "stepfunctions").describe_execution(executionArn=execution)
    assert (found["status"], found["error"]) == ("FAILED", "States.ServiceRestart")
