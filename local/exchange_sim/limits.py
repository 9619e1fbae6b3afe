"""The exchanges' published request limits, enforced per client address.

A lazy-fill token bucket, as Coinbase describes its own (10 requests a second, bursts of up to 15:
https://docs.cdp.coinbase.com/exchange/rest-api/rate-limits), or weight in a calendar window, as Binance does (6000 a
minute; 429 with Retry-After beyond it; who goes on gets 418 and a ban that grows from 2 minutes to 3 days:
https://developers.binance.com/docs/binance-spot-api-docs/rest-api/limits).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Granted:
    """The request may be answered; `used` is the weight of the running minute (Binance)."""

    used: float = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """The request is over the limit: 429, or 418 when the address is banned."""

    status: int
    used: float
    retry_after_s: int | None
    banned_until_s: float | None = None


Verdict = Granted | Refused


class Limiter(Protocol):
    """A published limit and what is used of it."""

    @property
    def per_second(self) -> float | None:
        """The limit in cost per second; None: no limit."""

    def take(self, address: str, cost: float, now_s: float) -> Verdict:
        """Spend `cost` for this address at `now_s` (epoch seconds), or refuse."""

    def reset(self) -> None:
        """Forget everything that was used."""


class Unlimited:
    """No limit at all."""

    per_second: float | None = None

    def take(self, address: str, cost: float, now_s: float) -> Verdict:
        return Granted()

    def reset(self) -> None:
        return None


class TokenBucket:
    """`tokens = min(burst, tokens + elapsed * rate)`; a request takes its cost."""

    def __init__(self, rate: float = 10, burst: float = 15, status: int = 429) -> None:
        self.per_second: float | None = rate
        self._status = status
        self._rate, self._burst = rate, burst
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, address: str, cost: float, now_s: float) -> Verdict:
        with self._lock:
            tokens, then_s = self._buckets.get(address, (self._burst, now_s))
            tokens = min(self._burst, tokens + max(0.0, now_s - then_s) * self._rate)
            granted = tokens >= cost
            self._buckets[address] = (tokens - cost if granted else tokens, max(then_s, now_s))
        return Granted() if granted else Refused(self._status, self._burst - tokens, None)

    def reset(self) -> None:
        with self._lock:
            self._buckets.clear()


@dataclass(slots=True)
class _Account:
    window: int = -1
    used: float = 0
    refused: int = 0
    bans: int = 0
    banned_until_s: float = field(default=0.0)


class WeightWindow:
    """Weight per calendar window; where the exchange bans (418), `ban_after` refused requests in a row bring a ban.

    The real number of refusals that leads to a ban is not published. Requests already on their way
    when the first 429 is answered should not ban a polite client, so it is not 1. Every further
    `ban_after` refusals double the ban, also those sent while it lasts.
    """

    def __init__(
        self,
        weight: float = 6000,
        per_seconds: float = 60,
        statuses: Sequence[int] = (429, 418),
        ban_after: int = 10,
        ban_s: float = 120,
    ) -> None:
        self.per_second: float | None = weight / per_seconds
        self._limit, self._window_s, self._ban_after, self._ban_s = weight, per_seconds, ban_after, ban_s
        self._refused, self._banned = statuses[0], 418 if 418 in statuses else None
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}

    def take(self, address: str, cost: float, now_s: float) -> Verdict:
        with self._lock:
            account = self._accounts.setdefault(address, _Account())
            if int(now_s // self._window_s) != account.window:
                account.window, account.used = int(now_s // self._window_s), 0
                if now_s >= account.banned_until_s:
                    account.refused = 0
            if now_s < account.banned_until_s:
                return self._refuse(account, now_s)
            account.used += cost
            if account.used > self._limit:
                return self._refuse(account, now_s)
            return Granted(account.used)

    def _refuse(self, account: _Account, now_s: float) -> Refused:
        account.refused += 1
        if self._banned and account.refused % self._ban_after == 0:
            ban_s = min(self._ban_s * 2**account.bans, 3 * 86_400)
            account.bans += 1
            account.banned_until_s = max(account.banned_until_s, now_s + ban_s)
        if self._banned and now_s < account.banned_until_s:
            wait_s = math.ceil(account.banned_until_s - now_s)
            return Refused(self._banned, account.used, wait_s, account.banned_until_s)
        return Refused(self._refused, account.used, math.ceil(self._window_s - now_s % self._window_s))

    def reset(self) -> None:
        with self._lock:
            self._accounts.clear()
