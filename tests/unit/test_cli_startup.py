"""What starts every command must cost nothing: the command line imports what a command needs when it is called."""

from __future__ import annotations

import ast
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from typer.main import get_command

from schemahub.instruments_table import TABLE as INSTRUMENTS
from schemahub_cli import commands, lake
from schemahub_cli.main import COMMANDS, app
from tests.unit.pages import ROOT

SDK = {"boto3", "botocore.session", "aws_lambda_powertools", "aws_xray_sdk"}
ENGINES = {"duckdb", "pyarrow", "pyiceberg", "polars", "pandas", "numpy", "matplotlib"}
LIBRARIES = {"pydantic", "requests", "jsonschema", "yaml", "rich.markdown", "rich.traceback", "pygments", "psutil"}
SAY_MODULES = "; import json, sys; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"


def modules_after(code: str) -> set[str]:
    """What is imported when ``code`` is done, in a process of its own."""
    ran = subprocess.run([sys.executable, "-c", code + SAY_MODULES], capture_output=True, text=True, check=True)
    return set(json.loads(ran.stderr.splitlines()[-1]))


def called_with(*words: str) -> str:
    return f"from schemahub_cli.main import app; app({list(words)!r}, standalone_mode=False)"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_imports_no_command_no_sdk_and_no_engine(option: str) -> None:
    loaded = modules_after(called_with(option))
    assert not loaded & (SDK | ENGINES | LIBRARIES)
    assert not {name for name in loaded if name.startswith(("schemahub_cli.commands.", "local."))}


def test_a_command_imports_the_sdk_and_the_engines_only_when_it_runs() -> None:
    names = [f"schemahub_cli.commands.{found.name}" for found in pkgutil.iter_modules(commands.__path__)]
    assert {where.module for where in COMMANDS.values()} <= set(names)
    assert not modules_after(f"import {', '.join(names)}") & (SDK | ENGINES)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_the_command_itself_says(name: str) -> None:
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    assert COMMANDS[name].help == " ".join(command.help.split("\n\n")[0].split())


def test_adapters_of_the_command_line_come_without_powertools() -> None:
    settings = "Settings('b', 'l', 's', 't', 'd')"
    session = "boto3.Session('k', 's', region_name='us-east-1')"
    loaded = modules_after(f"import boto3; from schemahub.deps import Settings, build; build({settings}, {session})")
    assert "boto3" in loaded
    assert not loaded & {"aws_lambda_powertools", "aws_xray_sdk", "schemahub.runtime", *ENGINES}


def imports_of(path: Path) -> set[str]:
    """What a module imports, at once or in a function; what only the type checker reads does not count."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        waiting += ast.iter_child_nodes(node)
    return found


def test_only_handlers_import_powertools() -> None:
    core, cli = ROOT / "layers/core/schemahub", ROOT / "cli/schemahub_cli"
    for path in [*core.rglob("*.py"), *cli.rglob("*.py")]:
        if path.name != "runtime.py":
            assert not imports_of(path) & {"aws_lambda_powertools", "schemahub.runtime"}, path


def test_a_line_that_the_core_logs_in_a_lambda_is_json_with_the_keys_of_its_event() -> None:
    code = (
        "from schemahub.deps import logger; from schemahub.runtime import logger as handlers;"
        "handlers.append_keys(run='r-1'); logger.error('a gap', extra={'about': 'x'})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = json.loads(ran.stdout)
    assert (line["message"], line["run"], line["about"], line["service"]) == ("a gap", "r-1", "x", "schemahub")


class Glue:
    """Knows one table and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_table(self, DatabaseName: str, Name: str) -> dict[str, Any]:
        self.asked.append(f"{DatabaseName}.{Name}")
        if Name != "unified_trades":
            raise ClientError({"Error": {"Code": "EntityNotFoundException"}}, "GetTable")
        return {"Table": {"Parameters": {"metadata_location": "s3://lake/3.metadata.json"}}}


def test_a_query_asks_for_a_tables_metadata_once_and_only_for_tables_that_it_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    glue = Glue()
    target: Any = SimpleNamespace(session="session", database="lake", client=lambda service: glue)
    monkeypatch.setattr("schemahub.query.open_tables", lambda session, locations, memory: dict(locations))
    assert lake.connect(target, lake.views_in("SELECT 1")) == {}
    assert glue.asked == []
    found = lake.connect(target, lake.views_in("SELECT count(*) FROM trades"))
    assert found == {"trades": "s3://lake/3.metadata.json"}
    assert glue.asked == ["lake.unified_trades"]
    with pytest.raises(lake.NoTable, match=r"lake\.instruments"):
        lake.connect(target, ["instruments"])


def test_the_views_of_a_query_are_the_stacks_tables() -> None:
    template = (ROOT / "template.yaml").read_text()
    assert f"SCHEMAHUB_TABLE: {lake.TABLES['trades']}\n" in template
    assert lake.TABLES["instruments"] == INSTRUMENTS


def test_opening_the_table_for_a_query_needs_no_pyiceberg() -> None:
    assert "pyiceberg" not in modules_after("import schemahub.query, schemahub_cli.lake")


def test_help_is_drawn_whole_although_typers_markdown_was_left_out() -> None:
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb"}
    ran = subprocess.run(
        [sys.executable, "-m", "schemahub_cli", "--help"], capture_output=True, text=True, check=True, env=environment
    )
    for text in ("Usage:", "First steps on this machine", "--version", "Exit codes", *COMMANDS):
        assert text in ran.stdout
    assert "[bold]" not in ran.stdout
    later = modules_after(f"{called_with('--help')}; from rich.markdown import Markdown; Markdown('# it is whole')")
    assert "markdown_it" in later
