"""``maintain``: holes asked for again on a schedule, the longest unseen first, so many and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub import errors, events, maintain
from schemahub.holes import LOOKS, LOOKS_APART_S, Hole
from schemahub.maintain import MAX_HOLES, MAX_OF_STREAM, chosen, due, maintain_step
from schemahub.repair import holes_of
from schemahub.runtime import parse_event
from schemahub.streams import Stream
from tests.lake import make_glue_check_versions
from tests.simulation.asl import SUCCEEDED, Execution, Invocation, Service, StateFailed, load, run
from tests.unit.pipelines import FAST, Pipeline, make_pipeline
from tests.unit.worlds import STREAM

SOON = LOOKS_APART_S + 1
RUN = "arn:aws:states:us-east-1:1:execution:schemahub-test-maintain:m-1"
ALL_FILLED = {"streams": 1, "holes": 3, "looked": 3, "filled": 3, "proved": 0, "unanswered": 0}
NO_CORRECTIONS = {"corrections_published": 0, "corrections_due": 0, "corrections_committed": 0}
CHILD = "arn:aws:states:us-east-1:1:execution:schemahub-test-maintain/RepairStreams:c-1"


def hole(first: int, looked_at: int = 0, stream: Stream = STREAM, **fields: Any) -> Hole:
    return Hole(stream, first, first, "exchange_skipped", 0, looked_at, **fields)


def test_only_holes_that_a_look_can_say_something_new_of_are_due_the_longest_unseen_first() -> None:
    now = int(LOOKS_APART_S * 1000) + 500
    fresh, old, older = hole(1, 501), hole(2, 500), hole(3, 400)
    proved, filled = hole(4, looks=LOOKS), hole(5, filled=((5, 5),))  # type: ignore[arg-type]
    assert due([fresh, old, older, proved, filled], now) == [older, old]
    assert len(due([hole(n) for n in range(MAX_OF_STREAM + 50)], now)) == MAX_OF_STREAM


def test_an_exchange_gives_no_more_than_its_share_of_a_run_and_takes_none_of_anothers() -> None:
    many = [hole(n, n, Stream("coinbase", f"P{n % 10}-USD")) for n in range(MAX_HOLES + 100)]
    other = hole(7, 10**6, Stream("binance", "BTC-USDT"))
    taken = chosen([*many, other])
    assert taken.pop(other.stream) == [other]
    assert sorted(h.last_looked_at for holes in taken.values() for h in holes) == list(range(MAX_HOLES))


@pytest.fixture
def pipeline(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """Ingested, with a hole of one id and one of six across two chunks, that nobody has looked for again yet."""
    make_glue_check_versions(monkeypatch)
    with running(FAST) as server:
        made = make_pipeline(aws, server, tmp_path)
        border = made.border()
        for first, last in ((border - 3, border + 2), (border - 60, border - 60)):
            made.fault("missing_forever", match={"ids": [first, last]})
        made.run()
        made.later(SOON)
        yield made


def call(pipeline: Pipeline, action: str, arn: str = RUN, redrive: int = 0, **payload: Any) -> dict[str, Any]:
    execution = {"Id": arn, "RedriveCount": redrive}
    return pipeline.world.call(
        maintain_step, events.MaintainStep, {"action": action, "execution": execution, **payload}
    )


def opened(pipeline: Pipeline) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    answer = call(pipeline, "open", input={"schema_version": 1})
    body = pipeline.world.deps.objects.get(answer["holes_key"]) or b""
    return answer, [json.loads(line) for line in body.splitlines()]


def repaired(pipeline: Pipeline, answer: dict[str, Any], line: dict[str, Any], redrive: int = 0) -> dict[str, Any]:
    return call(pipeline, "repair", CHILD, redrive, run=answer["run"], stream=line["stream"], holes=line["holes"])


def test_a_run_asks_for_what_is_due_keeps_what_comes_and_says_what_became_of_it(pipeline: Pipeline) -> None:
    answer, [line] = opened(pipeline)
    assert (answer["streams"], answer["holes"], len(line["holes"])) == (1, 3, 3)
    assert call(pipeline, "close", run=answer["run"])["unanswered"] == 3
    pipeline.cure()
    assert repaired(pipeline, answer, line) == {"status": "looked", "asked": 3, "came": 7}
    assert repaired(pipeline, answer, line) == {"status": "looked", "asked": 3, "came": 0}  # once more: nothing to do
    closed = call(pipeline, "close", run=answer["run"])
    assert closed == {**ALL_FILLED, **NO_CORRECTIONS}
    assert pipeline.world.deps.locks.holder(STREAM.lock_id) is None
    pipeline.transform()
    pipeline.assert_exact()
    assert opened(pipeline)[0]["holes"] == 0


def test_what_is_denied_often_enough_is_proved_and_not_asked_for_again(pipeline: Pipeline) -> None:
    for _ in range(LOOKS - 1):
        answer, [line] = opened(pipeline)
        repaired(pipeline, answer, line)
        closed = call(pipeline, "close", run=answer["run"])
        assert opened(pipeline)[0]["holes"] == 0, "too soon: it would not count"
        pipeline.later(SOON)
    assert (closed["looked"], closed["proved"], closed["filled"]) == (3, 3, 0)
    assert opened(pipeline)[0]["holes"] == 0
    assert all(h.proved for h in holes_of(pipeline.world.deps, STREAM))


def test_a_stream_that_a_run_holds_is_left_and_counted(pipeline: Pipeline) -> None:
    answer, [line] = opened(pipeline)
    pipeline.world.deps.locks.acquire(STREAM.lock_id, "a-run", "a-run")
    assert repaired(pipeline, answer, line)["status"] == "busy"
    assert call(pipeline, "close", run=answer["run"])["unanswered"] == 3


def test_the_lock_belongs_to_the_run_so_that_its_failure_releases_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, [line] = opened(pipeline)
    # Killed where it cannot release anything.
    monkeypatch.setattr(pipeline.world.deps.locks, "release", lambda lease, attempt=None: False)
    repaired(pipeline, answer, line)
    monkeypatch.undo()
    assert pipeline.world.deps.locks.release_run(RUN) == [STREAM.lock_id]


def test_a_redriven_child_takes_its_own_lock_again(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, [line] = opened(pipeline)
    monkeypatch.setattr(pipeline.world.deps.locks, "release", lambda lease, attempt=None: False)
    repaired(pipeline, answer, line)
    monkeypatch.undo()
    pipeline.cure()
    with monkeypatch.context() as held:
        held.setattr(pipeline.world.deps.locks, "release", lambda lease, attempt=None: False)
        assert repaired(pipeline, answer, line, redrive=1)["came"] == 7
    holder = pipeline.world.deps.locks.holder(STREAM.lock_id)
    assert holder is not None
    assert (holder.owner, holder.attempt) == (CHILD, 1), "what the first attempt still does would not be a zombie's"


def test_a_range_with_something_wrong_does_not_keep_the_others_from_a_look(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, [line] = opened(pipeline)
    pipeline.cure()
    first, look = line["holes"][0], maintain._look_at

    def conflicting(event: Any, deps: Any, run: Any, hole: Hole) -> int:
        if hole.first == first:
            raise errors.PageConflict("two different trades", stream=hole.stream)
        return look(event, deps, run, hole)

    monkeypatch.setattr(maintain, "_look_at", conflicting)
    with pytest.raises(errors.PageConflict):
        repaired(pipeline, answer, line)
    left = {h.first: h.ids for h in holes_of(pipeline.world.deps, STREAM)}
    assert left.pop(first) > 0
    assert set(left.values()) == {0}


def test_an_exchange_that_does_not_answer_ends_the_step_by_its_name(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, [line] = opened(pipeline)
    pipeline.fault("http_status", status=503)
    looks, look = [], maintain._look_at
    monkeypatch.setattr(maintain, "_look_at", lambda *arguments: looks.append(1) or look(*arguments))
    with pytest.raises((errors.ExchangeUnavailable, errors.CircuitOpen)):
        repaired(pipeline, answer, line)
    assert len(looks) == 1, "it goes on asking for the other holes"
    assert pipeline.world.deps.locks.holder(STREAM.lock_id) is None


def test_a_step_begins_no_other_hole_after_its_time(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, [line] = opened(pipeline)
    look = maintain._look_at

    def slow(*arguments: Any) -> int:
        came = look(*arguments)
        pipeline.clock.ahead_s += maintain.WORK_S
        return came

    monkeypatch.setattr(maintain, "_look_at", slow)
    assert repaired(pipeline, answer, line)["asked"] == 1


def test_a_hole_is_asked_for_first_on_the_path_that_its_segment_did_not_come_by(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from schemahub import repair
    from schemahub.paths import Rest

    order: list[str] = []

    class Archive:
        source = "archive"

        def look(self, deps: Any, hole: Hole, tick: Any) -> None:
            order.append("archive")

    class Told(Rest):
        def look(self, deps: Any, hole: Hole, tick: Any) -> Any:
            order.append("rest")
            return super().look(deps, hole, tick)

    monkeypatch.setattr(repair, "paths_of", lambda mapping: (Told(), Archive()))
    answer, [line] = opened(pipeline)
    repaired(pipeline, answer, {**line, "holes": line["holes"][:1]})
    assert order == ["archive", "rest"]


def test_a_product_that_left_the_seed_is_asked_for_and_one_without_a_mapping_is_not(pipeline: Pipeline) -> None:
    deps = pipeline.world.deps
    deps.objects.put("schemahub/config/products.json", b'{"schema_version": 1, "streams": []}')
    gone = Stream("mtgox", "BTC-USD")
    deps.objects.put(gone.mirror_key, b"{}")
    deps.ledger.add_hole(replace(hole(1), stream=gone))
    assert [line["stream"]["exchange"] for line in opened(pipeline)[1]] == ["coinbase"]


@pytest.mark.parametrize("payload", [
    {"action": "repair"}, {"action": "close"}, {"action": "sweep"}, {"action": "repair", "holes": [-1]},
    {"action": "look"}, {"action": "rederive"}, {"action": "published"},
])  # fmt: skip
def test_a_payload_that_lacks_what_the_step_needs_is_refused(pipeline: Pipeline, payload: dict[str, Any]) -> None:
    with pytest.raises(errors.BadStateInput):
        call(pipeline, **payload)


# --- through the state machine's own file ---------------------------------------------------------------------------


def through_the_machine(pipeline: Pipeline) -> Execution:
    """One execution of `maintain`, each Task answered by the step that its function calls."""

    def call(invocation: Invocation) -> dict[str, Any]:
        assert invocation.function == "maintain"
        event = parse_event(events.MaintainStep, json.loads(json.dumps(invocation.payload)))
        try:
            return maintain_step(event, pipeline.world.deps)
        except errors.SchemaHubError as error:
            raise StateFailed(type(error).__name__) from error

    deps = pipeline.world.deps
    service = Service(
        lambda bucket, key: deps.objects.get(key) or b"", deps.clock.now_ms, {"maintain": load("maintain")}
    )
    return run(service.start("maintain", {"schema_version": 1}), call, deps.clock.sleep)


def test_the_machine_asks_fills_and_says_what_became_of_it(pipeline: Pipeline) -> None:
    pipeline.cure()
    execution = through_the_machine(pipeline)
    assert execution.status == SUCCEEDED
    assert execution.output == {**ALL_FILLED, **NO_CORRECTIONS}
    again = through_the_machine(pipeline)
    assert again.status == SUCCEEDED
    assert again.entered == [
        "OpenMaintenance", "HasHoles", "LookForReissues", "HasDueFiles", "ListCorrections", "HasCorrections",
        "CloseMaintenance", "Maintained",
    ]  # fmt: skip


def test_an_exchange_that_is_down_is_retried_tolerated_and_counted(pipeline: Pipeline) -> None:
    pipeline.fault("http_status", status=503)
    began_ms = pipeline.clock.now_ms()
    execution = through_the_machine(pipeline)
    assert (execution.status, execution.output["unanswered"]) == (SUCCEEDED, 3)
    assert pipeline.clock.now_ms() - began_ms > 30_000, "it did not retry"
    assert pipeline.world.deps.locks.holder(STREAM.lock_id) is None
