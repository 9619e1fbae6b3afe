"""AcquireLock and ReleaseLock of one stream."""

from __future__ import annotations

from typing import Any

from schemahub import events, ingest
from schemahub.runtime import Deps, handler_of


@handler_of(events.LockStep)
def handler(event: events.LockStep, deps: Deps) -> dict[str, Any]:
    return ingest.lock_step(event, deps)
