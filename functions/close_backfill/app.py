"""CloseBackfill: the report, planned against actual."""

from __future__ import annotations

from typing import Any

from schemahub import backfill, events
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.CloseBackfill)
def handler(event: events.CloseBackfill, deps: Deps) -> dict[str, Any]:
    return backfill.close_backfill(event, deps)
