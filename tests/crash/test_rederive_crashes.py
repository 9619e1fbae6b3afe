"""A re-derivation dies before or after each of its writes; a redrive, or the next execution, makes the table whole.

The steps are called as the state machine calls them, with payloads that went through JSON. A redrive goes on at the
step that died and keeps what the steps before it said; a new execution begins at the beginning.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from schemahub import events, publishing
from schemahub.clock import FakeClock
from schemahub.deps import Deps, Settings, build
from schemahub.errors import BadStateInput
from schemahub.mappings import Mapping, load_mapping
from schemahub.runtime import parse_event
from schemahub.streams import Segment, Stream
from tests.conftest import create_tables
from tests.lake import BTC, BUCKET, DATABASE, Lake, coinbase_row, make_glue_check_versions

WRITES = ("PutObject", "UpdateItem", "UpdateTable")
LEASES_ARE_OVER_S = 200
PUBLISH_BEGINS = 6
"""Plan, batches, quarantine, data file and manifest come before it."""
ETH = Stream("coinbase", "ETH-USD")


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can catch it and go on."""


class Reaper:
    """Kills at the n-th write of any client that the session makes from now on, and at all that follow: a dead worker
    writes nothing more, whatever thread or ``finally`` tries to. n of None only counts."""

    def __init__(self, session: boto3.Session) -> None:
        self.at: int | None = None
        self.mode, self.seen, self.struck = "before", 0, ""
        for write in WRITES:
            session.events.register(f"before-call.*.{write}", self._before)
            session.events.register(f"after-call.*.{write}", self._after)

    def arm(self, at: int | None, mode: str) -> None:
        self.at, self.mode, self.seen, self.struck = at, mode, 0, ""

    def _before(self, model: Any, **_: Any) -> None:
        self.seen += 1
        self._strike("before", model.name)

    def _after(self, model: Any, **_: Any) -> None:
        self._strike("after", model.name)

    def _strike(self, mode: str, write: str) -> None:
        if mode == self.mode and self.at is not None and self.seen >= self.at:
            self.struck = self.struck or write
            raise Killed(self.struck)


@dataclass
class Machine:
    """The state machine ``transform`` in one process: the outputs of finished steps outlive the worker."""

    deps: Deps
    done: dict[str, Any] = field(default_factory=dict)

    def run(self, name: str, redrive: int = 0, **wanted: Any) -> dict[str, Any]:
        execution = {"Id": f"arn:aws:states:us-east-1:1:execution:transform:{name}", "RedriveCount": redrive}
        listed = self.step(
            name,
            publishing.list_pending,
            events.ListPending,
            execution=execution,
            input={"schema_version": 1, **wanted},
        )
        if not listed["batches"]:
            return listed
        for line in (self.deps.objects.get(listed["batches_key"]) or b"").splitlines():
            batch = json.loads(line)
            same = {"run": listed["run"], "mode": listed["mode"]}
            self.step(f"{name} {batch['batch_id']}", publishing.transform_step, events.BatchStep, **same, batch=batch)
        keys = {k: listed[k] for k in ("run", "bucket", "batches_key", "mode")}
        return self.step(f"{name} publish", publishing.publish_step, events.PublishStep, execution=execution, **keys)

    def step(self, name: str, step: Callable[..., Any], model: Any, **payload: Any) -> dict[str, Any]:
        if name not in self.done:
            event = parse_event(model, json.loads(json.dumps({"schema_version": 1, **payload})))
            self.done[name] = json.loads(json.dumps(step(event, self.deps)))
        return self.done[name]


@dataclass
class World:
    lake: Lake
    machine: Machine
    reaper: Reaper
    clock: FakeClock
    mappings: tuple[Mapping, Mapping]
    monkeypatch: pytest.MonkeyPatch

    def use(self, number: int) -> None:
        """Deploy the right mapping (0) or the one with the sides the wrong way round (1)."""
        self.monkeypatch.setattr(publishing, "load_mapping", lambda _: self.mappings[number % 2])

    def assert_whole(self, number: int, last: int) -> None:
        rows = self.lake.rows()
        assert [int(r["trade_id"]) for r in rows if r["symbol"] == "BTC-USD"] == [*range(1, 13), *range(14, last + 1)]
        assert [int(r["trade_id"]) for r in rows if r["symbol"] == "ETH-USD"] == list(range(1, 6))
        sell = {0: "SELL", 1: "BUY"}[number % 2]
        assert {r["side"] for r in rows if r["symbol"] == "BTC-USD" and int(r["trade_id"]) % 3 == 0} == {sell}
        assert {r["side"] for r in rows if r["symbol"] == "ETH-USD" and int(r["trade_id"]) % 3 == 0} == {"SELL"}
        properties = self.lake.table().metadata.properties
        assert properties["schemahub.published.coinbase.BTC-USD.trades"] == f"1-{last}"
        assert properties["schemahub.quarantined.coinbase.BTC-USD.trades"] == "1"
        assert list(self.machine.deps.ledger.pending()) == []


