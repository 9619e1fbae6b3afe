"""The steps of the ``ingest`` state machine, each safe to run twice, late, or after a crash at any line.

Every step reads its truth from S3 and DynamoDB; what earlier steps returned only says where to look.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from schemahub import commit, concurrency, events, mirror, plan, raw, seams, witness
from schemahub.backfill_plan import Estimate, Means, TaskSpec, estimate, means_of, number_of_tasks, split
from schemahub.commit import Committed, Fenced, segment_of
from schemahub.conditional import whole
from schemahub.deps import MAX_CHUNK_PAGES, Deps, logger
from schemahub.errors import (
    BadConfig,
    BadProductId,
    BadStateInput,
    IncompleteChunks,
    LockBusy,
    LockLost,
    NoSeed,
    RawConflict,
    UnknownExchange,
)
from schemahub.fetch import Fetched
from schemahub.holes import YOUNG_S
from schemahub.ledger import RunKind, Watermark
from schemahub.locks import Lease, Renewer
from schemahub.mappings import NS, exchanges, load_mapping
from schemahub.objects import ObjectStore
from schemahub.pacing import PacedExchange
from schemahub.paging import Begin, ColdStart, Expected, Linked, paging_of
from schemahub.seed import SEED_KEY, parse_streams
from schemahub.streams import PREFIX, TRADES, Absent, Chunk, Interval, RawObject, Stream, continuous_prefix

HEAD_THREADS = 8


def process_lock(exchange: str) -> str:
    return f"ingest#{exchange}"


def open_run(event: events.OpenRun, deps: Deps) -> dict[str, Any]:
    """Take the process lock of each exchange and write the list of streams that this run works on.

    Without a seed there is nothing to do yet: the schedule starts with the deployment, and must not ring for that.
    """
    try:
        wanted = select_streams(deps, event.input)
    except NoSeed as error:
        logger.warning("skipped: no seed")
        return {"schema_version": 1, "status": "skipped", "reason": "no_seed", "message": str(error), "streams": 0}
    run = new_run(event.execution, event.input.functions_at_a_time, deps)
    streams, skipped = [], []
    for name in sorted({s.exchange for s in wanted}):
        try:
            lease = deps.locks.acquire(
                process_lock(name), event.execution.Id, event.execution.Id, event.execution.RedriveCount
            )
        except LockBusy:
            skipped.append(name)
            continue
        run["fences"][name] = lease.fence
        streams.append([s for s in wanted if s.exchange == name])
    # Round robin over the exchanges: the first few children of the Map already work under every limit at once.
    mixed = [s for group in itertools.zip_longest(*streams) for s in group if s is not None]
    key = f"{PREFIX}plans/{run['id']}/streams.jsonl"
    deps.objects.put(key, "".join(json.dumps(s.to_json()) + "\n" for s in mixed).encode())
    return {
        "schema_version": 1,
        "run": run,
        "bucket": deps.settings.bucket,
        "streams_key": key,
        "results_prefix": f"{PREFIX}plans/{run['id']}/results",
        "streams": len(mixed),
        "streams_at_a_time": concurrency.streams_at_a_time(at_once(event.input.functions_at_a_time, deps)),
        "skipped": skipped,
        **({"status": "open"} if mixed else {"status": "skipped", "reason": "busy"}),
    }


def new_run(execution: events.Execution, functions_at_a_time: int | None, deps: Deps) -> dict[str, Any]:
    """What every step of an execution is told of it (``events.Run``)."""
    run = {"id": execution.name, "arn": execution.Id, "fences": {}, "opened_at": deps.clock.now_ms()}
    return run | ({"functions_at_a_time": functions_at_a_time} if functions_at_a_time else {})


def at_once(asked: int | None, deps: Deps) -> int:
    """How many functions an execution may run at once: what was asked for when it was started, or the deployment's."""
    return asked or deps.settings.functions_at_a_time


