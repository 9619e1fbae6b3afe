"""OpenRun: take the process locks and list the streams of this run."""

from __future__ import annotations

from typing import Any

from schemahub import events, ingest
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.OpenRun)
def handler(event: events.OpenRun, deps: Deps) -> dict[str, Any]:
    return ingest.open_run(event, deps)
