"""``schemahub update-seed`` on the embedded stack: what the exchanges list, joined with the trades of a real run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from local.stack import Stack
from schemahub_cli.main import app
from tests.integration.conftest import Simulator
from tests.integration.test_end_to_end import BTC, ingest


@pytest.fixture
def home(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands' local stack is the session's."""
    monkeypatch.setenv("SCHEMAHUB_HOME", str(stack.home))


def command(*arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def states(product: str) -> list[Any]:
    sql = f"SELECT status, exchange_status, listing_epoch FROM instruments WHERE exchange_symbol = '{product}'"
    return command("query", sql)["rows"]


def test_what_is_and_was_listed_joins_the_trades(stack: Stack, home: None, simulator: Simulator) -> None:
    written = command("update-seed", "-e", "coinbase", "-p", BTC.product)
    assert [e["product"] for e in written["streams"]] == [BTC.product]
    command("update-seed", "-e", "binance", "--limit", "1")
    assert states("REP-USD") == [["delisted", "delisted", 1]]
    ingest(stack, BTC)
    join = (
        "SELECT base, quote, status, count(*) > 10000, count(*) = count(DISTINCT trade_id) "
        "FROM trades JOIN instruments USING (exchange, symbol) WHERE exchange_symbol = 'BTC-USD' GROUP BY ALL"
    )
    assert command("query", join)["rows"] == [["BTC", "USD", "online", True, True]]
    simulator.add_faults({"kind": "delisted", "exchange": "coinbase", "product": BTC.product})
    gone = command("update-seed", "-e", "coinbase", "--limit", "1")
    assert gone["instruments"]["delisted"] == ["coinbase:BTC-USD"]
    assert command("query", join)["rows"] == [["BTC", "USD", "delisted", True, True]]
    simulator.reset()
    command("update-seed", "-e", "coinbase", "--limit", "1")
    assert states("BTC-USD") == [["online", "online", 2]]
    again = command("update-seed", "-e", "coinbase", "--limit", "1")
    assert again["instruments"]["changed"] == 0
    found = stack.client("glue").get_tables(DatabaseName=stack.outputs["GlueDatabaseName"])["TableList"]
    assert {"instruments", "unified_trades"} <= {t["Name"] for t in found}


def test_an_exchange_that_refuses_the_region_is_left_out_and_the_others_are_written(
    stack: Stack, home: None, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemahub_cli.commands.seed.known_exchanges", lambda: ("binance", "coinbase"))
    simulator.add_faults({"kind": "http_status", "exchange": "binance", "status": 451, "match": {"on": "discovery"}})
    said = command("update-seed", "-p", BTC.product)
    simulator.reset()
    assert (said["probes"]["binance"]["status"], said["probes"]["coinbase"]["outcome"]) == (451, "reachable")
    assert said["failed"]["binance"]["error"] == "ExchangeRefused"
    assert BTC.product in [e["product"] for e in said["streams"] if e["exchange"] == "coinbase"]
