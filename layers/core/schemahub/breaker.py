"""The circuit breaker of an exchange, shared by all workers: one item, ``{exchange}#breaker`` in ThrottleTable.

    closed ──(threshold failures in a row)──► open ──(open_until passed, one wins the probe)──► half_open
      ▲                                         ▲                                                  │
      └────────────(the probe succeeded)────────┼──────────────────────────────────────────────────┤
                                                └──(the probe failed; a silent one expires)────────┘

Each change of state takes ``gen + 1``, so a generation is one stay in one state, and "still this generation" is the one
condition of every write: nobody probes twice, and a report about a world that is gone is dropped.
Failures count in a row across all workers, within ``window_s``; one success by anybody starts the count again, and is
written only by a worker that has seen failures, so that a healthy exchange costs no writes.

Each worker reads the item at most once in ``stale_ms``: for so long it may still send into a breaker that has just
opened (never faster than the bucket allows). While the breaker is open nobody reads until ``open_until``.
"""

from __future__ import annotations

import logging
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from schemahub.clock import Clock
from schemahub.conditional import Applied, Item, read, update_if, whole
from schemahub.errors import (
    BadInput,
    CircuitOpen,
    CorruptState,
    ExchangeError,
    ExchangeUnavailable,
    RateLimited,
    ResponseInterrupted,
)

log = logging.getLogger(__name__)

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"
_NAMES = {"#state": "state", "#gen": "gen"}


@dataclass(frozen=True)
class Tuning:
    """When the breaker opens, and for how long."""

    threshold: int = 5
    window_s: float = 60
    """Failures further apart than this are not in a row."""
    base_s: float = 5
    cap_s: float = 120
    """The n-th opening in a row lasts a random time up to min(cap, base * 2^n): full jitter, at least ``floor_s``."""
    floor_s: float = 1
    probe_s: float = 30
    """A prober that is silent for so long is dead; above the HTTP time-out."""
    stale_ms: int = 1000
    slow_downs: int = 3
    """RateLimited this often in a row, in spite of the penalties, is a failure."""


@dataclass(frozen=True)
class Permit:
    """Leave to send one request; hand it to ``report`` afterwards. ``probe`` is empty for an ordinary request."""

    generation: int
    probe: str = ""


@dataclass(frozen=True)
class _State:
    """The item as values."""

    state: str
    gen: int
    failures: int
    failed_at: int
    opens: int
    open_until: int
    probe: str
    probe_until: int

    @classmethod
    def of(cls, item: Item) -> _State:
        state = item.get("state", CLOSED)
        if state not in (CLOSED, OPEN, HALF_OPEN):
            raise CorruptState(f"{item.get('exchange')}: breaker state {str(state)[:40]!r} is not known")
        numbers = {n: whole(item, n, 0) for n in ("gen", "failures", "failed_at", "opens", "open_until", "probe_until")}
        return cls(state=state, probe=str(item.get("probe", "")), **numbers)

    @property
    def blocked_until(self) -> int:
        """Until when (ms) nobody may ask for the probe; 0 when closed."""
        return {CLOSED: 0, OPEN: self.open_until, HALF_OPEN: self.probe_until}[self.state]


