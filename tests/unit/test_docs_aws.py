"""The pages' commands for an AWS account, by the descriptions of the services that the AWS CLI itself is made of."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.aws_commands import problem
from tests.deploy.rendering import Stack
from tests.unit.test_docs import TEMPLATE, text_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every `aws …` in the pages' shell blocks, continued lines joined."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page, line.strip()) for line in lines if line.strip().startswith("aws ")]
    return found


def test_there_are_commands_to_look_at() -> None:
    assert len(commands()) >= 6


@pytest.mark.parametrize(("page", "command"), commands())
def test_the_aws_cli_takes_it(page: str, command: str) -> None:
    assert problem(shlex.split(command, comments=True)[1:]) is None


def section(heading: str) -> str:
    return text_of("docs/operations.md").split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_what_is_kept_is_what_the_page_deletes_for_good() -> None:
    names = {
        r["Properties"]["TableName"]
        for r in Stack(TEMPLATE, {"Stage": "dev"}).resources().values()
        if r["Type"] == "AWS::DynamoDB::Table" and r["DeletionPolicy"] == "RetainExceptOnCreate"
    }
    [tables] = re.findall(r"for table in ([a-z ]+);", section("Remove it"))
    assert {f"schemahub-dev-{table}" for table in tables.split()} == names
