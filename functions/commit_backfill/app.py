"""CommitBackfill: commit what is durable below the watermark, and lower it."""

from __future__ import annotations

from typing import Any

from schemahub import backfill, events
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.CommitBackfill)
def handler(event: events.CommitBackfill, deps: Deps) -> dict[str, Any]:
    return backfill.commit_backfill(event, deps)
