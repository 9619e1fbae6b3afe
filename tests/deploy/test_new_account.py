"""What a new account trips over: services never used, defaults that were changed, stacks deleted and made again."""

from __future__ import annotations

import itertools
import re
from datetime import timedelta
from typing import Any

import pytest

from tests.deploy.conftest import MACHINES, definition
from tests.deploy.rendering import Stack, referred

NETWORK = {"BackfillSubnets": "subnet-1,subnet-2", "BackfillVpc": "vpc-1"}
# MiB by CPU units, of what the parameters offer (AWS, "Task CPU and memory" of Fargate task definitions).
FARGATE = {256: range(512, 2049), 512: range(1024, 4097), 1024: range(2048, 8193), 2048: range(4096, 16385)}
REDRIVABLE = timedelta(days=14)
"""How long after its end Step Functions redrives an execution."""
RETAINED = {"Bucket", "LocksTable", "StreamsTable", "ThrottleTable"}


# --- without subnets --------------------------------------------------------------------------------------------


def test_without_subnets_nothing_of_ecs_is_made(template: dict[str, Any]) -> None:
    """The first cluster of an account with capacity providers fails where the service-linked role is missing."""
    kinds = {name: r["Type"] for name, r in Stack(template, {}).resources().items()}
    assert not [name for name, kind in kinds.items() if kind.startswith(("AWS::ECS::", "AWS::EC2::"))]
    assert not {"BackfillTaskRole", "BackfillExecutionRole", "BackfillTaskLogs", "RunTasksPolicy"} & set(kinds)
    assert "BackfillRepository" in kinds  # the image can be there before its cluster


@pytest.mark.parametrize("given", [{}, NETWORK], ids=["without subnets", "with subnets"])
def test_nothing_refers_to_what_is_not_deployed(template: dict[str, Any], given: dict[str, str]) -> None:
    stack = Stack(template, given)
    deployed = stack.resources()
    # SAM makes further resources from these, with names that begin with theirs.
    assert all(name in deployed for name in referred(deployed)), set(referred(deployed)) - set(deployed)
    assert set(referred(stack.outputs())) <= set(deployed)


def test_with_subnets_the_machines_know_cluster_task_and_network(template: dict[str, Any]) -> None:
    deployed = Stack(template, NETWORK).resources()
    for machine in ("IngestStateMachine", "BackfillStateMachine", "MaintainStateMachine"):
        given = deployed[machine]["Properties"]["DefinitionSubstitutions"]
        assert given["BackfillClusterArn"] == "<BackfillCluster.Arn>"
        assert given["BackfillTaskArn"] == "<BackfillTask>"
        assert "<RunTasksPolicy>" in deployed[f"{machine}Role"]["Properties"]["ManagedPolicyArns"]


# --- tasks ------------------------------------------------------------------------------------------------------


def test_exactly_the_pairs_of_cpu_and_memory_that_fargate_takes_are_accepted(template: dict[str, Any]) -> None:
    cpus = template["Parameters"]["BackfillCpu"]["AllowedValues"]
    memories = template["Parameters"]["BackfillMemory"]["AllowedValues"]
    pairs = list(itertools.product(cpus, memories))
    accepted = {
        (cpu, memory)
        for cpu, memory in pairs
        if not Stack(template, {"BackfillCpu": str(cpu), "BackfillMemory": str(memory)}).refused()
    }
    assert accepted == {(cpu, memory) for cpu, memory in pairs if memory in FARGATE[cpu]}
    assert Stack(template, {}).refused() == []


def pulled_from(template: dict[str, Any], given: dict[str, str]) -> str:
    """The one repository that a task may pull from."""
    role = Stack(template, {**NETWORK, **given}).resources()["BackfillExecutionRole"]["Properties"]
    statements = {s["Sid"]: s for policy in role["Policies"] for s in policy["PolicyDocument"]["Statement"]}
    return str(statements["PullImage"]["Resource"])


def test_a_task_may_pull_from_the_repository_of_its_image_and_no_other(template: dict[str, Any]) -> None:
    other = "arn:aws:ecr:eu-west-1:222222222222:repository/team/backfill"
    image = "222222222222.dkr.ecr.eu-west-1.amazonaws.com/team/backfill:1.2"
    assert pulled_from(template, {}) == "<BackfillRepository.Arn>"
    assert pulled_from(template, {"BackfillImage": image, "BackfillImageRepository": other}) == other
    assert Stack(template, {"BackfillImage": image, "BackfillImageRepository": other}).refused() == []
    assert Stack(template, {"BackfillImageRepository": other}).refused() == [
        "BackfillImageRepository without BackfillImage"
    ]


