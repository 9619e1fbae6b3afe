"""Files of an archive into the lake. Each pathology names the issue in which users met it (shared peers.md §B)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub.streams import Interval
from tests.unit.archive_worlds import NEW, OLD, WORLD, ArchiveWorld, kinds
from tests.unit.pipelines import BINANCE, make_pipeline


@pytest.fixture
def world(aws: boto3.Session, tmp_path: Path) -> Iterator[ArchiveWorld]:
    with running(WORLD) as server:
        pipeline = make_pipeline(aws, server, tmp_path, cold_start_trades=50)
        pipeline.ingest(BINANCE)
        yield ArchiveWorld(pipeline, tmp_path)


def test_a_day_of_milliseconds_is_the_exchange_row_by_row(world: ArchiveWorld) -> None:
    report, ids = world.ingest(OLD), world.ids(OLD)
    assert (report.status, report.left, kinds(report)) == ("ingested", [], {})
    assert report.committed_rows == ids.size > 2_000
    assert world.table(ids) == world.truth(ids)
    state = world.state(OLD)
    assert state is not None
    assert (state.status, state.checksum, state.sha256) == ("ingested", "verified", state.upstream_sha256)
    assert {s.source for s in world.deps.ledger.segments(BINANCE, ids.first) if s.last <= ids.last} == {"archive"}


def test_a_day_of_microseconds_keeps_every_digit(world: ArchiveWorld) -> None:
    report, ids = world.ingest(NEW), world.ids(NEW)
    assert report.read.units == {"us": ids.size}
    assert world.table(ids) == world.truth(ids, micros=True)
