"""``schemahub verify`` and ``state rebuild`` on the deployed stack: proved, lost, put back, proved offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from local.stack import Stack
from schemahub.streams import Stream
from schemahub_cli import target
from schemahub_cli.main import app
from schemahub_cli.session import LocalSession
from schemahub_cli.target import Target
from tests.integration.conftest import Simulator
from tests.integration.test_end_to_end import ingest

RUNNER = CliRunner()
SOL = Stream("coinbase", "SOL-USD")


def run(*words: str, code: int = 0) -> Any:
    result = RUNNER.invoke(app, [*words, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def items_of(table: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(i["stream"], i["item"]): i for i in table.scan()["Items"] if i["stream"].startswith("coinbase#SOL-USD")}


def test_what_was_pulled_is_proved_lost_put_back_and_proved_by_the_lake_alone(
    stack: Stack, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Target(stack.name, True, LocalSession(stack.endpoint), dict(stack.outputs))
    monkeypatch.setattr(target, "resolve", lambda name: where)
    ingest(stack, SOL)
    proved = run("verify", "--deep", "-s", "coinbase:SOL-USD", "--certificate-dir", str(tmp_path))
    [seen] = proved["streams"]
    assert seen["rows"] == seen["trades"] > 0

    table = where.deps.ledger.table
    before = items_of(table)
    for stream, item in before:
        table.delete_item(Key={"stream": stream, "item": item})
    assert [f["kind"] for f in run("verify", "-s", "coinbase:SOL-USD", code=1)["streams"][0]["findings"]]
    run("state", "rebuild")
    after = items_of(table)
    assert before.keys() - after.keys() == {(str(SOL), "last_run")}
    assert {key: item for key, item in before.items() if key in after} == after

    run("verify", "-s", "coinbase:SOL-USD")
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    again = run("verify", "--offline", f"s3://{stack.bucket}", "--deep", "-s", "coinbase:SOL-USD")
    assert again["streams"][0]["whole"]
    assert again["streams"][0]["rows"] == seen["rows"]
