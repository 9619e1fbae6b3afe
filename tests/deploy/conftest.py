"""The template three ways: as written, as CloudFormation sees it after the SAM transform, and its state machines."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

ECS = {
    "BackfillClusterArn": "arn:aws:ecs:us-east-1:123456789012:cluster/some-cluster",
    "BackfillTaskArn": "arn:aws:ecs:us-east-1:123456789012:task-definition/some-task:1",
    "BackfillSubnets": "subnet-1,subnet-2",
    "BackfillSecurityGroupId": "sg-1",
    "BackfillPublicIp": "ENABLED",
}
ROOT = Path(__file__).resolve().parents[2]
MACHINES = {
    "IngestStateMachine": "ingest",
    "TransformStateMachine": "transform",
    "BackfillStateMachine": "backfill",
    "MaintainStateMachine": "maintain",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.deploy)


class NoManagedPolicies:
    """The translator asks IAM for the ARNs of AWS's managed policies; this template names none."""

    def load(self) -> dict[str, str]:
        return {}


def definition(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "statemachines" / f"{name}.asl.json").read_text())


def substituted(name: str) -> dict[str, Any]:
    """The state machine with an ARN of the right service in place of each `${...}`."""
    text = (ROOT / "statemachines" / f"{name}.asl.json").read_text()
    text = re.sub(r"\$\{\w+FunctionArn\}", "arn:aws:lambda:us-east-1:123456789012:function:some-function", text)
    text = re.sub(r"\$\{\w+MachineArn\}", "arn:aws:states:us-east-1:123456789012:stateMachine:some-machine", text)
    for name, value in ECS.items():
        text = text.replace(f"${{{name}}}", value)
    return json.loads(text)


def substitutions(name: str) -> set[str]:
    return set(re.findall(r"\$\{(\w+)\}", (ROOT / "statemachines" / f"{name}.asl.json").read_text()))


@pytest.fixture(scope="session")
def template() -> dict[str, Any]:
    """template.yaml, with CloudFormation's short forms (`!Ref`) written out."""
    return yaml_parse((ROOT / "template.yaml").read_text())


@pytest.fixture(scope="session")
def translated(template: dict[str, Any]) -> dict[str, Any]:
    """The template after the SAM transform, state machines inlined: what linters must see to find anything."""
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    sam = copy.deepcopy(template)
    for name, resource in sam["Resources"].items():
        properties = resource.get("Properties", {})
        if resource["Type"] == "AWS::Serverless::Function":
            properties["CodeUri"] = "s3://artifact-bucket/code.zip"
        elif resource["Type"] == "AWS::Serverless::LayerVersion":
            properties["ContentUri"] = "s3://artifact-bucket/layer.zip"
        elif resource["Type"] == "AWS::Serverless::StateMachine":
            del properties["DefinitionUri"]
            properties["Definition"] = substituted(MACHINES[name])
    result = transform(sam, {}, NoManagedPolicies())
    for name, machine in MACHINES.items():
        properties = result["Resources"][name]["Properties"]
        del properties["DefinitionString"], properties["DefinitionSubstitutions"]
        # As a reference, or the linter would call the parameter unused.
        text = json.dumps(substituted(machine)).replace(f'"{ECS["BackfillPublicIp"]}"', '{"Ref": "BackfillPublicIp"}')
        properties["Definition"] = json.loads(text)
    return result


@pytest.fixture(scope="session")
def resources(translated: dict[str, Any]) -> dict[str, Any]:
    return translated["Resources"]
