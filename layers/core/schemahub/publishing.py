"""The steps of the ``transform`` state machine: list what is pending, transform it, publish it in one snapshot.

Heavy libraries are imported inside the steps that use them, because each function carries only its own layers.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemahub import concurrency, events, outages
from schemahub.batches import Batch, Manifest, make_batches, manifest_key
from schemahub.deps import Deps
from schemahub.errors import BadStateInput, CorruptState, StaleBatch, about
from schemahub.mappings import load_mapping
from schemahub.plan import lines_of
from schemahub.streams import PREFIX, Segment, Stream

if TYPE_CHECKING:
    from schemahub.rederive import StreamPlan

PUBLISH_LOCK = "publish#unified_trades"


def list_pending(event: events.ListPending, deps: Deps) -> dict[str, Any]:
    """Cut what no snapshot holds into batches; segments that one holds (a crash came before the mark) are marked.

    A re-derivation has the batches of what the table holds instead, and a plan that says what it was made from.
    """
    run: dict[str, Any] = {"id": event.execution.name, "arn": event.execution.Id, "fences": {}}
    if event.input.rederive is not None:
        plans = plan_rederivation(event.input.rederive, deps)
        body = json.dumps({"schema_version": 1, "streams": [p.to_json() for p in plans]})
        deps.objects.put(_rederive_key(run["id"]), body.encode())
        todo = [segment for p in plans for segment in p.segments]
    else:
        todo = _pending(deps)
    batches = make_batches(todo)
    key = f"{PREFIX}plans/{run['id']}/batches.jsonl"
    deps.objects.put(key, "".join(json.dumps(b.to_json()) + "\n" for b in batches).encode())
    return {
        "schema_version": 1,
        "run": run,
        "bucket": deps.settings.bucket,
        "batches_key": key,
        "results_prefix": f"{PREFIX}plans/{run['id']}/results",
        "batches": len(batches),
        "batches_at_a_time": concurrency.batches_at_a_time(_functions(event.input, deps)),
        "mode": "replace" if event.input.rederive is not None else "append",
        "round": event.round,
    }


def _functions(asked: events.TransformInput, deps: Deps) -> int:
    """How many functions this execution may run at once; asked for here, or by the run that started it."""
    parent = asked.run.functions_at_a_time if asked.run else None
    return asked.functions_at_a_time or parent or deps.settings.functions_at_a_time


def _pending(deps: Deps) -> list[Segment]:
    from schemahub.catalog import LakeCatalog, published_so_far
    from schemahub.publish import reconcile

    already, todo = reconcile(
        deps.ledger.pending(),
        published_so_far(LakeCatalog(deps.session), deps.objects, deps.settings.database, deps.settings.table),
    )
    deps.ledger.mark_published(already, "found in the table")
    return todo


def plan_rederivation(wanted: events.Rederive, deps: Deps) -> list[StreamPlan]:
    """What of each stream, and of what filled its holes, is made anew, where there is anything. Changes nothing.

    Raises:
        BadProductId, BadStateInput: no such stream, or nothing of it is in the table.
    """
    from pyiceberg.exceptions import NoSuchTableError

    from schemahub.catalog import LakeCatalog, published_intervals
    from schemahub.rederive import moment, plan

    streams = dict.fromkeys(Stream.parse(text) for text in wanted.streams)
    since = moment(wanted.since) if isinstance(wanted.since, str) else wanted.since
    try:
        table = LakeCatalog(deps.session).load_table((deps.settings.database, deps.settings.table))
    except NoSuchTableError as error:
        raise BadStateInput("there is no table yet, so there is nothing to make anew") from error
    filled = published_intervals(table).keys()
    lines = [line for s in streams for line in (s.trades, s.trades.fills) if line == s.trades or line in filled]
    plans = (plan(table, deps.ledger.segments(line), line, since, wanted.until) for line in lines)
    return [p for p in plans if p is not None]


def _rederive_key(run_id: str) -> str:
    return f"{PREFIX}plans/{run_id}/rederive.json"


def transform_step(event: events.BatchStep, deps: Deps) -> dict[str, Any]:
    """One batch of segments to data files that no snapshot names yet."""
    from schemahub.transform import transform_batch

    batch = Batch.from_json(event.batch)
    with (
        about(batch.stream, batch.interval),
        outages.named(),
        tempfile.TemporaryDirectory(prefix="schemahub-") as folder,
    ):
        manifest = transform_batch(
            deps.objects, load_mapping, batch, event.run.id, Path(folder), rederive=event.mode == "replace"
        )
    deps.count("RowsTransformed", manifest.rows)
    deps.count("RowsQuarantined", manifest.quarantined)
    deps.count("ValuesInexact", manifest.inexact)
    return {"rows": manifest.rows, "quarantined": manifest.quarantined, "inexact": manifest.inexact}


def publish_step(event: events.PublishStep, deps: Deps) -> dict[str, Any]:
    """All batches of the run in one snapshot, under the table's lock; then mark their segments.

    A re-derivation puts them in the place of what they were made anew from; its segments are marked already.

    Raises:
        StaleBatch: a manifest is missing, or segments of it were published by another run. LockBusy, CommitConflict.
    """
    manifests = _manifests(deps, event.batches_key, event.run.id)
    lease = deps.locks.acquire(PUBLISH_LOCK, event.execution.Id, event.run.arn, event.execution.RedriveCount)
    try:
        commit = _replace if event.mode == "replace" else _append
        result = commit(deps, manifests, event.run.id)
    finally:
        # Only efficiency: a worker killed here leaves a lease that runs out.
        deps.locks.release(lease)
    deps.count("RowsPublished", result["rows"])
    return result


def _append(deps: Deps, manifests: list[Manifest], run_id: str) -> dict[str, Any]:
    from schemahub.publish import publish

    return asdict(
        publish(lambda: open_table(deps), deps.objects, manifests, run_id, deps.ledger.mark_published, deps.clock)
    )


def _replace(deps: Deps, manifests: list[Manifest], run_id: str) -> dict[str, Any]:
    from schemahub.replace import replace

    body = deps.objects.get(_rederive_key(run_id))
    if body is None:
        raise StaleBatch(f"the plan of the re-derivation {run_id} is not there")
    bases = {Stream.parse(p["stream"]): p["base"] for p in json.loads(body)["streams"]}
    return asdict(replace(lambda: open_table(deps), deps.objects, manifests, bases, run_id, deps.clock))


def _manifests(deps: Deps, batches_key: str, run_id: str) -> list[Manifest]:
    body = deps.objects.get(batches_key)
    if not body:
        # A list that is gone is not a list of nothing: that would end as a success without a row.
        raise StaleBatch(f"the list of batches {batches_key} is gone")
    manifests = []
    for value in lines_of(body, batches_key):
        batch = Batch.from_json(value)
        found = deps.objects.get(manifest_key(run_id, batch.batch_id))
        if found is None:
            raise StaleBatch(f"the manifest of batch {batch.batch_id} is not there", stream=batch.stream)
        manifests.append(_manifest(found, batch))
    return manifests


def _manifest(body: bytes, batch: Batch) -> Manifest:
    try:
        manifest = Manifest.from_json(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise CorruptState(f"the manifest of batch {batch.batch_id} is not JSON: {error!r}"[:300]) from error
    if manifest.batch != batch:
        raise CorruptState(f"the manifest of batch {batch.batch_id} is that of another", stream=batch.stream)
    return manifest


def open_table(deps: Deps) -> Any:
    """The unified table as it is now; made, or registered again from its metadata in S3, where Glue has none."""
    from schemahub.catalog import LakeCatalog, load_table

    return load_table(LakeCatalog(deps.session), deps.objects, deps.settings.database, deps.settings.table)
