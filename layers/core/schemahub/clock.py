"""Time as a parameter: decisions compare milliseconds of an injected clock, never the process's own."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What the core needs of time."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch, UTC."""

    def sleep(self, seconds: float) -> None:
        """Return no earlier than ``seconds`` from now."""


class SystemClock:
    """The machine's clock (Lambda's and Fargate's are kept by NTP to a few milliseconds)."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)


class FakeClock:
    """A clock for tests: it moves only when told to, or when somebody sleeps. Safe to share between threads."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_us = now_ms * 1000
        self._guard = threading.Lock()

    def now_ms(self) -> int:
        return self._now_us // 1000

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds`` (negative: a clock that was set back)."""
        with self._guard:
            self._now_us += round(seconds * 1_000_000)
