"""samconfig.toml as `sam` itself reads it: what would be deployed, under which names."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from typing import Any

import click
import pytest
from samcli.cli.main import cli as sam
from samcli.commands.deploy.command import cli as sam_deploy

from tests.deploy.conftest import ROOT
from tests.deploy.rendering import Stack
from tests.deploy.test_schedules import problem

FILE = ROOT / "samconfig.toml"
ENVIRONMENTS = [name for name, table in tomllib.loads(FILE.read_text()).items() if isinstance(table, dict)]
# The properties that name something in the account, by the type of resource; CloudFormation makes the other names from
# the stack's. A saved query is named within its workgroup.
NAMED = {
    "AWS::Athena::WorkGroup": "Name",
    "AWS::CloudWatch::Alarm": "AlarmName",
    "AWS::DynamoDB::Table": "TableName",
    "AWS::ECR::Repository": "RepositoryName",
    "AWS::ECS::Cluster": "ClusterName",
    "AWS::ECS::TaskDefinition": "Family",
    "AWS::Lambda::Function": "FunctionName",
    "AWS::Lambda::LayerVersion": "LayerName",
    "AWS::Logs::LogGroup": "LogGroupName",
    "AWS::S3::Bucket": "BucketName",
    "AWS::SNS::Topic": "TopicName",
    "AWS::SQS::Queue": "QueueName",
    "AWS::StepFunctions::StateMachine": "StateMachineName",
}
NAMED_WITHIN = {"AWS::Athena::NamedQuery"}


def options(environment: str) -> dict[str, Any]:
    """What `sam deploy --config-env ENVIRONMENT` takes from the file, by sam's own command line."""
    arguments = ["--config-env", environment, "--config-file", str(FILE)]
    context = sam_deploy.make_context("deploy", arguments, parent=click.Context(sam, info_name="sam"))
    return context.params


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_sam_reads_values_that_the_template_accepts(template: dict[str, Any], environment: str) -> None:
    given = options(environment)["parameter_overrides"]
    for name, value in given.items():
        parameter = template["Parameters"][name]
        assert value in map(str, parameter.get("AllowedValues", [value])), name
        assert re.fullmatch(parameter.get("AllowedPattern", ".*"), value), f"{name}: {value!r}"
        if name.endswith("Schedule"):
            assert problem(value) is None, f"{name}: {value!r}"
    assert Stack(template, given).refused() == []


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_sam_reads_every_override_that_the_file_names(environment: str) -> None:
    written = tomllib.loads(FILE.read_text())[environment]["deploy"]["parameters"]["parameter_overrides"]
    read = options(environment)["parameter_overrides"]
    assert {name: value.strip('"') for name, _, value in (entry.partition("=") for entry in written)} == read


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_tables_of_samconfig_are_complete(environment: str) -> None:
    assert "cached" in tomllib.loads(FILE.read_text())[environment]["build"]["parameters"]
    read = options(environment)
    assert read["stack_name"]
    assert read["capabilities"] == ["CAPABILITY_IAM"]
    assert read["resolve_s3"] is True
    assert read["tags"] == {"project": "schemahub", "stage": read["parameter_overrides"]["Stage"]}


def documented() -> list[str]:
    """What follows `--parameter-overrides` in the pages."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    return [o for page in pages for o in re.findall(r"--parameter-overrides ([^`\n]*=[^`\n]*)", page.read_text())]


@pytest.mark.parametrize("overrides", documented())
def test_sam_reads_the_documented_overrides_whole(template: dict[str, Any], overrides: str) -> None:
    words = shlex.split(overrides)
    arguments = ["--stack-name", "some-stack", "--parameter-overrides", *words]
    context = sam_deploy.make_context("deploy", arguments, parent=click.Context(sam, info_name="sam"))
    read = context.params["parameter_overrides"]
    assert read == {name: value.strip('"') for name, _, value in (word.partition("=") for word in words)}
    assert set(read) <= set(template["Parameters"])
    assert Stack(template, read).refused() == []


def names(template: dict[str, Any], environment: str) -> Iterator[tuple[str, str]]:
    """(kind, name) of everything that is one of its kind in the account, deployed with everything that can be."""
    read = options(environment)
    yield "stack", read["stack_name"]
    yield "prefix of artifacts", read["s3_prefix"]
    network = {"BackfillSubnets": "subnet-1", "BackfillVpc": "vpc-1"}
    for name, resource in Stack(template, {**network, **read["parameter_overrides"]}).resources().items():
        kind, properties = resource["Type"], resource["Properties"]
        if kind in NAMED:
            yield kind, properties[NAMED[kind]]
        elif kind == "AWS::Glue::Database":
            yield kind, properties["DatabaseInput"]["Name"]
        elif kind not in NAMED_WITHIN:
            named = [key for key in properties if key == "Name" or (key.endswith("Name") and key[:-4] in kind)]
            assert not named, f"{name} ({kind}) has a name that no test compares: {named}"


@pytest.fixture(scope="module")
def plain(translated: dict[str, Any]) -> dict[str, Any]:
    """The translated template with the stage back in the names of layers, where the SAM transform put its default."""
    result = copy.deepcopy(translated)
    for resource in result["Resources"].values():
        if resource["Type"] == "AWS::Lambda::LayerVersion":
            resource["Properties"]["LayerName"] = json.loads(
                json.dumps(resource["Properties"]["LayerName"]).replace("schemahub-dev-", "schemahub-${Stage}-")
            )
    return result


def test_no_two_environments_share_a_name(plain: dict[str, Any]) -> None:
    found = {environment: list(names(plain, environment)) for environment in ENVIRONMENTS}
    for environment, entries in found.items():
        assert len(entries) > 60, environment
        assert len(set(entries)) == len(entries), environment
    for one, other in itertools.combinations(ENVIRONMENTS, 2):
        assert not set(found[one]) & set(found[other]), f"{one} and {other} collide"