class Breaker:
    """One worker's view of an exchange's breaker, and the one door to its item. Threads may share one."""

    def __init__(
        self, table: Any, exchange: str, clock: Clock, rng: random.Random | None = None, tuning: Tuning | None = None
    ) -> None:
        self.exchange = exchange
        self.tuning = tuning or Tuning()
        self._table = table
        self._clock = clock
        self._rng = rng or random.Random()
        self._key = {"exchange": f"{exchange}#breaker"}
        self._guard = threading.RLock()
        self._seen: _State | None = None
        self._seen_at = 0
        self._slow_downs = 0

    def before(self, max_wait_s: float = 0, slot: Callable[[], object] | None = None) -> Permit:
        """Leave for one request, waiting up to ``max_wait_s`` while the breaker is open.

        ``slot`` (the throttle's wait) is called when the breaker lets somebody through and before the permit is taken:
        a slot must not grow old behind an open breaker, nor a probe expire while it waits for its slot.

        Raises:
            CircuitOpen: still open after that.
        """
        patience_ms = round(max_wait_s * 1000)
        while True:
            with self._guard:
                until = self._blocked_until()
            if until is None:
                if slot is not None:
                    slot()
                with self._guard:
                    answer = self._ask()
                if isinstance(answer, Permit):
                    return answer
                until = answer
            now = self._clock.now_ms()
            # Those who wait do not come back at the same instant.
            wait_ms = max(1, until - now) + self._rng.randrange(250)
            if wait_ms > patience_ms:
                raise CircuitOpen(
                    f"the circuit breaker is open for another {max(0, until - now)} ms", stream=self.exchange
                )
            patience_ms -= wait_ms
            self._clock.sleep(wait_ms / 1000)

    def report(self, permit: Permit, ok: bool) -> None:
        """How the permitted request went; ``ok`` means that the exchange answered, whatever it said."""
        with self._guard:
            if permit.probe:
                self._end_probe(permit, ok)
            elif ok:
                self._succeeded(permit)
            else:
                self._failed(permit)

    @contextmanager
    def guard(self, max_wait_s: float = 0, slot: Callable[[], object] | None = None) -> Iterator[Permit]:
        """``before``, the request, ``report`` by the error it raised.

        Unavailable and interrupted are failures, RateLimited from the ``slow_downs``-th in a row; every other named
        error is an answer. Anything else (nothing sent, a bug, a kill) reports nothing: a probe then expires.
        """
        permit = self.before(max_wait_s, slot)
        try:
            yield permit
        except (ExchangeUnavailable, ResponseInterrupted):
            self.report(permit, ok=False)
            raise
        except RateLimited:
            self._slow_downs += 1
            if permit.probe or self._slow_downs >= self.tuning.slow_downs:
                self.report(permit, ok=False)
            raise
        except (ExchangeError, BadInput):
            self.report(permit, ok=True)
            raise
        self._slow_downs = 0
        self.report(permit, ok=True)

    def _blocked_until(self) -> int | None:
        """When (ms) it is worth asking, None for now."""
        until = self._current().blocked_until
        return until if until > self._clock.now_ms() else None

    def _ask(self) -> Permit | int:
        """A permit, or when (ms) to ask again."""
        state = self._current()
        if state.state == CLOSED:
            return Permit(state.gen)
        now = self._clock.now_ms()
        return self._take_probe(state, now) if state.blocked_until <= now else state.blocked_until

    def _current(self) -> _State:
        now = self._clock.now_ms()
        state = self._seen
        fresh = state is not None and (
            0 <= now - self._seen_at < self.tuning.stale_ms or (state.state == OPEN and now < state.open_until)
        )
        if state is None or not fresh:
            state = self._see(read(self._table, self._key))
        return state

    def _see(self, item: Item) -> _State:
        self._seen = _State.of(item)
        self._seen_at = self._clock.now_ms()
        return self._seen

    def _take_probe(self, state: _State, now: int) -> Permit | int:
        """Exactly one of all who ask becomes the prober."""
        token = uuid.uuid4().hex
        outcome = self._write(
            "SET #state = :half, #gen = #gen + :one, probe = :token, probe_until = :until",
            "#gen = :gen",
            {
                ":half": HALF_OPEN,
                ":one": 1,
                ":token": token,
                ":gen": state.gen,
                ":until": now + round(self.tuning.probe_s * 1000),
            },
        )
        found = self._see(outcome.item)
        # A repeated write whose first answer was lost is refused by its own effect: the token tells.
        if found.state == HALF_OPEN and found.probe == token:
            return Permit(found.gen, token)
        return Permit(found.gen) if found.state == CLOSED else max(found.blocked_until, now + 1)

    def _end_probe(self, permit: Permit, ok: bool) -> None:
        condition = "#gen = :gen"
        values: Item = {":gen": permit.generation, ":one": 1}
        if ok:
            outcome = self._write(
                "SET #state = :closed, #gen = #gen + :one, failures = :zero, opens = :zero "
                "REMOVE probe, probe_until, open_until",
                condition,
                {**values, ":closed": CLOSED, ":zero": 0},
            )
        else:
            opens = self._seen.opens if self._seen else 0
            outcome = self._write(
                "SET #state = :open, #gen = #gen + :one, opens = opens + :one, open_until = :until "
                "REMOVE probe, probe_until",
                condition,
                {**values, ":open": OPEN, ":until": self._reopen_at(opens)},
            )
        self._see(outcome.item)
        if isinstance(outcome, Applied):
            log.warning("circuit breaker probed", extra={"exchange": self.exchange, "closed": ok})

    def _succeeded(self, permit: Permit) -> None:
        if self._seen is None or not self._seen.failures:
            return
        outcome = self._write(
            "SET failures = :zero", "#gen = :gen", {":zero": 0, ":gen": permit.generation}, {"#gen": "gen"}
        )
        self._see(outcome.item)

    def _failed(self, permit: Permit) -> None:
        now = self._clock.now_ms()
        values: Item = {":gen": permit.generation, ":now": now, ":one": 1}
        counted = self._write(
            "SET #state = :closed, #gen = :gen, failures = if_not_exists(failures, :zero) + :one, failed_at = :now",
            "attribute_not_exists(#gen) OR (#gen = :gen AND failed_at >= :since)",
            {**values, ":closed": CLOSED, ":zero": 0, ":since": now - round(self.tuning.window_s * 1000)},
        )
        state = self._see(counted.item)
        if isinstance(counted, Applied):
            if state.failures >= self.tuning.threshold:
                self._open(state)
        elif state.gen == permit.generation:
            # The last failure is long past: count from one, unless somebody else just did.
            self._see(
                self._write(
                    "SET failures = :one, failed_at = :now",
                    "#gen = :gen AND failed_at = :seen",
                    {**values, ":seen": state.failed_at},
                    {"#gen": "gen"},
                ).item
            )

    def _open(self, state: _State) -> None:
        outcome = self._write(
            "SET #state = :open, #gen = #gen + :one, opens = :one, open_until = :until",
            "#gen = :gen AND failures >= :threshold",
            {
                ":open": OPEN,
                ":gen": state.gen,
                ":one": 1,
                ":threshold": self.tuning.threshold,
                ":until": self._reopen_at(0),
            },
        )
        self._see(outcome.item)
        if isinstance(outcome, Applied):
            log.error("circuit breaker opened", extra={"exchange": self.exchange, "failures": state.failures})

    def _reopen_at(self, opens: int) -> int:
        """When the next probe may go, after ``opens`` openings in a row."""
        longest = min(self.tuning.cap_s, self.tuning.base_s * 2.0 ** min(opens, 16))
        return self._clock.now_ms() + round(1000 * max(self.tuning.floor_s, self._rng.uniform(0, longest)))

    def _write(self, update: str, condition: str, values: Item, names: Mapping[str, str] = _NAMES) -> Any:
        return update_if(self._table, self._key, update, condition, values, names)
