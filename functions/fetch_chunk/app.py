"""FetchChunk: one chunk's originals, complete and durable."""

from __future__ import annotations

from typing import Any

from schemahub import events, ingest
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.FetchStep)
def handler(event: events.FetchStep, deps: Deps) -> dict[str, Any]:
    return ingest.fetch_step(event, deps)
