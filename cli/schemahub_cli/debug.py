"""Whether unexpected errors show their traceback: the option ``--debug``, or ``SCHEMAHUB_DEBUG``."""

from __future__ import annotations

import os
from contextvars import ContextVar

VARIABLE = "SCHEMAHUB_DEBUG"
_asked: ContextVar[bool] = ContextVar("debug", default=False)


def ask(asked: bool) -> None:
    """What the command line says; each invocation says it anew."""
    _asked.set(asked)


def wanted() -> bool:
    return _asked.get() or os.environ.get(VARIABLE, "") not in ("", "0", "false")
