"""Real processes and threads that contend for one account: what each of them does, and what it tells afterwards.

The functions that run in processes are here, because a spawned process finds a function by the name of its module.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from schemahub import events, ingest, publishing
from schemahub.clock import SystemClock
from schemahub.deps import Settings, build
from schemahub.errors import SchemaHubError
from schemahub.exchanges import RequestsHttp
from schemahub.mappings import load_mapping
from schemahub.pacing import PacedExchange
from schemahub.streams import Stream
from tests.unit.worlds import STREAM, World

PAGE_ROWS = 10
CHUNKS_A_RUN = 4


class SkewedClock(SystemClock):
    """A machine whose clock is wrong."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


@dataclass
class Told:
    """What a process has to say: outcomes, waits in seconds, writes to the bucket's item."""

    outcomes: Counter[str] = field(default_factory=Counter)
    waits_s: list[float] = field(default_factory=list)
    writes: int = 0

    def add(self, other: Told) -> None:
        self.outcomes += other.outcomes
        self.waits_s += other.waits_s
        self.writes += other.writes


def in_processes(work: Callable[..., Told], processes: int, *arguments: Any) -> Told:
    """``work(number, *arguments)`` in so many processes at once; all that they tell."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        results = [pool.apply_async(work, (number, *arguments)) for number in range(processes)]
        total = Told()
        for result in results:
            total.add(result.get(timeout=600))
    return total


def _in_threads(work: Callable[[int], None], threads: int) -> None:
    crew = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for one in crew:
        one.start()
    for one in crew:
        one.join()


def _session(environment: Mapping[str, str]) -> boto3.Session:
    os.environ.update(environment)
    return boto3.Session()


# --- the load on one bucket -------------------------------------------------------------------------------------


class CountedTable:
    """A table that counts the writes which are sent to it."""

    def __init__(self, table: Any) -> None:
        self._table, self.writes = table, 0
        self._guard = threading.Lock()

    def update_item(self, **request: Any) -> Any:
        with self._guard:
            self.writes += 1
        return self._table.update_item(**request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


def load_one_bucket(
    number: int, environment: Mapping[str, str], settings: Settings, threads: int, begin_s: float, seconds: float
) -> Told:
    """Workers that ask for pages one after the other, each as a Lambda would: with a throttle of its own."""
    session, told, guard = _session(environment), Told(), threading.Lock()
    many = Config(max_pool_connections=threads, retries={"mode": "standard", "max_attempts": 5})
    table = CountedTable(session.resource("dynamodb", config=many).Table(settings.throttle_table))
    deps = build(settings, session=session)
    workers = [
        PacedExchange.of(replace(deps, throttle_table=table, http=RequestsHttp(), paced={}), "coinbase")
        for _ in range(threads)
    ]
    last = max(row.position for row in workers[0].exchange.newest(STREAM)) if number == 0 else 10**9
    chance = random.Random(number)
    starts = [begin_s + chance.random() * 2 for _ in range(threads)]

    def work(mine: int) -> None:
        waits, outcomes = [], Counter[str]()
        time.sleep(max(0, starts[mine] - time.time()))
        while time.time() < begin_s + seconds:
            asked = time.monotonic()
            try:
                workers[mine].page(STREAM, last - 999, last)
                outcomes["granted"] += 1
            except SchemaHubError as error:
                outcomes[type(error).__name__] += 1
            waits.append(time.monotonic() - asked)
        with guard:
            told.waits_s.extend(waits)
            told.outcomes.update(outcomes)

    _in_threads(work, threads)
    told.writes = table.writes
    return told


# --- whole runs against each other ------------------------------------------------------------------------------


class Unpaced(PacedExchange):
    """Requests without slots: an exchange's bucket is no place for clocks that are minutes apart."""

    def _paced(self, kind: str, expected: int, send: Callable[[], Any], stream: Stream | None = None) -> Any:
        return send()


def overlapping_runs(
    number: int, environment: Mapping[str, str], settings: Settings, threads: int, seconds: float
) -> Told:
    """Runs of the same stream, whose clocks are minutes apart: each takes the others' leases for expired."""
    session, told, guard = _session(environment), Told(), threading.Lock()
    object.__setattr__(load_mapping("coinbase").requests, "page_size", PAGE_ROWS)
    crew = []
    for mine in range(threads):
        world = World(build(settings, session=session, clock=SkewedClock()), number * 1_000_000 + mine * 10_000)
        paced = PacedExchange.of(world.deps, "coinbase")
        world.deps.paced["coinbase"] = Unpaced(paced.exchange, paced.throttle, paced.breaker)
        crew.append(world)
    end_s = time.time() + seconds

    def work(mine: int) -> None:
        world, chance, outcomes = crew[mine], random.Random(number * 100 + mine), Counter[str]()
        while time.time() < end_s:
            world.deps.clock.ahead_ms = chance.choice((0, 0, 120_000, 240_000))  # type: ignore[attr-defined]
            try:
                outcomes[one_run(world, chance)] += 1
            except Exception as error:
                outcomes[type(error).__name__] += 1
        with guard:
            told.outcomes.update(outcomes)

    _in_threads(work, threads)
    return told


def one_run(world: World, chance: random.Random) -> str:
    """The child execution of one stream, or the publication of what is pending; says what came of it."""
    world.runs += 1
    if chance.random() < 0.2:
        return "published" if publish_pending(world) else "nothing to publish"
    run = {"id": f"run-{world.runs}", "arn": world.execution()["Id"], "fences": {}}
    base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
    lock = world.acquire(base)
    if lock["status"] == "busy":
        return "busy"
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    outcome = str(plan["status"])
    if outcome == "planned":
        for chunk in world.chunks(plan["chunks_key"])[:CHUNKS_A_RUN]:
            world.fetch(base, lock, chunk)
        time.sleep(chance.choice((0, 0, 0.2)))
        outcome = world.commit(base, lock, plan)["status"]
    if chance.random() < 0.8:
        world.call(ingest.lock_step, events.LockStep, {**base, "lock": lock, "action": "release"})
    return outcome


def publish_pending(world: World) -> bool:
    """The steps of ``transform``."""
    execution = {"Id": f"arn:aws:states:us-east-1:1:execution:transform:t-{world.runs}", "RedriveCount": 0}
    world.runs += 1
    listed = world.call(publishing.list_pending, events.ListPending, {"execution": execution, "input": {}})
    if not listed["batches"]:
        return False
    for batch in world.chunks(listed["batches_key"]):
        world.call(publishing.transform_step, events.BatchStep, {"run": listed["run"], "batch": batch})
    step = {"execution": execution, "run": listed["run"], "bucket": "-", "batches_key": listed["batches_key"]}
    world.call(publishing.publish_step, events.PublishStep, step)
    return True


def table_ids(world: World, stream: Stream) -> list[int]:
    """The ids of a stream's rows in the table, by its own data files."""
    import pyarrow.parquet as pq

    ids: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        for task in publishing.open_table(world.deps).scan().plan_files():
            path = Path(folder) / "file.parquet"
            assert world.deps.objects.get_to_file(task.file.file_path.split("/", 3)[3], path), task.file.file_path
            rows = pq.read_table(path, columns=["symbol", "trade_id"], partitioning=None).to_pylist()
            ids += [int(r["trade_id"]) for r in rows if r["symbol"] == stream.product]
    return sorted(ids)
