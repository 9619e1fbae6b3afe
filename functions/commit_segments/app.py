"""CommitSegments: the fenced commit of the longest continuous prefix."""

from __future__ import annotations

from typing import Any

from schemahub import events, ingest
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.CommitStep)
def handler(event: events.CommitStep, deps: Deps) -> dict[str, Any]:
    return ingest.commit_step(event, deps)