@pytest.fixture
def world(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    make_glue_check_versions(monkeypatch)
    reaper, lake, tables = Reaper(aws), Lake(aws, tmp_path), create_tables(aws)
    settings = Settings(BUCKET, tables["locks"], tables["streams"], tables["throttle"], DATABASE)
    right = replace(load_mapping("coinbase"), quarantine_max_share=0.2)
    wrong = replace(right, fields=replace(right.fields, side_values={"buy": "BUY", "sell": "SELL"}))
    clock = FakeClock()
    world = World(lake, Machine(build(settings, aws, clock)), reaper, clock, (right, wrong), monkeypatch)
    commit(world, lake.commit(1, 10))
    rows = [coinbase_row(i, **({"side": "?"} if i == 13 else {})) for i in range(11, 21)]
    commit(world, lake.commit(11, 20, rows=rows))
    commit(world, lake.commit(1, 5, stream=ETH))
    world.use(0)
    assert world.machine.run("first")["status"] == "published"
    world.assert_whole(0, 20)
    return world


def commit(world: World, segment: Segment) -> None:
    world.machine.deps.ledger.restore(segment.stream, 1, segment.last, [segment], 0)


def killed_everywhere(world: World, mode: str, *, redrive: bool, first: int = 1) -> list[str]:
    struck: list[str] = []
    again = {"streams": ["coinbase:BTC-USD"]}
    for point in itertools.count(first):
        world.use(point)
        world.reaper.arm(point, mode)
        try:
            world.machine.run(f"run-{point}", rederive=again)
        except Killed as killed:
            struck.append(str(killed))
        else:
            world.assert_whole(point, 20)
            return struck
        world.reaper.arm(None, mode)
        world.clock.advance(LEASES_ARE_OVER_S)
        if redrive:
            world.machine.run(f"run-{point}", redrive=1, rederive=again)
        else:
            world.machine.run(f"next-{point}", rederive=again)
        world.assert_whole(point, 20)
    raise AssertionError("unreachable")


@pytest.mark.long
@pytest.mark.parametrize("redrive", [True, False], ids=["redriven", "anew"])
@pytest.mark.parametrize("mode", ["before", "after"])
def test_killed_at_every_write_the_table_is_whole_and_of_one_mapping(world: World, mode: str, redrive: bool) -> None:
    struck = killed_everywhere(world, mode, redrive=redrive)
    assert set(struck) == set(WRITES), f"some kind of write was never hit: {struck}"
    assert len(struck) > 10
    print(f"killed {mode} {len(struck)} writes of a re-derivation: lost 0, twice 0, of another mapping 0")


def test_killed_while_it_commits_the_table_is_whole_and_of_one_mapping(world: World) -> None:
    struck = killed_everywhere(world, "after", redrive=True, first=PUBLISH_BEGINS)
    assert set(struck) == set(WRITES)


def test_a_transform_that_runs_at_the_same_time_loses_nothing(world: World) -> None:
    """Planned before, published between the re-derivation's transform and its commit."""
    commit(world, world.lake.commit(21, 30))
    world.use(1)
    original = publishing.publish_step

    def publish_later(event: Any, deps: Deps) -> dict[str, Any]:
        if event.mode == "replace":
            world.use(0)
            Machine(deps).run("meanwhile")
            world.use(1)
        return original(event, deps)

    world.monkeypatch.setattr(publishing, "publish_step", publish_later)
    outcome = world.machine.run("mine", rederive={"streams": ["coinbase:BTC-USD"]})
    assert (outcome["status"], outcome["rows"], outcome["rows_before"], outcome["quarantined"]) == (
        "replaced",
        19,
        19,
        1,
    )
    rows = [r for r in world.lake.rows() if r["symbol"] == "BTC-USD" and int(r["trade_id"]) % 3 == 0]
    assert {r["side"] for r in rows if int(r["trade_id"]) <= 20} == {"BUY"}
    assert {r["side"] for r in rows if int(r["trade_id"]) > 20} == {"SELL"}
    assert len(world.lake.ids()) == 29


def test_what_the_ledger_says_of_a_segment_stays(world: World) -> None:
    before = [(s, s.published_in) for s in world.machine.deps.ledger.segments(BTC)]
    world.machine.run("again", rederive={"streams": ["coinbase:BTC-USD"]})
    assert [(s, s.published_in) for s in world.machine.deps.ledger.segments(BTC)] == before


def test_nothing_to_make_anew_is_an_execution_that_ends_well(world: World) -> None:
    assert world.machine.run("late", rederive={"streams": ["coinbase:BTC-USD"], "since": 21})["batches"] == 0
    assert world.machine.run("later", rederive={"streams": ["coinbase:BTC-USD"], "since": "2025-01-01"})["batches"] == 0


def test_streams_of_which_nothing_is_there_are_refused_by_name(world: World) -> None:
    with pytest.raises(BadStateInput, match="binance#BTC-USDT"):
        world.machine.run("none", rederive={"streams": ["binance:BTC-USDT"]})


def test_without_a_table_there_is_nothing_to_make_anew(world: World) -> None:
    world.lake.session.client("glue").delete_table(DatabaseName=DATABASE, Name="unified_trades")
    with pytest.raises(BadStateInput, match="no table"):
        world.machine.run("none", rederive={"streams": ["coinbase:BTC-USD"]})
