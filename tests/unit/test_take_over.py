"""What `make take-over` asks of CloudFormation. That it works: tests/integration/test_new_account.py."""

from __future__ import annotations

import json
import sys

import pytest

from local import take_over
from tests.deploy.rendering import PSEUDO, Stack
from tests.unit.test_docs import TEMPLATE

RETAINED = {"Bucket", "LocksTable", "StreamsTable", "ThrottleTable"}


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_its_template_holds_exactly_what_is_retained_as_the_whole_one_has_it(stage: str) -> None:
    """CloudFormation imports into a new stack only what is alone in its template, without outputs and transforms."""
    template = take_over.retained(TEMPLATE)
    assert set(template) == {"AWSTemplateFormatVersion", "Description", "Parameters", "Conditions", "Resources"}
    assert len(json.dumps(template)) < 51_200  # CreateChangeSet's limit of a template that is sent along
    alone, whole = (Stack(t, {"Stage": stage}).resources() for t in (template, TEMPLATE))
    assert set(alone) == RETAINED
    assert all(alone[name] == whole[name] for name in alone)


def test_its_template_declares_nothing_that_it_does_not_use() -> None:
    template = take_over.retained(TEMPLATE)
    assert set(template["Parameters"]) == {"Stage", "RawToInfrequentAccessDays"}
    assert set(template["Conditions"]) == {"IsProd"}


def test_it_names_the_resources_as_the_deleted_stack_did() -> None:
    asked = take_over.identifiers(take_over.retained(TEMPLATE), "prod", PSEUDO["AWS::AccountId"], PSEUDO["AWS::Region"])
    deployed = Stack(TEMPLATE, {"Stage": "prod"}).resources()
    assert {entry["LogicalResourceId"] for entry in asked} == RETAINED
    for entry in asked:
        [(key, name)] = entry["ResourceIdentifier"].items()
        resource = deployed[entry["LogicalResourceId"]]
        assert (entry["ResourceType"], name) == (resource["Type"], resource["Properties"][key])


def test_without_a_region_it_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(sys, "argv", ["take_over", "schemahub", "dev"])
    assert take_over.main() == 1
    assert "Set AWS_DEFAULT_REGION" in capsys.readouterr().err
