"""What a backfill is asked for, what it will take, and how it is split: pure arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemahub import cost
from schemahub.backfill_plan import (
    FILE_ROWS_PER_SECOND,
    MAX_TASKS,
    PRESETS,
    TASK_S,
    Estimate,
    Means,
    TaskSpec,
    Wanted,
    estimate,
    estimate_files,
    number_of_tasks,
    pages_per_second,
    route,
    split,
    tasks_at_a_time,
)
from schemahub.errors import BadInput, BadStateInput
from schemahub.locks import Lease
from schemahub.mappings import load_mapping
from schemahub.paging import Expected
from schemahub.streams import Chunk, Interval, Known, Stream
from tests.unit.worlds import STREAM

LEASE = Lease(STREAM.backfill_lock_id, "arn:child", "arn:run", 0, 7)
DAY_US = 86_400_000_000


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("all", Wanted()),
        ({"ids": [3, 5]}, Wanted(ids=Interval(3, 5))),
        ({"ids": [5, 5]}, Wanted(ids=Interval(5, 5))),
        ({"from": "1970-01-02"}, Wanted(since_us=DAY_US)),
        ({"from": "1970-01-02", "to": None}, Wanted(since_us=DAY_US)),
        ({"from": "1970-01-02T01:00:00+01:00", "to": "1970-01-03"}, Wanted(since_us=DAY_US, until_us=2 * DAY_US)),
        ({"from": "1970-01-01T00:00:00.000001Z"}, Wanted(since_us=1)),
    ],
)
def test_a_range_is_read(value: Any, wanted: Wanted) -> None:
    assert Wanted.parse(value) == wanted
    assert Wanted.parse(json.loads(json.dumps(wanted.to_json()))) == wanted


@pytest.mark.parametrize(
    "value",
    [
        None, "", "ALL", 5, [], {}, {"ids": []}, {"ids": [1]}, {"ids": [1, 2, 3]}, {"ids": [5, 3]}, {"ids": ["1", "2"]},
        {"ids": [1.0, 2.0]}, {"ids": [True, 2]}, {"ids": [-1, 2]}, {"ids": [0, 2**63]}, {"ids": None},
        {"ids": [1, 2], "from": "2023-01-01"}, {"to": "2023-01-01"}, {"from": None}, {"from": 2023},
        {"from": "yesterday"}, {"from": "2023-01-01", "to": "2023-01-01"}, {"from": "2023-01-02", "to": "2023-01-01"},
        {"from": "1969-12-31"}, {"from": "2023-01-01", "until": "2024-01-01"}, {"from": "2023-13-01"},
    ],
)  # fmt: skip
def test_a_range_that_cannot_be_meant_is_refused_with_an_example(value: Any) -> None:
    with pytest.raises(BadStateInput, match=r'\{"ids": \[first, last\]\}|not an integer'):
        Wanted.parse(value)


def test_the_threshold_decides_the_way() -> None:
    assert route(100, 0.1, threshold_seconds=10) == "lambda"
    assert route(101, 0.1, threshold_seconds=10) == "ecs"
    assert route(1, 0.1, threshold_seconds=0) == "ecs"


def guess(requests: int, chunks: int = 10, **means: Any) -> Estimate:
    return estimate(Expected(requests * 1000, requests), chunks, Means(**{"rate": 10.0, "ecs": True, **means}))


def test_an_estimate_is_the_limits_arithmetic() -> None:
    small, large = guess(1_000), guess(900_000, 90_000)
    assert (small.route, small.tasks, small.seconds) == ("lambda", 0, 100.0)
    assert small.lambda_seconds == 10 * 100.0
    assert (large.route, large.tasks, large.seconds) == ("ecs", 1, 90_000.0), "one task already fills the limit"
    assert (large.lambda_seconds, large.ecs_seconds) == (0.0, 90_000.0)
    assert large.trades == 900_000_000
    assert large.storage_bytes == pytest.approx(900e6 * 31)
    # 25 hours of half a core and a gigabyte, 1.3 million writes, 900 batches of a million rows: dollars.
    assert 1 < large.usd < 10
    assert json.loads(json.dumps(large.to_json()))["route"] == "ecs"


def test_files_are_not_paced_by_the_exchanges_limit() -> None:
    found = estimate_files(100_000_000, 30, Means(rate=10.0, tasks=4))
    assert (found.route, found.tasks, found.chunks, found.requests) == ("ecs", 4, 30, 60)
    assert found.seconds == 100_000_000 / (4 * FILE_ROWS_PER_SECOND)
    assert found.ecs_seconds == 4 * found.seconds
    assert estimate_files(0, 2, Means(rate=10.0)).tasks == 2


def test_waiting_is_cheaper_in_a_task_than_in_functions() -> None:
    chunks, means = 9_000, Means(rate=10.0)
    by_task, by_lambda = (estimate(Expected(10**8, 90_000), chunks, means, way) for way in ("ecs", "lambda"))
    assert by_task.usd < by_lambda.usd / 2


def test_without_a_network_everything_runs_by_lambda() -> None:
    assert guess(900_000, ecs=False).route == "lambda"
    assert guess(10, ecs=True, threshold_seconds=0).route == "ecs"


def test_a_bill_with_tasks_counts_no_functions_that_fetch() -> None:
    work = {"streams": 1, "chunks": 1000, "requests": 10_000, "trades": 10**7, "seconds": 1000.0}
    lambdas = {line.what: line.quantity for line in cost.bill(cost.Work(**work)).lines}
    tasks = cost.bill(cost.Work(**work, tasks=2, ecs_vcpu_seconds=1000.0, ecs_gb_seconds=2000.0))
    found = {line.what: line.quantity for line in tasks.lines}
    assert found["vCPU-hours (arm64)"] == pytest.approx((1000 + 2 * 60 * 0.5) / 3600)
    assert found["GB-hours (arm64)"] == pytest.approx((2000 + 2 * 60 * 1.0) / 3600)
    assert lambdas["invocations"] - found["invocations"] == 1000
    assert lambdas["state transitions"] - found["state transitions"] == 2 * (1000 - 2)
    assert "Fargate" in tasks.by_service()


def test_tasks_are_as_many_as_the_limit_feeds() -> None:
    assert tasks_at_a_time(100, Means(rate=10.0)) == 1
    assert tasks_at_a_time(100, Means(rate=1000.0, workers=3, chunk_concurrency=5, tasks=40)) == 14
    assert tasks_at_a_time(100, Means(rate=1000.0, workers=10, chunk_concurrency=20, tasks=40)) == 1
    assert tasks_at_a_time(100, Means(rate=1e6, tasks=4)) == 4
    assert tasks_at_a_time(2, Means(rate=1e6, tasks=4)) == 2
    assert set(PRESETS) == {"small", "medium", "large"}


def test_a_task_is_an_hour_of_work_at_most() -> None:
    assert number_of_tasks(1000, TASK_S, 2) == 2
    assert number_of_tasks(1000, TASK_S + 1, 2) == 4
    assert number_of_tasks(3, 100 * TASK_S, 2) == 3
    assert number_of_tasks(10**6, 1e9, 4) == MAX_TASKS
    assert number_of_tasks(1000, 10, 0) == 0


@given(st.sets(st.integers(0, 500), min_size=1), st.integers(1, 40))
def test_a_split_holds_every_chunk_once_the_newest_first(firsts: set[int], tasks: int) -> None:
    chunks = [Chunk(10 * n, 10 * n + 9) for n in firsts]
    lists = split(chunks, tasks)
    assert [c for listed in lists for c in listed] == sorted(chunks, reverse=True)
    assert len(lists) == min(tasks, len(chunks))
    assert max(map(len, lists)) - min(map(len, lists)) <= 1


def test_the_limits_share_is_part_of_the_rate() -> None:
    mapping = load_mapping("coinbase")
    assert pages_per_second(mapping, 1.0) == pytest.approx(2 * pages_per_second(mapping, 0.5))


SPECS = [
    TaskSpec("run-1", STREAM, LEASE, "rest", Interval(10, 99), 3, 5, (Chunk(90, 99), Chunk(10, 19))),
    TaskSpec("run-1", STREAM, LEASE, "archive", Interval(10, 99), 3, 5, file={"url": "https://x/y.zip"}),
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_task_survives_json(spec: TaskSpec) -> None:
    assert TaskSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_task_keeps_the_trades_that_its_chunks_must_be_linked_to() -> None:
    linked = replace(SPECS[0], chunks=(Chunk(10, 19, Known(9, 20, 3)), Chunk(20, 29)))
    back = TaskSpec.from_json(json.loads(json.dumps(linked.to_json())))
    assert [chunk.known for chunk in back.chunks] == [Known(9, 20, 3), None]


def test_a_task_of_an_ingest_works_under_the_lock_of_the_stream() -> None:
    lease = replace(LEASE, lock_id=STREAM.lock_id)
    spec = replace(SPECS[0], kind="ingest", lease=lease)
    assert TaskSpec.from_json(spec.to_json()) == spec
    for wrong in (replace(spec, lease=LEASE), replace(spec, kind="rest")):
        with pytest.raises(BadStateInput):
            TaskSpec.from_json(wrong.to_json())


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2}, {"kind": "guess"}, {"lease": None}, {"lease": {"lock_id": "x"}},
        {"chunks": [{"first": 5, "last": 3}]},
        {"chunks": [{"first": 1.5, "last": 3}]}, {"chunks": [[3, 5]]},
        {"within": [1]}, {"within": ["a", "b"]}, {"workers": 0}, {"workers": True},
        {"chunk_concurrency": "5"}, {"run": ""}, {"stream": {"exchange": "../x", "product": "A-B"}}, {"file": {"a": 1}},
        {"kind": "archive"}, {"workers": 10**6}, {"stream": {"exchange": "coinbase", "product": "ETH-USD"}},
    ],
)  # fmt: skip
def test_what_is_not_a_task_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        TaskSpec.from_json(SPECS[0].to_json() | change)
    with pytest.raises(BadStateInput):
        TaskSpec.from_json({})


def test_the_lock_of_a_backfill_is_its_own() -> None:
    assert STREAM.backfill_lock_id == "backfill#coinbase#BTC-USD#trades" != STREAM.lock_id
    assert Stream("coinbase", "ETH-USD").backfill_lock_id != STREAM.backfill_lock_id
