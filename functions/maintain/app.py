"""Maintain: list the holes that are due, ask for those of one stream, say what came of them."""

from __future__ import annotations

from typing import Any

from schemahub import events, maintain
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.MaintainStep)
def handler(event: events.MaintainStep, deps: Deps) -> dict[str, Any]:
    return maintain.maintain_step(event, deps)
