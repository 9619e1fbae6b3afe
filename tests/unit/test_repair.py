"""Holes from the exchange to the table: asked again later, filled once, classed, visible until they are proved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub import errors, raw
from schemahub.commit import Superseded, settle_hole
from schemahub.holes import LOOKS, LOOKS_APART_S, Hole, absent_now, merged
from schemahub.repair import holes_of, repair_stream
from schemahub.streams import Interval
from tests.lake import make_glue_check_versions
from tests.unit.pipelines import FAST, Pipeline, make_pipeline
from tests.unit.stores import lost
from tests.unit.worlds import STREAM

SOON = LOOKS_APART_S + 1


@pytest.fixture
def pipeline(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    make_glue_check_versions(monkeypatch)
    with running(FAST) as server:
        yield make_pipeline(aws, server, tmp_path)


def hide(pipeline: Pipeline, *offsets: tuple[int, int]) -> list[Interval]:
    """Ranges that the exchange does not show, counted from a border between two chunks; they become holes."""
    start = pipeline.border()
    spans = [Interval(start + first, start + last) for first, last in offsets]
    for span in spans:
        pipeline.fault("missing_forever", match={"ids": list(span)})
    return spans


def holes(pipeline: Pipeline) -> list[Hole]:
    return holes_of(pipeline.world.deps, STREAM)


def ids(spans: list[Interval]) -> set[int]:
    return {i for first, last in spans for i in range(first, last + 1)}


def missing(pipeline: Pipeline) -> set[int]:
    ledger = pipeline.world.deps.ledger
    return ids(absent_now(ledger.segments(STREAM), ledger.segments(STREAM.fills)))


def test_what_comes_later_is_in_the_table_exactly_once(pipeline: Pipeline) -> None:
    spans = hide(pipeline, (100, 105), (-60, -60))
    pipeline.run()
    pipeline.assert_exact(without=ids(spans))
    pipeline.cure()
    looked = pipeline.repair()
    assert [(r.filled, r.written) for r in looked] == [(1, True), (6, True)]
    pipeline.transform()
    pipeline.assert_exact()
    assert [h.state for h in holes(pipeline)] == ["filled", "filled"]
    assert merged(holes(pipeline)) == []
    assert missing(pipeline) == set()
    # Again, at every step: nothing to do, nothing twice.
    assert pipeline.repair(again=True) == []
    pipeline.transform()
    pipeline.assert_exact()


def test_a_part_that_comes_is_kept_and_the_rest_stays_a_hole(pipeline: Pipeline) -> None:
    [span] = hide(pipeline, (100, 119))
    pipeline.run()
    pipeline.cure()
    rest = [span.first + 5, span.first + 9]
    pipeline.fault("missing_forever", match={"ids": rest})
    [looked] = pipeline.repair()
    assert looked.filled == 15
    pipeline.transform()
    pipeline.assert_exact(without=range(rest[0], rest[1] + 1))
    [gap] = merged(holes(pipeline))
    assert (gap.first, gap.last, gap.state, gap.proved) == (*rest, "exchange_skipped", False)
    assert {(f.first, f.last) for f in pipeline.world.deps.ledger.segments(STREAM.fills)} == {
        (span.first, rest[0] - 1),
        (rest[1] + 1, span.last),
    }
    pipeline.cure()
    pipeline.repair()
    pipeline.transform()
    pipeline.assert_exact()


def test_a_hole_is_visible_until_looks_half_an_hour_apart_prove_it(pipeline: Pipeline) -> None:
    hide(pipeline, (100, 105))
    pipeline.run()
    sent = pipeline.requests()
    for _ in range(3):
        pipeline.repair()  # at once: a cache would say the same
    assert pipeline.requests() > sent
    assert [(h.looks, h.proved) for h in holes(pipeline)] == [(1, False)]
    for look in range(2, LOOKS + 1):
        pipeline.later(SOON)
        pipeline.repair()
        assert [(h.looks, h.proved) for h in holes(pipeline)] == [(look, look == LOOKS)]
    [hole] = holes(pipeline)
    assert hole.kind == "exchange_skipped"
    assert "both sides" in hole.evidence
    sent = pipeline.requests()
    assert pipeline.repair() == []
    assert pipeline.requests() == sent, "a proved hole costs no request"
    assert [r.after.kind for r in pipeline.repair(again=True)] == ["exchange_skipped"]


def test_ids_that_jumped_while_trading_stood_still_are_halted(pipeline: Pipeline) -> None:
    """binance-public-data#28: maintenance, no trades for hours, and the ids jumped."""
    hide(pipeline, (-60, 30))  # half an hour at the simulator's pace
    pipeline.run()
    for _ in range(LOOKS - 1):
        pipeline.later(SOON)
        pipeline.repair()
    assert {(h.kind, h.proved) for h in holes(pipeline)} == {("halted", True)}
    assert "s apart (usually" in holes(pipeline)[0].evidence
    [gap] = merged(holes(pipeline))
    assert gap.ids == 91, "chunks cut what the exchange left out in one piece"


