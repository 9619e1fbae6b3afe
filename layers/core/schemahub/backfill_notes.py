"""What a backfill's tasks and its people tell each other through StreamsTable: go on, pause, cancel; and what was done.

The flag is one item a run (``stream`` = ``backfill``, ``item`` = the run's id). The counters are one item a stream and
run (``item`` = ``backfill#{run}``); an addition may be lost with the process that would have made it, or be made twice
when its answer is lost, so they are for the report and prove nothing.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from schemahub.conditional import read, update
from schemahub.deps import Deps
from schemahub.errors import CorruptState
from schemahub.streams import Stream

Wish = Literal["run", "pause", "cancel"]
FLAG = "backfill"
COUNTERS = ("requests", "chunks_fetched", "chunks_reused", "bytes", "seconds")
_STATUS = {"run": None, "pause": "paused", "cancel": "cancelled"}


def wanted(deps: Deps, run_id: str) -> Wish:
    """What people want of a run; ``run`` where nobody said anything. Raises CorruptState for any other word."""
    wish = read(deps.ledger.table, {"stream": FLAG, "item": run_id}).get("wanted", "run")
    if wish not in _STATUS:
        raise CorruptState(f"the flag of backfill {run_id} is {str(wish)[:40]!r}")
    return wish  # type: ignore[no-any-return]


def want(deps: Deps, run_id: str, wish: Wish) -> None:
    """Tell a run to pause, to be cancelled, or to go on; its tasks look every 30 seconds."""
    said = {":wish": wish, ":now": deps.clock.now_ms()}
    update(deps.ledger.table, {"stream": FLAG, "item": run_id}, "SET wanted = :wish, said_at = :now", said)


def stopped(deps: Deps, run_id: str) -> str | None:
    """``paused`` or ``cancelled`` where a run shall not go on."""
    return _STATUS[wanted(deps, run_id)]


def count(
    deps: Deps,
    stream: Stream,
    run_id: str,
    *,
    requests: int = 0,
    chunks_fetched: int = 0,
    chunks_reused: int = 0,
    bytes: int = 0,
    seconds: float = 0.0,
) -> None:
    """Add to what a run did for a stream: pages asked for, chunks, compressed bytes written, seconds of workers."""
    given = {
        "requests": requests,
        "chunks_fetched": chunks_fetched,
        "chunks_reused": chunks_reused,
        "bytes": bytes,
        "seconds": Decimal(str(round(seconds, 3))),
    }
    added = {name: value for name, value in given.items() if value}
    if added:
        update(
            deps.ledger.table,
            {"stream": str(stream), "item": f"backfill#{run_id}"},
            "ADD " + ", ".join(f"#{name} :{name}" for name in added),
            {f":{name}": value for name, value in added.items()},
            {f"#{name}": name for name in added},
        )


def counted(deps: Deps, stream: Stream, run_id: str) -> dict[str, float]:
    """What ``count`` summed up: after a crash a lower bound."""
    item = read(deps.ledger.table, {"stream": str(stream), "item": f"backfill#{run_id}"})
    return {name: float(item.get(name, 0)) if name == "seconds" else int(item.get(name, 0)) for name in COUNTERS}
