"""One token bucket per exchange, shared by every worker in whatever Lambda or task (GCRA by slot reservation).

The bucket is one number in DynamoDB, ``tat_us``: the *theoretical arrival time*, at which the bucket would be full
again. A request of cost ``c`` moves it by the interval ``I = ceil(c / rate)``; the tolerance ``tau = burst / rate`` is
how far it may run ahead of the clock. One atomic write reserves a slot::

    tat' = max(now, tat) + I            slot = max(now, tat' - tau)

**In any window T the granted cost is at most burst + rate * T.** Number the reservations in the order of their writes
and take any window; let i be the first and j the last of those whose slots lie in it. As no I exceeds tau, slot_i <=
max(now_i, tat_before_i) = tat_i - I_i. Each write adds at least its interval, so tat_j >= (tat_i - I_i) + (I_i + … +
I_j) >= slot_i + (I_i + … + I_j). And slot_j >= tat_j - tau. Hence I_i + … + I_j <= slot_j - slot_i + tau <= T + tau;
divided by the interval of one unit of cost this is the claim. The workers' clocks do not appear in it: a wrong clock
costs slots, never the limit (only the true moment of sending counts, see ``margin_us``). After an idle time ``burst``
goes at once and then the rate holds exactly.

A bucket that is not there counts as empty, not as full: its item may have been lost a moment after a burst, and a
second burst in the same window could break the limit. With that the claim holds over the loss too, once the slots
given out before it are past (``SharedBucket.begin_again``).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Costs
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

from schemahub.clock import Clock
from schemahub.conditional import Applied, Item, read, update_if, whole
from schemahub.errors import BadConfig, SlotRefused
from schemahub.mappings import Mapping

log = logging.getLogger(__name__)

SECOND_US = 1_000_000
JITTER_S = 1
"""Spread of delays (network, late wake-ups, clocks) that must not turn a kept schedule into a 429."""
BURST_SHARE = Fraction(1, 3)
MAX_PENALTY_S = 900
ABSURD_US = (MAX_PENALTY_S + 300) * SECOND_US
"""No rule of ours moves ``tat_us`` further ahead than this: it comes from a bad clock."""
MIN_LATE_US = 100_000
RACES = 8
DROPS = 10
MAX_WAIT_S = 60.0
"""How far ahead a worker reserves at most: a bucket that was lost must not give these slots out again."""


@dataclass(frozen=True)
class GoAt:
    """Granted: one time for each request, µs since the epoch, in the order asked for."""

    times_us: tuple[int, ...]


@dataclass(frozen=True)
class Refused:
    """Not granted and nothing reserved: ask again in ``wait_ms``, when it would fit if nobody else came."""

    wait_ms: int


@dataclass(frozen=True)
class Bucket:
    """Our bucket: ``rate`` (units a second) and ``burst`` (units at once) stay below what the exchange publishes.

    * An exchange that publishes ``burst >= amount`` keeps a token bucket (Coinbase: 10 a second, 15 in bursts). We take
      the whole rate and a third of the burst; the rest of the burst absorbs delays.
    * ``burst < amount`` means that it counts a calendar window (Binance: 6,000 a minute). Then ``rate * (window +
      JITTER_S) + burst <= amount``, so that no window ever holds more, wherever it begins.

    The burst is never below the dearest request, which could not be sent otherwise.
    """

    exchange: str
    rate: Fraction
    tolerance_us: int
    margin_us: int
    """How much later than its slot a request may reach the exchange; half is for us, half for the network."""
    cost: Costs[str, float]
    pause_s: float
    """Penalty for a refusal without Retry-After: what the mapping says, otherwise one window of the exchange."""
    product: str | None = None
    """The product that the bucket is of, where the exchange counts each apart."""

    @property
    def key(self) -> str:
        """The name of its item."""
        return self.exchange if self.product is None else f"{self.exchange}#{self.product}"

    @classmethod
    def of(cls, mapping: Mapping, limit_share: float = 1.0, product: str | None = None) -> Bucket:
        """The bucket of a mapping, of which this deployment uses ``limit_share``.

        ``product``: whose trades are asked for; it has a bucket of its own only where the exchange counts so.

        Raises:
            BadConfig: a share outside (0, 1], or one that leaves less than the dearest request in a window.
        """
        if not 0 < limit_share <= 1:
            raise BadConfig(f"the limit share {limit_share} is not above 0 and at most 1")
        limits = mapping.limits
        share, dearest = _exact(limit_share), max(_exact(c) for c in limits.cost.values())
        amount, window = _exact(limits.amount) * share, _exact(limits.per_seconds)
        published = _exact(limits.burst) * share
        burst = max(dearest, published * BURST_SHARE)
        if limits.burst >= limits.amount:
            rate = amount / window
            margin = max(Fraction(0), published - burst) / rate
        else:
            rate = (amount - burst) / (window + JITTER_S)
            margin = Fraction(JITTER_S)
        if rate <= 0:
            raise BadConfig(
                f"{mapping.exchange}: a limit share of {limit_share} leaves {float(amount):g} units in "
                f"{float(window):g} s, less than one request of {float(dearest):g}"
            )
        return cls(
            mapping.exchange,
            rate,
            ceil(burst * SECOND_US / rate),
            int(margin * SECOND_US),
            dict(limits.cost),
            limits.pause_seconds or min(60.0, max(1.0, limits.per_seconds)),
            product if limits.per_product else None,
        )

    def interval_us(self, cost: float) -> int:
        """By how much a request of ``cost`` moves ``tat_us``."""
        return ceil(_exact(cost) * SECOND_US / self.rate)

    @property
    def burst(self) -> float:
        """Units that may go at once (the tolerance is rounded up to a whole microsecond)."""
        return float(self.tolerance_us * self.rate / SECOND_US)

    @property
    def late_us(self) -> int:
        """A slot older than this must not be used any more."""
        return max(MIN_LATE_US, self.margin_us // 2)


def buckets(mapping: Mapping, limit_share: float, products: Iterable[str]) -> list[Bucket]:
    """Every bucket that requests for these products are counted in: one, or one more for each product."""
    apart = sorted(products) if mapping.limits.per_product else []
    return [Bucket.of(mapping, limit_share), *(Bucket.of(mapping, limit_share, product) for product in apart)]


def _exact(number: float) -> Fraction:
    """The decimal that a person wrote: 0.1 is a tenth."""
    return Fraction(str(number))


def slot_times(now_us: int, tat_us: int, steps: Sequence[int], tolerance_us: int) -> tuple[int, ...]:
    """When each of the requests may go whose reservation moved the bucket to ``tat_us``."""
    at = tat_us - sum(steps)
    times = []
    for step in steps:
        at += step
        times.append(max(now_us, at - tolerance_us))
    return tuple(times)


class SharedBucket:
    """The one door to a bucket's item: ``exchange`` (``Bucket.key``) → ``tat_us``."""

    def __init__(self, table: Any, bucket: Bucket, clock: Clock) -> None:
        self.bucket = bucket
        self._table = table
        self._clock = clock
        self._key = {"exchange": bucket.key}
        self.on_reset: Callable[[], None] = lambda: None
        """Called when an absurd item was put right: a clock somewhere is wrong, and a human should know."""
        self.idle = False
        """Whether the bucket was full when this worker last looked: slots then come all at once."""

    def reserve(self, costs: Sequence[float], max_wait_ms: int) -> GoAt | Refused:
        """Reserve a slot for each cost by one write, if the last of them begins within ``max_wait_ms``.

        A lost answer, repeated by boto3, or a worker that dies wastes slots and never exceeds the rate. Two writes
        happen only when the bucket turned idle or busy since this worker's last call.
        """
        steps = [self.bucket.interval_us(c) for c in costs]
        for _ in range(RACES):
            now = self._now_us()
            latest = now + max_wait_ms * 1000 + self.bucket.tolerance_us - sum(steps)
            outcome = self._idle(now, steps, latest) if self.idle else self._busy(now, steps, latest)
            if isinstance(outcome, (GoAt, Refused)):
                return outcome
            self.idle = self._judge_idle(outcome, now)
        return Refused(_ms(sum(steps)))

    def penalise(self, retry_after_s: float | None = None) -> int:
        """Nobody gets a slot before ``retry_after_s`` from now (429, 418); returns the penalty taken, in ms.

        The burst is spent too. Without a number the exchange's window is waited out; at most ``MAX_PENALTY_S``.
        Slots that other workers already hold are still used: at most one batch each.
        """
        seconds = self.bucket.pause_s if retry_after_s is None else retry_after_s
        penalty_us = round(min(max(seconds, 0.0), MAX_PENALTY_S) * SECOND_US)
        until = self._now_us() + penalty_us + self.bucket.tolerance_us
        self._write("SET tat_us = :tat", "attribute_not_exists(tat_us) OR tat_us < :tat", {":tat": until})
        log.warning("exchange slowed down", extra={"exchange": self.bucket.key, "penalty_ms": penalty_us // 1000})
        return penalty_us // 1000

    def next_free_us(self) -> int:
        """When the next request of cost 1 could go, without reserving anything (for ``status``)."""
        now = self._now_us()
        tat = max(now, whole(read(self._table, self._key), "tat_us", 0))
        return max(now, tat + self.bucket.interval_us(1) - self.bucket.tolerance_us)

    def _busy(self, now: int, steps: list[int], latest: int) -> GoAt | Refused | Item:
        """The bucket runs ahead of the clock: move it on, unless that would be too far."""
        if latest < now:
            return Refused(_ms(now - latest))
        outcome = self._write(
            "SET tat_us = tat_us + :total",
            "tat_us BETWEEN :now AND :latest",
            {":total": sum(steps), ":now": now, ":latest": latest},
        )
        if isinstance(outcome, Applied):
            return self._granted(now, steps, outcome)
        tat = whole(outcome.item, "tat_us", 0)
        return Refused(_ms(tat - latest)) if latest < tat <= now + ABSURD_US else outcome.item

    def _idle(self, now: int, steps: list[int], latest: int) -> GoAt | Refused | Item:
        """The bucket is full: it begins now."""
        if latest < now:
            return Refused(_ms(now - latest))
        outcome = self._write("SET tat_us = :tat", "tat_us < :now", {":tat": now + sum(steps), ":now": now})
        return self._granted(now, steps, outcome) if isinstance(outcome, Applied) else outcome.item

    def _judge_idle(self, item: Item, now: int) -> bool:
        """Which of the two writes fits the item as it was found; makes one that is not there, heals one far ahead."""
        if "tat_us" not in item:
            self._begin(now)
            return False
        tat = whole(item, "tat_us")
        if tat > now + ABSURD_US:
            # The burst counts as spent: nobody knows what went out under the bad clock.
            self._write("SET tat_us = :tat", "tat_us = :seen", {":tat": now + self.bucket.tolerance_us, ":seen": tat})
            log.error(
                "bucket lay absurdly far ahead and was reset",
                extra={"exchange": self.bucket.key, "ahead_s": (tat - now) // SECOND_US},
            )
            self.on_reset()
            return False
        return tat < now

    @property
    def lost(self) -> bool:
        """Whether the bucket is not there: never used, or lost."""
        return not read(self._table, self._key)

    def begin_again(self) -> bool:
        """Make a lost bucket so that it collides with no slot given out before the loss; False if there is one.

        Workers may still hold slots up to ``MAX_WAIT_S`` ahead, so the first new one comes after these. A penalty
        that was lost with the item is not known any more: the exchange's next 429 sets it again.
        """
        return self._begin(self._now_us() + round(MAX_WAIT_S * SECOND_US))

    def _begin(self, from_us: int) -> bool:
        """An empty bucket from ``from_us`` on, unless there is one."""
        outcome = self._write(
            "SET tat_us = :tat", "attribute_not_exists(tat_us)", {":tat": from_us + self.bucket.tolerance_us}
        )
        return isinstance(outcome, Applied)

    def _granted(self, now: int, steps: list[int], written: Applied) -> GoAt:
        return GoAt(slot_times(now, whole(written.item, "tat_us"), steps, self.bucket.tolerance_us))

    def _write(self, update: str, condition: str, values: Item) -> Any:
        return update_if(self._table, self._key, update, condition, values)

    def _now_us(self) -> int:
        return self._clock.now_ms() * 1000


def _ms(us: int) -> int:
    return -(-us // 1000)


class Throttle:
    """A worker's end of the bucket: ``wait`` returns when the next request may go. Threads may share one.

    Up to ``batch`` slots are reserved by one write, only as many as the caller says that it will need, and only as
    many as it can use in time at the pace it has shown: a slot that is late by more than half the margin is dropped,
    because a worker that was paused must not send what was planned for then. Unused slots are lost.
    """

    def __init__(self, shared: SharedBucket, clock: Clock, *, batch: int = 10, max_wait_s: float = MAX_WAIT_S) -> None:
        self.shared = shared
        self.bucket = shared.bucket
        self.dropped = 0
        self._clock = clock
        self._batch = max(1, batch)
        self.max_wait_ms = round(max_wait_s * 1000)
        self._slots: dict[str, deque[int]] = {}
        self._guard = threading.Lock()
        self._last_us: int | None = None
        self._pace_us = 0

    def wait(self, kind: str, expected: int = 1) -> int:
        """Sleep until a request of ``kind`` (a key of the mapping's ``cost``) may go; returns its slot in µs.

        ``expected`` is how many of this kind the caller will send in a row, this one included.

        Raises:
            SlotRefused: the next free slot is further away than ``max_wait_s``; nothing was reserved.
        """
        for _ in range(DROPS):
            with self._guard:
                slot = self._held(kind) or self._reserve(kind, expected)
            while (ahead := slot - self._now_us()) > 0:
                self._clock.sleep(ahead / SECOND_US)
            if -ahead <= self.bucket.late_us:
                self._last_us = self._now_us()
                return slot
            self.dropped += 1
        raise SlotRefused(
            f"{DROPS} slots in a row were reached too late to be used",
            stream=self.bucket.key,
            remedy="This worker is starved of CPU, or DynamoDB answers slowly; it is retried.",
        )

    def penalise(self, retry_after_s: float | None = None) -> int:
        """Slow everybody down after a 429 or 418, and forget this worker's own slots; returns the penalty in ms."""
        with self._guard:
            self._slots.clear()
            return self.shared.penalise(retry_after_s)

    def _held(self, kind: str) -> int | None:
        """The next slot in hand that is not late yet."""
        slots = self._slots.get(kind)
        while slots:
            slot = slots.popleft()
            if self._now_us() - slot <= self.bucket.late_us:
                return slot
            self.dropped += 1
        return None

    def _reserve(self, kind: str, expected: int) -> int:
        cost = self.bucket.cost[kind]
        wanted = self._usable(cost, expected)
        outcome = self.shared.reserve([cost] * wanted, self.max_wait_ms)
        if isinstance(outcome, Refused) and wanted > 1:
            outcome = self.shared.reserve([cost], self.max_wait_ms)
        if isinstance(outcome, Refused):
            raise SlotRefused(
                f"no slot within {self.max_wait_ms} ms; the next fits in {outcome.wait_ms} ms",
                stream=self.bucket.key,
            )
        first, *rest = outcome.times_us
        self._slots[kind] = deque(rest)
        return first

    def _usable(self, cost: float, expected: int) -> int:
        """How many slots in a row this worker reaches in time, going by the time between its last requests."""
        wanted = max(1, min(expected, self._batch))
        if self._last_us is None:
            return 1
        # Bounded, so that one long pause (a Lambda between two invocations) is soon forgotten.
        gap = min(max(0, self._now_us() - self._last_us), 2 * self.bucket.late_us)
        self._pace_us = max(gap, (self._pace_us + gap) // 2)
        behind = self._pace_us - (0 if self.shared.idle else self.bucket.interval_us(cost))
        return wanted if behind <= 0 else min(wanted, 1 + self.bucket.late_us // behind)

    def _now_us(self) -> int:
        return self._clock.now_ms() * 1000
