"""The steps of the state machine ``maintain``: holes asked for again on a schedule, so many a run and no more.

Those for files that were issued again are in ``maintain_archives``. Each step may run twice, late, or after a crash at
any line: a hole is settled by itself, and what is due is read anew from the ledger each time. What is not reached in
one run is due in the next, the longest unseen first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from schemahub import concurrency, events, maintain_archives, plan
from schemahub.deps import Deps
from schemahub.errors import BadStateInput, LockBusy, LockLost, SchemaHubError, StoreError, ThrottleError
from schemahub.holes import LOOKS_APART_S, Hole
from schemahub.maintain_archives import known_streams
from schemahub.paths import PASSING
from schemahub.repair import repair_stream
from schemahub.streams import PREFIX, Stream

MAX_HOLES = 500
"""Holes of one exchange that a run asks for: they share its limit with the runs that fetch new trades."""
MAX_OF_STREAM = 100
WORK_S = 600.0
"""After so many seconds a step begins no other hole; a Lambda has 900."""


def maintain_step(event: events.MaintainStep, deps: Deps) -> dict[str, Any]:
    """The step that the state machine is at."""
    steps = {
        "open": _open,
        "repair": _repair,
        "look": maintain_archives.look,
        "rederive": maintain_archives.rederive,
        "published": maintain_archives.published,
        "close": _close,
    }
    return steps[event.action](event, deps)


def due(holes: Iterable[Hole], now_ms: int) -> list[Hole]:
    """Holes that another look can say something new of, the longest unseen first."""
    apart_ms = LOOKS_APART_S * 1000
    open_holes = [h for h in holes if h.left and not h.proved and now_ms - h.last_looked_at >= apart_ms]
    return sorted(open_holes, key=lambda h: (h.last_looked_at, h.first))[:MAX_OF_STREAM]


def chosen(found: Iterable[Hole]) -> dict[Stream, list[Hole]]:
    """The holes of one run: of each exchange at most ``MAX_HOLES``, the longest unseen first."""
    taken: dict[Stream, list[Hole]] = {}
    counts: dict[str, int] = {}
    for hole in sorted(found, key=lambda h: (h.last_looked_at, h.stream, h.first)):
        exchange = hole.stream.exchange
        if counts.get(exchange, 0) < MAX_HOLES:
            counts[exchange] = counts.get(exchange, 0) + 1
            taken.setdefault(hole.stream, []).append(hole)
    return taken


def _open(event: events.MaintainStep, deps: Deps) -> dict[str, Any]:
    """Write the list of streams with the holes that this run asks for."""
    now_ms = deps.clock.now_ms()
    taken = chosen(hole for stream in known_streams(deps) for hole in due(deps.ledger.holes(stream), now_ms))
    key = f"{PREFIX}plans/{event.execution.name}/holes.jsonl"
    lines = [{"stream": s.to_json(), "holes": [h.first for h in holes]} for s, holes in sorted(taken.items())]
    deps.objects.put(key, "".join(json.dumps(line) + "\n" for line in lines).encode())
    run = {"id": event.execution.name, "arn": event.execution.Id, "fences": {}, "opened_at": now_ms}
    return {
        "schema_version": 1,
        "run": run,
        "bucket": deps.settings.bucket,
        "holes_key": key,
        "results_prefix": f"{PREFIX}plans/{run['id']}/results",
        "streams_at_a_time": concurrency.batches_at_a_time(deps.settings.functions_at_a_time),
        "streams": len(taken),
        "holes": sum(map(len, taken.values())),
    }


def _repair(event: events.MaintainStep, deps: Deps) -> dict[str, Any]:
    """Ask for the named holes of one stream. A stream that a run works on is left for the next time."""
    if event.run is None or event.stream is None:
        raise BadStateInput("repair needs run and stream")
    stream = event.stream.value()
    # What another process settled since the list was written is not asked for again.
    holes = [hole for first in event.holes if (hole := deps.ledger.hole(stream, first))]
    until_ms = deps.clock.now_ms() + int(WORK_S * 1000)
    status, asked, came = "looked", 0, 0
    broken: SchemaHubError | None = None
    try:
        for hole in holes:
            if deps.clock.now_ms() >= until_ms:
                break
            try:
                came += _look_at(event, deps, event.run, hole)
                asked += 1
            except LockBusy:
                # A run works on the stream, which is what matters more.
                status = "busy"
                break
            except (ThrottleError, LockLost, StoreError, *PASSING):
                raise
            except SchemaHubError as error:
                # What is wrong with one range (two contents of one id) must not keep the holes behind it from a look.
                broken = broken or error
    finally:
        deps.count("HolesAsked", asked)
        deps.count("HoleIdsFilled", came)
    if broken:
        raise broken
    return {"status": status, "asked": asked, "came": came}


def _look_at(event: events.MaintainStep, deps: Deps, run: events.Run, hole: Hole) -> int:
    """Ids that came. The lock is taken for one hole at a time: a run that waits for it has the stream in between."""
    looks = repair_stream(
        deps,
        hole.stream,
        event.execution.Id,
        holes=[hole],
        run=run.arn,
        attempt=event.execution.RedriveCount,
    )
    return sum(looked.filled for looked in looks if looked.written)


def _close(event: events.MaintainStep, deps: Deps) -> dict[str, Any]:
    """What became of the holes on the list, by what the ledger says now."""
    if event.run is None:
        raise BadStateInput("close needs run")
    key = f"{PREFIX}plans/{event.run.id}/holes.jsonl"
    body = deps.objects.get(key)
    if body is None:
        raise BadStateInput(f"the list of holes {key} is gone", remedy="Start a new execution: it lists again.")
    opened_ms = event.run.opened_at or 0
    counts = {"holes": 0, "looked": 0, "filled": 0, "proved": 0}
    lines = plan.lines_of(body, key)
    for line in lines:
        stream = Stream.from_json(line["stream"])
        for first in line["holes"]:
            hole = deps.ledger.hole(stream, first)
            counts["holes"] += 1
            counts["looked"] += hole is not None and hole.last_looked_at >= opened_ms
            counts["filled"] += hole is not None and not hole.left
            counts["proved"] += hole is not None and bool(hole.left) and hole.proved
    deps.count("HolesUnanswered", counts["holes"] - counts["looked"])
    unanswered = counts["holes"] - counts["looked"]
    return {"streams": len(lines), **counts, "unanswered": unanswered, **maintain_archives.left(event.run.id, deps)}
