"""A heavy backfill on the deployed stack: tasks of ECS, killed both ways, beside an ingest, whole and proved."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from local.stack import Stack
from schemahub.streams import Stream
from tests.integration.conftest import Simulator
from tests.integration.heavy import RSS_MIB, Heavy, ended, finished, high_of, low_of, mark_of, report_of, results, until
from tests.integration.test_end_to_end import ingest, ledger_of, table_rows

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]
COINBASE, BINANCE = Stream("coinbase", "ETH-USD"), Stream("binance", "ETH-USDT")
DAYS = 8


def test_a_backfill_survives_both_kills_beside_an_ingest_and_fetches_no_finished_chunk_twice(
    stack: Stack, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heavy = Heavy(stack, simulator, victim=BINANCE, spot=COINBASE)
    since = (datetime.now(UTC) - timedelta(days=DAYS)).isoformat()
    output = heavy.through({"range": {"from": since}}, patience_s=400)
    heavy.assert_one_budget_and_bounded_memory()
    heavy.assert_nothing_was_fetched_twice()
    brought = heavy.assert_whole(tmp_path, monkeypatch)
    assert brought > DAYS * 2 * 30_000
    for stream in heavy.streams:
        rows = table_rows(stack, stream)
        assert [row[0] for row in rows] == list(range(low_of(stack, stream), high_of(stack, stream) + 1))
    report = report_of(stack, output)
    assert report["status"] == "done"
    assert (report["actual"]["missing_positions"], report["actual"]["trades"]) == (0, brought)


def test_a_paused_backfill_ends_in_order_and_the_same_input_goes_on_on_lambda(
    stack: Stack, simulator: Simulator
) -> None:
    stream = Stream("coinbase", "SOL-USD")
    ingest(stack, stream)
    mark = mark_of(stack, stream)
    machine, table = stack.client("stepfunctions"), ledger_of(stack).table
    first = mark.low - 15_000

    def run(name: str) -> str:
        asked = {"schema_version": 1, "products": ["coinbase:SOL-USD"], "range": {"ids": [first, mark.low - 1]}}
        started = machine.start_execution(
            stateMachineArn=stack.outputs["BackfillStateMachineArn"], name=name, input=json.dumps(asked)
        )
        done = until("the end", lambda: finished(machine, started["executionArn"]))
        assert done["status"] == "SUCCEEDED", (done.get("error"), done.get("cause"))
        return str(json.loads(done["output"])["status"])

    name = f"paused-{os.getpid()}"
    table.put_item(Item={"stream": "backfill", "item": name, "wanted": "pause"})
    assert run(name) == "paused"
    assert low_of(stack, stream) == mark.low
    tasks = len(ended(stack))
    assert run(f"resumed-{os.getpid()}") == "done"
    assert low_of(stack, stream) == first
    assert len(ended(stack)) == tasks, "so little needs no task"
    assert run(f"again-{os.getpid()}") == "done", "nothing is missing"


def test_a_first_run_with_too_much_work_for_functions_goes_through_a_task(stack: Stack, simulator: Simulator) -> None:
    stream = Stream("kraken", "ETH-USD")
    before = len(ended(stack))
    ingest(stack, stream)
    [task] = ended(stack)[before:]
    assert (task["exit_code"], task["peak_mib"] < RSS_MIB) == (0, True)
    [result] = results(stack, stream)
    assert (result["status"], result["committed"]) == ("done", 0), "CommitSegments commits"
    segments = list(ledger_of(stack).segments(stream))
    assert sum(s.count for s in segments) == result["trades"] >= 12_000
    assert {s.published_in is not None for s in segments} == {True}
    assert len(table_rows(stack, stream)) == result["trades"]
    assert simulator.stats()["kraken"]["rate_limited"] == 0
