"""What becomes of each failure that was found: continued, started anew, or left because it is done already.

Pure: values in, values out. ``commands/replay`` does what is decided here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

from schemahub.streams import Stream
from schemahub_cli.failures import BAD_ENDS, PUBLISH, STREAMS, WHOLE, Failure

REDRIVE_WITHIN = timedelta(days=14)
"""AWS: an execution can be redriven for 14 days after it ended."""
PUBLISHERS = {"ingest", "backfill", "transform"}
"""Machines whose runs publish whatever is pending."""
REDRIVE, START, WITH = "redrive", "start", "with"
RECOVERED, SUPERSEDED, BUSY, PERMANENT = "recovered", "superseded", "busy", "permanent"


@dataclass(frozen=True)
class Filter:
    """Which failures are meant. Globs as in a shell; None takes everything."""

    error: str | None = None
    product: str | None = None

    def takes(self, failure: Failure) -> bool:
        """Whether any error of the failure has that name (or cause), and its stream that name."""
        if self.product is not None and (failure.stream is None or not fits(self.product, failure.stream)):
            return False
        texts = [text for p in failure.problems for text in (p.error, p.cause)]
        return self.error is None or any(fnmatchcase(text, self.error) for text in texts)


def fits(glob: str, stream: Stream) -> bool:
    """Whether a glob means the stream: by its product, or with its exchange before it."""
    return any(fnmatchcase(name, glob) for name in (stream.product, f"{stream.exchange}:{stream.product}"))


@dataclass
class Fate:
    """One failure and what is done about it; ``detail`` says with or by what, or why not."""

    failure: Failure
    action: str
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**self.failure.to_json(), "action": self.action, "detail": self.detail}


@dataclass(frozen=True)
class Start:
    """A new execution: the machine, its input beside the schema's version, and the failures that it answers."""

    machine: str
    keys: dict[str, Any]
    fates: tuple[Fate, ...] = field(compare=False)


def decide(
    failures: Iterable[Failure], wanted: Filter, running: Iterable[str], now: datetime, force: bool = False
) -> list[Fate]:
    """The fate of each failure that is wanted, the newest first.

    A redrive continues all that an execution left undone, so it is chosen only where all of that is wanted and nobody
    has done any of it since; otherwise a new execution takes exactly what is wanted.

    Args:
        running: machines of which an execution runs now: what it will have done is not known, so nothing is doubled.
        force: start also what can only fail again, because somebody has mended what it failed of.
    """
    ordered = sorted(failures, key=lambda f: f.stopped, reverse=True)
    newest: dict[tuple[str, ...], Failure] = {}
    for failure in ordered:
        newest.setdefault(failure.key, failure)
    busy = set(running)
    fates = []
    for failure in ordered:
        if not wanted.takes(failure):
            continue
        if failure.recovered:
            fates.append(Fate(failure, RECOVERED, f"done by {failure.recovered}"))
        elif newest[failure.key] is not failure:
            fates.append(Fate(failure, SUPERSEDED, f"failed again in {newest[failure.key].execution.name}"))
        elif not force and (problem := failure.permanent):
            fates.append(Fate(failure, PERMANENT, f"{problem.error} fails again until something is changed"))
        elif mine := busy & (PUBLISHERS if failure.key == (PUBLISH,) else {failure.machine}):
            fates.append(Fate(failure, BUSY, f"{', '.join(sorted(mine))} is running"))
        else:
            fates.append(Fate(failure, START))
    taken = {id(fate.failure) for fate in fates if fate.action == START}
    for fate in fates:
        if fate.action == START:
            of_execution = [f for f in ordered if f.execution.arn == fate.failure.execution.arn]
            why = _not_redrivable(fate.failure, now)
            if why is None and not all(id(f) in taken for f in of_execution):
                why = "a redrive would run more than this"
            fate.action, fate.detail = (REDRIVE, "") if why is None else (START, why)
    _publish_once(fates)
    return fates


def _publish_once(fates: list[Fate]) -> None:
    """A run publishes everything that is pending: a failed publishing needs nothing of its own beside one."""
    again = [f for f in fates if f.action in (REDRIVE, START) and f.failure.kind in (STREAMS, WHOLE)]
    if not again:
        return
    for fate in fates:
        if fate.action in (REDRIVE, START) and fate.failure.key == (PUBLISH,):
            fate.action, fate.detail = WITH, f"{again[0].failure.machine} publishes it"


def _not_redrivable(failure: Failure, now: datetime) -> str | None:
    """Why AWS would refuse to redrive the execution, as far as that can be known before asking."""
    execution = failure.execution
    if execution.status not in BAD_ENDS:
        return f"the execution is {execution.status}"
    if now - (execution.stopped or execution.started) >= REDRIVE_WITHIN:
        return "it ended more than 14 days ago"
    if execution.redrive_status not in (None, "REDRIVABLE"):
        return "Step Functions calls it not redrivable"
    return None


def starts(fates: Sequence[Fate]) -> list[Start]:
    """New executions for what is not redriven: one of ingest for all its streams (two would keep each other out)."""
    todo = [f for f in fates if f.action == START]
    found: list[Start] = []
    ingest = [f for f in todo if f.failure.machine == "ingest" and f.failure.kind != PUBLISH]
    if ingest:
        found.append(Start("ingest", _selection([f.failure for f in ingest]), tuple(ingest)))
    publish = tuple(f for f in todo if f.failure.key == (PUBLISH,))
    if publish:
        found.append(Start("transform", {}, publish))
    found += [
        Start("transform", f.failure.selection, (f,))
        for f in todo
        if f.failure.machine == "transform" and f not in publish
    ]
    return found + _backfills([f for f in todo if f.failure.machine == "backfill" and f.failure.kind != PUBLISH])


def _selection(failures: Sequence[Failure]) -> dict[str, Any]:
    """The narrowest selection of streams that holds all of them; an execution that knew no streams had one itself."""
    chosen = ("products", "exchanges")
    whole = [{k: v for k, v in f.selection.items() if k in chosen and v} for f in failures if f.kind == WHOLE]
    streams = [f.stream for f in failures if f.stream]
    if any(not selection for selection in whole):
        return {}
    named = {f"{s.exchange}:{s.product}" for s in streams}.union(*(s.get("products") or () for s in whole))
    if not any("exchanges" in selection for selection in whole):
        return {"products": sorted(named)}
    exchanges = {name.split(":")[0] for name in named}.union(*(s.get("exchanges") or () for s in whole))
    return {"exchanges": sorted(exchanges)}


def _backfills(fates: Sequence[Fate]) -> list[Start]:
    """As they were asked for, with the failed streams alone: one execution for each range that was wanted."""
    groups: dict[str, list[Fate]] = {}
    for fate in fates:
        asked = {k: v for k, v in fate.failure.selection.items() if k not in ("products", "exchanges")}
        groups.setdefault(json.dumps(asked, sort_keys=True), []).append(fate)
    return [
        Start("backfill", {**json.loads(asked), **_selection([f.failure for f in group])}, tuple(group))
        for asked, group in groups.items()
    ]
