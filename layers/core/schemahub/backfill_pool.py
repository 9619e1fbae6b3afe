"""Threads that make the chunks of a task durable: retried by name, bounded in memory, abandoned when nobody waits."""

from __future__ import annotations

import math
import queue
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemahub import outages
from schemahub.backfill_plan import TaskSpec, pages_per_second
from schemahub.deps import Deps, logger
from schemahub.errors import (
    CircuitOpen,
    EmptyPage,
    ExchangeUnavailable,
    IncompletePage,
    MalformedResponse,
    RateLimited,
    ResponseInterrupted,
    SchemaHubError,
    SlotRefused,
    StoreUnavailable,
    about,
)
from schemahub.ingest import make_durable
from schemahub.mappings import load_mapping
from schemahub.paging import paging_of
from schemahub.streams import Absent, Chunk, RawObject

MAX_TRADES = 150_000
"""Trades that all threads together hold in memory: about 1 KB each with what an answer costs while it is read."""
SLOWEST_ANSWER_S = 1.0
"""How long an exchange may take for an answer without leaving slots unused."""
MAX_FAILED_IN_ROW = 20
"""Chunks that failed for good without one that succeeded: the exchange is not there, another attempt comes later."""


@dataclass(frozen=True)
class Retry:
    """As a Retry of the state machine: full jitter, so many more attempts."""

    errors: tuple[type[SchemaHubError], ...]
    interval_s: float
    attempts: int
    longest_s: float


RETRIES = (
    Retry((EmptyPage, IncompletePage), 5, 2, 30),
    Retry((SlotRefused, CircuitOpen), 5, 8, 120),
    Retry((ExchangeUnavailable, RateLimited, MalformedResponse, ResponseInterrupted), 2, 6, 60),
    Retry((StoreUnavailable,), 5, 5, 60),
)
"""Those of FetchChunk, which a task has nobody else for."""


class Abandoned(Exception):
    """Raised inside a fetch when nobody waits for it any more."""


@dataclass(frozen=True)
class Durable:
    """A chunk's raw object, and what it took. The rows are gone from memory. ``bytes`` are those of the object."""

    raw: RawObject
    fetched: bool = False
    requests: int = 0
    trades: int = 0
    bytes: int = 0
    lost: tuple[Absent, ...] = ()
    """Times before the oldest trade that the exchange shows, where it shows its newest only."""


class Pool:
    """Threads that take chunks in the order of the task and put what came of them into ``finished``.

    Daemons: a stopped task does not wait for a request that hangs, and a raw object is whole or not there.
    """

    def __init__(self, deps: Deps, spec: TaskSpec, todo: Sequence[Chunk], stop: threading.Event) -> None:
        self.deps, self.spec, self.stop = deps, spec, stop
        self.abandon = threading.Event()
        self.finished: queue.Queue[Durable] = queue.Queue()
        self.errors: Counter[str] = Counter()
        self.given_up = False
        self._todo = iter(todo)
        self._guard = threading.Lock()
        self._failed_in_row = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"chunks-{n}", daemon=True) for n in range(threads_for(deps, spec))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def working(self) -> int:
        return sum(thread.is_alive() for thread in self._threads)

    def take(self) -> Iterator[Durable]:
        """What is finished, waiting a moment for the first."""
        try:
            yield self.finished.get(timeout=0.05)
            while True:
                yield self.finished.get_nowait()
        except queue.Empty:
            return

    def _work(self) -> None:
        while not self.stop.is_set() and not self.given_up:
            with self._guard:
                chunk = next(self._todo, None)
            if chunk is None:
                return
            try:
                with about(self.spec.stream, (chunk.first, chunk.last)), outages.named():
                    outcome = self._patiently(chunk)
            except Abandoned:
                return
            except Exception as error:
                self._failed(chunk, error)
            else:
                self._failed_in_row = 0
                self.finished.put(outcome)

    def _failed(self, chunk: Chunk, error: Exception) -> None:
        """One chunk is left to a later attempt; too many in a row end this one."""
        logger.error(
            "chunk failed",
            extra={"chunk": f"{chunk.first}..{chunk.last}", "error": type(error).__name__, "reason": str(error)[:300]},
        )
        with self._guard:
            self.errors[type(error).__name__] += 1
            self._failed_in_row += 1
            if self._failed_in_row >= MAX_FAILED_IN_ROW:
                self.given_up = True

    def _patiently(self, chunk: Chunk) -> Durable:
        """One chunk, retried by the name of its error as the state machine retries FetchChunk."""
        used: Counter[int] = Counter()
        while True:
            try:
                with outages.named():
                    return self._durable(chunk)
            except SchemaHubError as error:
                number = next((n for n, r in enumerate(RETRIES) if isinstance(error, r.errors)), None)
                if number is None or used[number] >= RETRIES[number].attempts:
                    raise
                retry = RETRIES[number]
                longest = min(retry.longest_s, retry.interval_s * 2.0 ** used[number])
                used[number] += 1
                self._pause(random.uniform(0, longest))
                if self.stop.is_set():
                    raise Abandoned from error

    def _durable(self, chunk: Chunk) -> Durable:
        raw, fetched = make_durable(self.deps, self.spec.stream, chunk, self._tick)
        if fetched is None:
            return Durable(raw)
        size = (self.deps.objects.head(raw.key) or {}).get("size", 0)
        lost = () if fetched.counted else fetched.absent
        return Durable(raw, True, fetched.requests, len(fetched.texts), size, lost)

    def _tick(self) -> None:
        if self.abandon.is_set():
            raise Abandoned

    def _pause(self, seconds: float) -> None:
        """Sleep by the injected clock, but no longer than somebody wants the chunk."""
        while seconds > 0 and not self.stop.is_set():
            self.deps.clock.sleep(min(seconds, 0.5))
            seconds -= 0.5


def threads_for(deps: Deps, spec: TaskSpec) -> int:
    """Workers times chunk concurrency, as far as there are chunks, memory for them, and slots to feed them.

    More threads than the rate feeds would only hold unfinished chunks, which a kill then loses.
    """
    mapping = load_mapping(spec.stream.exchange)
    paging = paging_of(mapping)
    expected = mapping.requests.page_size * deps.settings.chunk_pages
    if paging.counted:
        expected = max((chunk.size for chunk in spec.chunks), default=expected)
    fed = math.ceil(pages_per_second(mapping, deps.settings.limit_share) * SLOWEST_ANSWER_S) + 1
    wanted = spec.workers * spec.chunk_concurrency
    return max(1, min(wanted, len(spec.chunks), MAX_TRADES // max(1, expected), fed))
