"""Every line that a new user is told to type is understood; tests/integration/test_documented.py runs them."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from typer.main import get_command

from schemahub_cli.main import app
from tests.documented import NOT_RUN, PAGES, lines_of, script_of
from tests.unit.pages import ROOT, text_of

LINES = sorted({line for page in PAGES for line in lines_of(page)})
OTHER_PROGRAMS = {"sam", "export", "."}
CHART = ROOT / "docs" / "chart.png"


def commands_of(line: str) -> list[list[str]]:
    return [shlex.split(part) for part in line.split(" && ")]


def understood(words: list[str]) -> None:
    """Parse the words as the command line does, down to the last argument, and call nothing. Raises UsageError."""
    command: Any = get_command(app)
    context = command.make_context("schemahub", list(words))
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, list(rest), parent=context)


@pytest.mark.parametrize("line", LINES)
def test_a_documented_line_is_understood(line: str) -> None:
    for program, *words in commands_of(line):
        if program == "schemahub":
            understood(words)
        elif program == "make":
            assert re.search(rf"^{words[0]}:", text_of("Makefile"), re.MULTILINE), line
        else:
            assert program in OTHER_PROGRAMS, f"{line}: who runs {program}?"


def test_a_line_that_is_not_understood_is_noticed() -> None:
    for words in (["run", "--dry"], ["query"], ["statuss"], ["local", "upp"]):
        with pytest.raises(Exception, match=r"(?i)no such|missing"):
            understood(words)


def test_each_line_is_run_or_left_out_by_name() -> None:
    assert set(NOT_RUN) <= set(LINES), "a line that is left out is printed nowhere any more"
    for page in PAGES:
        assert script_of(page).splitlines()[1:] == [line for line in lines_of(page) if line not in NOT_RUN]
    assert "make run" in script_of("README.md")
    assert "schemahub local down" in script_of("docs/first-hour.md").splitlines()


def test_the_pages_set_no_variable_that_the_tools_do_not_read() -> None:
    assert not [line for line in LINES if re.search(r"\bAWS_REGION\b", line)], "boto3 reads AWS_DEFAULT_REGION"


def test_the_chart_comes_first_and_is_small() -> None:
    readme = text_of("README.md")
    assert CHART.read_bytes().startswith(b"\x89PNG")
    assert CHART.stat().st_size < 100_000
    assert readme.index("docs/chart.png") < readme.index("## What you can do") < readme.index("## What it promises")
