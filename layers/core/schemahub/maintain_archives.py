"""The steps of ``maintain`` for files that were issued again: seen, taken by a task, the table's rows made anew.

A correction's document in S3 says how far it is (``corrections``), so each step reads anew what is left to do: a run
that dies anywhere leaves it to the next one. Without ECS nobody can take a file; it stays ``due``, and is counted.
"""

from __future__ import annotations

import json
from typing import Any

from schemahub import corrections, events, plan, reissues
from schemahub.archives import ArchiveFile, archive_of
from schemahub.correction_task import CorrectionSpec
from schemahub.deps import Deps, logger
from schemahub.errors import BadStateInput, CorruptState, ExchangeError
from schemahub.mappings import exchanges, load_mapping
from schemahub.rebuild import named_streams
from schemahub.streams import PREFIX, Stream

MAX_LOOKS = 1000
"""Checksums that a run asks for, of all streams: requests to the hosts of files, which have no limit of their own."""
MAX_LOOKS_OF_STREAM = 200
LOOK_S = 600.0
"""After so many seconds no other checksum is asked for; a Lambda has 900."""
MAX_FILES = 20
"""Files that the tasks of a run take, of all streams; the others are due in the next."""
MAX_FILES_OF_STREAM = 5
MAX_REDERIVED = 20
"""Corrections for which a run makes the table's rows anew, one after the other."""


def known_streams(deps: Deps) -> list[Stream]:
    """Streams that are named somewhere, whose exchange still has a mapping."""
    return sorted(s for s in named_streams(deps) if s.exchange in exchanges())


def archived_streams(deps: Deps) -> list[Stream]:
    """Those of them whose exchange publishes files with checksums."""

    def publishes(stream: Stream) -> bool:
        archive = archive_of(load_mapping(stream.exchange))
        return archive is not None and archive.checksum is not None

    return [s for s in known_streams(deps) if publishes(s)]


def look(event: events.MaintainStep, deps: Deps) -> dict[str, Any]:
    """Ask for the checksums whose turn it is, and write the tasks for what is due."""
    run = _run(event)
    streams = archived_streams(deps)
    asked, unanswered = _look_on(deps, streams)
    taken: dict[Stream, list[ArchiveFile]] = {}
    due = 0
    for stream in streams:
        files = reissues.due_files(deps, stream)
        due += len(files)
        room = min(MAX_FILES_OF_STREAM, MAX_FILES - sum(map(len, taken.values())))
        if files[:room] and deps.settings.backfill_ecs:
            taken[stream] = files[:room]
    folder = f"{PREFIX}plans/{run.id}/corrections"
    keys = [f"{folder}/{number:04d}.json" for number in range(len(taken))]
    for key, (stream, files) in zip(keys, taken.items(), strict=True):
        deps.objects.put(key, json.dumps(CorrectionSpec(run.arn, stream, tuple(files)).to_json()).encode())
    listed = "".join(json.dumps({"task_key": key}) + "\n" for key in keys)
    deps.objects.put(f"{folder}.jsonl", listed.encode())
    deps.count("ChecksumsAsked", asked)
    return {
        "schema_version": 1,
        "run": run.model_dump(),
        "bucket": deps.settings.bucket,
        "asked": asked,
        "unanswered": unanswered,
        "due": due,
        "tasks": len(keys),
        "tasks_key": f"{folder}.jsonl",
    }


def _look_on(deps: Deps, streams: list[Stream]) -> tuple[int, int]:
    """Checksums that were asked for, and streams whose archive did not answer, the longest unseen streams first."""
    until_ms = deps.clock.now_ms() + int(LOOK_S * 1000)
    asked, silent = 0, set[Stream]()

    def going() -> bool:
        return deps.clock.now_ms() < until_ms

    for stream in sorted(streams, key=lambda s: (reissues.looked(deps, s).at, s)):
        most = min(MAX_LOOKS_OF_STREAM, MAX_LOOKS - asked)
        if any(s.exchange == stream.exchange for s in silent):
            silent.add(stream)
            continue
        if not most or not going():
            break
        try:
            looked, unreadable = reissues.look_on(deps, stream, most, going)
        except ExchangeError as error:
            logger.warning("an archive does not answer", extra={"stream": str(stream), "reason": str(error)[:300]})
            silent.add(stream)
            continue
        asked += looked
        for name in unreadable:
            deps.call_attention("what is published as a checksum is none", name)
    return asked, len(silent)


def rederive(event: events.MaintainStep, deps: Deps) -> dict[str, Any]:
    """List committed corrections whose rows of the table are to be made anew, also those of earlier runs.

    One whose segments are not all published waits: what is on its way to the table may be the rows as they were.
    """
    run = _run(event)
    ready = [
        {"correction": c.key, "rederive": c.rederive}
        for stream in archived_streams(deps)
        for c in corrections.corrections(deps.objects, stream)
        if c.state == "committed" and c.rederive and _published(deps, stream, c)
    ]
    key = f"{PREFIX}plans/{run.id}/rederivations.jsonl"
    lines = [json.dumps(line) + "\n" for line in ready[:MAX_REDERIVED]]
    deps.objects.put(key, "".join(lines).encode())
    return {
        "schema_version": 1,
        "run": run.model_dump(),
        "bucket": deps.settings.bucket,
        "corrections": len(lines),
        "corrections_key": key,
    }


def _published(deps: Deps, stream: Stream, correction: corrections.Correction) -> bool:
    found = (deps.ledger.segment(stream, s["first"]) for s in correction.document["segments"])
    return all(segment is not None and segment.published_in is not None for segment in found)


def published(event: events.MaintainStep, deps: Deps) -> dict[str, Any]:
    """Note that the table's rows of a correction were made anew."""
    _run(event)
    if event.correction is None or event.transform is None:
        raise BadStateInput("published needs correction and transform")
    found = corrections.read_correction(deps.objects, event.correction)
    if found is None:
        raise BadStateInput(f"the correction {event.correction} is gone")
    if found.state == "published":
        return {"status": "published"}
    if found.state != "committed":
        raise CorruptState(f"{event.correction} is {found.state}, not committed", stream=found.document["stream"])
    corrections.mark_published(deps.objects, found, event.transform)
    return {"status": "published"}


def left(run_id: str, deps: Deps) -> dict[str, int]:
    """What of the corrections this run has done, and what is still to be done, by what their documents say now."""
    counts = {"corrections_published": 0, "corrections_due": 0, "corrections_committed": 0}
    ours = _keys_of(run_id, deps)
    for stream in archived_streams(deps):
        for one in corrections.corrections(deps.objects, stream):
            counts["corrections_due"] += one.state in ("due", "prepared")
            counts["corrections_committed"] += one.state == "committed"
            counts["corrections_published"] += one.state == "published" and one.key in ours
    deps.count("CorrectionsDue", counts["corrections_due"])
    return counts


def _keys_of(run_id: str, deps: Deps) -> set[str]:
    """Corrections for which this run started ``transform``."""
    key = f"{PREFIX}plans/{run_id}/rederivations.jsonl"
    return {line["correction"] for line in plan.lines_of(deps.objects.get(key) or b"", key)}


def _run(event: events.MaintainStep) -> events.Run:
    if event.run is None:
        raise BadStateInput(f"{event.action} needs run")
    return event.run
