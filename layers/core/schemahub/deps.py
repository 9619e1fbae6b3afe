"""What the steps need from outside: settings, and the adapters of one process.

A Lambda builds ``Deps`` once from its environment (``runtime``), the command line from a stack's outputs, tests from
fakes. Importing this module loads neither an AWS SDK nor Powertools: ``build`` does.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from schemahub.clock import Clock, SystemClock
from schemahub.concurrency import DEFAULT_FUNCTIONS, MAX_FUNCTIONS
from schemahub.errors import BadConfig
from schemahub.mappings import exchanges, load_mapping

if TYPE_CHECKING:
    from aws_lambda_powertools import Metrics

    from schemahub.exchanges import Exchange, Http
    from schemahub.ledger import Ledger
    from schemahub.locks import Locks
    from schemahub.objects import ObjectStore

MAX_CHUNK_PAGES = 1000

logger = logging.getLogger("schemahub")
"""In a Lambda ``runtime`` gives this logger Powertools' JSON lines; elsewhere it is an ordinary one."""


@dataclass(frozen=True)
class Settings:
    """What the template's parameters decide, validated once."""

    bucket: str
    locks_table: str
    streams_table: str
    throttle_table: str
    database: str
    table: str = "unified_trades"
    stage: str = "local"
    limit_share: float = 1.0
    cold_start_hours: float = 24.0
    cold_start_trades: int = 1_000_000
    chunk_pages: int = 10
    functions_at_a_time: int = DEFAULT_FUNCTIONS
    products: tuple[str, ...] = ()
    endpoints: Mapping[str, str] = field(default_factory=dict)
    backfill_ecs: bool = False
    """Whether there is a network for ECS tasks; without one every backfill runs by Lambda."""
    backfill_threshold_seconds: float = 600.0
    backfill_workers: int = 3
    backfill_chunk_concurrency: int = 5
    backfill_tasks: int = 4
    backfill_vcpu: float = 0.5
    backfill_memory_gb: float = 1.0

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Raises BadConfig naming the variable that is missing or out of bounds."""

        def number(name: str, low: float, high: float, default: str) -> float:
            text = env.get(f"SCHEMAHUB_{name}") or default
            try:
                value = float(text)
            except ValueError:
                value = float("nan")
            if not low <= value <= high:
                raise BadConfig(f"SCHEMAHUB_{name} is {text[:40]!r}, not a number from {low:g} to {high:g}")
            return value

        def whole(name: str, low: int, high: int, default: str) -> int:
            value = number(name, low, high, default)
            if not value.is_integer():
                raise BadConfig(f"SCHEMAHUB_{name} is {value:g}, not a whole number")
            return int(value)

        def text(name: str) -> str:
            value = env.get(f"SCHEMAHUB_{name}", "")
            if not value:
                raise BadConfig(f"SCHEMAHUB_{name} is not set")
            return value

        return cls(
            bucket=text("BUCKET"),
            locks_table=text("LOCKS_TABLE"),
            streams_table=text("STREAMS_TABLE"),
            throttle_table=text("THROTTLE_TABLE"),
            database=text("DATABASE"),
            table=env.get("SCHEMAHUB_TABLE") or "unified_trades",
            stage=env.get("SCHEMAHUB_STAGE") or "local",
            limit_share=number("LIMIT_SHARE", 0.01, 1, "1"),
            cold_start_hours=number("COLD_START_HOURS", 0, 1_000_000, "24"),
            cold_start_trades=whole("COLD_START_TRADES", 1, 10**9, "1000000"),
            chunk_pages=whole("CHUNK_PAGES", 1, MAX_CHUNK_PAGES, "10"),
            functions_at_a_time=whole("FUNCTIONS_AT_A_TIME", 1, MAX_FUNCTIONS, str(DEFAULT_FUNCTIONS)),
            products=tuple(p.strip() for p in env.get("SCHEMAHUB_PRODUCTS", "").split(",") if p.strip()),
            endpoints=_endpoints(env.get("SCHEMAHUB_ENDPOINTS", "")),
            backfill_ecs=env.get("SCHEMAHUB_BACKFILL_ECS") == "true",
            backfill_threshold_seconds=number("BACKFILL_THRESHOLD_SECONDS", 0, 1e9, "600"),
            backfill_workers=whole("BACKFILL_WORKERS", 1, 100, "3"),
            backfill_chunk_concurrency=whole("BACKFILL_CHUNK_CONCURRENCY", 1, 100, "5"),
            backfill_tasks=whole("BACKFILL_TASKS", 1, 100, "4"),
            backfill_vcpu=number("BACKFILL_VCPU", 0.25, 16, "0.5"),
            backfill_memory_gb=number("BACKFILL_MEMORY_GB", 0.5, 120, "1"),
        )


def _endpoints(text: str) -> dict[str, str]:
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"SCHEMAHUB_ENDPOINTS is not JSON: {error}") from error
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise BadConfig("SCHEMAHUB_ENDPOINTS is not an object of exchange → URL")
    for name, url in value.items():
        if name not in exchanges():
            # A name that nobody reads would send the requests to the real exchange.
            raise BadConfig(f"SCHEMAHUB_ENDPOINTS names {name[:40]!r}, which has no mapping")
        if problem := _url_problem(url):
            raise BadConfig(f"SCHEMAHUB_ENDPOINTS: the URL of {name} {problem}")
    return value


def _url_problem(url: str) -> str | None:
    """Why an endpoint is refused: it could leak credentials, or reach what only this machine may reach."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        return f"cannot be read ({error})"
    if parts.scheme not in ("http", "https") or not host or not url.isprintable():
        return "is not an http(s) URL"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "holds a user, a query or a fragment"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        here = host == "localhost"
    else:
        here = address.is_loopback
        if not here:
            # 169.254.169.254 and its like hand out the credentials of the machine.
            return "is an address: name the host, or use loopback"
    return None if here or parts.scheme == "https" else "is not https (only loopback may do without)"


