"""The steps of the ``backfill`` state machine: history below the watermark, resumable at every line.

What is missing is asked of the ledger each time. A plan takes a new fence first, so that whatever an earlier plan's
tasks still do is refused: what it found missing stays missing until its own tasks commit it.
"""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from schemahub import anchor, concurrency, coverage, events, ingest, mirror, plan, plan_linked, seek, witness
from schemahub.answers import Row
from schemahub.archive_shelf import Shelf
from schemahub.archives import archive_of
from schemahub.backfill_notes import count, counted, stopped, want, wanted
from schemahub.backfill_plan import (
    MAX_PLAN,
    PRESETS,
    Estimate,
    Means,
    Route,
    TaskSpec,
    Wanted,
    estimate,
    estimate_files,
    means_of,
    number_of_tasks,
    split,
)
from schemahub.backfill_report import report
from schemahub.commit import Fenced, segment_of
from schemahub.commit_below import Seams, Torn, commit_islands, lower
from schemahub.deps import MAX_CHUNK_PAGES, Deps, logger
from schemahub.errors import BadConfig, BadStateInput, IncompleteChunks, LockLost, RawConflict, UnknownProduct
from schemahub.locks import Lease, Renewer
from schemahub.mappings import load_mapping
from schemahub.paging import Expected, Linked, paging_of
from schemahub.plan_linked import last_of
from schemahub.streams import PREFIX, Chunk, Interval, Known, Segment, Stream

__all__ = [
    "close_backfill", "commit_backfill", "count", "counted", "open_backfill", "plan_backfill", "stopped", "want",
    "wanted",
]  # fmt: skip

ArchiveFiles = Callable[[Deps, Stream, Sequence[Interval]], Sequence[tuple[dict[str, Any], Interval]]]
"""Files of an exchange's archive that hold what is missing, each with the range that may be committed from it."""
CHUNK_ROWS = 10_000
"""Rows of a chunk at least: an exchange with small pages would otherwise leave a swarm of small objects."""
MAX_SAMPLES = 16
COMMIT_AT_ONCE = 900


def no_archives(deps: Deps, stream: Stream, parts: Sequence[Interval]) -> Sequence[tuple[dict[str, Any], Interval]]:
    return ()


def open_backfill(event: events.OpenBackfill, deps: Deps) -> dict[str, Any]:
    """Check what is asked for and write the list of streams."""
    request = event.input
    Wanted.parse(request.range)
    if request.route == "ecs" and not deps.settings.backfill_ecs:
        raise BadConfig(
            "a backfill by ECS is asked for, and there is no network for its tasks",
            remedy="Set the parameter BackfillSubnets, or leave the route to the plan.",
        )
    chosen = events.IngestInput(exchanges=request.exchanges, products=request.products)
    groups = itertools.groupby(ingest.select_streams(deps, chosen), key=lambda s: s.exchange)
    # Round robin over the exchanges, as in an ingest: the limits of all of them are used from the beginning.
    mixed = [s for group in itertools.zip_longest(*(list(g) for _, g in groups)) for s in group if s is not None]
    run = ingest.new_run(event.execution, request.functions_at_a_time, deps)
    key = f"{PREFIX}plans/{run['id']}/streams.jsonl"
    deps.objects.put(key, "".join(json.dumps(s.to_json()) + "\n" for s in mixed).encode())
    return {
        "schema_version": 1,
        "run": run,
        # Without its lists: each stream's execution carries it, and a payload is at most 256 KiB.
        "request": request.model_dump(exclude={"exchanges", "products", "functions_at_a_time"}),
        "bucket": deps.settings.bucket,
        "streams_key": key,
        "results_prefix": f"{PREFIX}plans/{run['id']}/results",
        "streams": len(mixed),
        "streams_at_a_time": concurrency.streams_at_a_time(ingest.at_once(request.functions_at_a_time, deps)),
        "status": "open",
    }


def folder(run_id: str, stream: Stream) -> str:
    """Where a run keeps what it planned for a stream."""
    return f"{PREFIX}plans/{run_id}/backfill/{stream.exchange}/{stream.product}/"


def _means(deps: Deps, stream: Stream, request: events.BackfillInput) -> Means:
    """What this deployment gives the stream's backfill, but for what is asked for otherwise."""
    means = means_of(deps.settings, load_mapping(stream.exchange))
    workers, concurrency = PRESETS[request.preset] if request.preset else (means.workers, means.chunk_concurrency)
    threshold = request.threshold_seconds
    return replace(
        means,
        threshold_seconds=means.threshold_seconds if threshold is None else threshold,
        workers=request.workers or workers,
        chunk_concurrency=request.chunk_concurrency or concurrency,
        tasks=request.tasks or means.tasks,
    )


