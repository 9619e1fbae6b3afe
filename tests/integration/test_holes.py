"""Ids that come later, through the deployed template: asked for by the command, published by the machine, once."""

from __future__ import annotations

import json
import time

import pytest
from typer.testing import CliRunner

from local.stack import Stack
from schemahub.holes import LOOKS_APART_S
from schemahub.streams import Stream
from schemahub_cli import target
from schemahub_cli.main import app
from schemahub_cli.session import LocalSession
from schemahub_cli.target import Target
from tests.integration.conftest import Simulator
from tests.integration.test_end_to_end import assert_exactly_the_exchange, ingest, ledger_of, oracle, run, table_rows

pytestmark = pytest.mark.end_to_end
DOT, AVAX = Stream("coinbase", "DOT-USD"), Stream("coinbase", "AVAX-USD")


def ingest_with_a_hole(stack: Stack, simulator: Simulator, stream: Stream) -> None:
    """Ten ids that the exchange does not show are absent from the table; then it shows them."""
    head = simulator.control("GET", f"/_sim/oracle?exchange=coinbase&product={stream.product}")["head"]
    hidden = range(head - 5_000, head - 4_990)
    simulator.add_faults(
        {
            "exchange": "coinbase",
            "product": stream.product,
            "kind": "missing_forever",
            "match": {"ids": [hidden[0], hidden[-1]]},
        }
    )
    ingest(stack, stream)
    mark = ledger_of(stack).watermark(stream)
    assert mark is not None
    there = [row for row in oracle(simulator, stream, mark.low, mark.high) if row[0] not in hidden]
    assert table_rows(stack, stream) == there
    simulator.reset()


def test_the_schedules_machine_fills_holes_that_are_due(stack: Stack, simulator: Simulator) -> None:
    ingest_with_a_hole(stack, simulator, AVAX)
    ledger = ledger_of(stack)
    holes = list(ledger.holes(AVAX))
    assert sum(hole.ids for hole in holes) == 10
    long_ago = time.time_ns() // 1_000_000 - int(LOOKS_APART_S * 1000) - 60_000
    for hole in holes:
        ledger.table.update_item(
            Key={"stream": str(AVAX), "item": f"hole#{hole.first:020d}"},
            UpdateExpression="SET last_looked_at = :then",
            ExpressionAttributeValues={":then": long_ago},
        )
    outcome = run(stack, "MaintainStateMachineArn")
    assert outcome["status"] == "SUCCEEDED", (outcome.get("error"), outcome.get("cause"))
    said = json.loads(outcome["output"])
    assert (said["holes"], said["filled"], said["unanswered"]) == (len(holes), len(holes), 0)
    assert run(stack, "TransformStateMachineArn")["status"] == "SUCCEEDED"
    assert_exactly_the_exchange(stack, simulator, AVAX)


def test_what_comes_later_is_in_the_table_exactly_once(
    stack: Stack, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Target(stack.name, True, LocalSession(stack.endpoint), dict(stack.outputs))
    monkeypatch.setattr(target, "resolve", lambda name: where)
    ingest_with_a_hole(stack, simulator, DOT)
    result = CliRunner().invoke(app, ["gaps", "--stream", "coinbase:DOT-USD", "--repair", "--json"])
    assert result.exit_code == 0, result.output
    [repaired] = json.loads(result.stdout)["streams"]
    assert (repaired["came"], repaired["missing_ids"]) == (10, 0)
    assert run(stack, "TransformStateMachineArn")["status"] == "SUCCEEDED"
    assert_exactly_the_exchange(stack, simulator, DOT)
    assert list(ledger_of(stack).pending()) == []
