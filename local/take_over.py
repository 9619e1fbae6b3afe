"""Gives the bucket and the tables that a deleted stack kept to a new one (`make take-over`).

CloudFormation imports existing resources into a new stack if the template holds nothing else, so a template of exactly
the retained resources is cut from the project's own. The next `sam deploy` then adds the rest. (CloudFormation's
automatic import takes literal names only; ours hold the stage.)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, WaiterError
from samtranslator.yaml_helper import yaml_parse

from local.ministack import REPOSITORY
from schemahub.errors import SchemaHubError
from schemahub_cli.target import cloud_session

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient

IDENTIFIERS = {"AWS::S3::Bucket": "BucketName", "AWS::DynamoDB::Table": "TableName"}
"""By what CloudFormation knows a resource to import."""
CHANGE_SET = "take-over"


class TakeOverFailed(SchemaHubError):
    """CloudFormation did not import the resources; the message has its reason. Nothing was changed."""

    remedy = (
        "The stack must not exist, and the bucket and the tables of the stage must: `sam delete` removes a stack that "
        "is left of a failed deployment."
    )


def retained(template: dict[str, Any]) -> dict[str, Any]:
    """A template of what outlives its stack, with the parameters and conditions that this needs, and no others."""
    resources = {n: r for n, r in template["Resources"].items() if r.get("DeletionPolicy") == "RetainExceptOnCreate"}
    conditions: dict[str, Any] = {}
    wanted = set(_referred("Fn::If", resources))
    while missing := wanted - set(conditions):
        conditions |= {name: template["Conditions"][name] for name in missing}
        wanted |= set(_referred("Condition", conditions))
    parameters = {
        name: body
        for name, body in template["Parameters"].items()
        if name in set(_referred("Ref", resources, conditions))
    }
    return {
        "AWSTemplateFormatVersion": template["AWSTemplateFormatVersion"],
        "Description": template["Description"],
        "Parameters": parameters,
        "Conditions": conditions,
        "Resources": resources,
    }


def _referred(function: str, *values: Any) -> Iterator[str]:
    """The names that a function (`Ref`, `Fn::If`, `Condition`) is used with; `Ref` counts `Fn::Sub` too."""
    for value in values:
        if isinstance(value, list):
            yield from _referred(function, *value)
        elif isinstance(value, dict):
            for key, argument in value.items():
                if key == function:
                    yield argument if isinstance(argument, str) else argument[0]
                elif key == "Fn::Sub" and function == "Ref":
                    yield from (part.partition("}")[0] for part in str(argument).split("${")[1:])
                yield from _referred(function, argument)


def identifiers(template: dict[str, Any], stage: str, account: str, region: str) -> list[dict[str, Any]]:
    """Which resource of the account each resource of a template of retained ones is, as CreateChangeSet wants it."""
    values = {"${Stage}": stage, "${AWS::AccountId}": account, "${AWS::Region}": region}
    found = []
    for logical, resource in template["Resources"].items():
        key = IDENTIFIERS[resource["Type"]]
        name = resource["Properties"][key]["Fn::Sub"]
        for variable, value in values.items():
            name = name.replace(variable, value)
        found.append(
            {
                "ResourceType": resource["Type"],
                "LogicalResourceId": logical,
                "ResourceIdentifier": {key: name},
            }
        )
    return found


def take_over(session: boto3.Session, stack: str, stage: str) -> list[str]:
    """Make the stack of what the stage's last stack kept; returns the names of these resources.

    Raises:
        TakeOverFailed: the stack exists, a resource does not or belongs to another stack, or a right is missing.
    """
    template = retained(yaml_parse((REPOSITORY / "template.yaml").read_text()))
    cloudformation: CloudFormationClient = session.client("cloudformation")
    try:
        if status := _status(cloudformation, stack):
            raise TakeOverFailed(f"the stack {stack!r} exists already ({status})")
        account = session.client("sts").get_caller_identity()["Account"]
        imported = identifiers(template, stage, account, str(session.region_name))
        _import(cloudformation, stack, stage, template, imported)
    except ClientError as error:
        raise TakeOverFailed(
            f"stack {stack!r} of stage {stage!r}: {error.response['Error'].get('Message', error)}"
        ) from error
    except BotoCoreError as error:
        raise TakeOverFailed(f"stack {stack!r} of stage {stage!r}: {error}") from error
    return [name for entry in imported for name in entry["ResourceIdentifier"].values()]


def _status(cloudformation: CloudFormationClient, stack: str) -> str | None:
    """CloudFormation's word for the stack; None without one, and for the shell that a refused change set leaves."""
    try:
        status = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"]
    except ClientError as error:
        if "does not exist" in str(error):
            return None
        raise
    if status != "REVIEW_IN_PROGRESS":
        return status
    cloudformation.delete_stack(StackName=stack)
    _wait(cloudformation, "stack_delete_complete", StackName=stack)
    return None


def _import(
    cloudformation: CloudFormationClient,
    stack: str,
    stage: str,
    template: dict[str, Any],
    imported: list[Any],
) -> None:
    cloudformation.create_change_set(
        StackName=stack,
        ChangeSetName=CHANGE_SET,
        ChangeSetType="IMPORT",
        ResourcesToImport=imported,
        TemplateBody=json.dumps(template),
        Parameters=[{"ParameterKey": "Stage", "ParameterValue": stage}],
    )
    try:
        _wait(cloudformation, "change_set_create_complete", StackName=stack, ChangeSetName=CHANGE_SET)
    except WaiterError as error:
        reason = error.last_response.get("StatusReason", str(error))
        _status(cloudformation, stack)
        raise TakeOverFailed(f"stack {stack!r} of stage {stage!r}: {reason}") from error
    cloudformation.execute_change_set(StackName=stack, ChangeSetName=CHANGE_SET)
    try:
        _wait(cloudformation, "stack_import_complete", StackName=stack)
    except WaiterError as error:
        last: Any = error.last_response
        reason = last.get("Stacks", [{}])[0].get("StackStatusReason", str(error))
        raise TakeOverFailed(f"stack {stack!r} of stage {stage!r}: {reason}") from error


def _wait(cloudformation: CloudFormationClient, until: Any, **arguments: str) -> None:
    cloudformation.get_waiter(until).wait(**arguments, WaiterConfig={"Delay": 3, "MaxAttempts": 100})


def main() -> int:
    parser = argparse.ArgumentParser(prog="make take-over", description=__doc__)
    parser.add_argument("stack")
    parser.add_argument("stage")
    arguments = parser.parse_args()
    try:
        names = take_over(cloud_session(), arguments.stack, arguments.stage)
    except SchemaHubError as error:
        print(f"{type(error).__name__}: {error.reason}\n{error.remedy}", file=sys.stderr)
        return 1
    print(f"the stack {arguments.stack} has {', '.join(names)}; now deploy it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
