"""What a backfill is asked for, what it will take, which way it runs and in which tasks. All of it is pure.

Wanted is a range of positions, a range of time, or all that the exchange has. What is planned is only what is missing
of it; a task carries its chunks with it, and running it twice, or a part of it, is harmless.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from schemahub import cost
from schemahub.deps import Settings
from schemahub.errors import BadStateInput
from schemahub.locks import Lease
from schemahub.mappings import Mapping
from schemahub.paging import Expected
from schemahub.streams import Chunk, Interval, Stream, position

PRESETS = {"small": (3, 5), "medium": (5, 9), "large": (10, 20)}
"""Workers of a task and the chunks that each has in hand at a time."""
REQUEST_S = 0.2
"""From question to answer, where no limit is in the way."""
FILE_ROWS_PER_SECOND = 50_000
"""Rows of an archive's file that a task of half a virtual CPU takes, from the download to the commit. Assumed, not
measured on Fargate."""
TASK_S = 3600.0
"""Work of one task at the allowed rate: what a task that is lost may have held up."""
MAX_TASKS = 1000
MAX_PLAN = 250_000
"""Chunks of one stream in one plan."""
LAMBDA_FETCHERS = cost.MAX_FETCHERS
Route = Literal["lambda", "ecs"]
_ASK = 'Write {"ids": [first, last]}, {"from": "2023-01-01", "to": null} or "all".'


@dataclass(frozen=True)
class Wanted:
    """A range by positions, or by time (microseconds since the epoch, ``until_us`` excluded); neither: everything."""

    ids: Interval | None = None
    since_us: int | None = None
    until_us: int | None = None

    @classmethod
    def parse(cls, value: Any) -> Wanted:
        """Raises BadStateInput for anything but the three forms, and for a range that runs backwards."""
        if value == "all":
            return cls()
        if isinstance(value, dict) and value.keys() == {"ids"}:
            return cls(ids=_ids(value["ids"]))
        if isinstance(value, dict) and "from" in value and value.keys() <= {"from", "to"}:
            since, to = _moment(value["from"]), value.get("to")
            until = None if to is None else _moment(to)
            if until is not None and until <= since:
                raise BadStateInput(f"the range ends at {to}, not after its beginning {value['from']}", remedy=_ASK)
            return cls(since_us=since, until_us=until)
        raise BadStateInput(f"{str(value)[:80]!r} is not a range to fill back", remedy=_ASK)

    def to_json(self) -> Any:
        if self.ids:
            return {"ids": list(self.ids)}
        if self.since_us is None:
            return "all"
        return {"from": _iso(self.since_us), "to": None if self.until_us is None else _iso(self.until_us)}


def _ids(value: Any) -> Interval:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise BadStateInput(f"{str(value)[:80]!r} is not [first, last]", remedy=_ASK)
    first, last = (position(v, name) for v, name in zip(value, ("first", "last"), strict=True))
    if first > last:
        raise BadStateInput(f"the range begins at {first}, after its end {last}", remedy=_ASK)
    return Interval(first, last)


def _moment(value: Any) -> int:
    try:
        when = dt.datetime.fromisoformat(value)
        when = when if when.tzinfo else when.replace(tzinfo=dt.UTC)
        micros = (when - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(microseconds=1)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadStateInput(f"{str(value)[:40]!r} is not a date or a time (ISO 8601)", remedy=_ASK) from error
    if micros < 0:
        raise BadStateInput(f"{value} is before 1970", remedy=_ASK)
    return micros


def _iso(us: int) -> str:
    return (dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=us)).isoformat()


@dataclass(frozen=True)
class Means:
    """What a deployment gives a backfill. ``rate``: pages a second that its share of the limit allows."""

    rate: float
    threshold_seconds: float = 600.0
    ecs: bool = True
    workers: int = 3
    chunk_concurrency: int = 5
    tasks: int = 4
    """Tasks of one stream at a time, at most."""
    vcpu: float = 0.5
    memory_gb: float = 1.0

    @property
    def parallel(self) -> int:
        """Requests that one task has in hand at a time."""
        return self.workers * self.chunk_concurrency


@dataclass(frozen=True)
class Estimate:
    """What a plan will take and bring. ``tasks`` at a time; seconds are wall-clock but for those of Lambda and ECS."""

    chunks: int
    trades: int
    requests: int
    seconds: float
    route: Route
    tasks: int
    lambda_seconds: float
    ecs_seconds: float
    storage_bytes: int
    usd: float

    def to_json(self) -> dict[str, Any]:
        return {
            "chunks": self.chunks,
            "trades": self.trades,
            "requests": self.requests,
            "seconds": round(self.seconds, 1),
            "route": self.route,
            "tasks": self.tasks,
            "lambda_seconds": round(self.lambda_seconds, 1),
            "ecs_seconds": round(self.ecs_seconds, 1),
            "storage_bytes": self.storage_bytes,
            "usd": round(self.usd, 6),
        }


def means_of(settings: Settings, mapping: Mapping) -> Means:
    """What a deployment gives the streams of an exchange, as its parameters say."""
    return Means(
        pages_per_second(mapping, settings.limit_share),
        settings.backfill_threshold_seconds,
        settings.backfill_ecs,
        settings.backfill_workers,
        settings.backfill_chunk_concurrency,
        settings.backfill_tasks,
        settings.backfill_vcpu,
        settings.backfill_memory_gb,
    )


def pages_per_second(mapping: Mapping, limit_share: float) -> float:
    """Pages that the exchange's limit allows, of which this deployment uses ``limit_share``."""
    limits = mapping.limits
    return limits.amount * limit_share / limits.per_seconds / limits.cost["page"]


