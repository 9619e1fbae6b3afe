"""The edge of every function: the decorator of handlers, with logs, metrics and traces."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import BaseModel, ValidationError

from schemahub import SCHEMA_VERSION, outages
from schemahub.deps import Deps, Settings, build
from schemahub.errors import BadStateInput, SchemaVersionMismatch, about
from schemahub.events import MAX_PAYLOAD_BYTES


@functools.cache
def deps_from_env() -> Deps:
    """The process's adapters; made once, so that warm invocations keep their connections."""
    deps = build(Settings.from_env(os.environ), boto3.Session())
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
