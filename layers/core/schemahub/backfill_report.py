"""What a backfill did against what it had planned: from the ledger, but for requests, bytes and seconds of workers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from schemahub import backfill_notes, coverage, events, raw
from schemahub.archives import FileState, archive_of, states
from schemahub.deps import Deps
from schemahub.errors import CorruptState, NothingIngested
from schemahub.mappings import load_mapping
from schemahub.streams import Interval, Segment, Stream

SHOWN = 20
"""Missing ranges that a report lists; it counts all."""
SUMS = ("chunks", "trades", "requests", "storage_bytes", "usd")


def report(deps: Deps, run: events.Run, homes: Mapping[Stream, str]) -> dict[str, Any]:
    """The report of a run over streams whose plans lie in ``homes``; read from the stores, written nowhere."""
    streams = [_of_stream(deps, run, stream, home) for stream, home in homes.items()]
    files = [file for one in streams for file in one["files"]]
    now = deps.clock.now_ms()
    outcomes = {s["outcome"] for s in streams}
    status = next((word for word in ("failed", "cancelled", "paused", "busy") if word in outcomes), "done")
    planned = [s["planned"] for s in streams if s["planned"]]
    return {
        "schema_version": 1,
        "run": run.id,
        "status": status,
        "opened_at": run.opened_at,
        "closed_at": now,
        "seconds": (now - run.opened_at) / 1000 if run.opened_at else None,
        "planned": {name: sum(p.get(name, 0) for p in planned) for name in SUMS},
        "actual": {
            name: sum(s["actual"][name] or 0 for s in streams)
            for name in ("chunks", "trades", "absent", "missing_positions", *backfill_notes.COUNTERS)
        },
        "files": len(files),
        "pathologies": dict(_summed(files)),
        "notes": "requests and seconds are counted by the tasks: after a crash they are lower bounds, and what "
        "functions fetched is not among them",
        "streams": streams,
    }


def _of_stream(deps: Deps, run: events.Run, stream: Stream, home: str) -> dict[str, Any]:
    span = _read(deps, f"{home}range.json")
    within = Interval(*span) if span else None
    try:
        left = coverage.missing(deps.ledger, stream, within) if within else []
        there = coverage.touching(deps.ledger, stream, within) if within else []
    except NothingIngested:
        left, there = [], []
    mine = [s for s in there if s.run_id == run.id]
    planned = _read(deps, f"{home}planned.json")
    counted: dict[str, float | None] = {**backfill_notes.counted(deps, stream, run.id)}
    if mine and not any(counted.values()):
        # Functions count nothing: they have no right to write beside the raw objects.
        counted = dict.fromkeys(counted)
    last = deps.ledger.last_run(stream, "backfill") or {}
    return {
        "stream": stream.to_json(),
        "outcome": last.get("outcome", "failed") if last.get("run") == run.arn else "failed",
        "within": list(within) if within else None,
        "planned": planned,
        "actual": {
            "chunks": len(mine),
            "trades": sum(s.count for s in mine),
            "absent": sum(a.last - a.first + 1 for s in mine for a in s.absent),
            "missing": [list(part) for part in left[:SHOWN]],
            "missing_ranges": len(left),
            "missing_positions": sum(part.size for part in left),
            **counted,
            "bytes": _bytes_of(deps, stream, mine),
        },
        "files": [_of_file(state) for state in _looked_at(deps, run, stream)],
    }


def _bytes_of(deps: Deps, stream: Stream, segments: Sequence[Segment]) -> int:
    """What the segments' raw objects take in S3."""
    if not segments:
        return 0
    keys = {s.raw_key for s in segments}
    within = Interval(min(s.first for s in segments), max(s.last for s in segments))
    return sum(size for key, _, size in raw.listed(deps.objects, stream, within) if key in keys)


def _looked_at(deps: Deps, run: events.Run, stream: Stream) -> Iterator[FileState]:
    """The archive's files that this run looked for, by name. No other run does, while it holds the stream's lock."""
    mapping = load_mapping(stream.exchange)
    if archive_of(mapping) is None:
        return
    for state in states(deps.objects, stream, mapping):
        if state.looked_at >= (run.opened_at or 0):
            yield state


def _of_file(state: FileState) -> dict[str, Any]:
    """What became of a file, without its examples: those are in its own state."""
    names = ("status", "error", "reason", "rows", "pathologies", "ids_filled_from_api", "ids_absent", "committed_rows",
             "requests", "attempts", "parts")  # fmt: skip
    said = {name: state.report[name] for name in names if name in state.report}
    if "parts" in said:
        said["parts"] = [{name: part[name] for name in names if name in part} for part in said["parts"]]
    return {
        "name": state.file.name,
        "checksum": state.checksum,
        **said,
        "state_key": state.file.state_key,
    }


def _summed(files: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How often each pathology was met, over files and attempts; what refused a file whole goes by its error's name."""
    total: Counter[str] = Counter()
    for file in files:
        total.update(_pathologies(file))
        tried = [a["error"] for a in file.get("attempts", ())]
        total.update("checksum_mismatch" if error == "ChecksumMismatch" else error for error in tried if error)
        total.update(error for error in [file.get("error")] if error not in ("", None, "ChecksumMismatch"))
    return total


def _pathologies(file: Mapping[str, Any]) -> Counter[str]:
    """Of all attempts at a file: each decides about ids that the one before left, and reads all rows again."""
    total: Counter[str] = Counter()
    for part in (*file.get("parts", ()), file):
        for found in part.get("pathologies", ()):
            kind, count = found["kind"], found["count"]
            total[kind] = total[kind] + count if kind.startswith("ids_") else max(total[kind], count)
    return total


def _read(deps: Deps, key: str) -> Any:
    body = deps.objects.get(key)
    try:
        return json.loads(body) if body else None
    except ValueError as error:
        raise CorruptState(f"{key} is not JSON: {error}") from error
