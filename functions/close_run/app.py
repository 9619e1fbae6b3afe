"""CloseRun: release the process locks and list the streams that failed."""

from __future__ import annotations

from typing import Any

from schemahub import events, ingest
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.CloseRun)
def handler(event: events.CloseRun, deps: Deps) -> dict[str, Any]:
    return ingest.close_run(event, deps)
