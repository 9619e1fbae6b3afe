"""Millions of trades through the deployed stack: five by tasks that are killed, twenty out of an archive.

    make test-backfill

The simulator answers at once and keeps the true limits of the exchanges, which the stack's one budget has to fit.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from local import ministack, sim_process
from local import stack as local_stack
from local.exchange_sim.simulator import Simulator as InProcess
from local.exchange_sim.world import build_world
from local.stack import Stack
from schemahub.query import connect
from schemahub.streams import Interval, Stream
from tests.integration.conftest import FIRST_RUNS, WAIT_SCALE, Simulator
from tests.integration.heavy import RSS_MIB, Heavy, ended, finished, report_of, results, until, verify
from tests.integration.test_end_to_end import ingest, ledger_of, oracle, run, session_of, table_of

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
WORLD: dict[str, Any] = {
    "latency_ms": {"mean": 0, "jitter": 0},
    "coinbase": {"trades_per_day": 900_000},
    "binance": {"trades_per_day": 690_000},
}
SPOT = Stream("coinbase", "BTC-USD")
VICTIM, THIRD = Stream("binance", "ETH-USDT"), Stream("binance", "BTC-USDT")
ARCHIVED = Stream("binance", "SOL-USDT")
MONTH, NO_CHECKSUM, CORRUPT = date(2026, 10, 1), date(2026, 11, 1), date(2026, 11, 2)
REISSUED, MISMATCH, LATE = date(2026, 11, 3), date(2026, 11, 4), date(2026, 11, 5)
FILES = "/archive/data/spot/{kind}/aggTrades/SOLUSDT/SOLUSDT-aggTrades-{name}.zip"


@dataclass(frozen=True)
class Big:
    """A stack and an exchange of their own: busy products, no recordings."""

    stack: Stack
    simulator: Simulator


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory, auth: bool) -> Iterator[Big]:
    folder = tmp_path_factory.mktemp("big")
    world, port = folder / "world.json", ministack.free_port()
    world.write_text(json.dumps(WORLD))
    sim_process.start(folder / "simulator", port, world)
    stack = local_stack.up(
        folder / "stack",
        port=ministack.free_port(),
        auth=auth,
        endpoints=sim_process.endpoints(port),
        wait_scale=WAIT_SCALE,
        parameters=FIRST_RUNS,
        progress=lambda message: print(message, file=sys.stderr),
    )
    yield Big(stack, Simulator(port))
    local_stack.down(folder / "stack")
    sim_process.stop(folder / "simulator")


def test_five_million_trades_of_three_streams(big: Big, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heavy = Heavy(big.stack, big.simulator, victim=VICTIM, spot=SPOT, others=(THIRD,))
    since = (datetime.now(UTC) - timedelta(days=2.25)).isoformat()
    output = heavy.through({"range": {"from": since}}, patience_s=2400)
    heavy.assert_one_budget_and_bounded_memory()
    heavy.assert_nothing_was_fetched_twice()
    brought = heavy.assert_whole(tmp_path, monkeypatch)
    report = report_of(big.stack, output)
    say(brought=brought, seconds=report["seconds"], tasks=ended(big.stack),
        results={str(s): results(big.stack, s) for s in heavy.streams}, limits=big.simulator.stats())  # fmt: skip
    assert brought >= 5_000_000
    assert (report["status"], report["actual"]["missing_positions"], report["actual"]["trades"]) == ("done", 0, brought)


def test_a_month_of_an_archive_with_all_that_archives_have_got_wrong(
    big: Big, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """binance-public-data's issues, planted together; numbers as in the peers' list."""
    tasks_before = len(ended(big.stack))
    big.simulator.reset()
    month = ids_between(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
    assert month.size >= 20_000_000
    first_of_november = ids_between(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 2, tzinfo=UTC))
    until_ = datetime(2026, 11, 5, 3, tzinfo=UTC)
    whole = Interval(month.first, ids_between(datetime(2026, 11, 1, tzinfo=UTC), until_).last)
    third_of_november = ids_between(datetime(2026, 11, 3, tzinfo=UTC), datetime(2026, 11, 4, tzinfo=UTC))
    wrong = Interval(third_of_november.first + 300_100, third_of_november.first + 300_139)
    gone = plant(big.simulator, month, first_of_november, wrong)
    # The simulator makes the file when it is asked for: minutes, which no exchange takes.
    get(big.simulator, FILES.format(kind="monthly", name="2026-10") + ".CHECKSUM", 1800)

    ingest(big.stack, ARCHIVED)
    machine = big.stack.client("stepfunctions")
    wanted = {"from": "2026-10-01", "to": until_.isoformat()}
    asked = {"schema_version": 1, "products": ["binance:SOL-USDT"], "range": wanted, "tasks": 2}
    arn = machine.start_execution(
        stateMachineArn=big.stack.outputs["BackfillStateMachineArn"], input=json.dumps(asked)
    )["executionArn"]
    done = until("the end", lambda: finished(machine, arn), 2700)
    assert done["status"] == "SUCCEEDED", (done.get("error"), done.get("cause"))
    report = report_of(big.stack, json.loads(done["output"]))
    tasks = ended(big.stack)[tasks_before:]
    say(seconds=report["seconds"], tasks=tasks, pathologies=report["pathologies"], actual=report["actual"],
        files=report["streams"][0]["files"])  # fmt: skip

    # Bounded memory, one budget.
    assert max(task["peak_mib"] for task in tasks) < RSS_MIB
    assert big.simulator.stats()["binance"]["rate_limited"] == 0

    # Each pathology is in the report.
    said = report["pathologies"]
    assert said["ids_absent"] == len(gone)  # 1, 8
    assert said["ids_missing"] >= 60_000 + 5_000  # 2, 3, 4
    assert said["truncated"] == 1  # 4
    assert said["ids_in_conflict"] >= 900  # 5, 12
    assert said["chunks_suspect"] >= 1  # 5
    assert said["rows_repeated"] == 100_000  # 6
    assert said["rows_disordered"] >= 1  # 7
    assert said["rows_of_another_day"] >= 1_000  # 7
    assert said["units_mixed"] > 100_000  # 9
    assert said["checksum_mismatch"] == 1  # 10
    assert said["checksum_missing"] == 1  # 11
    assert said["ArchiveUnreadable"] >= 1  # 11: a corrupt zip
    assert said["ArchiveAbsent"] >= 1  # 12
    assert said["rows_unreadable"] >= 3
    files = {file["name"]: file for file in report["streams"][0]["files"]}
    assert files["SOLUSDT-aggTrades-2026-10.zip"]["status"] == "ingested"
    assert files["SOLUSDT-aggTrades-2026-10.zip"]["rows"] >= 20_000_000

    # And handled: every trade that the exchange knows, once, as the exchange tells it.
    assert (report["status"], report["actual"]["missing_positions"]) == ("done", 0)
    segments = [s for s in ledger_of(big.stack).segments(ARCHIVED) if whole.first <= s.first <= whole.last]
    assert sum(s.count for s in segments) == whole.size - len(gone)
    verify(big.stack, ARCHIVED, tmp_path, monkeypatch)
    table = connect(session_of(big.stack), table_of(big.stack))
    here = f"exchange = 'BINANCE' AND symbol = 'SOL-USDT' AND CAST(trade_id AS BIGINT) BETWEEN {whole.first} AND "
    counted = table.execute(
        f"SELECT count(*), count(DISTINCT trade_id) FROM trades WHERE {here} {whole.last}"
    ).fetchone()
    assert counted == (whole.size - len(gone), whole.size - len(gone))
    for at in windows(month, first_of_november):
        assert differing(big, at, at + 999, gone) == [], f"ids from {at} on"

    # 10: what only the next issue of a file can tell is corrected once it is there.
    assert differing(big, wrong.first - 50, wrong.last + 50, gone) == list(range(wrong.first, wrong.last + 1))
    big.simulator.control("DELETE", f"/_sim/archives?begin={REISSUED.isoformat()}")
    outcome = run(big.stack, "MaintainStateMachineArn", timeout_s=900)
    assert outcome["status"] == "SUCCEEDED", (outcome.get("error"), outcome.get("cause"))
    maintained = json.loads(outcome["output"])
    say(maintained=maintained)
    assert (maintained["corrections_published"], maintained["corrections_due"]) == (1, 0)
    # 3: what the month's file and the API lack, the days' files have here, and that is where holes are looked for too.
    assert (maintained["holes"], maintained["filled"]) == (61, 61)
    assert differing(big, wrong.first - 50, wrong.last + 50, gone) == []
    verify(big.stack, ARCHIVED, tmp_path, monkeypatch)


def differing(big: Big, first: int, last: int, gone: set[int]) -> list[int]:
    """Ids of which the table and the exchange say different things, to the millisecond that the API tells."""
    rows = (
        connect(session_of(big.stack), table_of(big.stack))
        .execute(
            "SELECT CAST(trade_id AS BIGINT), side, price, quantity, epoch_us(trade_ts) // 1000 FROM trades WHERE "
            f"exchange = 'BINANCE' AND symbol = 'SOL-USDT' AND CAST(trade_id AS BIGINT) BETWEEN {first} AND {last}"
        )
        .fetchall()
    )
    truth = {(*t[:4], t[4] // 1000) for t in oracle(big.simulator, ARCHIVED, first, last) if t[0] not in gone}
    return sorted({row[0] for row in truth ^ set(rows)})


def plant(simulator: Simulator, month: Interval, day: Interval, wrong: Interval) -> set[int]:
    """What is wrong with the files; returns the ids that the API lacks too.

    Args:
        wrong: ids of another quantity in a file that will be issued again: only its next issue can tell.
    """
    a = month.first
    halt = (a + 1_000_000, a + 1_004_999)
    singles = [a + 2_000_000 + 1_300 * n for n in range(60)]
    lacking = (a + 3_000_007, a + 3_060_006)
    planted: list[dict[str, Any]] = [
        {"kind": "truncate", "share": 0.9995},  # first: it knows rows by their ids, also those of another day
        {"kind": "skip", "ids": list(halt)},
        *({"kind": "skip", "ids": [n, n]} for n in singles),
        {"kind": "skip", "ids": list(lacking)},
        {"kind": "conflict", "ids": [a + 4_000_000, a + 4_000_019]},
        {"kind": "bad_price", "ids": [a + 4_500_000, a + 4_500_000]},
        {"kind": "unit", "unit": "ms", "ids": [a + 5_000_000, a + 5_199_999]},
        {"kind": "repeat", "ids": [a + 6_010_000, a + 6_109_999], "times": 1},
        {"kind": "another_day", "rows": 1_000},
        {"kind": "other_trades", "ids": [a, a + 949]},
        {"kind": "interleave", "ways": 7},
        {"kind": "garbage", "rows": 3},
        {"kind": "wrong_checksum", "times": 2},  # the first of them is the one that makes the file
        {"kind": "break_off", "times": 1},
    ]
    planted = [{**p, "begin": MONTH.isoformat()} for p in planted] + [
        {"kind": "no_checksum", "begin": NO_CHECKSUM.isoformat()},
        {"kind": "other_quantity", "begin": NO_CHECKSUM.isoformat(), "ids": [day.last - 40, day.last]},
        {"kind": "corrupt", "begin": CORRUPT.isoformat()},
        {"kind": "other_quantity", "begin": REISSUED.isoformat(), "ids": list(wrong)},
        {"kind": "wrong_checksum", "begin": MISMATCH.isoformat()},
        {"kind": "no_file", "begin": LATE.isoformat()},
    ]
    simulator.control("POST", "/_sim/archives", [{"exchange": "binance", "product": "SOL-USDT", **p} for p in planted])
    both = {"kind": "missing_forever", "exchange": "binance", "product": "SOL-USDT"}
    spans = [list(halt), *([n, n] for n in singles)]
    simulator.add_faults(*({**both, "match": {"ids": span}} for span in spans))
    return {*range(halt[0], halt[1] + 1), *singles}


def windows(month: Interval, day: Interval) -> list[int]:
    """Where rows are compared with the exchange one by one: at each pathology, and here and there."""
    a = month.first
    marks = (0, 999_500, 2_000_900, 2_999_500, 3_059_600, 3_999_800, 4_499_900, 4_999_700, 5_199_500, 6_009_800)
    spread = range(7_000_000, month.size - 20_000, 1_750_000)
    return [a + n for n in (*marks, *spread)] + [month.last - 15_000, month.last - 500, day.last - 600]


def ids_between(since: datetime, until_: datetime) -> Interval:
    source = InProcess(build_world(WORLD)).listing("binance", "SOL-USDT").source
    micros = [int(t.timestamp()) * 1_000_000 for t in (since, until_)]
    return Interval(source.first_at_or_after(micros[0]), source.first_at_or_after(micros[1]) - 1)


def get(simulator: Simulator, path: str, timeout_s: float) -> bytes:
    with urllib.request.urlopen(f"{simulator.url}/binance{path}", timeout=timeout_s) as answer:
        return bytes(answer.read())


def say(**figures: Any) -> None:
    """What was measured, for whoever runs it with ``-s``."""
    for name, value in figures.items():
        print(f"{name}: {json.dumps(value)[:4000]}", file=sys.stderr)