def plan_backfill(event: events.PlanBackfill, deps: Deps, archive_files: ArchiveFiles = no_archives) -> dict[str, Any]:
    """Find what is missing of the wanted range, choose the way and write chunks and tasks.

    Raises:
        NoHistory: the exchange shows its newest trades only.
        UnknownProduct, IncompletePage, LockBusy: a stream that no run has pulled yet cannot begin; see ``anchor``.
        BadStateInput: more chunks than one plan takes.
        LockLost: another owner, or a newer attempt, holds the backfill's lock.
    """
    stream, request = event.stream.value(), event.request
    lease, _ = deps.locks.ensure(ingest.lease_of(event), event.execution.RedriveCount)
    if status := stopped(deps, event.run.id):
        return {"status": status, "chunks": 0, "tasks": 0}
    tick = Renewer(deps.locks.renew, lease, deps.clock).tick
    anchor.establish(deps, stream, lease, tick, files=takes_files(deps, request))
    lease = deps.locks.advance(lease)
    home = folder(event.run.id, stream)
    within = _within(deps, stream, Wanted.parse(request.range), f"{home}range.json")
    parts = coverage.missing(deps.ledger, stream, within) if within else []
    if not parts or not within:
        _settle(deps, lease, stream)
        return {"status": "covered", "chunks": 0, "tasks": 0}
    wanted_files = archive_files if event.source == "auto" else no_archives
    chunks, files, guess = foresee(deps, stream, request, parts, wanted_files)
    means = _means(deps, stream, request)
    deps.objects.put_new(f"{home}planned.json", json.dumps(guess.to_json() | {"files": len(files)}).encode())
    specs = _specs(event, lease, within, means, guess, chunks, files)
    here = f"{home}{lease.fence:06d}/"
    deps.objects.put(f"{here}chunks.jsonl", plan.to_jsonl(chunks))
    tasks = ingest.write_tasks(deps.objects, here.rstrip("/"), specs)
    return {
        "status": "planned",
        "route": guess.route,
        "source": "archive" if files else "rest",
        "bucket": deps.settings.bucket,
        "chunks": len(chunks),
        "chunks_key": f"{here}chunks.jsonl",
        "results_prefix": f"{here}results",
        "chunks_at_a_time": concurrency.chunks_at_a_time(
            ingest.at_once(event.run.functions_at_a_time, deps), concurrency.BACKFILL_CHUNKS
        ),
        **tasks,
        "tasks_at_a_time": max(1, guess.tasks),
        "within": {"first": within.first, "last": within.last},
    }


def takes_files(deps: Deps, request: events.BackfillInput) -> bool:
    """Whether the run may use an archive: a file is more than a function has time and room for."""
    return request.archives and deps.settings.backfill_ecs and request.route != "lambda"


def foresee(
    deps: Deps,
    stream: Stream,
    request: events.BackfillInput,
    parts: Sequence[Interval],
    archive_files: ArchiveFiles = no_archives,
) -> tuple[list[Chunk], Sequence[tuple[dict[str, Any], Interval]], Estimate]:
    """Chunks or files of the missing ranges, and what they take. May ask the exchange, writes nothing."""
    means = _means(deps, stream, request)
    files = archive_files(deps, stream, parts) if takes_files(deps, request) else ()
    if files:
        counted = paging_of(load_mapping(stream.exchange)).counted
        return [], files, estimate_files(sum(p.size for p in parts) if counted else 0, len(files), means)
    chunks, expected = cut_missing(deps, stream, parts)
    forced: Route | None = None if request.route == "auto" else request.route
    return chunks, files, estimate(expected, len(chunks), means, forced)


def _within(deps: Deps, stream: Stream, asked: Wanted, key: str) -> Interval | None:
    """The positions that a run means, found once: its later plans mean the same. None: nothing below the watermark."""
    body = deps.objects.get(key)
    if body is None:
        found = resolve(deps, stream, asked, coverage.watermark(deps.ledger, stream).low)
        deps.objects.put_new(key, json.dumps(found).encode())
        body = deps.objects.get(key)
    value = json.loads(body or b"null")
    return Interval(*value) if value else None


def resolve(deps: Deps, stream: Stream, asked: Wanted, low: int) -> Interval | None:
    """The positions of what is wanted that lie below ``low`` and in the exchange's history.

    Asks the exchange, or its archive's files where it does not know the product any more. Writes nothing. None where
    there are none.
    """
    if not low:
        return None
    try:
        return _shown(deps, stream, asked, low)
    except UnknownProduct:
        if archive_of(load_mapping(stream.exchange)) is None:
            raise
    return Shelf(deps, stream).resolve(asked, low)


