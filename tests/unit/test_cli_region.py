"""The region that the command line works in: by boto3's own session, over real configuration files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from samcli.cli.context import Context
from typer.testing import CliRunner

from schemahub_cli.main import app
from schemahub_cli.output import Exit, StackUnreachable
from schemahub_cli.target import cloud_session

ROOT = Path(__file__).resolve().parents[2]
PROFILES = """
[profile paris]
region = eu-west-3

[profile nowhere]
output = json
"""
Environment = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environment:
    """Sets exactly these AWS variables, over a configuration file with two profiles."""
    config = tmp_path / "config"
    config.write_text(PROFILES)

    def set_exactly(**variables: str) -> None:
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ENDPOINT_URL"):
            monkeypatch.delenv(name, raising=False)
        files = {"AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
        for name, value in {**files, **variables}.items():
            monkeypatch.setenv(name, value)

    set_exactly()
    return set_exactly


@pytest.mark.parametrize(
    ("variables", "region"),
    [
        ({"AWS_REGION": "eu-central-1"}, "eu-central-1"),
        ({"AWS_DEFAULT_REGION": "eu-central-1"}, "eu-central-1"),
        ({"AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "eu-central-1"}, "eu-central-1"),
        ({"AWS_PROFILE": "paris"}, "eu-west-3"),
        ({"AWS_PROFILE": "nowhere", "AWS_REGION": "eu-central-1"}, "eu-central-1"),
        ({"AWS_PROFILE": "paris", "AWS_REGION": "eu-central-1"}, "eu-central-1"),
        ({"AWS_PROFILE": "paris", "AWS_DEFAULT_REGION": "eu-central-1"}, "eu-central-1"),
        ({"AWS_PROFILE": "paris", "AWS_REGION": " "}, "eu-west-3"),
    ],
)
def test_what_is_exported_wins_over_a_profile(environment: Environment, variables: dict[str, str], region: str) -> None:
    environment(**variables)
    session = cloud_session()
    assert session.region_name == region
    assert f".{region}." in session.client("cloudformation").meta.endpoint_url


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "no AWS region is set"),
        ({"AWS_PROFILE": "nowhere"}, "no AWS region is set"),
        ({"AWS_PROFILE": "unknown"}, "unknown"),
        ({"AWS_REGION": "eu central 1"}, "eu central 1"),
        ({"AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "us-east-1"}, "AWS_DEFAULT_REGION is us-east-1"),
    ],
)
def test_a_region_that_is_not_clear_is_said_without_a_traceback(
    environment: Environment, variables: dict[str, str], reason: str
) -> None:
    environment(**variables)
    with pytest.raises(StackUnreachable, match=reason):
        cloud_session()
    answer = CliRunner().invoke(app, ["status", "--stack", "some-stack", "--json"])
    assert answer.exit_code == Exit.NO_STACK
    assert reason in json.loads(answer.stdout)["message"]


def test_the_remedy_for_a_missing_region_works(environment: Environment) -> None:
    with pytest.raises(StackUnreachable) as refused:
        cloud_session()
    named = re.findall(r"AWS_[A-Z_]+", refused.value.remedy)
    assert named == ["AWS_DEFAULT_REGION", "AWS_PROFILE"]
    for name, value in zip(named, ("eu-west-3", "paris"), strict=True):
        environment(**{name: value})
        assert cloud_session().region_name == "eu-west-3"


def exported() -> list[tuple[str, str, str]]:
    """(page, variable, value) of the exports in the pages' shell blocks."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        (page.name, *match)
        for page in pages
        for match in re.findall(r"^export (AWS_[A-Z_]+)=(\S+)", page.read_text(), re.MULTILINE)
    ]


def test_the_documented_region_is_the_one_that_sam_deploys_to(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(exported()) >= 2
    for page, name, value in exported():
        environment(AWS_PROFILE="paris", **{name: value})
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        Context()._refresh_session()
        assert boto3.DEFAULT_SESSION is not None
        assert boto3.DEFAULT_SESSION.region_name == cloud_session().region_name == value, page
