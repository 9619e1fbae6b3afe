"""What a run costs on AWS, from what it does: pure arithmetic, no call to any pricing service.

List prices of us-east-1 without free tiers or savings plans, as on the services' own pricing pages
(aws.amazon.com/{lambda,step-functions,dynamodb,s3,glue,athena,cloudwatch,fargate}/pricing); those of Lambda, Step
Functions and DynamoDB were compared with copies of these pages on 2026-11-21. The page of Fargate fills its tables in a
browser; its prices are those that vantage.sh/blog/fargate-pricing copied from it (on X86 0.04048 and 0.004445), and the
same page says "up to a 70% discount" of Spot. Other regions differ by some per cent; data that flows
into AWS is free, and nothing here flows out. X-Ray samples one request a second and is below a cent for any run.

How much of each a stream, a chunk and a batch use is counted from statemachines/*.asl.json and from the adapters: when
one of those changes, change the table of uses here.
"""

from __future__ import annotations

from dataclasses import dataclass

PRICES = "us-east-1 list prices without free tier, 2026-11"
LAMBDA_GB_SECOND = 0.0000133334
"""arm64, first tier."""
LAMBDA_REQUEST = 0.20e-6
TRANSITION = 0.025e-3
"""Standard workflow; a child of a Distributed Map is charged one for its start and one for each state it enters."""
DYNAMODB_WRITE = 0.625e-6
"""On-demand write request unit (1 KB); a transactional write takes two."""
DYNAMODB_READ = 0.125e-6
S3_PUT = 0.005e-3
"""PUT, COPY, POST and LIST."""
S3_GET = 0.0004e-3
S3_GB_MONTH = 0.023
LOG_GB = 0.50
GLUE_REQUEST = 1e-6
ATHENA_TB = 5.0
FARGATE_VCPU_HOUR = 0.03238
"""Linux on ARM, on demand. Spot is up to 70 % off, by supply and demand, and is not counted on."""
FARGATE_GB_HOUR = 0.00356
FARGATE_DISK_GB_HOUR = 0.000111
"""Of a task's disk beyond the 20 GB that are free."""
FARGATE_DISK_GB = 40.0
"""What the template's tasks have beyond that (``EphemeralStorage``): archives are sorted there."""
FARGATE_START_S = 60.0
"""Of each task, from pulling the image until it works; charged like the rest."""
ATHENA_MINIMUM_BYTES = 10 * 10**6

SMALL_GB = 0.5
"""Memory of the functions that only look and decide (open_run, lock, plan_stream, ...)."""
FETCH_GB = 0.5
TRANSFORM_GB = 1.75
SMALL_SECONDS = 0.8
"""One look-and-decide invocation, with its share of cold starts."""
MAX_FETCHERS = 16
"""8 streams × 2 chunks at a time (statemachines/ingest.asl.json); they share the limit, so more only wait longer."""
TRANSFORM_ROWS_PER_SECOND = 500_000
"""At 1,769 MB (one virtual CPU) with reading and writing S3; the engine alone is faster (bench/)."""
RAW_BYTES = 19.0
"""Compressed raw line (facts: 118 bytes of JSON at 16 %)."""
PARQUET_BYTES = 12.0
ECS_VCPU = 0.5
"""Of one task (the template's default)."""
LOG_BYTES = 4_000
"""Log lines of one invocation and the execution events it causes."""

GB = 10**9


