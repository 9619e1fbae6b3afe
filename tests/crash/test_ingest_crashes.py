"""A worker dies before, after, or without hearing of each of its writes; the next run makes the stream whole.

The points are found by running once and counting every write that leaves the adapters, not by a list written by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto.backends import get_backend

from local.exchange_sim.server import Server, running
from schemahub.clock import FakeClock
from tests.unit.test_ingest import FAST, assert_sound
from tests.unit.worlds import World, make_world

WRITES = ("PutObject", "UpdateItem", "PutItem", "TransactWriteItems")
LEASES_ARE_OVER_S = 200
SETTLED_MS = 10_000
MODES = ("before", "after")


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can catch it and go on."""


class Reaper:
    """Kills at the n-th write of any client; n of None only counts."""

    def __init__(self, world: World) -> None:
        self.at: int | None = None
        self.mode = "before"
        self.seen: list[str] = []
        deps = world.deps
        resources = [
            deps.ledger.table.meta.client,
            deps.ledger.client,
            deps.objects.client,
            deps.throttle_table.meta.client,
        ]
        clients = {id(c.meta.events): c for c in [*resources, deps.locks._table.meta.client]}
        for client in clients.values():
            for write in WRITES:
                client.meta.events.register(f"before-call.*.{write}", self._before)
                client.meta.events.register(f"after-call.*.{write}", self._after)

    def _before(self, model: Any, **_: Any) -> None:
        self.seen.append(model.name)
        if self.mode == "before" and self.at == len(self.seen):
            raise Killed(model.name)

    def _after(self, model: Any, **_: Any) -> None:
        if self.mode == "after" and self.at == len(self.seen):
            raise Killed(model.name)


@pytest.fixture
def server() -> Iterator[Server]:
    # Time stands still, so that every run makes the same writes in the same order.
    with running({**FAST, "clock": {"frozen": True}}) as server:
        yield server


@pytest.mark.parametrize("mode", MODES)
def test_killed_at_every_write_the_next_run_makes_it_whole(aws: boto3.Session, server: Server, mode: str) -> None:
    struck: list[str] = []
    for point in itertools.count(1):
        clear(aws)
        clock = FakeClock(server.simulator.clock.now_us() // 1000 + SETTLED_MS)
        world = make_world(aws, server.url, clock, cold_start_hours=2.0)
        reaper = Reaper(world)
        reaper.at, reaper.mode = point, mode
        try:
            world.ingest()
        except Killed as killed:
            struck.append(str(killed))
        else:
            break
        reaper.at = None
        clock.advance(LEASES_ARE_OVER_S)
        world.ingest()
        assert_sound(world)
    assert set(struck) == set(WRITES), f"some kind of write was never hit: {struck}"
    assert len(struck) > 12
    print(f"killed {mode} {len(struck)} writes: lost 0, twice 0")


def clear(session: boto3.Session) -> None:
    """An empty account again."""
    for service in ("dynamodb", "s3"):
        for account in get_backend(service).values():
            for backend in account.values():
                backend.reset()
