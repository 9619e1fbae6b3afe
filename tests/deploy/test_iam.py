"""Least privilege: each function has its own role, and each `*` a written reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

FORBIDDEN = ("dynamodb:DeleteItem", "dynamodb:DeleteTable", "s3:DeleteObject", "s3:DeleteObjectVersion")

# Where a statement holds a `*` as its resource or in an action. The reasons stand in the template, under Metadata.
WILDCARDS = {
    ("TracingPolicy", "Trace"),
    ("LogDeliveryPolicy", "DeliverLogs"),
    ("BackfillExecutionRole", "LogInToRegistry"),
    ("AlarmKey", "AccountGoverns"),
    ("AlarmKey", "AlarmsEncrypt"),
    ("BucketPolicy", "DenyClearText"),
    ("BucketPolicy", "DenyOldTls"),
}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def documents(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The policy documents of one resource, inline, managed or attached to a key, bucket or topic."""
    properties = resource.get("Properties", {})
    for name in ("PolicyDocument", "KeyPolicy"):
        if name in properties:
            yield properties[name]
    for policy in properties.get("Policies", []):
        yield policy["PolicyDocument"]


def statements(resources: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, resource in resources.items():
        for document in documents(resource):
            for statement in as_list(document["Statement"]):
                yield name, statement


def text(resource: Any) -> str:
    """A resource of a statement as a string: intrinsic functions give their template or attribute."""
    if not isinstance(resource, dict):
        return str(resource)
    [value] = resource.values()
    return ".".join(value) if isinstance(value, list) else str(value)


def resources_of(statement: dict[str, Any]) -> list[str]:
    """The resources of a statement, both branches of a condition included."""
    found = []
    for resource in as_list(statement["Resource"]):
        branches = resource["Fn::If"][1:] if isinstance(resource, dict) and "Fn::If" in resource else [resource]
        found += [text(branch) for branch in branches]
    return found


def actions_of(resources: dict[str, Any], role: str) -> set[str]:
    return {
        action for name, statement in statements({role: resources[role]}) for action in as_list(statement["Action"])
    }


def test_every_wildcard_has_a_written_reason(template: dict[str, Any], resources: dict[str, Any]) -> None:
    found = {
        (name, statement["Sid"])
        for name, statement in statements(resources)
        if "Sid" in statement
        and ("*" in as_list(statement.get("Resource")) or any("*" in action for action in as_list(statement["Action"])))
    }
    assert found == WILDCARDS
    reasons = template["Metadata"]["WildcardReasons"]
    assert {name for name, _ in found} == set(reasons)
    assert all(len(reason) > 40 for reason in reasons.values())


def test_no_statement_hides_from_the_wildcard_test(resources: dict[str, Any]) -> None:
    """Statements without a Sid (SAM's own) hold no wildcard; nothing uses the Not forms."""
    for name, statement in statements(resources):
        assert not {"NotAction", "NotResource", "NotPrincipal"} & set(statement), name
        if "Sid" not in statement:
            assert "*" not in str(statement["Action"]) + str(statement["Resource"]), name


def test_every_resource_pattern_stays_inside_its_prefix(resources: dict[str, Any]) -> None:
    for name, statement in statements(resources):
        if (name, statement.get("Sid")) in WILDCARDS:
            continue
        for resource in resources_of(statement):
            head = resource.split("*")[0]
            assert "*" not in resource or head.endswith(("/", ":", "raw_")), f"{name}: {resource}"
            assert not head.endswith("schemahub/"), f"{name}: the whole bucket"


def test_every_function_has_a_role_of_its_own(resources: dict[str, Any]) -> None:
    roles = [
        r["Properties"]["Role"]["Fn::GetAtt"][0] for r in resources.values() if r["Type"] == "AWS::Lambda::Function"
    ]
    assert len(roles) == len(set(roles)) == 16
    machines = [
        r["Properties"]["RoleArn"]["Fn::GetAtt"][0]
        for r in resources.values()
        if r["Type"] == "AWS::StepFunctions::StateMachine"
    ]
    assert len({*machines, *roles}) == 20


def test_no_role_has_a_policy_made_by_aws(resources: dict[str, Any]) -> None:
    """AWSLambdaBasicExecutionRole and its kind allow `*`."""
    for name, resource in resources.items():
        for policy in resource.get("Properties", {}).get("ManagedPolicyArns", []):
            own = policy in ({"Ref": "TracingPolicy"}, {"Ref": "LogDeliveryPolicy"}, RUN_TASKS)
            assert own, name


def test_nobody_may_delete_an_item_or_an_object(resources: dict[str, Any]) -> None:
    for name, statement in statements(resources):
        if statement["Effect"] == "Allow":
            assert not set(as_list(statement["Action"])) & set(FORBIDDEN), name


def test_only_committers_may_check_a_lock_inside_a_transaction_and_put_segments(resources: dict[str, Any]) -> None:
    checkers = {name for name, s in statements(resources) if "dynamodb:ConditionCheckItem" in as_list(s["Action"])}
    # The plan of a backfill commits the newest trades of a stream that no run has pulled yet.
    committers = {"CommitSegmentsRole", "PlanBackfillRole", "CommitBackfillRole", "BackfillTaskRole", "MaintainRole"}
    assert checkers == committers
    assert all("dynamodb:PutItem" in actions_of(resources, role) for role in committers)


RUNNERS = ("IngestStateMachineRole", "BackfillStateMachineRole", "MaintainStateMachineRole")
"""Whose machines run tasks: of first runs that are too much for functions, of backfills, of files issued again."""
RUN_TASKS = {"Fn::If": ["HasBackfillSubnets", {"Ref": "RunTasksPolicy"}, {"Ref": "AWS::NoValue"}]}


def test_only_machines_that_run_tasks_give_roles_away_and_only_to_these_tasks(resources: dict[str, Any]) -> None:
    given = {name: s for name, s in statements(resources) if "iam:PassRole" in as_list(s["Action"])}
    assert set(given) == {"RunTasksPolicy"}
    holders = {n for n, r in resources.items() if RUN_TASKS in r.get("Properties", {}).get("ManagedPolicyArns", [])}
    assert holders == set(RUNNERS)
    for statement in given.values():
        assert [text(r) for r in statement["Resource"]] == ["BackfillTaskRole.Arn", "BackfillExecutionRole.Arn"]
        assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}