def select_streams(deps: Deps, request: events.IngestInput) -> list[Stream]:
    """The streams of a run: those asked for by name, otherwise the parameter's, otherwise the seed's.

    Raises:
        NoSeed: nothing was asked for, and no seed was ever written. BadConfig: the seed is wrong, or none of its
            streams is meant. BadProductId, UnknownExchange: a name cannot be meant.
    """
    if request.products:
        streams = [Stream.parse(name) for name in request.products]
    elif (found := _of_parameter(deps) or _seed(deps)) is None:
        raise NoSeed(f"there is no seed list ({SEED_KEY}), so there is nothing to ingest")
    else:
        streams = found
    if request.exchanges:
        for name in request.exchanges:
            load_mapping(name)
        streams = [s for s in streams if s.exchange in request.exchanges]
    if foreign := sorted(str(s) for s in streams if s.dataset != TRADES):
        # The same trades under another name would be in the table twice.
        raise BadProductId(f"{foreign[0]} is not a stream of {TRADES}")
    unknown = {s.exchange for s in streams} - set(exchanges())
    if unknown:
        raise UnknownExchange(f"no mapping for {', '.join(sorted(unknown))} (known: {', '.join(exchanges())})")
    if not streams:
        raise BadConfig(
            "there are no products to ingest: the seed list has none that is asked for",
            remedy="Add products to it with `schemahub update-seed`, or name them.",
        )
    return sorted(set(streams))


def _of_parameter(deps: Deps) -> list[Stream]:
    try:
        return [Stream.parse(name) for name in deps.settings.products]
    except BadProductId as error:
        raise BadConfig(f"SCHEMAHUB_PRODUCTS (the Products parameter): {error.reason}") from error


def read_seed(deps: Deps) -> list[Stream]:
    """The seed list ``config/products.json``; empty when there is none.

    Raises:
        BadConfig: it is not a seed, or one of its entries is wrong (it is named) or stands twice.
    """
    return _seed(deps) or []


def _seed(deps: Deps) -> list[Stream] | None:
    body = deps.objects.get(SEED_KEY)
    return None if body is None else [Stream(e["exchange"], e["product"]) for e in parse_streams(body)]


def lock_step(event: events.LockStep, deps: Deps) -> dict[str, Any]:
    """Acquire or release a stream's lock. A busy lock is an answer, not an error: the run skips the stream."""
    stream = event.stream.value()
    kind: RunKind = "run" if event.kind == "ingest" else "backfill"
    if event.action == "acquire":
        try:
            lease = deps.locks.acquire(
                lock_id_of(event), event.execution.Id, event.run.arn, event.execution.RedriveCount
            )
        except LockBusy:
            deps.ledger.finish_run(stream, event.run.arn, "busy", deps.clock.now_ms(), kind)
            return {"status": "busy"}
        return {"status": "held", "owner": lease.owner, "fence": lease.fence, "attempt": lease.attempt}
    deps.ledger.finish_run(stream, event.run.arn, event.outcome, deps.clock.now_ms(), kind)
    if event.lock is not None:
        deps.locks.release(lease_of(event), event.execution.RedriveCount)
    return {"status": "released"}


def lock_id_of(event: Any) -> str:
    """The lock that a step works under: what is above a stream's watermark has another than what is below."""
    stream = event.stream.value()
    return str(stream.backfill_lock_id if getattr(event, "kind", "ingest") == "backfill" else stream.lock_id)


def lease_of(event: Any) -> Lease:
    """The lease that the step's payload names."""
    return Lease(lock_id_of(event), event.lock.owner, event.run.arn, event.lock.attempt, event.lock.fence)


def _ensure(event: Any, deps: Deps) -> Lease:
    """The stream's lease, renewed; taken again with a new fence when it ran out and nobody else holds it."""
    lease, _ = deps.locks.ensure(lease_of(event), event.execution.RedriveCount)
    _keep_process_lock(event, deps)
    return lease


def _process_lease(event: Any) -> Lease | None:
    """The lease of the run on the exchange, that each step helps to keep alive."""
    exchange = event.stream.exchange
    fence = event.run.fences.get(exchange)
    return Lease(process_lock(exchange), event.run.arn, event.run.arn, 0, fence) if fence is not None else None


def _keep_process_lock(event: Any, deps: Deps) -> None:
    lease = _process_lease(event)
    try:
        if lease:
            deps.locks.keep(lease)
    except LockLost:
        # Efficiency only: correctness hangs on the stream's own lock and the watermark's condition.
        return


