"""OpenBackfill: check what is asked for and list the streams of this backfill."""

from __future__ import annotations

from typing import Any

from schemahub import backfill, events
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.OpenBackfill)
def handler(event: events.OpenBackfill, deps: Deps) -> dict[str, Any]:
    return backfill.open_backfill(event, deps)