def test_what_nobody_can_prove_any_more_is_lost_and_never_proved(pipeline: Pipeline) -> None:
    hide(pipeline, (100, 105))
    pipeline.run()
    pipeline.cure()
    pipeline.fault("delisted")
    for unclear in range(1, LOOKS + 1):
        pipeline.later(SOON)
        [looked] = pipeline.repair()
        assert (looked.after.unclear, looked.after.looks) == (unclear, 1)
    [hole] = holes(pipeline)
    assert (hole.kind, hole.proved) == ("lost", False)
    assert "UnknownProduct" in hole.evidence
    pipeline.cure()  # relisted: what was lost can still come
    pipeline.repair()
    pipeline.transform()
    pipeline.assert_exact()


def test_ids_beside_a_young_trade_are_not_yet_and_come(pipeline: Pipeline) -> None:
    """peers §B.4: the newest trades of a node may lag; what is missing beside them may still appear."""
    head = pipeline.head()
    pipeline.fault("late_ids", match={"ids": [head - 12, head - 10]}, after_s=60)
    pipeline.run()
    assert pipeline.absent() == [(head - 12, head - 10, "not_yet")]
    assert [h.proved for h in holes(pipeline)] == [False]
    pipeline.later(61)
    assert [r.filled for r in pipeline.repair()] == [3]
    pipeline.transform()
    pipeline.assert_exact()


def test_a_dry_run_asks_and_writes_nothing(pipeline: Pipeline) -> None:
    hide(pipeline, (100, 105))
    pipeline.run()
    pipeline.cure()
    before = list(pipeline.world.deps.objects.list("")), holes(pipeline)
    [looked] = pipeline.repair(dry_run=True)
    assert (looked.filled, looked.written) == (6, False)
    assert (list(pipeline.world.deps.objects.list("")), holes(pipeline)) == before
    assert list(pipeline.world.deps.ledger.segments(STREAM.fills)) == []
    assert pipeline.world.deps.locks.holder(STREAM.lock_id) is None


def test_a_repair_and_a_run_never_work_on_a_stream_together(pipeline: Pipeline) -> None:
    hide(pipeline, (100, 105))
    pipeline.run()
    deps = pipeline.world.deps
    lease = deps.locks.acquire(STREAM.lock_id, "a-run", "a-run")
    with pytest.raises(errors.LockBusy):
        pipeline.repair()
    deps.locks.release(lease)
    looking = repair_stream(deps, STREAM, "gaps:me")
    next(looking)
    with pytest.raises(errors.LockBusy):
        deps.locks.acquire(STREAM.lock_id, "a-run", "a-run")
    looking.close()
    deps.locks.acquire(STREAM.lock_id, "a-run", "a-run")


