"""The deployed template from exchange to table: the same ASL, the same built Lambdas, every field compared.

Rows of the table are compared with the exchange itself: with the simulator's oracle for generated trades, with ccxt's
own normalisation for recorded ones.
"""

from __future__ import annotations

import gzip
import json
import time
import urllib.request
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from local.stack import Stack
from schemahub.catalog import LakeCatalog, load_table
from schemahub.ledger import Ledger
from schemahub.objects import ObjectStore
from schemahub.query import connect
from schemahub.streams import Stream
from schemahub_cli import target
from schemahub_cli.main import app
from schemahub_cli.session import LocalSession
from schemahub_cli.target import Target
from tests.integration.conftest import RECORDINGS, Simulator

pytestmark = pytest.mark.end_to_end
BTC, ETH, BINANCE = Stream("coinbase", "BTC-USD"), Stream("coinbase", "ETH-USD"), Stream("binance", "BTC-USDT")
RECORDED = Stream("binance", "XRP-ETH")


def run(stack: Stack, machine: str = "IngestStateMachineArn", *, timeout_s: float = 240, **keys: Any) -> dict[str, Any]:
    """One execution to its end."""
    client = stack.client("stepfunctions")
    started = client.start_execution(
        stateMachineArn=stack.outputs[machine], input=json.dumps({"schema_version": 1, **keys})
    )
    return ended(stack, started["executionArn"], timeout_s)


def ended(stack: Stack, arn: str, timeout_s: float = 240) -> dict[str, Any]:
    """What became of an execution, once it has come to its end."""
    client = stack.client("stepfunctions")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        described = client.describe_execution(executionArn=arn)
        if described["status"] != "RUNNING":
            return dict(described)
        time.sleep(0.3)
    raise AssertionError(f"still running after {timeout_s} s")


def ingest(stack: Stack, *streams: Stream) -> dict[str, Any]:
    outcome = run(stack, products=[f"{s.exchange}:{s.product}" for s in streams])
    assert outcome["status"] == "SUCCEEDED", (outcome.get("error"), outcome.get("cause"))
    return json.loads(outcome["output"])


def session_of(stack: Stack) -> boto3.Session:
    session = boto3.Session(
        stack.env["AWS_ACCESS_KEY_ID"], stack.env["AWS_SECRET_ACCESS_KEY"], region_name=stack.region
    )
    plain = session.client
    session.client = lambda *a, **k: plain(*a, **{"endpoint_url": stack.endpoint, **k})  # type: ignore[method-assign]
    return session


def ledger_of(stack: Stack) -> Ledger:
    table = boto3.resource(
        "dynamodb",
        endpoint_url=stack.endpoint,
        region_name=stack.region,
        aws_access_key_id=stack.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=stack.env["AWS_SECRET_ACCESS_KEY"],
    ).Table(stack.outputs["StreamsTableName"])
    return Ledger(table, stack.client("dynamodb"))


def table_of(stack: Stack) -> Any:
    """The unified table as it is now."""
    objects = ObjectStore(stack.bucket, stack.client("s3"))
    return load_table(LakeCatalog(session_of(stack)), objects, stack.outputs["GlueDatabaseName"], "unified_trades")


def table_rows(stack: Stack, stream: Stream) -> list[tuple[Any, ...]]:
    """id, side, price, quantity, time in µs: every row of a stream in the unified table, by id."""
    return (
        connect(session_of(stack), table_of(stack))
        .execute(
            "SELECT CAST(trade_id AS BIGINT), side, price, quantity, epoch_us(trade_ts) FROM trades "
            "WHERE exchange = ? AND symbol = ? ORDER BY 1",
            [stream.exchange.upper(), stream.product],
        )
        .fetchall()
    )