@pytest.mark.parametrize(
    "arn",
    [
        "*",
        "arn:aws:ecr:eu-west-1:222222222222:repository/*",
        "arn:aws:ecr:eu-west-1:222222222222:repository/",
        "arn:aws:s3:::some-bucket",
        "222222222222.dkr.ecr.eu-west-1.amazonaws.com/backfill",
    ],
)
def test_the_right_to_pull_is_never_wider_than_a_repository(template: dict[str, Any], arn: str) -> None:
    assert not re.fullmatch(template["Parameters"]["BackfillImageRepository"]["AllowedPattern"], arn)


# --- what lasts -------------------------------------------------------------------------------------------------


def test_plans_outlive_the_longest_execution_its_redrive_and_what_that_may_take(resources: dict[str, Any]) -> None:
    rules = resources["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    [days] = [rule["ExpirationInDays"] for rule in rules if rule.get("Prefix") == "schemahub/plans/"]
    longest = timedelta(seconds=max(definition(machine)["TimeoutSeconds"] for machine in MACHINES.values()))
    # A redrive has the whole time-out again. Both runs read the plan that the first one wrote.
    assert timedelta(days=days) >= longest + REDRIVABLE + longest


def test_data_outlives_its_stack_but_not_a_creation_that_failed(template: dict[str, Any]) -> None:
    policies = {name: r.get("DeletionPolicy") for name, r in template["Resources"].items()}
    assert {name for name, policy in policies.items() if policy == "RetainExceptOnCreate"} == RETAINED
    assert "Retain" not in policies.values()
    for name in RETAINED:
        assert template["Resources"][name]["UpdateReplacePolicy"] == "Retain", name
        assert "Condition" not in template["Resources"][name], name


def test_iam_alone_decides_about_new_tables(resources: dict[str, Any]) -> None:
    """ALL for IAM_ALLOWED_PRINCIPALS is Lake Formation's "Use only IAM access control"; an empty list is its opposite
    (AWS, DataLakeSettings.CreateTableDefaultPermissions)."""
    assert resources["Database"]["Properties"]["DatabaseInput"]["CreateTableDefaultPermissions"] == [
        {"Principal": {"DataLakePrincipalIdentifier": "IAM_ALLOWED_PRINCIPALS"}, "Permissions": ["ALL"]}
    ]


# --- a schedule that could not start ----------------------------------------------------------------------------


def test_what_a_schedule_cannot_start_is_kept_with_its_reason_and_rings(resources: dict[str, Any]) -> None:
    queue = {"Fn::GetAtt": ["MissedStarts", "Arn"]}
    schedules = [r["Properties"] for r in resources.values() if r["Type"] == "AWS::Scheduler::Schedule"]
    assert len(schedules) == 2
    assert all(s["Target"]["DeadLetterConfig"] == {"Arn": queue} for s in schedules)
    assert resources["MissedStarts"]["Properties"]["SqsManagedSseEnabled"] is True
    alarm = resources["MissedStartAlarm"]["Properties"]
    assert (alarm["Namespace"], alarm["MetricName"]) == ("AWS/SQS", "ApproximateNumberOfMessagesVisible")
    assert alarm["Dimensions"] == [{"Name": "QueueName", "Value": {"Fn::GetAtt": ["MissedStarts", "QueueName"]}}]


def test_the_scheduler_may_start_its_machine_and_write_to_that_queue_and_nothing_else(
    resources: dict[str, Any],
) -> None:
    for machine in ("IngestStateMachine", "MaintainStateMachine"):
        role = resources[f"{machine}ScheduleRole"]["Properties"]
        allowed = [
            (statement["Action"], statement["Resource"])
            for policy in role["Policies"]
            for statement in policy["PolicyDocument"]["Statement"]
        ]
        assert allowed == [
            ("states:StartExecution", {"Ref": machine}),
            ("sqs:SendMessage", {"Fn::GetAtt": ["MissedStarts", "Arn"]}),
        ]
