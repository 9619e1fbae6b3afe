"""What a new account does not have, and what a deleted stack leaves: the real `sam deploy` on the embedded AWS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError

from local import ministack
from local import stack as local_stack
from local.deploy import STACK_NAME, STAGE
from local.stack import Stack
from local.take_over import TakeOverFailed, take_over
from schemahub_cli.session import LocalSession

WITHOUT_NETWORK = {"BackfillSubnets": "", "BackfillVpc": ""}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The template deployed with its defaults: no subnets."""
    home = tmp_path_factory.mktemp("bare")
    try:
        yield local_stack.up(home, port=ministack.free_port(), parameters=WITHOUT_NETWORK)
    finally:
        local_stack.down(home)


def test_without_subnets_everything_but_ecs_is_deployed(bare: Stack) -> None:
    assert "BackfillClusterName" not in bare.outputs
    assert bare.client("ecs").list_clusters()["clusterArns"] == []
    assert bare.outputs["BackfillRepositoryUri"]
    for name in ("Ingest", "Backfill", "Maintain"):
        machine = bare.client("stepfunctions").describe_state_machine(
            stateMachineArn=bare.outputs[f"{name}StateMachineArn"]
        )
        assert "${" not in machine["definition"], "a substitution is missing"
        role = machine["roleArn"].rpartition("/")[2]
        attached = bare.client("iam").list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        assert not [policy for policy in attached if "RunTasks" in policy["PolicyName"]]


def test_what_a_deleted_stack_kept_is_taken_over_by_the_next(bare: Stack) -> None:
    table, bucket = bare.outputs["StreamsTableName"], bare.bucket
    key = {"stream": {"S": "coinbase#BTC-USD#trades"}, "item": {"S": "watermark"}}
    bare.client("dynamodb").put_item(TableName=table, Item={**key, "high": {"N": "7"}})
    bare.client("s3").put_object(Bucket=bucket, Key="schemahub/config/products.json", Body=b"{}")
    session = LocalSession(bare.endpoint)

    with pytest.raises(TakeOverFailed, match="exists already"):
        take_over(session, STACK_NAME, STAGE)
    cloudformation = bare.client("cloudformation")
    cloudformation.delete_stack(StackName=STACK_NAME)
    cloudformation.get_waiter("stack_delete_complete").wait(StackName=STACK_NAME, WaiterConfig={"Delay": 1})
    assert bare.client("lambda").list_functions()["Functions"] == []
    with pytest.raises(TakeOverFailed, match="elsewhere"):
        take_over(session, STACK_NAME, "elsewhere")
    with pytest.raises(ClientError, match="does not exist"):  # nothing is left of the attempt
        cloudformation.describe_stacks(StackName=STACK_NAME)

    assert set(take_over(session, STACK_NAME, STAGE)) >= {table, bucket}
    stack = local_stack.up(bare.home, port=bare.port)

    assert stack.outputs["StreamsTableName"] == table
    assert stack.client("dynamodb").get_item(TableName=table, Key=key)["Item"]["high"] == {"N": "7"}
    assert stack.client("s3").head_object(Bucket=bucket, Key="schemahub/config/products.json")["ContentLength"] == 2
    assert stack.client("lambda").list_functions()["Functions"]
    assert stack.client("ecs").list_clusters()["clusterArns"]
