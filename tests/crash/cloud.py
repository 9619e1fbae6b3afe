"""An AWS and an exchange in this process, and the Lambda workers that use them in processes of their own.

A worker is forked. Every request that it sends to AWS or to the exchange goes through a pipe to this process, below
boto3's own retries, so that nothing of the product can pass by unseen: what is not a read is an ``Effect``. At a chosen
effect the worker is killed with SIGKILL (nothing of it survives, no ``finally`` runs) or its answer is withheld.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ReadTimeoutError
from moto.core.botocore_stubber import MockRawResponse
from moto.core.models import botocore_stubber

from local.exchange_sim.simulator import Simulator
from schemahub import exchanges, runtime
from schemahub.clock import FakeClock
from schemahub.deps import Deps
from schemahub.mappings import load_mapping
from tests.crash.effects import RETURN, Effect, describe, is_read
from tests.simulation.asl import StateFailed

ROOT = Path(__file__).parents[2]
MODES = ("before", "after", "lost", "cut")
"""How a worker is struck at an effect: killed before it; killed after it; its answer lost (boto3 repeats the call);
its answer lost and the line dead for this call, so that the worker sees an error."""
PAGE_SIZE = 100
LOST = ("lost",)


@dataclass(frozen=True)
class Strike:
    """Hit the ``at``-th effect (from 1)."""

    at: int
    mode: str
    fatal: bool
    """Nothing works any more afterwards, until the execution has failed: no retry can hide what happened."""


class Killed(Exception):
    """The worker is gone."""


@dataclass
class Cloud:
    """``deps`` were built in this process, but only workers use them: their clients speak through ``wire``."""

    deps: Deps
    simulator: Simulator
    clock: FakeClock
    handlers: dict[str, Any]
    wire: Wire
    read: Callable[[str, str], bytes]
    """The object of a bucket and a key, for the state machines' own readers."""
    mutant: Callable[[Deps], None] = lambda deps: None
    """Runs in each worker before its first task: a seeded bug."""
    sick: Callable[[str, str], bool] = lambda state, request: False
    """Whether the exchange answers a request of a state with an error."""
    effects: list[Effect] = field(default_factory=list)
    invocations: int = 0
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Of executions."""
    strike: Strike | None = None
    outage: bool = False
    """Every invocation fails at once, as if Lambda were down."""
    _worker: tuple[int, Connection] | None = None
    _cut: str = ""

    def invoke(self, state: str, function: str, payload: Any) -> Any:
        """A synchronous Lambda call.

        Raises:
            StateFailed: by the function's own error, ``Lambda.Unknown`` (killed) or ``States.Timeout`` (no answer).
        """
        self.invocations += 1
        if self.outage:
            raise StateFailed("Lambda.Unknown", "nothing works")
        try:
            kind, *answer = self._converse(state, function, payload)
        except Killed:
            raise StateFailed("Lambda.Unknown", f"killed in {function}") from None
        if kind == "raise":
            raise StateFailed(*answer)
        if answer == [LOST]:
            raise StateFailed("States.Timeout", f"{function} never answered")
        return answer[0]

    def ask(self, question: Callable[[Deps], Any]) -> Any:
        """Run something in a worker that is not part of the pipeline: no effect is counted or struck."""
        kind, *answer = self._converse("", question, None)
        if kind == "raise":
            raise AssertionError(f"{answer}")
        return answer[0]

    def _converse(self, state: str, task: Any, payload: Any) -> tuple[Any, ...]:
        _, line = self._worker = self._worker or self._hire()
        line.send((task, payload, self.clock.now_ms()))
        while True:
            now_ms, kind, *message = line.recv()
            self.clock.advance(max(0, now_ms - self.clock.now_ms()) / 1000)
            if kind == "aws":
                line.send(self._aws(state, *message))
            elif kind == "exchange":
                line.send(self._exchange(state, *message))
            elif kind == "return" and state:
                return ("return", self._effect(state, RETURN, lambda result=message[0]: result, ""))
            else:
                return (kind, *message)

    def _hire(self) -> tuple[int, Connection]:
        ours, theirs = Pipe()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                self.wire.line = theirs
                work(self, theirs)
            finally:
                os._exit(0)
        theirs.close()
        return pid, ours

    def dismiss(self) -> None:
        """Kill the worker, whatever it does."""
        if self._worker is not None:
            pid, line = self._worker
            self._worker = None
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            line.close()

    def forget_worker(self) -> None:
        """In a forked copy of this process: the worker belongs to the original."""
        if self._worker is not None:
            self._worker[1].close()
            self._worker = None

    def _aws(self, state: str, event: str, call_id: str, request: tuple[Any, ...]) -> Any:
        _, service, operation = event.split(".")
        if self._cut and call_id == self._cut:
            return LOST
        if is_read(operation) or not state:
            return moto(*request)
        call = describe(service, operation, request[1], request[3])
        return self._effect(state, call, lambda: moto(*request), call_id)

    def _effect(self, state: str, call: str, apply: Callable[[], Any], call_id: str) -> Any:
        self.effects.append(Effect(self.invocations - 1, state, call))
        hit = self.strike is not None and self.strike.at == len(self.effects)
        if not hit or self.strike is None:
            return apply()
        mode, self.outage = self.strike.mode, self.strike.fatal
        if mode == "before":
            self.dismiss()
            raise Killed
        answer = apply()
        if mode == "after":
            self.dismiss()
            raise Killed
        if mode == "cut":
            self._cut = call_id
        return LOST if mode in ("lost", "cut") else answer

    def _exchange(self, state: str, url: str, params: dict[str, str]) -> Any:
        where = urlsplit(url)
        query = {**dict(parse_qsl(where.query)), **params}
        if self.sick(state, f"{where.path} {sorted(query.items())}"):
            return 503, {}, b"sick"
        _, exchange, rest = unquote(where.path).split("/", 2)
        answer = self.simulator.get(exchange, "/" + rest, query, "worker")
        return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.body

    def trade_on(self, seconds: float) -> None:
        """Time passes for everybody, the exchange too."""
        self.clock.advance(seconds)
        self.simulator.clock.set(None, seconds, None)


def moto(method: str, url: str, headers: list[tuple[str, str]], body: bytes) -> tuple[int, dict[str, str], bytes]:
    """The answer of the AWS in this process."""
    sent = HTTPHeaders()
    for name, value in headers:
        sent[name] = value
    answer = botocore_stubber.process_request(AWSPreparedRequest(method, url, sent, body, False))
    assert answer is not None, url
    status, received, content = answer
    return status, dict(received), content.encode() if isinstance(content, str) else bytes(content)


# --- in the worker ----------------------------------------------------------------------------------------------


class Wire:
    """The worker's network: AWS for boto3 (a ``before-send`` handler) and ``Http`` for the exchange."""

    def __init__(self, clock: FakeClock) -> None:
        self.line: Connection | None = None
        self.clock = clock
        self._turn = threading.Lock()

    def _send(self, *message: Any) -> Any:
        assert self.line is not None, "only workers speak"
        with self._turn:
            self.line.send((self.clock.now_ms(), *message))
            return self.line.recv()

    def __call__(self, event_name: str, request: AWSPreparedRequest, **_: Any) -> AWSResponse | None:
        if self.line is None:
            return None
        body = request.body
        content = body.read() if hasattr(body, "read") else (body or b"")
        content = content.encode() if isinstance(content, str) else bytes(content)
        headers = [(k, v.decode() if isinstance(v, bytes) else str(v)) for k, v in request.headers.items()]
        call_id = {k.lower(): v for k, v in headers}.get("amz-sdk-invocation-id", "")
        answer = self._send("aws", event_name, call_id, (request.method, request.url, headers, content))
        if answer == LOST:
            raise ReadTimeoutError(endpoint_url=request.url)
        status, received, content = answer
        return AWSResponse(request.url, status, received, MockRawResponse(content))

    def get(self, url: str, params: dict[str, str]) -> exchanges.Answer:
        return exchanges.Answer(*self._send("exchange", url, params))