def oracle(simulator: Simulator, stream: Stream, first: int, last: int) -> list[tuple[Any, ...]]:
    """The same five fields as the exchange would tell them, by rules written here once more, away from the mapping."""
    product = stream.product if stream.exchange == "coinbase" else stream.product.replace("-", "")
    url = f"{simulator.url}/_sim/oracle?exchange={stream.exchange}&product={product}&first={first}&last={last}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        trades = json.load(answer)
    if stream.exchange == "coinbase":
        return [
            (
                t["trade_id"],
                {"buy": "SELL", "sell": "BUY"}[t["side"]],
                float(t["price"]),
                float(t["size"]),
                micros(t["time"]),
            )
            for t in trades
        ]
    return [(t["a"], "SELL" if t["m"] else "BUY", float(t["p"]), float(t["q"]), t["T"] * 1000) for t in trades]


def micros(text: str) -> int:
    when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (when - datetime(1970, 1, 1, tzinfo=UTC)) // (when.resolution)


def assert_exactly_the_exchange(stack: Stack, simulator: Simulator, stream: Stream) -> int:
    mark = ledger_of(stack).watermark(stream)
    assert mark is not None
    rows = table_rows(stack, stream)
    assert rows == oracle(simulator, stream, mark.low, mark.high)
    return len(rows)


def test_the_table_is_the_exchange_row_by_row_and_a_second_run_adds_what_is_new(
    stack: Stack, simulator: Simulator
) -> None:
    closed = ingest(stack, BTC, ETH, BINANCE)
    assert (closed["streams"], closed["failed"]) == (3, 0)
    before = {s: assert_exactly_the_exchange(stack, simulator, s) for s in (BTC, ETH, BINANCE)}
    assert all(rows > 10_000 for rows in before.values())
    time.sleep(8)
    ingest(stack, BTC, ETH, BINANCE)
    after = {s: assert_exactly_the_exchange(stack, simulator, s) for s in (BTC, ETH, BINANCE)}
    assert sum(after.values()) > sum(before.values())
    stats = simulator.stats()
    assert [stats[name]["rate_limited"] for name in ("coinbase", "binance")] == [0, 0]
    assert list(ledger_of(stack).pending()) == []


def test_recorded_binance_trades_equal_ccxt_field_by_field(stack: Stack, simulator: Simulator) -> None:
    oracle_file = RECORDINGS / "binance" / "XRPETH-parsed-by-ccxt.jsonl.gz"
    if not oracle_file.exists():
        pytest.skip(f"{oracle_file} is not here")
    ingest(stack, RECORDED)
    with gzip.open(oracle_file, "rt") as lines:
        expected = [
            (int(t["id"]), t["side"].upper(), t["price"], t["amount"], t["timestamp"] * 1000)
            for t in map(json.loads, lines)
        ]
    assert len(expected) == 12_477
    assert table_rows(stack, RECORDED) == expected


def test_recorded_coinbase_trades_come_out_with_the_takers_side(stack: Stack, simulator: Simulator) -> None:
    source = RECORDINGS / "coinbase" / "websocket-matches.jsonl"
    if not source.exists():
        pytest.skip(f"{source} is not here")
    matches = [json.loads(line) for line in source.read_text().splitlines()]
    products = sorted({m["product_id"] for m in matches})
    ingest(stack, *(Stream("coinbase", p) for p in products))
    for product in products:
        expected = sorted(
            {
                (
                    m["trade_id"],
                    {"buy": "SELL", "sell": "BUY"}[m["side"]],
                    float(m["price"]),
                    float(m["size"]),
                    micros(m["time"]),
                )
                for m in matches
                if m["product_id"] == product
            }
        )
        assert table_rows(stack, Stream("coinbase", product)) == expected


