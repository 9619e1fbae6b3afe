"""AcquireLock and ReleaseLock of one stream."""

from __future__ import annotations

from typing import Any

from schemahub import events, ingest
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.LockStep)
def handler(event: events.LockStep, deps: Deps) -> dict[str, Any]:
    return ingest.lock_step(event, deps)