@dataclass
class Deps:
    """Adapters of one process. Anything may be replaced by a fake of the same shape."""

    settings: Settings
    objects: ObjectStore
    locks: Locks
    ledger: Ledger
    throttle_table: Any
    clock: Clock
    http: Http
    rng: random.Random
    session: Any = None
    metrics: Metrics | None = None
    paced: dict[str, Any] = field(default_factory=dict)
    """Paced exchanges of this process (``pacing.PacedExchange.of``)."""

    def exchange(self, name: str) -> Exchange:
        """The exchange of a mapping, at its own address or at the configured one (the simulator's)."""
        from schemahub.exchanges import Exchange

        return Exchange(load_mapping(name), self.http, self.settings.endpoints.get(name), self.clock)

    def count(self, name: str, value: float = 1, unit: str = "Count") -> None:
        """Add to a metric. Names are few and fixed, dimensions only service and exchange: cardinality stays bounded."""
        if self.metrics is not None:
            self.metrics.add_metric(name=name, unit=unit, value=value)

    def call_attention(self, what: str, about: object) -> None:
        """Nothing failed, yet a human should look: an error in the log, and a metric with an alarm."""
        logger.error(what, extra={"about": str(about)})
        self.count("NeedsALook")


def build(settings: Settings, session: Any | None = None, clock: Clock | None = None, http: Http | None = None) -> Deps:
    """Real adapters for ``settings``, in the account (or embedded AWS) that ``session`` points at."""
    import boto3
    from botocore.config import Config

    from schemahub.exchanges import RequestsHttp
    from schemahub.ledger import Ledger
    from schemahub.locks import Locks
    from schemahub.objects import ObjectStore

    # Retries of single calls; a write that may have been applied is made safe by conditions, not by hope.
    config = Config(
        retries={"mode": "standard", "max_attempts": 5}, connect_timeout=5, read_timeout=30, tcp_keepalive=True
    )
    session = session or boto3.Session()
    dynamodb = session.resource("dynamodb", config=config)
    clock = clock or SystemClock()
    return Deps(
        settings=settings,
        objects=ObjectStore(settings.bucket, session.client("s3", config=config)),
        locks=Locks(dynamodb.Table(settings.locks_table), clock),
        ledger=Ledger(dynamodb.Table(settings.streams_table), session.client("dynamodb", config=config)),
        throttle_table=dynamodb.Table(settings.throttle_table),
        clock=clock,
        http=http or RequestsHttp(),
        rng=random.Random(),
        session=session,
    )