def route(requests: int, seconds_per_request: float, *, threshold_seconds: float) -> Route:
    """``lambda`` for what its functions do within the threshold, ``ecs`` for more: waiting is cheaper there."""
    return "lambda" if requests * seconds_per_request <= threshold_seconds else "ecs"


def estimate(expected: Expected, chunks: int, means: Means, forced: Route | None = None) -> Estimate:
    """What ``chunks`` take, on the route that they belong to (or that is ``forced``)."""
    requests = expected.requests
    by_lambda = max(1 / means.rate, REQUEST_S / LAMBDA_FETCHERS)
    way = forced or route(requests, by_lambda, threshold_seconds=means.threshold_seconds)
    if not means.ecs:
        way = "lambda"
    tasks = tasks_at_a_time(chunks, means) if way == "ecs" else 0
    seconds = requests * (by_lambda if way == "lambda" else max(1 / means.rate, REQUEST_S / (tasks * means.parallel)))
    return _estimate(expected, chunks, means, way, tasks, seconds)


def estimate_files(trades: int, files: int, means: Means) -> Estimate:
    """What a task for each of so many files of an archive takes; ``trades`` 0 where positions say nothing of them."""
    tasks = min(means.tasks, files)
    seconds = trades / (FILE_ROWS_PER_SECOND * tasks)
    return _estimate(Expected(trades, 2 * files), files, means, "ecs", tasks, seconds)


def _estimate(expected: Expected, chunks: int, means: Means, way: Route, tasks: int, seconds: float) -> Estimate:
    lambda_s = min(LAMBDA_FETCHERS, chunks) * seconds if way == "lambda" else 0.0
    ecs_s = tasks * seconds
    work = cost.Work(
        streams=1, chunks=chunks, requests=expected.requests, trades=expected.trades, seconds=seconds,
        tasks=number_of_tasks(chunks, seconds, tasks), ecs_task_seconds=ecs_s,
        ecs_vcpu_seconds=ecs_s * means.vcpu, ecs_gb_seconds=ecs_s * means.memory_gb,
    )  # fmt: skip
    kept, usd = round(expected.trades * (cost.RAW_BYTES + cost.PARQUET_BYTES)), cost.bill(work).usd
    return Estimate(chunks, expected.trades, expected.requests, seconds, way, tasks, lambda_s, ecs_s, kept, usd)