@pytest.mark.parametrize(
    ("products", "error"),
    [
        (["coinbase:NOPE-USD"], "UnknownProduct"),
        (["coinbase:../x"], "BadProductId"),
        (["coinbase:BTC USD"], "BadProductId"),
        (["coinbase:" + "A" * 300], "BadProductId"),
        (["nowhere:BTC-USD"], "UnknownExchange"),
    ],
)
def test_bad_input_ends_in_a_named_error_with_nothing_committed(
    stack: Stack, simulator: Simulator, products: list[str], error: str
) -> None:
    outcome = run(stack, products=products)
    assert outcome["status"] == "FAILED"
    assert error in failure_names(stack, outcome)
    if error == "UnknownProduct":
        assert ledger_of(stack).watermark(Stream("coinbase", "NOPE-USD")) is None


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"kind": "html_200", "match": {"on": "page"}}, "MalformedResponse"),
        ({"kind": "empty_list", "match": {"on": "page"}}, "EmptyPage"),
    ],
)
def test_a_hostile_exchange_fails_one_stream_and_leaves_the_others_whole_and_replay_finds_it(
    stack: Stack, simulator: Simulator, fault: dict[str, Any], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = Stream("coinbase", {"MalformedResponse": "LTC-USD", "EmptyPage": "LINK-USD"}[error])
    simulator.add_faults({"exchange": "coinbase", "product": victim.product, **fault})
    outcome = run(stack, products=[f"coinbase:{victim.product}", "coinbase:ADA-USD"])
    assert outcome["status"] == "FAILED"
    assert error in failure_names(stack, outcome)
    assert ledger_of(stack).watermark(victim) is None
    assert table_rows(stack, victim) == []
    assert_exactly_the_exchange(stack, simulator, Stream("coinbase", "ADA-USD"))
    simulator.reset()
    where = Target(stack.name, True, LocalSession(stack.endpoint), dict(stack.outputs))
    monkeypatch.setattr(target, "resolve", lambda name: where)
    query = ["--state", "failed", "--since", "1h", "--error", error, "--product", victim.product]
    seen = replay(*query, "--dry-run")
    assert [f["stream"]["product"] for f in seen["failures"]] == [victim.product]
    assert replay("--since", "1h", "--product", "ADA-USD")["failures"] == []
    [started] = replay(*query)["started"]
    outcome = ended(stack, started["execution"])
    assert outcome["status"] == "SUCCEEDED", (outcome.get("error"), outcome.get("cause"))
    assert_exactly_the_exchange(stack, simulator, victim)
    assert replay(*query)["started"] == [], "a later run has done it"


def replay(*words: str) -> dict[str, Any]:
    """What ``schemahub replay`` says."""
    result = CliRunner().invoke(app, ["replay", *words, "--json"])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def failure_names(stack: Stack, outcome: dict[str, Any]) -> set[str]:
    """Error names of an execution and of every failed child below it."""
    client = stack.client("stepfunctions")
    names = {outcome.get("error", "")}
    pending = [outcome["executionArn"]]
    while pending:
        arn = pending.pop()
        for map_run in client.list_map_runs(executionArn=arn)["mapRuns"]:
            for child in client.list_executions(mapRunArn=map_run["mapRunArn"], statusFilter="FAILED")["executions"]:
                names.add(client.describe_execution(executionArn=child["executionArn"]).get("error", ""))
                pending.append(child["executionArn"])
    return names


def test_a_rederivation_goes_through_the_deployed_machine(stack: Stack, simulator: Simulator) -> None:
    """The deployed mapping is the same, so every file comes out as it was: rows, files and old snapshots stay."""
    ingest(stack, BTC, ETH)
    before = table_of(stack)
    rows = {s: table_rows(stack, s) for s in (BTC, ETH)}
    outcome = run(stack, "TransformStateMachineArn", rederive={"streams": ["coinbase:BTC-USD"]})
    assert outcome["status"] == "SUCCEEDED", (outcome.get("error"), outcome.get("cause"))
    said = json.loads(outcome["output"])
    assert (said["status"], said["rows"], said["rows_before"]) == ("replaced", len(rows[BTC]), len(rows[BTC]))
    assert said["previous_snapshot_id"] == before.current_snapshot().snapshot_id
    assert {s: table_rows(stack, s) for s in (BTC, ETH)} == rows
    refused = run(stack, "TransformStateMachineArn", rederive={"streams": ["coinbase:BTC-USD"], "since": "yesterday"})
    assert refused["error"] == "BadStateInput"
