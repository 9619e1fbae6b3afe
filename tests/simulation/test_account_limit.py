"""An account that runs ten functions at a time, and Maps that want more: what the Retry blocks make of it.

A discrete simulation of time alone: each chunk keeps one function busy for some seconds. One that finds no function
free is refused, as Lambda does, and comes back after the backoff that ``FetchChunk`` has for it.
"""

from __future__ import annotations

import heapq
import random
from typing import Any

import pytest

from schemahub.concurrency import (
    BACKFILL_CHUNKS,
    INGEST_CHUNKS,
    batches_at_a_time,
    chunks_at_a_time,
    streams_at_a_time,
)
from tests.simulation.asl import load

LIMIT = 10
THROTTLED = "Lambda.TooManyRequestsException"
OLD = {"IntervalSeconds": 2, "BackoffRate": 2, "MaxAttempts": 5, "MaxDelaySeconds": 60}
"""What all of Lambda's passing errors shared: five attempts within 31 seconds on average."""
CHUNKS = 400
SEEDS = range(10)
BRISK, SLOW = (2, 10), (10, 50)
"""Seconds that a chunk keeps its function: ten pages of an exchange that allows ten requests a second, or two."""
NEXT_CHILD_S = (0.2, 1.0)
"""How long a Map takes to start the next child. Only in this gap does one that waits find a function free."""
INGEST = streams_at_a_time(32) * chunks_at_a_time(32, INGEST_CHUNKS)
BACKFILL = streams_at_a_time(32) * chunks_at_a_time(32, BACKFILL_CHUNKS)


def retrier() -> dict[str, Any]:
    """The one of ``FetchChunk`` that a refused function meets."""
    streams = load("ingest")["States"]["IngestStreams"]["ItemProcessor"]["States"]
    block = streams["FetchChunks"]["ItemProcessor"]["States"]["FetchChunk"]["Retry"]
    [found] = [one for one in block if THROTTLED in one["ErrorEquals"]]
    return found


def failed(wanted: int, how: dict[str, Any], seed: int, busy_s: tuple[float, float]) -> tuple[int, int]:
    """Chunks that failed for good, and how often a function was refused, with ``wanted`` chunks side by side."""
    rng = random.Random(seed)
    free, lost, refused, left = LIMIT, 0, 0, CHUNKS - wanted
    # When, which child, and its attempts so far; -1: its function ends.
    agenda = [(rng.uniform(0, 5), child, 0) for child in range(wanted)]
    heapq.heapify(agenda)
    while agenda:
        now, child, attempt = heapq.heappop(agenda)
        if attempt < 0:
            free += 1
        elif free:
            free -= 1
            heapq.heappush(agenda, (now + rng.uniform(*busy_s), child, -1))
            continue
        elif attempt < how["MaxAttempts"]:
            refused += 1
            longest = min(how["IntervalSeconds"] * how["BackoffRate"] ** attempt, how["MaxDelaySeconds"])
            heapq.heappush(agenda, (now + rng.uniform(0, longest), child, attempt + 1))
            continue
        else:
            lost += 1
        if left > 0:
            left -= 1
            heapq.heappush(agenda, (now + rng.uniform(*NEXT_CHILD_S), child, 0))
    return lost, refused


@pytest.mark.parametrize("wanted", [INGEST, INGEST + BACKFILL], ids=["ingest", "ingest-beside-backfill"])
def test_no_chunk_is_lost_to_a_limit_of_ten_functions_however_many_the_machines_want(wanted: int) -> None:
    runs = [failed(wanted, retrier(), seed, BRISK) for seed in SEEDS]
    assert sum(refused for _, refused in runs) > 1000, "nobody was refused: this proves nothing"
    assert [lost for lost, _ in runs] == [0] * len(SEEDS)


@pytest.mark.parametrize(("busy_s", "share"), [(BRISK, 0.02), (SLOW, 0.25)], ids=["brisk", "slow"])
def test_with_the_five_attempts_of_other_errors_chunks_were_lost(busy_s: tuple[float, float], share: float) -> None:
    lost = sum(failed(INGEST, OLD, seed, busy_s)[0] for seed in SEEDS)
    assert lost > share * CHUNKS * len(SEEDS)


def test_of_slow_chunks_the_second_round_has_few_to_fetch() -> None:
    """Functions that are busy for long are seldom free at the moment when somebody asks: attempts alone cannot do it,
    which is why the command line keeps a run below the limit and FunctionsAtATime does for scheduled ones."""
    lost = sum(failed(INGEST, retrier(), seed, SLOW)[0] for seed in SEEDS)
    assert lost < 0.01 * CHUNKS * len(SEEDS)


def test_a_run_that_keeps_below_the_limit_is_never_refused() -> None:
    """With what the command line passes in such an account."""
    wanted = streams_at_a_time(8) * chunks_at_a_time(8, INGEST_CHUNKS)
    for busy_s in (BRISK, SLOW):
        assert [failed(wanted, retrier(), seed, busy_s) for seed in SEEDS] == [(0, 0)] * len(SEEDS)


@pytest.mark.parametrize("most", [INGEST_CHUNKS, BACKFILL_CHUNKS])
def test_streams_and_their_chunks_together_never_want_more_functions_than_allowed(most: int) -> None:
    for functions in [*range(1, 200), 1000, 10_000]:
        wanted = streams_at_a_time(functions) * chunks_at_a_time(functions, most)
        assert 1 <= wanted <= functions
        assert 1 <= batches_at_a_time(functions) <= functions


def test_the_default_is_eight_streams_with_two_chunks_and_four_in_a_backfill() -> None:
    assert streams_at_a_time(32) == 8
    assert [chunks_at_a_time(32, most) for most in (INGEST_CHUNKS, BACKFILL_CHUNKS)] == [2, 4]
    assert batches_at_a_time(32) == 4
