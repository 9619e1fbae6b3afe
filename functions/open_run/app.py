"""OpenRun: take the process locks and list the streams of this run."""

from __future__ import annotations

from typing import Any

from schemahub import events, ingest
from schemahub.runtime import Deps, handler_of


@handler_of(events.OpenRun)
def handler(event: events.OpenRun, deps: Deps) -> dict[str, Any]:
    return ingest.open_run(event, deps)
