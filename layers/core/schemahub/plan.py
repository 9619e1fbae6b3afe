"""Planning: which positions are new, how they are cut into chunks, where a first run begins.

All of it is pure. The grid is fixed, so a later plan after a failure meets the same chunks and finds their raw objects.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from schemahub.answers import Row
from schemahub.errors import BadStateInput, EmptyPage, HeadBehindWatermark, MalformedResponse
from schemahub.streams import Chunk, Known, Stream

MAX_CHUNKS = 5_000
"""Chunks of one stream in one plan; the rest is the next run's. Bounds a child execution and a wrong head."""
MAX_JUMP = 10_000_000
"""Positions that one run goes forward. A head further away may be a stray id: a part of it is asked for, a human is
told, and the next run goes on."""
MAX_PROBES = 80
FUTURE_S = 86_400.0
"""A trade that far ahead of our clock is not young, its time is wrong: waiting for it would hold the stream back."""


@dataclass(frozen=True)
class Head:
    """The newest trade that counts, and the newest that the exchange shows."""

    settled: int
    newest: int


def head_of(rows: Sequence[Row], stream: Stream, now_us: int, settle_seconds: float) -> Head:
    """The head of a stream by its newest page: only trades older than the settle time count.

    When the whole page is younger, the id before it is the head: ids are dense, so it exists or is a hole to be
    classed. A time beyond ``FUTURE_S`` is not waited for: the trade is kept as sent, and the transform quarantines it.

    Raises:
        EmptyPage: no trades at all; MalformedResponse: a trade without a readable time.
    """
    if not rows:
        raise EmptyPage("the exchange shows no trades", stream=stream)
    check_times(rows, stream)
    before_us = now_us - int(settle_seconds * 1e6)
    absurd_us = now_us + int(FUTURE_S * 1e6)
    # A young trade may have got a lower id than an older one: everything from the first young id on has to wait.
    young = [row.position for row in rows if before_us < (row.ts_us or 0) <= absurd_us]
    newest = max(row.position for row in rows)
    return Head(min(young) - 1 if young else newest, newest)


def check_times(rows: Sequence[Row], stream: Stream) -> None:
    """Raises MalformedResponse when the time of a row cannot be read: no plan is made on guesses."""
    unreadable = [row.position for row in rows if row.ts_us is None]
    if unreadable:
        raise MalformedResponse(f"the time of trade {unreadable[0]} cannot be read", stream=stream)


def check_head(head: Head, high: int | None, stream: Stream) -> None:
    """Raises HeadBehindWatermark when the exchange's newest id is below what is committed."""
    if high is not None and head.newest < high:
        raise HeadBehindWatermark(
            f"the exchange's newest id is {head.newest}, the watermark is at {high}", stream=stream
        )


def why_nothing(rows: Sequence[Row], now_us: int, settle_seconds: float, newest_only: bool) -> str | None:
    """Why a first run plans nothing although there are trades, and what helps; None where trades are only awaited.

    Args:
        rows: the newest answer, with readable times.
        newest_only: the exchange shows no trades that are older.
    """
    before_us = now_us - int(settle_seconds * 1e6)
    young = sum((row.ts_us or 0) > before_us for row in rows)
    if not young:
        return None
    if newest_only and young == len(rows):
        return (
            f"nothing is planned: the exchange shows its newest {young} trades, which are all younger than the "
            f"{settle_seconds:g} s that trades are given to settle. Lower requests.settle_seconds in its mapping, or "
            "take its files"
        )
    return (
        f"nothing is planned: the trades of a first run are younger than the {settle_seconds:g} s that trades are "
        "given to settle. Raise ColdStartTrades or ColdStartHours; a product listed just now only needs time"
    )


def cut(first: int, last: int, chunk_size: int, limit: int = MAX_CHUNKS, known: Known | None = None) -> list[Chunk]:
    """``[first, last]`` cut at the multiples of ``chunk_size``; at most ``limit`` chunks from ``first`` on."""
    chunks: list[Chunk] = []
    at = first
    while at <= last and len(chunks) < limit:
        end = min((at // chunk_size + 1) * chunk_size - 1, last)
        chunks.append(Chunk(at, end, known))
        at = end + 1
    return chunks


def to_jsonl(chunks: Iterable[Chunk]) -> bytes:
    """The chunk list that the Map reads from S3."""
    return "".join(json.dumps(chunk.to_json()) + "\n" for chunk in chunks).encode()


def from_jsonl(body: bytes) -> list[Chunk]:
    """Raises BadStateInput for a list that is not of chunks, or whose chunks overlap or are out of order."""
    chunks = [Chunk.from_json(value) for value in lines_of(body, "the chunk list")]
    for before, after in itertools.pairwise(chunks):
        if after.first <= before.last:
            raise BadStateInput(f"chunks {before} and {after} overlap or are out of order")
    return chunks


def lines_of(body: bytes, what: str) -> list[Any]:
    """The values of JSON lines. Raises BadStateInput, naming ``what``, for anything else."""
    try:
        return [json.loads(line) for line in body.split(b"\n") if line]
    except (ValueError, RecursionError) as error:
        raise BadStateInput(
            f"{what} is not JSON lines: {str(error)[:200]}", remedy="Start a new execution: it plans again."
        ) from error


def cold_start(
    page: Sequence[Row], floor: int, target_us: int, page_size: int, probe: Callable[[int], Row | None]
) -> int:
    """The id at which a first run begins: near the first trade not older than ``target_us``, and above ``floor``.

    An interpolating bisection that asks the exchange for single trades. It need not hit the time exactly (backfill
    extends ``low`` later), but it must be a trade that exists. It is exact until a trade older than the target was
    seen, because until then history itself may begin here.

    Args:
        page: the newest page; its pace gives the first guess.
        floor: no position at or below it is asked for (the cap on a first run's size).
        probe: the trade at a position or its nearest neighbour (above on an ascending exchange, below on a descending
            one), None where there is nothing.
    """
    oldest, newest = min(page, key=lambda r: r.position), max(page, key=lambda r: r.position)
    if (oldest.ts_us or 0) < target_us or oldest.position <= floor:
        return min(
            row.position for row in page if (row.position > floor and (row.ts_us or 0) >= target_us) or row is newest
        )
    per_us = (newest.position - oldest.position) / max(1, (newest.ts_us or 0) - (oldest.ts_us or 0))
    # The trade looked for is `good` or lies in (below, top): nothing lies from `top` to `good`.
    good, top, below, below_us = oldest, oldest.position, floor, None
    for attempt in range(MAX_PROBES):
        if top - below <= (1 if below_us is None else max(1, page_size // 20)):
            break
        at = _guess(good, top, below, below_us, target_us, per_us, attempt)
        row = probe(at)
        if row is None or row.position <= below:
            below = at
        elif (row.ts_us or 0) < target_us:
            below, below_us = max(at, row.position), row.ts_us or 0
        else:
            good, top = min(good, row, key=lambda r: r.position), min(at, row.position)
    return good.position


def _guess(good: Row, top: int, below: int, below_us: int | None, target_us: int, per_us: float, attempt: int) -> int:
    """The next position to ask: by interpolation, by the newest page's pace, and every third time the middle."""
    low, high = below + 1, top - 1
    ahead_us = (good.ts_us or 0) - target_us
    if attempt % 3 == 2 or (below_us is None and attempt > 2):
        return (low + high) // 2
    if below_us is None:
        guess = good.position - int(ahead_us * per_us * 1.02) - 1
    else:
        guess = below + int((target_us - below_us) / max(1, (good.ts_us or 0) - below_us) * (good.position - below))
    return min(high, max(low, guess))