def work(cloud: Cloud, line: Connection) -> None:
    """A worker's life: tasks until the line ends."""
    if not os.environ.get("SCHEMAHUB_CRASH_LOGS"):
        logging.disable()
        sys.stdout = sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # metrics, warnings
    botocore_stubber.enabled = False
    time.sleep = lambda seconds: None  # boto3's own pauses
    runtime.deps_from_env = lambda: cloud.deps  # type: ignore[assignment]
    cloud.handlers["release_on_failure"].deps_from_env = lambda: cloud.deps
    for name in ("coinbase", "binance"):
        object.__setattr__(load_mapping(name).requests, "page_size", PAGE_SIZE)
    cloud.mutant(cloud.deps)
    with contextlib.suppress(EOFError):
        while True:
            task, payload, now_ms = line.recv()
            # Every invocation is a cold one, so that a scenario has the same effects however it came to its point.
            cloud.deps.paced.clear()
            cloud.deps.rng.seed(1)
            cloud.clock.advance((now_ms - cloud.clock.now_ms()) / 1000)
            try:
                result = task(cloud.deps) if callable(task) else cloud.handlers[task].handler(payload, CONTEXT)
                answer = ("return", json.loads(json.dumps(result)) if isinstance(task, str) else result)
            except Exception as error:
                answer = ("raise", type(error).__name__, str(error)[:600])
            line.send((cloud.clock.now_ms(), *answer))


CONTEXT = SimpleNamespace(
    function_name="crash",
    memory_limit_in_mb=512,
    invoked_function_arn="arn:aws:lambda:us-east-1:123456789012:function:crash",
    aws_request_id="crash",
    get_remaining_time_in_millis=lambda: 300_000,
)
