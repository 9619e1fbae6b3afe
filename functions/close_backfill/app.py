"""CloseBackfill: the report, planned against actual."""

from __future__ import annotations

from typing import Any

from schemahub import backfill, events
from schemahub.runtime import Deps, handler_of


@handler_of(events.CloseBackfill)
def handler(event: events.CloseBackfill, deps: Deps) -> dict[str, Any]:
    return backfill.close_backfill(event, deps)
