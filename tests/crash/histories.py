"""What happens to a lake: an execution, its failure, the rule on that, its redrive; one Lambda invocation at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from schemahub.streams import Stream
from tests.crash.cloud import Cloud
from tests.crash.worlds import STREAMS
from tests.simulation import asl

RULE = "(failure rule)"
RULE_TRIES = 3
"""Lambda invokes an asynchronous event's function once and twice again."""
MAX_REDRIVES = 3
LEASES_ARE_OVER_S = 120
TRADES_S = 12


@dataclass
class Event:
    """A change of status on its way to the failure rule."""

    detail: dict[str, Any]
    tries: int = 0


class History:
    """One execution from its start until nothing happens any more; ``step`` is one Lambda invocation."""

    def __init__(self, cloud: Cloud, streams: tuple[Stream, ...], outage_at: str = "") -> None:
        self.cloud = cloud
        self.events: list[Event] = []
        self.outage_at = outage_at
        self.machines = asl.Service(cloud.read, cloud.clock.now_ms, stopped=self._stopped)
        self.machines.numbers = cloud.numbers
        products = [f"{s.exchange}:{s.product}" for s in streams]
        self.execution = self.machines.start("ingest", {"schema_version": 1, "products": products})

    def _stopped(self, execution: asl.Execution) -> None:
        detail = {
            "executionArn": execution.arn,
            "name": execution.arn.rsplit(":", 1)[-1],
            "status": execution.status,
            "error": execution.error,
            "stopDate": self.cloud.clock.now_ms(),
        }
        self.events.append(Event(detail))

    def step(self) -> bool:
        """One invocation; False when the execution succeeded and nobody waits for anything."""
        if self.execution.status == asl.RUNNING:
            self._task()
        elif self.events:
            self.cloud.outage = False
            self._rule(self.events[0])
        elif self.execution.status == asl.SUCCEEDED or self.execution.redrives == MAX_REDRIVES:
            return False
        else:
            self.cloud.outage = False
            self.outage_at = ""
            self.execution.redrive()
        return True

    def finish(self) -> History:
        while self.step():
            pass
        return self

    def _task(self) -> None:
        here = min(self.execution.ready(), key=lambda one: one.due_ms)
        self.cloud.clock.advance(max(0, here.due_ms - self.cloud.clock.now_ms()) / 1000)
        state, task = ".".join(here.path), here.invoke()
        self.cloud.outage = self.cloud.outage or state == self.outage_at
        try:
            answer = self.cloud.invoke(state, task.function, task.payload)
        except asl.StateFailed as failure:
            task.fail(failure.error, retry=not self.cloud.outage)
        else:
            task.succeed(answer)

    def _rule(self, event: Event) -> None:
        event.tries += 1
        try:
            self.cloud.invoke(RULE, "release_on_failure", {"detail": event.detail})
        except asl.StateFailed:
            if event.tries < RULE_TRIES and not self.cloud.outage:
                return
        self.events.remove(event)


# --- scenarios --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """A small ingest and transform, and what makes it go this way."""

    name: str
    says: str
    streams: tuple[Stream, ...] = STREAMS
    runs_before: int = 0
    outage_at: str = ""
    """From this state on nothing works, until the execution has failed."""
    sick: Callable[[], Callable[[str, str], bool]] | None = None
    main: bool = True
    """Every effect is struck; otherwise those that no scenario before it has shown."""

    def begin(self, cloud: Cloud) -> History:
        """In a copy of the base world."""
        for _ in range(self.runs_before):
            assert History(cloud, self.streams).finish().execution.status == asl.SUCCEEDED
            cloud.trade_on(TRADES_S)
        cloud.effects.clear()
        cloud.invocations = 0
        if self.sick:
            cloud.sick = self.sick()
        return History(cloud, self.streams, self.outage_at)


@dataclass
class FirstRoundIsSick:
    """One exchange fails where a stream is planned, the other at one chunk; both are well in the second round."""

    chunk: str = ""

    def __call__(self, state: str, request: str) -> bool:
        if state == "IngestStreams.PlanStream":
            return request.startswith("/binance")
        if state != "IngestStreams.FetchChunks.FetchChunk":
            return False
        self.chunk = self.chunk or request
        return request == self.chunk


SCENARIOS = (
    Scenario("first", "the first run of two streams, which makes the table"),
    Scenario("next", "the next run of one stream, into a table that is there", STREAMS[:1], runs_before=1),
    Scenario("second round", "one stream fails where it is planned, one at a chunk", sick=FirstRoundIsSick, main=False),
    Scenario("failed", "Lambda is down until the execution has failed; the failure rule; a redrive",
             outage_at="IngestStreams.CommitSegments", main=False),
)  # fmt: skip
