"""ListPending: batches of segments that the table does not hold yet."""

from __future__ import annotations

from typing import Any

from schemahub import events, publishing
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.ListPending)
def handler(event: events.ListPending, deps: Deps) -> dict[str, Any]:
    return publishing.list_pending(event, deps)
