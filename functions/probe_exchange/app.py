"""ProbeExchange: whether an exchange answers from the region of the stack."""

from __future__ import annotations

import os
from typing import Any

from schemahub import events, probe
from schemahub.deps import Deps
from schemahub.runtime import handler_of


@handler_of(events.ProbeExchange)
def handler(event: events.ProbeExchange, deps: Deps) -> dict[str, Any]:
    return probe.probe_step(event, deps, os.environ.get("AWS_REGION", "unknown"))
