"""How many children each Map runs side by side, from the number of functions that may run at once.

An account has a limit of Lambda functions that run at the same time (1,000; a new account as few as 10), and each child
of a Map runs one. Beyond some number, more of them only wait for the exchange's slots and cost money meanwhile.
"""

from __future__ import annotations

DEFAULT_FUNCTIONS = 32
MAX_FUNCTIONS = 10_000
"""Step Functions runs no more children of a Distributed Map at once."""

STREAMS = 8
BATCHES = 4
INGEST_CHUNKS = 2
"""Chunks of one stream in a run: one is fetched while the other begins or is stored."""
BACKFILL_CHUNKS = 4


def streams_at_a_time(functions: int) -> int:
    """Streams side by side. Rather many streams with one chunk each than few with several: exchanges differ."""
    return max(min(STREAMS, functions), functions // BACKFILL_CHUNKS)


def chunks_at_a_time(functions: int, most: int) -> int:
    """Chunks of each stream side by side, so that all streams together run no more than ``functions``."""
    return max(1, min(most, functions // streams_at_a_time(functions)))


def batches_at_a_time(functions: int) -> int:
    """Batches of a transform, or streams whose holes are asked for, side by side."""
    return max(min(BATCHES, functions), functions // STREAMS)
