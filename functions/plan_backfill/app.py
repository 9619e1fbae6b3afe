"""PlanBackfill: what is missing below the watermark, cut into chunks and tasks, or found in an archive's files."""

from __future__ import annotations

from typing import Any

from schemahub import backfill, events
from schemahub.archive_plan import archive_files
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.PlanBackfill)
def handler(event: events.PlanBackfill, deps: Deps) -> dict[str, Any]:
    return backfill.plan_backfill(event, deps, archive_files)
