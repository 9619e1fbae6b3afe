"""``schemahub gaps`` over a stream with holes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from local.exchange_sim.server import running
from schemahub.holes import LOOKS, LOOKS_APART_S
from schemahub.streams import Stream
from schemahub_cli import target
from schemahub_cli.main import app
from tests.lake import make_glue_check_versions
from tests.unit.pipelines import FAST, Pipeline, make_pipeline
from tests.unit.worlds import STREAM

RUNNER = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def pipeline(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """Published, with one hole of six ids across two chunks and one of a single id; the exchange has them now."""
    make_glue_check_versions(monkeypatch)
    with running(FAST) as server:
        made = make_pipeline(aws, server, tmp_path)
        border = made.border()
        for first, last in ((border - 3, border + 2), (border - 60, border - 60)):
            made.fault("missing_forever", match={"ids": [first, last]})
        made.run()
        made.cure()
        where = SimpleNamespace(deps=made.world.deps, stack="schemahub-test", where="schemahub-test", local=True)
        monkeypatch.setattr(target, "resolve", lambda name: where)
        yield made


def gaps(*arguments: str, code: int = 0) -> Any:
    result = RUNNER.invoke(app, ["gaps", *arguments, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_holes_are_listed_as_merged_ranges_with_their_class(pipeline: Pipeline) -> None:
    document = gaps()
    [stream] = document["streams"]
    assert (stream["exchange"], stream["product"], stream["missing_ids"], stream["unproved_ids"]) == (
        *("coinbase", "BTC-USD"),
        *(7, 7),
    )
    single, merged = stream["gaps"]
    assert (single["ids"], single["holes"]) == (1, 1)
    assert (merged["ids"], merged["holes"], merged["last"] - merged["first"]) == (6, 2, 5)
    assert (merged["class"], merged["proved"], merged["looks"]) == ("exchange_skipped", False, 1)
    assert gaps("--stream", "coinbase:BTC-USD")["streams"] == document["streams"]
    shown = RUNNER.invoke(app, ["gaps"])
    assert "exchange_skipped" in shown.output
    assert str(merged["first"]) in shown.output


def test_a_repair_fills_them_and_says_what_is_next(pipeline: Pipeline) -> None:
    [dry] = gaps("--repair", "--dry-run")["streams"]
    assert (dry["came"], dry["asked"], dry["missing_ids"]) == (7, 3, 7)
    result = RUNNER.invoke(app, ["gaps", "--repair"])
    assert result.exit_code == 0, result.output
    assert "7 ids came" in result.output
    assert "schemahub transform" in result.output
    [stream] = gaps()["streams"]
    assert (stream["missing_ids"], stream["filled_ids"], stream["gaps"]) == (0, 7, [])
    pipeline.transform()
    pipeline.assert_exact()


def test_proved_holes_are_counted_and_listed_only_when_asked_for(pipeline: Pipeline) -> None:
    before = gaps()["streams"][0]["gaps"]
    for gap in before:
        pipeline.fault("missing_forever", match={"ids": [gap["first"], gap["last"]]})
    for _ in range(LOOKS - 1):
        pipeline.later(LOOKS_APART_S + 1)
        gaps("--repair")
    [stream] = gaps()["streams"]
    assert (stream["missing_ids"], stream["unproved_ids"], stream["gaps"]) == (7, 0, [])
    everything = gaps("--all")["streams"][0]["gaps"]
    assert [(g["first"], g["last"], g["proved"]) for g in everything] == [(g["first"], g["last"], True) for g in before]
    shown = RUNNER.invoke(app, ["gaps"]).output
    assert "7 ids more are proved" in shown
    assert "no hole is open" in shown


def test_a_stream_that_another_run_holds_is_exit_code_4_and_named(pipeline: Pipeline) -> None:
    pipeline.world.deps.locks.acquire(STREAM.lock_id, "a-run", "a-run")
    [stream] = gaps("--repair", code=4)["streams"]
    assert stream["error"]["error"] == "LockBusy"
    assert stream["missing_ids"] == 7


def test_an_exchange_that_does_not_answer_is_exit_code_1_and_the_holes_stay(pipeline: Pipeline) -> None:
    pipeline.fault("http_status", status=503)
    [stream] = gaps("--repair", code=1)["streams"]
    assert stream["error"]["error"] in ("ExchangeUnavailable", "CircuitOpen")
    assert stream["missing_ids"] == 7
    assert pipeline.world.deps.locks.holder(STREAM.lock_id) is None


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--dry-run"], 2),
        (["--stream", "BTC-USD"], 1),
        (["--stream", "coinbase:ETH-USD"], 1),
        (["--stream", "coinbase:BTC-USD:fills"], 1),
    ],
)
def test_what_cannot_be_meant_is_refused(pipeline: Pipeline, arguments: list[str], code: int) -> None:
    assert RUNNER.invoke(app, ["gaps", *arguments]).exit_code == code


def test_a_product_that_left_the_seed_keeps_its_holes(pipeline: Pipeline) -> None:
    pipeline.world.deps.objects.put(
        "schemahub/config/products.json",
        b'{"schema_version": 1, "streams": [{"exchange": "coinbase", "product": "X-Y"}]}',
    )
    found = {Stream(s["exchange"], s["product"]): s["missing_ids"] for s in gaps()["streams"]}
    assert found == {STREAM: 7, Stream("coinbase", "X-Y"): 0}
