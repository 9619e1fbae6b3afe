"""PlanStream: from the watermark to the exchange's settled head, cut into chunks."""

from __future__ import annotations

from typing import Any

from schemahub import events, ingest
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.PlanStep)
def handler(event: events.PlanStep, deps: Deps) -> dict[str, Any]:
    return ingest.plan_stream(event, deps)