def plan_stream(event: events.PlanStep, deps: Deps) -> dict[str, Any]:
    """Ask the exchange for its head and write the chunks between the watermark and it."""
    stream = event.stream.value()
    _ensure(event, deps)
    mirror.heal(deps.objects, deps.ledger, stream)
    mark = deps.ledger.watermark(stream)
    chunks, head, expected = chunks_to_fetch(deps, stream, mark)
    base = mark.high if mark else None
    if mark and head - mark.high > paging_of(load_mapping(stream.exchange)).most_ahead:
        deps.call_attention(f"the head jumped from {mark.high} to {head}; a part of it is planned", stream)
    if not chunks:
        return {"status": "nothing_new", "chunks": 0, "base": base, "head": head}
    home = f"{PREFIX}plans/{event.run.id}/{stream.exchange}/{stream.product}"
    deps.objects.put(f"{home}.jsonl", plan.to_jsonl(chunks))
    means = means_of(deps.settings, load_mapping(stream.exchange))
    guess = estimate(expected, len(chunks), means)
    found = {
        "status": "planned",
        "chunks": len(chunks),
        "bucket": deps.settings.bucket,
        "chunks_key": f"{home}.jsonl",
        "results_prefix": f"{home}/results",
        "chunks_at_a_time": concurrency.chunks_at_a_time(
            at_once(event.run.functions_at_a_time, deps), concurrency.INGEST_CHUNKS
        ),
        "base": base,
        "head": head,
        "route": guess.route,
    }
    return found if guess.route == "lambda" else found | _plan_tasks(event, deps, home, chunks, means, guess)


def _plan_tasks(
    event: events.PlanStep, deps: Deps, home: str, chunks: list[Chunk], means: Means, guess: Estimate
) -> dict[str, Any]:
    """What is too much for functions as tasks of ECS, which make it durable; CommitSegments commits it as ever."""
    stream, within = event.stream.value(), Interval(chunks[0].first, chunks[-1].last)
    lists = split(chunks, number_of_tasks(len(chunks), guess.seconds, guess.tasks), newest_first=False)
    both = (means.workers, means.chunk_concurrency)
    specs = [TaskSpec(event.run.id, stream, lease_of(event), "ingest", within, *both, tuple(one)) for one in lists]
    return write_tasks(deps.objects, home, specs) | {"tasks_at_a_time": max(1, guess.tasks)}


def write_tasks(objects: ObjectStore, home: str, specs: Sequence[TaskSpec]) -> dict[str, Any]:
    """Each task as an object below ``home``, and the list of them that a Map reads."""
    keys = [f"{home}/tasks/{number:04d}.json" for number in range(len(specs))]
    for key, spec in zip(keys, specs, strict=True):
        objects.put(key, json.dumps(spec.to_json()).encode())
    listed = [json.dumps({"number": number, "task_key": key}) + "\n" for number, key in enumerate(keys)]
    objects.put(f"{home}/tasks.jsonl", "".join(listed).encode())
    return {"tasks": len(specs), "tasks_key": f"{home}/tasks.jsonl"}


def chunks_to_fetch(deps: Deps, stream: Stream, mark: Watermark | None) -> tuple[list[Chunk], int, Expected]:
    """The chunks from the watermark to the settled head, the head, and what the chunks will take and bring.

    Sends requests, writes nothing. A first run that cannot begin at all calls for attention.
    """
    mapping = load_mapping(stream.exchange)
    exchange = PacedExchange.of(deps, stream.exchange)
    page = exchange.newest(stream)
    now_us = deps.clock.now_ms() * 1000
    paging = paging_of(mapping)
    head = paging.head(page, stream, now_us)
    plan.check_head(head, mark.high if mark else None, stream)
    start = ColdStart(now_us - int(deps.settings.cold_start_hours * 3600e6), deps.settings.cold_start_trades)
    begin = Begin(mark.high + 1) if mark else paging.first(exchange, stream, page, start)
    # A first run goes as far as its parameters say; a later one only so far as a stray head can do little harm.
    last = min(head.settled, mark.high + paging.most_ahead) if mark else head.settled
    known = None
    if isinstance(paging, Linked) and begin.first <= last:
        known = paging.known(page, head.settled, witness.newest(deps, stream) if mark else begin.trade)
    chunks = plan.cut(begin.first, last, paging.chunk_size(page, deps.settings.chunk_pages), known=known)
    if not chunks and not mark:
        spec = mapping.requests
        why = plan.why_nothing(page, now_us, spec.settle_seconds, spec.page.asks == "newest")
        if why:
            deps.call_attention(why, stream)
    return chunks, head.settled, paging.expected(page, chunks)