def test_whoever_runs_tasks_runs_its_own_task_in_its_own_cluster(resources: dict[str, Any]) -> None:
    own = {s["Sid"]: s for _, s in statements({"policy": resources["RunTasksPolicy"]})}
    assert own["RunTasks"]["Action"] == "ecs:RunTask"
    assert text(own["RunTasks"]["Resource"]).endswith(":task-definition/schemahub-${Stage}-backfill:*")
    assert own["RunTasks"]["Condition"]["ArnEquals"]["ecs:cluster"]["Fn::GetAtt"] == ["BackfillCluster", "Arn"]
    assert set(own["GovernTasks"]["Action"]) == {"ecs:DescribeTasks", "ecs:StopTask"}


def test_the_rule_that_waits_for_tasks_is_allowed_even_without_a_network(resources: dict[str, Any]) -> None:
    """Step Functions asks for it when the machine is made, because its definition names `ecs:runTask.sync`."""
    for role in RUNNERS:
        own = {s["Sid"]: s for _, s in statements({"role": resources[role]})}
        assert any("ForECSTaskRule" in text(r) for r in own["HearOfTransformAndTasks"]["Resource"])


def test_only_publish_may_change_the_table(resources: dict[str, Any]) -> None:
    writers = {name for name, s in statements(resources) if "glue:UpdateTable" in as_list(s["Action"])}
    assert writers == {"PublishRole"}


def test_only_who_fetches_writes_originals(resources: dict[str, Any]) -> None:
    writers = {
        name
        for name, s in statements(resources)
        if s["Effect"] == "Allow"
        and "s3:PutObject" in as_list(s["Action"])
        and any(text(r).endswith("raw_*") for r in as_list(s["Resource"]))
    }
    # The plan of a backfill fetches the newest page of a stream that no run has pulled yet.
    assert writers == {"FetchChunkRole", "PlanBackfillRole", "BackfillTaskRole"}


def test_maintain_writes_fills_and_no_other_originals(resources: dict[str, Any]) -> None:
    written = {
        text(r)
        for _, s in statements({"MaintainRole": resources["MaintainRole"]})
        if "s3:PutObject" in as_list(s["Action"])
        for r in as_list(s["Resource"])
    }
    assert {r.split("/schemahub/")[1] for r in written} == {"archives/*", "plans/*", "raw_*_fills/*"}


