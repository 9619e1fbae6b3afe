"""Real processes and threads against the embedded AWS: overlapping runs, wrong clocks, the load on one bucket."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from local import ministack, sim_process
from schemahub.deps import Settings, build
from schemahub.streams import overlapping
from tests.conftest import create_tables
from tests.contention import in_processes, load_one_bucket, overlapping_runs, publish_pending, table_ids
from tests.unit.worlds import STREAM, World

BUCKET = "schemahub-contention"
LIMIT_PER_S = 10


@dataclass
class Account:
    """An empty account on an embedded AWS of its own, and an exchange of its own."""

    environment: dict[str, str]
    settings: Settings
    sim_port: int

    def world(self) -> World:
        session = boto3.Session("test", "test", region_name=ministack.REGION)
        return World(build(self.settings, session=session))


def make_account(home: Path, limit: Any) -> Iterator[Account]:
    port, sim_port = ministack.free_port(), ministack.free_port()
    config = home / "world.json"
    home.mkdir()
    config.write_text(json.dumps({"coinbase": {"products": ["BTC-USD"], "trades_per_day": 860_000, "limit": limit}}))
    daemon = ministack.start(home, port=port)
    sim_process.start(home, sim_port, config)
    environment = {
        "AWS_ENDPOINT_URL": daemon.endpoint,
        "AWS_DEFAULT_REGION": ministack.REGION,
        "POWERTOOLS_TRACE_DISABLED": "true",
        **ministack.ROOT_CREDENTIALS,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        session = boto3.Session()
        tables = create_tables(session)
        session.client("s3").create_bucket(Bucket=BUCKET)
        session.client("glue").create_database(DatabaseInput={"Name": "schemahub_contention"})
        settings = Settings(
            bucket=BUCKET,
            locks_table=tables["locks"],
            streams_table=tables["streams"],
            throttle_table=tables["throttle"],
            database="schemahub_contention",
            cold_start_hours=0.02,
            cold_start_trades=2_000,
            chunk_pages=1,
            endpoints=sim_process.endpoints(sim_port),
        )
        yield Account(environment, settings, sim_port)
    sim_process.stop(home)
    ministack.stop(home)


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    yield from make_account(tmp_path / "home", {"rate": 10, "burst": 15})


@pytest.fixture
def unlimited(tmp_path: Path) -> Iterator[Account]:
    yield from make_account(tmp_path / "home", "none")


def overlap(account: Account, seconds: float) -> None:
    world = account.world()
    told = in_processes(overlapping_runs, 2, account.environment, account.settings, 4, seconds)
    print(*(f"{count:6}  {name}" for name, count in sorted(told.outcomes.items())), sep="\n")
    deps = world.deps
    tiles = [(s.first, s.last) for s in deps.ledger.segments(STREAM)]
    mark = deps.ledger.watermark(STREAM)
    assert mark is not None
    assert not overlapping(tiles)
    assert (tiles[0][0], tiles[-1][1]) == (mark.low, mark.high)
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(tiles))
    mirror = json.loads(deps.objects.get(STREAM.mirror_key) or b"{}")
    assert mirror["high"] <= mark.high
    while publish_pending(world):
        pass
    assert table_ids(world, STREAM) == list(range(mark.low, mark.high + 1))
    # Contention there was, and work that came through it.
    assert told.outcomes["covered"] + told.outcomes["partial"] > 1
    assert told.outcomes["busy"] + told.outcomes["LockLost"] > 0
    assert told.outcomes["published"] > 0


def test_overlapping_runs_of_two_processes_with_wrong_clocks_write_every_trade_once(unlimited: Account) -> None:
    overlap(unlimited, 6)


@pytest.mark.long
def test_overlapping_runs_for_longer(unlimited: Account) -> None:
    overlap(unlimited, 30)


def load(account: Account, processes: int, threads: int, seconds: float, after_s: float) -> dict[str, Any]:
    """So many workers on one bucket, who begin ``after_s`` from now; the figures of it."""
    begin_s = time.time() + after_s
    told = in_processes(load_one_bucket, processes, account.environment, account.settings, threads, begin_s, seconds)
    seen = sim_process.stats(account.sim_port)["coinbase"]
    granted = told.outcomes["granted"]
    figures = {
        "workers": processes * threads,
        "granted": granted,
        "other": {k: v for k, v in told.outcomes.items() if k != "granted"},
        "refused with 429": seen["rate_limited"],
        "share of the limit": seen["steady"]["share_of_limit"],
        "steady seconds": seen["steady"]["seconds"],
        "worst wait s": round(max(told.waits_s), 2),
        "fair wait s": processes * threads / LIMIT_PER_S,
        "writes per granted request": round(told.writes / granted, 3),
    }
    print(json.dumps(figures, indent=1), file=sys.stderr)
    return figures


def test_40_workers_on_one_bucket_keep_the_limit(account: Account) -> None:
    """The small form: too short for the last percent of the limit."""
    figures = load(account, 2, 20, 9, after_s=6)
    assert figures["refused with 429"] == 0
    assert figures["other"] == {}
    assert figures["share of the limit"] > 0.9
    assert figures["worst wait s"] < 3 * figures["fair wait s"]


@pytest.mark.long
def test_200_workers_on_one_bucket_use_the_limit_and_nobody_starves(account: Account) -> None:
    figures = load(account, 4, 50, 60, after_s=20)
    assert figures["refused with 429"] == 0
    assert figures["other"] == {}
    assert figures["share of the limit"] >= 0.98
    assert figures["writes per granted request"] <= 1.1
    # Slots are given in the order of asking: nobody waits longer than one round of everybody.
    assert figures["worst wait s"] < 1.5 * figures["fair wait s"]
