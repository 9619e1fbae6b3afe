"""`make push-image`, with a `docker` and an `aws` on the PATH that only write down what they are asked."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.aws_commands import problem
from tests.unit.test_docs import TEMPLATE

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/schemahub-dev-backfill"
REGISTRY = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
FAKE = """#!/usr/bin/env python3
import json, os, sys
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
given = sys.stdin.read() if "--password-stdin" in words else ""
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps([words, given]) + "\\n")
if words[1] == os.environ.get("FAKE_FAILS"):
    sys.exit(7)
answers = {"cloudformation": os.environ["FAKE_REPOSITORY"], "ecr": "some-password"}
if words[0] == "aws":
    print(answers[words[1]])
"""


@pytest.fixture
def push(tmp_path: Path) -> Any:
    """Runs `make push-image`; returns its exit code, what it printed, and what `aws` and `docker` were asked."""
    for tool in ("aws", "docker"):
        (tmp_path / tool).write_text(FAKE)
        (tmp_path / tool).chmod(0o755)
    log = tmp_path / "log"

    def run(*arguments: str, repository: str = REPOSITORY, fails: str = "") -> tuple[int, str, list[Any]]:
        environment = {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "FAKE_LOG": str(log),
            "FAKE_REPOSITORY": repository,
            "FAKE_FAILS": fails,
        }
        done = subprocess.run(
            ["make", "push-image", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return done.returncode, done.stdout + done.stderr, calls

    return run


def test_it_logs_in_builds_for_arm64_and_pushes_to_the_repository_of_the_stack(push: Any) -> None:
    code, _, calls = push("STACK=schemahub-prod", "TAG=1.2")
    assert code == 0
    [asked, password, login, build, pushed] = [words for words, _ in calls]
    assert asked[:3] == ["aws", "cloudformation", "describe-stacks"]
    assert asked[asked.index("--stack-name") + 1] == "schemahub-prod"
    assert password == ["aws", "ecr", "get-login-password", "--region", "eu-west-1"]
    assert login == ["docker", "login", "--username", "AWS", "--password-stdin", REGISTRY]
    assert build == [
        *("docker", "build", "--platform", "linux/arm64"),
        *("-f", "functions/backfill/Dockerfile", "-t", f"{REPOSITORY}:1.2", "."),
    ]
    assert pushed == ["docker", "push", f"{REPOSITORY}:1.2"]


def test_the_password_is_on_no_command_line(push: Any) -> None:
    _, said, calls = push()
    assert [given for words, given in calls if words[1] == "login"] == ["some-password"]
    assert "some-password" not in json.dumps([words for words, _ in calls]) + said


def test_what_it_pushes_is_what_the_task_pulls(push: Any) -> None:
    """Without parameters: the stack of the README, the repository of its output, the tag of the task definition."""
    *_, calls = push()
    asked, pushed = calls[0][0], calls[-1][0]
    assert asked[asked.index("--stack-name") + 1] == "schemahub"
    [output] = re.findall(r"OutputKey=='(\w+)'", asked[asked.index("--query") + 1])
    assert TEMPLATE["Outputs"][output]["Value"] == {"Fn::GetAtt": ["BackfillRepository", "RepositoryUri"]}
    [container] = TEMPLATE["Resources"]["BackfillTask"]["Properties"]["ContainerDefinitions"]
    tag = container["Image"]["Fn::If"][2]["Fn::Sub"].rpartition(":")[2]
    assert pushed[2] == f"{REPOSITORY}:{tag}"


def test_the_aws_cli_takes_its_commands(push: Any) -> None:
    *_, calls = push()
    assert [problem(words[1:]) for words, _ in calls if words[0] == "aws"] == [None, None]


@pytest.mark.parametrize("step", ["cloudformation", "ecr", "login", "build", "push"])
def test_nothing_goes_on_after_a_step_that_failed(push: Any, step: str) -> None:
    code, _, calls = push(fails=step)
    assert code != 0
    assert calls[-1][0][1] == step


@pytest.mark.parametrize("answer", ["", "None", "some-other-stack-output"])
def test_a_stack_without_a_repository_is_said_before_anything_is_built(push: Any, answer: str) -> None:
    code, said, calls = push("STACK=other", repository=answer)
    assert code != 0
    assert "other has no output BackfillRepositoryUri" in said
    assert len(calls) == 1


def test_docker_gets_what_the_image_copies_and_nothing_else_of_a_working_copy() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    let_in = [line[1:] for line in lines if line.startswith("!")]
    dockerfile = (ROOT / "functions/backfill/Dockerfile").read_text()
    copied = [
        word
        for line in dockerfile.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert all(any(path == folder or path.startswith(f"{folder}/") for folder in let_in) for path in copied), copied
    assert all(any(fnmatch.fnmatch(path, f"{folder}*") for path in copied) for folder in let_in), let_in
