"""Publish: all batches of the run in one snapshot, exactly once."""

from __future__ import annotations

from typing import Any

from schemahub import events, publishing
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.PublishStep)
def handler(event: events.PublishStep, deps: Deps) -> dict[str, Any]:
    return publishing.publish_step(event, deps)