def test_a_repair_that_lost_its_lock_writes_nothing(pipeline: Pipeline) -> None:
    [span] = hide(pipeline, (100, 105))
    pipeline.run()
    pipeline.cure()
    deps = pipeline.world.deps
    original = deps.ledger.settle

    def too_late(*args: object) -> None:
        pipeline.clock.ahead_s += 300
        deps.locks.acquire(STREAM.lock_id, "rival", "rival")
        deps.ledger.settle = original  # type: ignore[method-assign]
        original(*args)  # type: ignore[arg-type]

    deps.ledger.settle = too_late  # type: ignore[method-assign,assignment]
    with pytest.raises(errors.LockLost):
        pipeline.repair()
    assert missing(pipeline) == ids([span])
    assert [h.state for h in holes(pipeline)] == ["exchange_skipped"]
    assert pipeline.world.deps.locks.holder(STREAM.lock_id).owner == "rival"  # type: ignore[union-attr]
    deps.locks.release_run("rival")
    pipeline.repair()  # the raw object of the first try is there already
    pipeline.transform()
    pipeline.assert_exact()


def test_a_lost_answer_of_the_settlement_is_looked_up(pipeline: Pipeline) -> None:
    hide(pipeline, (100, 105))
    pipeline.run()
    pipeline.cure()
    client, calls = pipeline.world.deps.ledger.client, []

    def deaf(**request: object) -> None:
        calls.append(1)
        transact(**request)
        raise lost()

    transact = client.transact_write_items
    client.transact_write_items = deaf
    [looked] = pipeline.repair()
    client.transact_write_items = transact
    assert (looked.filled, looked.written, len(calls)) == (6, True, 1)
    pipeline.transform()
    pipeline.assert_exact()


def test_two_repairs_of_one_hole_settle_it_once(pipeline: Pipeline) -> None:
    """A zombie that looked at the hole as it was cannot settle it again, even with a good lock."""
    hide(pipeline, (100, 105))
    pipeline.run()
    deps = pipeline.world.deps
    [seen] = holes(pipeline)
    pipeline.cure()
    pipeline.repair()
    lease = deps.locks.acquire(STREAM.lock_id, "zombie", "zombie")
    [settled] = holes(pipeline)
    late = replace(seen, kind="lost", revision=seen.revision + 1)
    assert settle_hole(deps.ledger, deps.locks, lease, seen, late, [], deps.clock) == Superseded(seen.last)
    assert holes(pipeline) == [settled]


def test_more_fills_than_a_transaction_takes(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schemahub.repair.MAX_FILLS", 2)
    client, sizes = pipeline.world.deps.ledger.client, list[int]()
    transact = client.transact_write_items

    def watched(**request: Any) -> Any:
        sizes.append(len(request["TransactItems"]))
        return transact(**request)

    monkeypatch.setattr(client, "transact_write_items", watched)
    [span] = hide(pipeline, (100, 119))
    pipeline.run()
    pipeline.cure()
    gone = [span.first + 3, span.first + 7, span.first + 11, span.first + 15]
    for one in gone:
        pipeline.fault("missing_forever", match={"ids": [one, one]})
    [looked] = pipeline.repair()
    assert (looked.filled, looked.written) == (16, True)
    assert max(sizes[-3:]) == 4, "the lock's check, the hole and two fills"
    pipeline.transform()
    pipeline.assert_exact(without=gone)
    assert missing(pipeline) == set(gone)


def test_a_fill_that_contradicts_a_stored_one_is_an_alarm(pipeline: Pipeline) -> None:
    hide(pipeline, (100, 105))
    pipeline.run()
    pipeline.cure()
    deps = pipeline.world.deps
    [hole] = holes(pipeline)
    deps.objects.put_new(
        raw.raw_key(STREAM.fills, hole.first, hole.last, 6), b"other",
        {"first": str(hole.first), "last": str(hole.last), "count": "6", "sha256": "0" * 64, "absent": "[]"},
    )  # fmt: skip
    with pytest.raises(errors.RawConflict, match="fills"):
        pipeline.repair()
    assert [h.state for h in holes(pipeline)] == ["exchange_skipped"]


def test_the_fills_line_cannot_be_ingested(pipeline: Pipeline) -> None:
    with pytest.raises(errors.BadProductId, match="not a stream of trades"):
        pipeline.world.open("coinbase:BTC-USD:fills")
