"""Ids that come later, through the deployed template: asked for by the command, published by the machine, once."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from local.stack import Stack
from schemahub.streams import Stream
from schemahub_cli import target
from schemahub_cli.main import app
from schemahub_cli.target import LocalSession, Target
from tests.integration.conftest import Simulator
from tests.integration.test_end_to_end import assert_exactly_the_exchange, ingest, ledger_of, oracle, run, table_rows

pytestmark = pytest.mark.end_to_end
DOT = Stream("coinbase", "DOT-USD")


def test_what_comes_later_is_in_the_table_exactly_once(
    stack: Stack, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Target(stack.name, True, LocalSession(stack.endpoint), dict(stack.outputs))
    monkeypatch.setattr(target, "resolve", lambda name: where)
    head = simulator.control("GET", f"/_sim/oracle?exchange=coinbase&product={DOT.product}")["head"]
    hidden = range(head - 5_000, head - 4_990)
    simulator.add_faults(
        {
            "exchange": "coinbase",
            "product": DOT.product,
            "kind": "missing_forever",
            "match": {"ids": [hidden[0], hidden[-1]]},
        }
    )
    ingest(stack, DOT)
    mark = ledger_of(stack).watermark(DOT)
    assert mark is not None
    there = [row for row in oracle(simulator, DOT, mark.low, mark.high) if row[0] not in hidden]
    assert table_rows(stack, DOT) == there
    simulator.reset()
    result = CliRunner().invoke(app, ["gaps", "--stream", "coinbase:DOT-USD", "--repair", "--json"])
    assert result.exit_code == 0, result.output
    [repaired] = json.loads(result.stdout)["streams"]
    assert (repaired["came"], repaired["missing_ids"]) == (10, 0)
    assert run(stack, "TransformStateMachineArn")["status"] == "SUCCEEDED"
    assert_exactly_the_exchange(stack, simulator, DOT)
    assert list(ledger_of(stack).pending()) == []