def tasks_at_a_time(chunks: int, means: Means) -> int:
    """Tasks that the rate can feed, at most as many as allowed, none without a chunk."""
    fed = math.ceil(means.rate * REQUEST_S / means.parallel)
    return max(1, min(fed, means.tasks, chunks))


def number_of_tasks(chunks: int, seconds: float, at_a_time: int) -> int:
    """Tasks in all: each ``TASK_S`` of work at most, and enough for those at a time."""
    if not at_a_time:
        return 0
    rounds = max(1, math.ceil(seconds / TASK_S))
    return max(1, min(at_a_time * rounds, MAX_TASKS, chunks))


def split(chunks: Sequence[Chunk], tasks: int, *, newest_first: bool = True) -> list[list[Chunk]]:
    """Chunks in at most ``tasks`` lists of neighbours, the newest list first and the newest chunk first in each.

    ``low`` falls from above, so what lies next to it comes first; ``high`` rises from below (``newest_first=False``).
    Neighbours make long ranges in the table.
    """
    ordered = sorted(chunks, reverse=newest_first)
    tasks = max(1, min(tasks, len(ordered)))
    edges = [round(i * len(ordered) / tasks) for i in range(tasks + 1)]
    return [ordered[a:b] for a, b in itertools.pairwise(edges) if a < b]


@dataclass(frozen=True)
class TaskSpec:
    """All that one ECS task has to know. ``within`` is what its commits may touch; ``file`` names an archive's file.

    Kind ``ingest``: chunks above the watermark, which are made durable and committed by the state machine's own step.
    """

    run: str
    stream: Stream
    lease: Lease
    kind: Literal["rest", "archive", "ingest"]
    within: Interval
    workers: int
    chunk_concurrency: int
    chunks: tuple[Chunk, ...] = ()
    file: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        lease = {name: getattr(self.lease, name) for name in ("lock_id", "owner", "run", "attempt", "fence")}
        return {
            "schema_version": 1,
            "run": self.run,
            "stream": self.stream.to_json(),
            "lease": lease,
            "kind": self.kind,
            "within": list(self.within),
            "workers": self.workers,
            "chunk_concurrency": self.chunk_concurrency,
            "chunks": [c.to_json() for c in self.chunks],
            "file": self.file,
        }

    @classmethod
    def from_json(cls, value: Any) -> TaskSpec:
        """Raises BadStateInput for what is not a task of this release."""
        try:
            if value["schema_version"] != 1 or value["kind"] not in ("rest", "archive", "ingest"):
                raise ValueError(f"schema_version {value['schema_version']!r}, kind {value['kind']!r}")
            lease, numbers = value["lease"], [value["workers"], value["chunk_concurrency"]]
            texts = [value["run"], *(lease[name] for name in ("lock_id", "owner", "run"))]
            if not all(isinstance(text, str) and text for text in texts):
                raise ValueError("run and lease are not text")
            if any(type(n) is not int or not 1 <= n <= 1000 for n in numbers):
                raise ValueError(f"{numbers} are not numbers of workers")
            if (value["file"] is not None) != (value["kind"] == "archive"):
                raise ValueError("only an archive's task has a file")
            stream = Stream.from_json(value["stream"])
            lock_id = stream.lock_id if value["kind"] == "ingest" else stream.backfill_lock_id
            if lease["lock_id"] != lock_id:
                raise ValueError(f"{lease['lock_id']} is not the lock of this stream's {value['kind']} tasks")
            return cls(
                run=value["run"],
                stream=stream,
                lease=Lease(
                    lease["lock_id"], lease["owner"], lease["run"],
                    position(lease["attempt"], "attempt"), position(lease["fence"], "fence"),
                ),
                kind=value["kind"],
                within=Interval(*(position(edge, "within") for edge in value["within"])),
                workers=numbers[0],
                chunk_concurrency=numbers[1],
                chunks=tuple(Chunk.from_json(chunk) for chunk in value["chunks"]),
                file=value["file"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, BadStateInput) as error:
            raise BadStateInput(f"{str(value)[:80]!r} is not a task of a backfill: {error!r}"[:300]) from error
