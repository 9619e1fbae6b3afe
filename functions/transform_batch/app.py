"""TransformBatch: raw segments to Parquet files and a manifest."""

from __future__ import annotations

from typing import Any

from schemahub import events, publishing
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.BatchStep)
def handler(event: events.BatchStep, deps: Deps) -> dict[str, Any]:
    return publishing.transform_step(event, deps)
