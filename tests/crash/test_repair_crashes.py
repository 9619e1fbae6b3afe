"""A repair dies before or after each of its writes; later repairs fill what is left, and nothing is there twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub.holes import merged
from schemahub.repair import holes_of, repair_stream
from schemahub.streams import overlapping
from tests.lake import make_glue_check_versions
from tests.unit.pipelines import FAST, Pipeline, make_pipeline
from tests.unit.worlds import STREAM

WRITES = ("PutObject", "UpdateItem", "PutItem", "TransactWriteItems")
LEASES_ARE_OVER_S = 200


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can catch it and go on."""


class Reaper:
    """Kills at the n-th write, of whatever client; whoever is dead writes nothing more, also not in ``finally``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.at, self.mode, self.only, self.dead = 0, "before", "", False
        self.seen: list[str] = []
        deps = pipeline.world.deps
        tables = (deps.ledger.table, deps.throttle_table, deps.locks._table)
        clients = [deps.ledger.client, deps.objects.client, *(table.meta.client for table in tables)]
        for client in {id(c.meta.events): c for c in clients}.values():
            for write in WRITES:
                client.meta.events.register(f"before-call.*.{write}", self._before)
                client.meta.events.register(f"after-call.*.{write}", self._after)

    def arm(self, at: int, mode: str, only: str = "") -> None:
        """``only``: count the writes of this name. Renewals and slots depend on time, and would shift the others."""
        self.at, self.mode, self.only, self.dead, self.seen = at, mode, only, False, []

    def _before(self, model: Any, **_: Any) -> None:
        if self.dead:
            raise Killed(model.name)
        if self.only not in ("", model.name):
            return
        self.seen.append(model.name)
        if (self.mode, self.at) == ("before", len(self.seen)):
            self.dead = True
            raise Killed(model.name)

    def _after(self, model: Any, **_: Any) -> None:
        if self.only in ("", model.name) and (self.mode, self.at) == ("after", len(self.seen)):
            self.dead = True
            raise Killed(model.name)


@pytest.fixture
def pipeline(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    make_glue_check_versions(monkeypatch)
    with running(FAST) as server:
        yield make_pipeline(aws, server, tmp_path)


@pytest.mark.parametrize("mode", ["before", "after"])
def test_killed_at_every_write_a_later_repair_fills_the_rest(pipeline: Pipeline, mode: str) -> None:
    for number in range(20):
        first = pipeline.border() - 150 + 12 * number
        pipeline.fault("missing_forever", match={"ids": [first, first + number % 3]})
    pipeline.run()
    pipeline.cure()
    deps, reaper, struck = pipeline.world.deps, Reaper(pipeline), set()
    for at in range(1, 40):
        reaper.arm(at, mode)
        try:
            list(repair_stream(deps, STREAM, f"gaps:{at}"))
            break
        except Killed:
            struck.add(reaper.seen[-1])
        pipeline.clock.ahead_s += LEASES_ARE_OVER_S
    reaper.arm(0, mode)
    list(repair_stream(deps, STREAM, "gaps:last"))
    assert struck == set(WRITES)
    assert merged(holes_of(deps, STREAM)) == []
    assert not overlapping([f.interval for f in deps.ledger.segments(STREAM.fills)])
    pipeline.transform()
    pipeline.assert_exact()
