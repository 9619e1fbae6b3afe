"""A stream that began with a backfill, all the way: in the table, whole to ``verify``, with a certificate."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from local.exchange_sim.server import Server, running
from schemahub import query, rebuild
from schemahub.audit import audit
from schemahub.certificate import judge, parse, text_of
from schemahub.evidence import files_of
from schemahub.lake import Lake, lake_of
from tests.proofs import SIGNED
from tests.unit.backfills import Backfill
from tests.unit.pipelines import FAST, Pipeline, make_pipeline
from tests.unit.worlds import STREAM


@pytest.fixture
def server() -> Iterator[Server]:
    with running(FAST) as server:
        yield server


@pytest.fixture
def pipeline(aws: boto3.Session, server: Server, tmp_path: Path) -> Pipeline:
    return make_pipeline(aws, server, tmp_path)


def proved(pipeline: Pipeline) -> tuple[int, int]:
    """The range of the certificate that a deep ``verify`` issues for the stream and that holds on its own."""
    deps = pipeline.world.deps

    def table() -> Lake:
        """Over copies of the data files, as DuckDB's own S3 client finds no bucket here."""
        found, copies = lake_of(deps), list[str]()
        for file in files_of(deps.objects, found.metadata):
            copies.append(str(pipeline.folder / file.key.rsplit("/", 1)[-1]))
            assert deps.objects.get_to_file(file.key, Path(copies[-1]))
        return replace(found, connect=lambda: query.open_files(copies))

    verdicts = list(audit(deps, table, deep=True, sign_off=SIGNED))
    assert [f for v in verdicts for f in v.findings] == []
    [document] = [v.document for v in verdicts if v.document]
    assert judge(parse(text_of(document), "test")) == []
    first, last = document["range"]
    return first, last


def test_a_stream_that_began_with_a_backfill_is_whole_to_verify_and_gets_a_certificate(pipeline: Pipeline) -> None:
    deps = pipeline.world.deps
    hours = dt.datetime.fromtimestamp(deps.clock.now_ms() / 1000 - 12 * 3600, dt.UTC).isoformat()
    assert Backfill.start(pipeline.world, {"from": hours, "to": None}).through()["status"] == "done"
    pipeline.transform()
    pipeline.assert_exact()
    mark = deps.ledger.watermark(STREAM)
    assert mark is not None
    assert proved(pipeline) == (mark.low, mark.high)
    pipeline.later(3600)
    pipeline.run()
    pipeline.assert_exact()
    after = deps.ledger.watermark(STREAM)
    assert after is not None
    assert after.high > mark.high
    assert proved(pipeline) == (mark.low, after.high)
    assert rebuild.rebuild(deps, STREAM, dry_run=True).segments == 0