def _shown(deps: Deps, stream: Stream, asked: Wanted, low: int) -> Interval | None:
    whole = Interval(0, low - 1)
    first, last = asked.ids or whole
    if asked.since_us is not None:
        first = seek.position_at(deps, stream, asked.since_us, whole)
    if asked.until_us is not None:
        last = seek.position_at(deps, stream, asked.until_us, whole) - 1
    paging = paging_of(load_mapping(stream.exchange))
    if isinstance(paging, Linked):
        first, last = first // paging.step * paging.step, last_of(last, paging.step)
    last = min(last, low - 1)
    if first <= last:
        first = seek.beginning(deps, stream, Interval(first, last))
    return Interval(first, last) if first <= last else None


def cut_missing(deps: Deps, stream: Stream, parts: Sequence[Interval]) -> tuple[list[Chunk], Expected]:
    """The chunks of the missing ranges, ascending, and what they take and bring. Samples the pace of sparse history.

    Raises:
        BadStateInput: more chunks than one plan takes.
    """
    mapping = seek.check_history(stream)
    paging, page_size = paging_of(mapping), mapping.requests.page_size
    pages = min(MAX_CHUNK_PAGES, max(deps.settings.chunk_pages, -(-CHUNK_ROWS // page_size)))
    chunks: list[Chunk] = []
    trades = requests = 0
    ask = seek.asker(deps, stream)
    portions = [(p, part) for part in parts for p in _portions(part, paging, len(parts))]
    every, rows = -(-len(portions) // MAX_SAMPLES), list[Row]()
    known = {part: _known(deps, stream, part) for part in parts} if isinstance(paging, Linked) else {}
    for number, (portion, part) in enumerate(portions):
        if not paging.counted and number % every == 0:
            sampled = ask(portion.last if mapping.requests.page.descending else portion.first)
            rows = list(sampled) if len(sampled) > 1 else rows
        size = paging.chunk_size(rows, pages) if paging.counted or rows else portion.size
        links = known[part]._replace(pace=int(plan_linked.pace(rows))) if rows and part in known else known.get(part)
        cut = plan.cut(*portion, size, limit=MAX_PLAN + 1 - len(chunks), known=links)
        chunks += cut
        brings = paging.expected(rows, cut) if paging.counted or rows else Expected(0, len(cut))
        trades, requests = trades + brings.trades, requests + brings.requests
        if len(chunks) > MAX_PLAN:
            raise BadStateInput(
                f"more than {MAX_PLAN:,} chunks are missing",
                stream=stream,
                span=(parts[0].first, parts[-1].last),
                remedy="Fill it back in several runs, each of a part of the range.",
            )
    return chunks, Expected(trades, requests)


def _known(deps: Deps, stream: Stream, part: Interval) -> Known:
    """The trades that the chunks of a missing range must be linked to: those committed at both sides of it.

    Where nothing is committed below, it begins with the first trade that is shown, as a first run does.
    """
    base = witness.newest(deps, stream, part.first - 1) if part.first else None
    if base is None:
        found = seek.first_from(deps, stream, part)
        base = found if found <= part.last else None
    head = witness.oldest(deps, stream, part.last + 1)
    return Known(base, part.last if head is None else head, max(1, part.size // 64))


def _portions(part: Interval, paging: Any, parts: int) -> list[Interval]:
    """A missing range in pieces whose pace is sampled apart: years of history have very different ones."""
    if paging.counted:
        return [part]
    size = -(-part.size // max(1, MAX_SAMPLES // parts // 2))
    size = max(1, -(-size // paging.step)) * paging.step
    return [Interval(at, min(at + size - 1, part.last)) for at in range(part.first, part.last + 1, size)]


def _specs(
    event: events.PlanBackfill, lease: Lease, within: Interval, means: Means, guess: Estimate,
    chunks: Sequence[Chunk], files: Sequence[tuple[dict[str, Any], Interval]],
) -> list[TaskSpec]:  # fmt: skip
    stream = event.stream.value()
    both = (means.workers, means.chunk_concurrency)
    if files:
        return [TaskSpec(event.run.id, stream, lease, "archive", part, *both, file=file) for file, part in files]
    if guess.route == "lambda":
        return []
    lists = split(chunks, number_of_tasks(len(chunks), guess.seconds, guess.tasks))
    return [TaskSpec(event.run.id, stream, lease, "rest", within, *both, tuple(listed)) for listed in lists]


def _settle(deps: Deps, lease: Lease, stream: Stream) -> int:
    """Lower the watermark over what is committed below it, and the mirror with it."""
    low = lower(deps.ledger, deps.locks, lease, stream, deps.clock)
    mirror.heal_quietly(deps.objects, deps.ledger, stream)
    return low


def commit_backfill(event: events.CommitBackfill, deps: Deps) -> dict[str, Any]:
    """Commit every planned chunk whose raw object is durable, and lower the watermark over what follows it.

    Raises:
        IncompleteChunks: on the final attempt, when a part of the wanted range is missing (the rest is committed).
        RawConflict: an object lacks trades that its neighbour shows at their border (the rest is committed).
        LockLost: another owner, or a newer attempt, holds the backfill's lock.
    """
    stream = event.stream.value()
    part = event.plan.within.value()
    within = Interval(part.first, part.last)
    lease, _ = deps.locks.ensure(ingest.lease_of(event), event.execution.RedriveCount)
    committed, torn = _commit_found(event, deps, lease, within)
    low = _settle(deps, lease, stream)
    left = coverage.missing(deps.ledger, stream, within)
    outcome = {"committed": committed, "remaining": len(left), "low": low}
    if not left:
        return {"status": "covered", **outcome}
    if status := stopped(deps, event.run.id):
        return {"status": status, **outcome}
    if torn:
        raise RawConflict(
            f"{len(torn)} objects were fetched from another history than their neighbours and lack trades, the first "
            f"of them {torn[0].raw_key}",
            stream=stream,
            span=torn[0].interval,
            remedy="All else is committed. Move them away (the log names all, old versions stay); start anew.",
        )
    if event.final:
        raise IncompleteChunks(f"{len(left)} ranges are missing, the first of them", stream=stream, span=left[0])
    return {"status": "partial", **outcome}


def _commit_found(
    event: events.CommitBackfill, deps: Deps, lease: Lease, within: Interval
) -> tuple[int, list[Segment]]:
    """How many segments this call committed, and which are torn from their neighbours.

    Of Lambda's chunks all are committed here, of tasks those whose task died before it could.
    """
    stream = event.stream.value()
    body = deps.objects.get(event.plan.chunks_key)
    if body is None:
        raise IncompleteChunks(
            f"the plan {event.plan.chunks_key} is gone",
            stream=stream,
            remedy="Start a new execution; raw objects are found again.",
        )
    left = coverage.missing(deps.ledger, stream, within)
    todo = [chunk for chunk in plan.from_jsonl(body) if _inside(left, chunk)]
    renewer = Renewer(deps.locks.renew, lease, deps.clock)
    committed, torn = 0, list[Segment]()
    while todo:
        # The newest first: `low` falls from above.
        todo, some = todo[:-COMMIT_AT_ONCE], todo[-COMMIT_AT_ONCE:]
        now = deps.clock.now_ms()
        found = ingest.finished(deps, stream, some)
        segments = [segment_of(stream, raw, event.run.id, "rest", now) for raw in found.values()]
        renewer.tick()
        if not segments:
            continue
        borders = Seams(deps.objects, deps.call_attention, found.values())
        outcome = commit_islands(deps.ledger, deps.locks, lease, segments, deps.clock, borders)
        if isinstance(outcome, Fenced):
            raise LockLost("the lock was taken over before the commit", stream=stream)
        if isinstance(outcome, Torn):
            torn += outcome.segments
        committed += len(segments)
    if torn:
        logger.error("fetched from another history than a neighbour", extra={"objects": [s.raw_key for s in torn]})
    committed -= len(torn)
    deps.count("SegmentsCommitted", committed)
    return committed, torn


def _inside(parts: Sequence[Interval], chunk: Chunk) -> bool:
    """Whether one of the sorted parts holds the chunk."""
    at = bisect_right(parts, chunk.first, key=lambda part: part.first) - 1
    return at >= 0 and chunk.last <= parts[at].last


def close_backfill(event: events.CloseBackfill, deps: Deps) -> dict[str, Any]:
    """Write the report, planned against actual, and list the streams that did not come to their end."""
    key = f"{PREFIX}plans/{event.run.id}/streams.jsonl"
    body = deps.objects.get(key)
    if not body:
        raise BadStateInput(f"the list of streams {key} is gone", remedy="Start a new execution: it plans again.")
    streams = [Stream.from_json(value) for value in plan.lines_of(body, key)]
    homes = {stream: folder(event.run.id, stream) for stream in streams}
    document = report(deps, event.run, homes)
    report_key = f"{PREFIX}plans/{event.run.id}/backfill/report.json"
    deps.objects.put(report_key, json.dumps(document, indent=1).encode())
    failed = [s for s, said in zip(streams, document["streams"], strict=True) if said["outcome"] == "failed"]
    failed_key = key.removesuffix(".jsonl") + ".failed.jsonl"
    deps.objects.put(failed_key, "".join(json.dumps(s.to_json()) + "\n" for s in failed).encode())
    deps.count("StreamsFailed", len(failed))
    return {
        "status": document["status"],
        "streams": len(streams),
        "failed": len(failed),
        "bucket": deps.settings.bucket,
        "failed_key": failed_key,
        "report_key": report_key,
    }
