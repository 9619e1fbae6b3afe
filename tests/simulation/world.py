"""A whole SchemaHub in memory: the real steps under the real state machines, over stores and an exchange of its own.

Whoever drives it decides everything that chance decides outside: which execution's Task is handed out, which worker
makes its next call, what becomes of that call, whose clock is wrong, when leases run out, when somebody redrives.
After every step the model looks (``model.py``).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from local.exchange_sim.simulator import Simulator
from local.exchange_sim.world import build_world
from schemahub import events, ingest, outages, publishing
from schemahub.clock import FakeClock
from schemahub.deps import Deps, Settings
from schemahub.errors import ExchangeUnavailable
from schemahub.exchanges import Answer
from schemahub.failures import release_failed
from schemahub.ledger import Ledger
from schemahub.locks import Locks
from schemahub.mappings import load_mapping
from schemahub.objects import ObjectStore
from schemahub.runtime import parse_event
from schemahub.streams import Stream
from tests.simulation.asl import RUNNING, SUCCEEDED, Execution, Service
from tests.simulation.model import Model, demand
from tests.simulation.stores import Stores
from tests.simulation.workers import Line, Worker, session_of

BUCKET = "schemahub-simulation"
DATABASE = "schemahub_simulation"
BTC, BTCUSDT = Stream("coinbase", "BTC-USD"), Stream("binance", "BTC-USDT")
STREAMS = (BTC, BTCUSDT)
NOW_MS = 1_710_374_430_000
"""2024-03-14, half a minute after midnight: the first rows lie in two partitions."""
PAGE_ROWS = 4
CHUNK_PAGES = 2
TRADES_PER_DAY = 8_640
LEASE_GONE_S = 100.0

STEPS: dict[str, tuple[Any, Callable[[Any, Deps], Any]]] = {
    "open_run": (events.OpenRun, lambda e, d: ingest.open_run(e, d)),
    "lock": (events.LockStep, lambda e, d: ingest.lock_step(e, d)),
    "plan_stream": (events.PlanStep, lambda e, d: ingest.plan_stream(e, d)),
    "fetch_chunk": (events.FetchStep, lambda e, d: ingest.fetch_step(e, d)),
    "commit_segments": (events.CommitStep, lambda e, d: ingest.commit_step(e, d)),
    "close_run": (events.CloseRun, lambda e, d: ingest.close_run(e, d)),
    "list_pending": (events.ListPending, lambda e, d: publishing.list_pending(e, d)),
    "transform_batch": (events.BatchStep, lambda e, d: publishing.transform_step(e, d)),
    "publish": (events.PublishStep, lambda e, d: publishing.publish_step(e, d)),
}


@contextmanager
def small_pages() -> Iterator[None]:
    """Pages of a few rows, so that a handful of trades makes chunks enough."""
    specs = [load_mapping(s.exchange).requests for s in STREAMS]
    sizes = [spec.page_size for spec in specs]
    for spec in specs:
        object.__setattr__(spec, "page_size", PAGE_ROWS)
    try:
        yield
    finally:
        for spec, size in zip(specs, sizes, strict=True):
            object.__setattr__(spec, "page_size", size)


class World:
    def __init__(self, seed: int = 0) -> None:
        self.clock = FakeClock(NOW_MS)
        self.stores = Stores()
        self.random = random.Random(seed)
        config = {"limit": "none", "trades_per_day": TRADES_PER_DAY}
        self.simulator = Simulator(
            build_world(
                {
                    "genesis": "2024-03-13T00:00:00Z",
                    "latency_ms": {"mean": 0, "jitter": 0},
                    "coinbase": {**config, "products": ["BTC-USD"]},
                    "binance": {**config, "products": ["BTCUSDT"]},
                }
            ),
            real_s=lambda: self.clock.now_ms() / 1000,
        )
        self.service = Service(
            read=lambda bucket, key: self.stores.s3.objects[key][0],
            now_ms=self.clock.now_ms,
            stopped=self._stopped,
            closed=self._closed,
        )
        self.model = Model(self.stores, self.simulator, STREAMS, (DATABASE, "unified_trades"))
        self.executions: list[Execution] = []
        self.workers: list[Worker] = []
        self.events: list[dict[str, Any]] = []
        """Status changes that the failure rule has not been told of."""
        self.counts: Counter[str] = Counter()
        self.exchange_down = False

    # --- what may happen ----------------------------------------------------------------------------------------

    def start(self, machine: str = "ingest", *streams: Stream) -> Execution:
        named = [f"{s.exchange}:{s.product}" for s in streams or STREAMS]
        execution = self.service.start(machine, {"schema_version": 1, "products": named} if machine == "ingest" else {})
        self.executions.append(execution)
        return execution

    def hire(self, execution: Execution, skew_ms: int = 0) -> Worker:
        """Hand out the Task that the execution stands before; its worker stands before its first call."""
        worker = Worker(execution.invoke(), self._work, self.clock, skew_ms)
        self.workers.append(worker)
        self.counts["tasks"] += 1
        self._settle_up(worker)
        return worker

    def step(self, worker: Worker, fault: str = "") -> None:
        """The worker's next call, and a look at the world after it."""
        struck = worker.struck
        worker.step(fault)
        self.counts["calls"] += 1
        if worker.struck > struck:
            self.counts["faults"] += 1
            self.counts[f"fault: {fault}"] += 1
        self.model.check(worker.owner)
        self._settle_up(worker)

    def finish(self, worker: Worker) -> None:
        while not worker.over:
            self.step(worker)

    def give_up(self, worker: Worker, retry: bool = True) -> None:
        """Step Functions waits no longer, and may not try again; the worker does not know it."""
        if worker.invocation.awaited:
            self.counts["zombies"] += 1
            worker.invocation.fail("States.Timeout", retry)

    def dismiss(self, worker: Worker) -> None:
        """It dies where it stands; whether its state hears of it is not said."""
        worker.kill()
        self.workers.remove(worker)

    def run(self, execution: Execution) -> Execution:
        """To its end, without faults, one Task after the other."""
        while execution.status == RUNNING:
            ready = execution.ready()
            assert ready, "it waits for a worker that somebody holds"
            nearest = min(ready, key=lambda e: e.due_ms)
            self.wait(max(0, nearest.due_ms - self.clock.now_ms()) / 1000)
            self.finish(self.hire(nearest))
        return execution

    def run_to(self, execution: Execution, state: str) -> Execution:
        """On until it stands before ``state``; gives the (child) execution that does."""
        while not (there := [e for e in execution.ready() if e.at == state]):
            assert execution.status == RUNNING, f"{execution.status} before {state}: {execution.error}"
            nearest = min(execution.ready(), key=lambda e: e.due_ms)
            self.wait(max(0, nearest.due_ms - self.clock.now_ms()) / 1000)
            self.finish(self.hire(nearest))
        return there[0]

    def run_to_call(self, worker: Worker, call: str) -> Worker:
        """On until it stands before a call whose name ends so."""
        while not worker.call.endswith(call):
            self.step(worker)
            assert not worker.over, f"over before {call}: {worker.error!r}"
        return worker

    def wait(self, seconds: float) -> None:
        """Time passes: trades come, leases run out."""
        if seconds > 0:
            self.clock.advance(seconds)

    def tell(self, event: dict[str, Any]) -> None:
        """The failure rule hears of an execution's end."""
        sns = SimpleNamespace(publish=lambda **message: None)
        release_failed(event, self._deps(None), sns, "arn:aws:sns:us-east-1:1:alarms")
        self.model.check("the failure rule")

    # --- the end ------------------------------------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """Faults stop, everybody gives up, one more run; then the zombies wake. Everything must be there once."""
        for execution in self.executions:
            if execution.status == RUNNING:
                execution.abort()
        zombies = [w for w in self.workers if not w.over]
        self.stores.streams.let_the_index_lag(False)
        self.exchange_down = False
        self.wait(1_300)
        for event in self.events:
            self.tell(event)
        self.events.clear()
        last = self.run(self.start("ingest"))
        demand(last.status == SUCCEEDED, "complete", f"a run without faults: {last.status} {last.error}")
        self.model.check_all_is_there(self.clock.now_ms())
        for zombie in zombies:
            self.finish(zombie)
        self.model.check_all_is_there(self.clock.now_ms())

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()

    # --- inside -------------------------------------------------------------------------------------------------

    def _work(self, worker: Worker) -> Any:
        model, step = STEPS[worker.invocation.function]
        with outages.named():  # as in every handler
            return step(parse_event(model, worker.invocation.payload), self._deps(worker))

    def _settle_up(self, worker: Worker) -> None:
        """A worker that came to its end answers."""
        if not worker.over:
            return
        self.workers.remove(worker)
        if worker.dead:
            worker.invocation.fail("Lambda.Unknown")
        elif worker.error is not None:
            self.counts[f"error: {type(worker.error).__name__}"] += 1
            worker.invocation.fail(type(worker.error).__name__)
        else:
            worker.invocation.succeed(worker.answer)

    def _deps(self, worker: Worker | None) -> Deps:
        """Adapters of one worker; without one, of somebody who is never interrupted."""

        def line(name: str, client: Any) -> Any:
            return Line(worker, name, client) if worker else client

        stores, clock = self.stores, worker.clock if worker else self.clock
        return Deps(
            settings=Settings(
                bucket=BUCKET,
                locks_table="locks",
                streams_table="streams",
                throttle_table="throttle",
                database=DATABASE,
                cold_start_hours=0.05,
                cold_start_trades=20_000,
                chunk_pages=CHUNK_PAGES,
                endpoints={s.exchange: f"http://exchange/{s.exchange}" for s in STREAMS},
            ),
            objects=ObjectStore(BUCKET, line("s3", stores.s3)),
            locks=Locks(line("locks", stores.locks), clock),
            ledger=Ledger(line("streams", stores.streams), line("dynamodb", stores.dynamo)),
            throttle_table=line("throttle", stores.throttle),
            clock=clock,
            http=SimpleNamespace(get=lambda url, params: self._ask(worker, url, params)),
            rng=random.Random(self.random.random()),
            session=session_of(worker, stores.s3, stores.glue) if worker else None,
        )

    def _ask(self, worker: Worker | None, url: str, params: dict[str, str]) -> Answer:
        def send() -> Answer:
            if self.exchange_down:
                raise ExchangeUnavailable("status 503")
            where = urlsplit(url)
            _, exchange, rest = unquote(where.path).split("/", 2)
            answer = self.simulator.get(exchange, "/" + rest, {**dict(parse_qsl(where.query)), **params}, "worker")
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.body)

        return worker.make("exchange", send) if worker else send()

    def _stopped(self, execution: Execution) -> None:
        self.counts["failed"] += 1
        self.events.append(
            {
                "detail": {
                    "executionArn": execution.arn,
                    "name": execution.arn.rsplit(":", 1)[-1],
                    "status": execution.status,
                    "error": execution.error,
                    "stopDate": self.clock.now_ms(),
                }
            }
        )

    def _closed(self, execution: Execution) -> None:
        if execution.parent is None or execution.parent.machine != execution.machine:
            self.counts[f"{execution.machine} {execution.status}"] += 1
