"""What the simulator has seen: counts, times, and how much of the limit a client made use of."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

REFUSED = (418, 429)


@dataclass(frozen=True, slots=True)
class Seen:
    """One request, at the moment the limiter decided on it."""

    at_s: float
    cost: float
    status: int
    kind: str
    product: str | None
    limited: bool
    """Refused by the limiter itself (a fault may answer 429 too)."""


class Log:
    """The requests to one exchange, in order of arrival."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[Seen] = []

    def add(self, seen: Seen) -> None:
        with self._lock:
            self._seen.append(seen)

    def clear(self) -> None:
        with self._lock:
            self._seen.clear()

    def summary(self, per_second: float | None, trim_s: float, timestamps: bool) -> dict[str, Any]:
        """The exchange's part of GET /_sim/stats; times are epoch seconds."""
        with self._lock:
            seen = sorted(self._seen, key=lambda one: one.at_s)
        granted = [one for one in seen if not one.limited]
        result: dict[str, Any] = {
            "requests": len(seen),
            "cost": sum(one.cost for one in granted),
            "by_status": dict(sorted(Counter(str(one.status) for one in seen).items())),
            "by_kind": dict(sorted(Counter(one.kind for one in seen).items())),
            "rate_limited": sum(one.limited for one in seen),
            "first_request": seen[0].at_s if seen else None,
            "last_request": seen[-1].at_s if seen else None,
            "max_cost_in_1s": _busiest_second(granted),
            "per_second": _histogram(granted),
            "steady": steady(seen, per_second, trim_s),
        }
        if timestamps:
            result["timestamps"] = [[round(one.at_s, 6), one.cost, one.status, one.kind, one.product] for one in seen]
        return result


def steady(seen: list[Seen], per_second: float | None, trim_s: float) -> dict[str, Any] | None:
    """How much of the limit was used while pages were being fetched.

    The phase runs from the first to the last granted request of kind `page`, less `trim_s` at either
    end: the start spends the bucket's saved-up burst, which would flatter the rate, and the end waits
    for the last stragglers. Every granted cost inside counts, of whatever kind, because it uses the
    same limit. `share_of_limit` = granted / (limit * seconds). None when nothing is left to measure.
    """
    pages = [one.at_s for one in seen if one.kind == "page" and not one.limited]
    if not pages or pages[-1] - pages[0] <= 2 * trim_s:
        return None
    start_s, end_s = pages[0] + trim_s, pages[-1] - trim_s
    inside = [one for one in seen if start_s <= one.at_s < end_s]
    granted = sum(one.cost for one in inside if not one.limited)
    seconds = end_s - start_s
    return {
        "from": start_s,
        "to": end_s,
        "seconds": round(seconds, 3),
        "granted": granted,
        "requests": sum(not one.limited for one in inside),
        "refused": sum(one.limited for one in inside),
        "limit_per_s": per_second,
        "share_of_limit": round(granted / (per_second * seconds), 4) if per_second else None,
    }


def _histogram(granted: list[Seen]) -> dict[str, float]:
    """Granted cost by second since the epoch."""
    cost: Counter[int] = Counter()
    for one in granted:
        cost[int(one.at_s)] += one.cost  # type: ignore[assignment]
    return {str(second): cost[second] for second in sorted(cost)}


def _busiest_second(granted: list[Seen]) -> float:
    """The most cost granted within any sliding second."""
    most = cost = 0.0
    oldest = 0
    for one in granted:
        cost += one.cost
        while granted[oldest].at_s <= one.at_s - 1:
            cost -= granted[oldest].cost
            oldest += 1
        most = max(most, cost)
    return most