def fetch_step(event: events.FetchStep, deps: Deps) -> dict[str, Any]:
    """Make one chunk's raw object durable, unless it is already."""
    stream, chunk = event.stream.value(), event.chunk.value()
    paging = paging_of(load_mapping(stream.exchange))
    if chunk.size > paging.most_positions(MAX_CHUNK_PAGES):
        raise BadStateInput(f"a chunk of {chunk.size} positions is larger than any plan makes", stream=stream)
    # Fetching is not guarded: raw objects are the same whoever writes them. A lost lease only ends wasted work.
    leases = (lease_of(event), _process_lease(event))
    renewers = [Renewer(deps.locks.keep, lease, deps.clock) for lease in leases if lease]

    def tick() -> None:
        for renewer in renewers:
            renewer.tick()

    _, fetched = make_durable(deps, stream, chunk, tick)
    if fetched is None:
        return {"status": "there"}
    deps.count("RequestsSent", fetched.requests)
    deps.count("TradesFetched", len(fetched.texts))
    deps.count("RowsRepeated", fetched.repeated)
    deps.count("RowsOutside", fetched.outside)
    if fetched.counted:
        deps.count("IdsAbsent", sum(a.last - a.first + 1 for a in fetched.absent))
    else:
        say_what_is_lost(deps, stream, fetched.absent)
    return {"status": "fetched"}


def make_durable(
    deps: Deps, stream: Stream, chunk: Chunk, tick: Callable[[], None]
) -> tuple[RawObject, Fetched | None]:
    """The raw object of a chunk, and what was fetched for it: None where the object was there already."""
    if (there := _durable(deps, stream, chunk)) is not None:
        return there, None
    paging = paging_of(load_mapping(stream.exchange))
    fetched = paging.fetch(
        PacedExchange.of(deps, stream.exchange),
        stream,
        chunk,
        deps.clock,
        tick,
        young_us=deps.clock.now_ms() * 1000 - int(YOUNG_S * 1e6),
    )
    return raw.store(deps.objects, stream, fetched), fetched


def say_what_is_lost(deps: Deps, stream: Stream, lost: Iterable[Absent]) -> None:
    """An exchange that shows its newest trades only was not asked in time: nothing fails, and a human must know."""
    for hole in lost:
        seconds = (hole.last - hole.first + 1) / NS["s"]
        deps.count("SecondsLost", seconds)
        deps.call_attention(f"{seconds:.3f} s of trades before the oldest that it shows are lost", stream)


def commit_step(event: events.CommitStep, deps: Deps) -> dict[str, Any]:
    """Commit the longest continuous prefix of the plan's finished chunks.

    Raises:
        IncompleteChunks: on the final attempt, when chunks are missing (what was complete is committed).
        LockBusy: another execution holds the stream.
        RawConflict: two neighbouring objects do not agree on the trade between them (those before are committed).
    """
    stream = event.stream.value()
    lease = _ensure(event, deps)
    mark = deps.ledger.watermark(stream)
    chunks = _planned(deps, event.plan.chunks_key)
    todo = [c for c in chunks if mark is None or c.last > mark.high]
    base = mark.high if mark else chunks[0].first - 1
    if not todo:
        mirror.heal_quietly(deps.objects, deps.ledger, stream)
        return {"status": "covered", "committed": 0, "remaining": 0}
    if todo[0].first != base + 1:
        return {"status": "superseded", "committed": 0, "remaining": 0}
    done = finished(deps, stream, [*(c for c in chunks if c.known and c.last == base), *todo])
    prefix = continuous_prefix(base, todo, set(done))
    objects, newest = [done[c] for c in prefix], seams.newest_before(chunks, todo, done)
    torn = seams.torn(objects, newest)
    if late := seams.came_late(objects, newest):
        deps.call_attention(f"a trade came late: at {late}, behind the newest committed one at {newest}", stream)
    if torn:
        prefix = [c for c in prefix if c.last < torn.first]
    if prefix:
        now = deps.clock.now_ms()
        segments = [segment_of(stream, done[c], event.run.id, "rest", now) for c in prefix]
        outcome = commit.commit_segments(
            deps.ledger, deps.locks, lease, segments, mark.high if mark else None, deps.clock
        )
        if isinstance(outcome, Fenced):
            raise LockLost("the lock was taken over before the commit", stream=stream)
        if not isinstance(outcome, Committed):
            return {"status": "superseded", "committed": 0, "remaining": 0}
        mirror.heal_quietly(deps.objects, deps.ledger, stream)
        deps.count("SegmentsCommitted", len(segments))
    if torn:
        raise RawConflict(
            f"{torn.key} and the object before it were fetched from different histories: one of them lacks trades",
            stream=stream,
            span=(torn.first, torn.last),
            remedy="What lies before is committed. Move both away, unless committed (old versions stay); start anew.",
        )
    missing = [c for c in todo if c not in done]
    if not missing:
        return {"status": "covered", "committed": len(prefix), "remaining": 0}
    return _remaining(event, deps, stream, prefix, missing)