@dataclass(frozen=True)
class Work:
    """What a run has to do, or did.

    ``seconds`` is the wall-clock of the fetching: planned, that is requests at the exchange's limit, or measured.
    ``batches`` None means: as many as the chunks fill, 50 chunks each.
    """

    streams: int
    chunks: int
    requests: int
    trades: int
    seconds: float
    batches: int | None = None
    queries: int = 0
    query_bytes: int = 0
    tasks: int = 0
    """ECS tasks that fetch instead of functions; theirs are the three sums below."""
    ecs_task_seconds: float = 0.0
    ecs_vcpu_seconds: float = 0.0
    ecs_gb_seconds: float = 0.0

    @property
    def transform_batches(self) -> int:
        return self.batches if self.batches is not None else -(-self.chunks // 50)


@dataclass(frozen=True)
class Line:
    """One kind of use: so many of something at a price."""

    service: str
    what: str
    quantity: float
    usd: float


@dataclass(frozen=True)
class Bill:
    """The lines of one run; ``storage_month_usd`` is what keeping the run's data costs each month, not in ``usd``."""

    lines: tuple[Line, ...]
    storage_month_usd: float

    @property
    def usd(self) -> float:
        return sum(line.usd for line in self.lines)

    def by_service(self) -> dict[str, float]:
        """US dollars for each service, largest first."""
        sums: dict[str, float] = {}
        for line in self.lines:
            sums[line.service] = sums.get(line.service, 0.0) + line.usd
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def to_json(self) -> dict[str, object]:
        return {
            "usd": round(self.usd, 6),
            "storage_month_usd": round(self.storage_month_usd, 6),
            "services": {name: round(usd, 6) for name, usd in self.by_service().items()},
            "prices": PRICES,
        }


def bill(work: Work) -> Bill:
    """The estimated bill of ``work`` in US dollars."""
    uses = [*_compute(work), *_state(work), *_storage(work)]
    lines = tuple(Line(service, what, quantity, quantity * price) for service, what, quantity, price in uses)
    kept = work.trades * (RAW_BYTES + PARQUET_BYTES) / GB
    return Bill(lines, storage_month_usd=kept * S3_GB_MONTH)


_Use = tuple[str, str, float, float]


def _compute(work: Work) -> list[_Use]:
    batches, active = work.transform_batches, bool(work.chunks)
    # open, close and list once, publish once; acquire, plan, commit and release for each stream
    small = 3 + 4 * work.streams
    # tasks fetch all of their chunks themselves
    fetched = 0 if work.tasks else work.chunks
    fetch_s = min(MAX_FETCHERS, fetched) * work.seconds
    transform_s = work.trades / TRANSFORM_ROWS_PER_SECOND + 3.0 * batches
    publish_s = 6.0 if active else 0.0
    gb_seconds = small * SMALL_SECONDS * SMALL_GB + fetch_s * FETCH_GB + (transform_s + publish_s) * TRANSFORM_GB
    invocations = small + fetched + batches + active
    # states entered: 9 of ingest itself, 5 of transform itself, 9 a stream with its start, 2 a chunk, task or batch
    transitions = 9 + 5 + 9 * work.streams + 2 * (fetched + work.tasks) + 2 * batches
    each = work.ecs_vcpu_seconds and work.ecs_gb_seconds / work.ecs_vcpu_seconds
    started_s = work.tasks * FARGATE_START_S
    vcpu_hours = (work.ecs_vcpu_seconds + started_s * ECS_VCPU) / 3600
    gb_hours = (work.ecs_gb_seconds + started_s * ECS_VCPU * each) / 3600
    disk_gb_hours = (work.ecs_task_seconds + started_s) / 3600 * FARGATE_DISK_GB
    return [
        *([("Fargate", "vCPU-hours (arm64)", vcpu_hours, FARGATE_VCPU_HOUR)] if work.tasks else []),
        *([("Fargate", "GB-hours (arm64)", gb_hours, FARGATE_GB_HOUR)] if work.tasks else []),
        *([("Fargate", "GB-hours of disk", disk_gb_hours, FARGATE_DISK_GB_HOUR)] if work.tasks else []),
        ("Lambda", "GB-seconds (arm64)", gb_seconds, LAMBDA_GB_SECOND),
        ("Lambda", "invocations", invocations, LAMBDA_REQUEST),
        ("Step Functions", "state transitions", transitions, TRANSITION),
        ("CloudWatch", "GB of logs", invocations * LOG_BYTES / GB, LOG_GB),
    ]


def _state(work: Work) -> list[_Use]:
    # a slot of the shared bucket for each request; lock, renewals and watermark for each stream; a segment is a
    # transactional put with its index entry (3), then marked published and leaves the index (2)
    writes = work.requests + 10 * work.streams + 5 * work.chunks
    reads = 8 * work.streams + 2 * work.chunks
    return [
        ("DynamoDB", "write request units", writes, DYNAMODB_WRITE),
        ("DynamoDB", "read request units", reads, DYNAMODB_READ),
    ]


def _storage(work: Work) -> list[_Use]:
    batches, active = work.transform_batches, bool(work.chunks)
    # a raw object for each chunk, two plans and a mirror for each stream, Parquet by day and Iceberg's metadata; of
    # each Map (over the streams, over a stream's chunks, over batches) a manifest and its children's results
    maps = 1 + active * (work.streams + 1)
    puts = work.chunks + 4 * work.streams + 4 * batches + 6 * active + 2 * maps
    gets = 2 * work.chunks + 4 * work.streams + 12 * active
    scanned = max(work.query_bytes, work.queries * ATHENA_MINIMUM_BYTES)
    return [
        ("S3", "PUT and LIST requests", puts, S3_PUT),
        ("S3", "GET requests", gets, S3_GET),
        ("Glue", "catalogue requests", 20 * active + 3 * work.queries, GLUE_REQUEST),
        ("Athena", "TB scanned", scanned / 10**12, ATHENA_TB),
    ]