def test_corrections_are_written_by_tasks_and_by_maintain_only(resources: dict[str, Any]) -> None:
    writers = {
        name
        for name, s in statements(resources)
        if s["Effect"] == "Allow"
        and "s3:PutObject" in as_list(s["Action"])
        and any("/schemahub/archives/" in text(r) for r in as_list(s["Resource"]))
    }
    # The plan of a backfill notes of which file the first rows of a stream are, and may write nothing else there.
    refused = {
        name
        for name, s in statements(resources)
        if s["Effect"] == "Deny"
        and as_list(s["Action"]) == ["s3:PutObject"]
        and all(text(r).endswith("/schemahub/archives/*/corrections/*") for r in as_list(s["Resource"]))
    }
    assert refused == {"PlanBackfillRole"}
    assert writers - refused == {"BackfillTaskRole", "MaintainRole"}


def test_a_role_writes_logs_only_to_its_own_group(resources: dict[str, Any]) -> None:
    for name, statement in statements(resources):
        if statement.get("Sid") == "WriteOwnLog":
            assert text(statement["Resource"]) == f"{name.removesuffix('Role')}Logs.Arn"


def test_state_machines_invoke_exactly_the_functions_they_name(
    template: dict[str, Any], resources: dict[str, Any]
) -> None:
    for machine in ("IngestStateMachine", "TransformStateMachine", "BackfillStateMachine", "MaintainStateMachine"):
        allowed = {
            text(r)
            for name, s in statements({"role": resources[f"{machine}Role"]})
            if s["Sid"] == "InvokeFunctions"
            for r in as_list(s["Resource"])
        }
        given = template["Resources"][machine]["Properties"]["DefinitionSubstitutions"].values()
        functions = {text(value) for value in given if "Fn::GetAtt" in value and "Function" in text(value)}
        assert allowed == functions


def test_a_distributed_map_may_run_and_be_redriven(resources: dict[str, Any]) -> None:
    for machine in ("Ingest", "Transform", "Backfill", "Maintain"):
        assert {
            "states:StartExecution",
            "states:RedriveExecution",
            "states:DescribeExecution",
            "states:StopExecution",
            "s3:GetObject",
        } <= actions_of(resources, f"{machine}StateMachineRole")


def test_maps_inside_the_children_of_maps_may_run_too(resources: dict[str, Any]) -> None:
    """Of nested Distributed Maps the machine is `machine/label`, and an execution `machine/label:name`: both forms."""
    for machine in ("Ingest", "Transform", "Backfill", "Maintain"):
        own = {s["Sid"]: s for _, s in statements({"role": resources[f"{machine}StateMachineRole"]})}
        name = f"schemahub-${{Stage}}-{machine.lower()}"
        started = {text(r).split(":stateMachine:")[1] for r in own["StartMapRun"]["Resource"]}
        governed = {text(r).split(":execution:")[1] for r in own["GovernMapRun"]["Resource"]}
        assert (started, governed) == ({name, f"{name}/*"}, {f"{name}:*", f"{name}/*"})


def test_maps_may_write_their_results_to_the_plans_and_nowhere_else(resources: dict[str, Any]) -> None:
    """As AWS documents it for a ResultWriter (docs.aws.amazon.com/step-functions: IAM policies for Distributed Map)."""
    wanted = {"s3:PutObject", "s3:GetObject", "s3:ListMultipartUploadParts", "s3:AbortMultipartUpload"}
    for machine in ("Ingest", "Transform", "Backfill", "Maintain"):
        role = {"role": resources[f"{machine}StateMachineRole"]}
        on_s3 = [s for _, s in statements(role) if set(as_list(s["Action"])) & wanted]
        assert {action for s in on_s3 for action in as_list(s["Action"])} == wanted
        assert {text(r).split("/", 1)[1] for s in on_s3 for r in as_list(s["Resource"])} == {"schemahub/plans/*"}


def test_whoever_starts_transform_may_wait_for_it(resources: dict[str, Any]) -> None:
    for machine in ("Ingest", "Backfill", "Maintain"):
        waiting = {"events:PutRule", "events:PutTargets", "events:DescribeRule"}
        assert waiting <= actions_of(resources, f"{machine}StateMachineRole")


def test_only_lambda_scheduler_states_and_tasks_assume_the_roles(resources: dict[str, Any]) -> None:
    for name, resource in resources.items():
        if resource["Type"] != "AWS::IAM::Role":
            continue
        trusted = {
            service
            for s in resource["Properties"]["AssumeRolePolicyDocument"]["Statement"]
            for service in as_list(s["Principal"]["Service"])
        }
        expected = "states" if name.endswith("StateMachineRole") else "scheduler" if "Schedule" in name else "lambda"
        expected = "ecs-tasks" if name in ("BackfillTaskRole", "BackfillExecutionRole") else expected
        assert trusted == {f"{expected}.amazonaws.com"}, name
