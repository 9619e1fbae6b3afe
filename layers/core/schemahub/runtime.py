"""The edge: environment, adapters and the decorator of every handler.

``Deps`` bundles what the steps of ``ingest`` and ``transform`` need; a Lambda builds it once from its environment, the
command line from a stack's outputs, tests from fakes.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config
from pydantic import BaseModel, ValidationError

from schemahub import SCHEMA_VERSION, outages
from schemahub.clock import Clock, SystemClock
from schemahub.errors import BadConfig, BadStateInput, SchemaVersionMismatch, about
from schemahub.events import MAX_PAYLOAD_BYTES
from schemahub.exchanges import Exchange, Http, RequestsHttp
from schemahub.ledger import Ledger
from schemahub.locks import Locks
from schemahub.mappings import exchanges, load_mapping
from schemahub.objects import ObjectStore

MAX_CHUNK_PAGES = 1000
CLIENT = Config(retries={"mode": "standard", "max_attempts": 5}, connect_timeout=5, read_timeout=30, tcp_keepalive=True)
"""Retries of single calls; a write that may have been applied is made safe by conditions, not by hope."""


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
    session = session or boto3.Session()
    dynamodb = session.resource("dynamodb", config=CLIENT)
    clock = clock or SystemClock()
    return Deps(
        settings=settings,
        objects=ObjectStore(settings.bucket, session.client("s3", config=CLIENT)),
        locks=Locks(dynamodb.Table(settings.locks_table), clock),
        ledger=Ledger(dynamodb.Table(settings.streams_table), session.client("dynamodb", config=CLIENT)),
        throttle_table=dynamodb.Table(settings.throttle_table),
        clock=clock,
        http=http or RequestsHttp(),
        rng=random.Random(),
        session=session,
    )


@functools.cache
def deps_from_env() -> Deps:
    """The process's adapters; made once, so that warm invocations keep their connections."""
    deps = build(Settings.from_env(os.environ))
    deps.metrics = metrics
    return deps


logger = Logger(service="schemahub")
metrics = Metrics(namespace="SchemaHub", service="schemahub")
tracer = Tracer(service="schemahub", auto_patch=False)

Event = TypeVar("Event", bound=BaseModel)


def parse_event(model: type[Event], event: Any) -> Event:
    """The typed event.

    Raises:
        SchemaVersionMismatch: the payload is of another release; BadStateInput: keys are missing, unknown or wrong.
    """
    version = event.get("schema_version") if isinstance(event, dict) else None
    inner = event.get("input") if isinstance(event, dict) else None
    # What a person gave to the execution may leave the version out; the payloads of our own states may not.
    given = inner.get("schema_version", SCHEMA_VERSION) if isinstance(inner, dict) else SCHEMA_VERSION
    for name, found in (("payload", version), ("execution's input", given)):
        if type(found) is not int or found != SCHEMA_VERSION:
            raise SchemaVersionMismatch(
                f"the {name}'s schema_version is {str(found)[:40]!r}, this code speaks {SCHEMA_VERSION}"
            )
    try:
        size = len(json.dumps(event).encode("utf-8", "surrogatepass"))
        if size > MAX_PAYLOAD_BYTES:
            raise BadStateInput(f"the payload has {size} bytes, Step Functions takes {MAX_PAYLOAD_BYTES}")
        return model.model_validate(event)
    except (TypeError, ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise BadStateInput(f"the payload is not JSON: {error!r}"[:300]) from error
        problems = "; ".join(f"{'/'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise BadStateInput(problems) from error


def handler_of(model: type[Event]) -> Callable[[Callable[[Event, Deps], dict[str, Any]]], Callable[..., Any]]:
    """Turn a step into a Lambda handler: typed event, adapters, run/stream/chunk in every log line, metrics, trace.

    Errors pass through with their class name, which is what the state machines retry and stop on.
    """

    def decorate(step: Callable[[Event, Deps], dict[str, Any]]) -> Callable[..., Any]:
        @logger.inject_lambda_context(clear_state=True)
        @metrics.log_metrics
        @tracer.capture_lambda_handler(capture_response=False)
        @functools.wraps(step)
        def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
            parsed = parse_event(model, event)
            logger.append_keys(**log_keys(parsed))
            deps = deps_from_env()
            try:
                with about(*place_of(parsed)), outages.named():
                    result = step(parsed, deps)
            except Exception as error:
                logger.error("step failed", extra={"error": type(error).__name__, "reason": str(error)[:500]})
                raise
            logger.info("step done", extra={"result": result})
            return result

        return handler

    return decorate


def place_of(event: BaseModel) -> tuple[object, tuple[int, int] | None]:
    """The stream and the range that an event is about, as far as it says."""
    chunk = getattr(event, "chunk", None)
    return getattr(event, "stream", None), (chunk.first, chunk.last) if chunk is not None else None


def log_keys(event: BaseModel) -> dict[str, str]:
    """Run, stream and chunk of an event, for every log line."""
    keys: dict[str, str] = {}
    for name in ("run", "stream", "chunk"):
        value = getattr(event, name, None)
        if value is not None:
            keys[name] = str(getattr(value, "id", value))
    return keys
