"""Lambda workers as threads that stand still before each of their calls, until somebody lets them make it.

Only one thread runs at any time, so a schedule is a list of decisions: who makes the next call, and what becomes of it.
A worker that nobody lets on is one that was paused; one that goes on after its state timed out is a zombie.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ReadTimeoutError

from schemahub.clock import FakeClock
from schemahub.errors import ExchangeUnavailable
from tests.simulation.asl import Invocation
from tests.simulation.stores import refusal

FAULTS = ("throttled", "failed", "lost", "repeated", "killed before", "killed after")
"""Refused for now; an error of the service; done, but the answer is lost for good; done, the answer lost, and repeated
by boto3; the worker dies before or after it."""
WRITES = ("put_", "update_", "delete_", "transact_", "create_")
PATIENCE_S = 60


class Killed(BaseException):
    """The worker is gone: nothing that it would still do happens."""


class WorkerClock:
    """The world's time, as one machine's clock shows it."""

    def __init__(self, clock: FakeClock, worker: Worker, skew_ms: int) -> None:
        self.clock, self.worker, self.skew_ms = clock, worker, skew_ms

    def now_ms(self) -> int:
        return self.clock.now_ms() + self.skew_ms

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.worker.sleep_until(self.clock.now_ms() + math.ceil(seconds * 1000))


class Worker:
    """One invocation at work. ``step`` lets it make its next call, ``over`` says that it has come to its end."""

    def __init__(
        self, invocation: Invocation, work: Callable[[Worker], Any], clock: FakeClock, skew_ms: int = 0
    ) -> None:
        self.invocation = invocation
        self.clock = WorkerClock(clock, self, skew_ms)
        self.call = ""
        """The call that it stands before, or ``sleep``."""
        self.over = False
        self.dead = False
        self.stalled = False
        """Left alone by who drives the world, until it is woken."""
        self.answer: Any = None
        self.error: Exception | None = None
        self.struck = 0
        self._work = work
        self._fault = ""
        self._until_ms = 0
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        self._wait()

    @property
    def owner(self) -> str:
        """The execution that it works for."""
        return self.invocation.execution.arn

    def step(self, fault: str = "") -> None:
        """Let it make the call that it stands before, and run until the next one."""
        assert not self.over
        self._fault = fault
        self._turn.release()
        self._wait()

    def kill(self) -> None:
        """End it where it stands."""
        while not self.over:
            self.dead = True
            self.step()

    def _wait(self) -> None:
        if not self._back.acquire(timeout=PATIENCE_S):
            raise RuntimeError(f"the worker hangs in {self.call}")

    # --- in the worker's thread ---------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self.answer = self._work(self)
        except Killed:
            pass
        except Exception as error:
            self.error = error
        finally:
            self.over = True
            self._back.release()

    def sleep_until(self, until_ms: int) -> None:
        self._pause("sleep")
        world = self.clock.clock
        world.advance(max(0, until_ms - world.now_ms()) / 1000)

    def _pause(self, call: str) -> None:
        if self.dead:
            raise Killed
        self.call = call
        self._back.release()
        self._turn.acquire()
        if self.dead:
            raise Killed

    def make(self, call: str, apply: Callable[[], Any], *, repeats: bool = True) -> Any:
        """One call of the worker to the outside, with what becomes of it.

        Threads of the worker's own pools (they only read, or write files that nobody knows of yet) do not stop.
        """
        if threading.current_thread() is not self._thread:
            if self.dead:
                raise Killed
            return apply()
        self._pause(call)
        fault, self._fault = self._fault, ""
        if not fault:
            return apply()
        self.struck += 1
        return self._struck(fault, call, apply, repeats)

    def _struck(self, fault: str, call: str, apply: Callable[[], Any], repeats: bool) -> Any:
        writes = call.split(".")[-1].startswith(WRITES)
        if fault == "killed before":
            self.dead = True
            raise Killed
        if fault in ("throttled", "failed"):
            raise self._refused(fault, call)
        answer = apply()
        if fault == "killed after":
            self.dead = True
            raise Killed
        if fault == "repeated" and repeats:
            # botocore gives a transaction a token of its own, with which the repetition is the same call.
            return answer if "transact" in call or not writes else apply()
        if call == "exchange":
            raise ExchangeUnavailable("the answer was lost")
        raise ReadTimeoutError(endpoint_url=f"https://{call}")

    @staticmethod
    def _refused(fault: str, call: str) -> Exception:
        if call == "exchange":
            return ExchangeUnavailable("status 503")
        if fault == "failed":
            return refusal("InternalServerError", call, 500)
        return refusal("SlowDown", call, 503) if call.startswith("s3") else refusal("ThrottlingException", call, 400)


class Line:
    """A client, or a table, whose calls are the worker's."""

    def __init__(self, worker: Worker, name: str, client: Any, *, repeats: bool = True) -> None:
        self._worker, self._client, self._service, self._repeats = worker, client, name, repeats

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found) or name == "get_paginator":
            return found
        call = f"{self._service}.{name}"
        return lambda *a, **k: self._worker.make(call, lambda: found(*a, **k), repeats=self._repeats)


def session_of(worker: Worker, s3: Any, glue: Any) -> Any:
    """What ``LakeCatalog`` asks a boto3 session for."""
    clients = {"s3": s3, "glue": glue}

    def client(name: str, config: Any) -> Line:
        once = (config.retries or {}).get("total_max_attempts") == 1
        return Line(worker, name, clients[name], repeats=not once)

    return SimpleNamespace(client=client)