def _remaining(
    event: events.CommitStep, deps: Deps, stream: Stream, prefix: list[Chunk], missing: list[Chunk]
) -> dict[str, Any]:
    if event.final:
        raise IncompleteChunks(
            f"{len(missing)} chunks are missing, the first of them",
            stream=stream,
            span=(missing[0].first, missing[0].last),
        )
    key = event.plan.chunks_key.removesuffix(".jsonl") + ".remaining.jsonl"
    deps.objects.put(key, plan.to_jsonl(missing))
    return {
        "status": "partial",
        "committed": len(prefix),
        "remaining": len(missing),
        "bucket": deps.settings.bucket,
        "remaining_key": key,
    }


def _planned(deps: Deps, key: str) -> list[Chunk]:
    body = deps.objects.get(key)
    if not body:
        raise IncompleteChunks(f"the plan {key} is gone", remedy="Start a new execution; raw objects are found again.")
    chunks = plan.from_jsonl(body)
    if not chunks:
        # Nothing to do would pass for done.
        raise BadStateInput(f"the plan {key} holds no chunks", remedy="Start a new execution: it plans again.")
    return chunks


def finished(deps: Deps, stream: Stream, chunks: list[Chunk]) -> dict[Chunk, Any]:
    """The durable raw objects of chunks, looked up side by side."""
    with ThreadPoolExecutor(HEAD_THREADS) as pool:
        found = pool.map(lambda c: _durable(deps, stream, c), chunks)
        return {c: r for c, r in zip(chunks, found, strict=True) if r is not None}


def _durable(deps: Deps, stream: Stream, chunk: Chunk) -> RawObject | None:
    """The raw object of a chunk; where only newest trades are shown, a first run's may begin later than its chunk."""
    found = raw.find(deps.objects, stream, chunk)
    if found is not None or chunk.known is None or chunk.known.base is not None:
        return found
    newest_only = load_mapping(stream.exchange).requests.page.asks == "newest"
    return raw.find_shorter(deps.objects, stream, chunk) if newest_only else None


def close_run(event: events.CloseRun, deps: Deps) -> dict[str, Any]:
    """Release the process locks and list the streams that did not come to their end in this run."""
    key = f"{PREFIX}plans/{event.run.id}/streams.jsonl"
    body = deps.objects.get(key)
    if not body:
        raise BadStateInput(f"the list of streams {key} is gone", remedy="Start a new execution: it plans again.")
    streams = [Stream.from_json(value) for value in plan.lines_of(body, key)]
    failed = [s for s in streams if not _came_to_its_end(deps, s, event.run)]
    failed_key = key.removesuffix(".jsonl") + ".failed.jsonl"
    deps.objects.put(failed_key, "".join(json.dumps(s.to_json()) + "\n" for s in failed).encode())
    for exchange, fence in event.run.fences.items():
        deps.locks.release(
            Lease(process_lock(exchange), event.run.arn, event.run.arn, 0, fence), event.execution.RedriveCount
        )
    deps.count("StreamsFailed", len(failed))
    return {"streams": len(streams), "failed": len(failed), "bucket": deps.settings.bucket, "failed_key": failed_key}


def _came_to_its_end(deps: Deps, stream: Stream, run: events.Run) -> bool:
    """By this run; or by another one since this one began, whose note has replaced ours (an old run redriven late)."""
    last = deps.ledger.last_run(stream) or {}
    if last.get("run") == run.arn:
        return True
    if run.opened_at is None or last.get("outcome") != "done" or whole(last, "finished_at") <= run.opened_at:
        return False
    holder = deps.locks.holder(stream.lock_id)
    return holder is None or holder.run != run.arn
