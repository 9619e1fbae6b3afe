"""The steps of the ``transform`` state machine: list what is pending, transform it, publish it in one snapshot.

Heavy libraries are imported inside the steps that use them, because each function carries only its own layers.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from schemahub import events, outages
from schemahub.batches import Batch, Manifest, make_batches, manifest_key
from schemahub.errors import CorruptState, StaleBatch, about
from schemahub.mappings import load_mapping
from schemahub.plan import lines_of
from schemahub.runtime import Deps
from schemahub.streams import PREFIX

PUBLISH_LOCK = "publish#unified_trades"


def list_pending(event: events.ListPending, deps: Deps) -> dict[str, Any]:
    """Cut what no snapshot holds into batches; segments that one holds (a crash came before the mark) are marked."""
    from schemahub.catalog import LakeCatalog, published_so_far
    from schemahub.publish import reconcile

    run = {"id": event.execution.name, "arn": event.execution.Id, "fences": {}}
    already, todo = reconcile(
        deps.ledger.pending(),
        published_so_far(LakeCatalog(deps.session), deps.objects, deps.settings.database, deps.settings.table),
    )
    deps.ledger.mark_published(already, "found in the table")
    batches = make_batches(todo)
    key = f"{PREFIX}plans/{run['id']}/batches.jsonl"
    deps.objects.put(key, "".join(json.dumps(b.to_json()) + "\n" for b in batches).encode())
    return {
        "schema_version": 1,
        "run": run,
        "bucket": deps.settings.bucket,
        "batches_key": key,
        "batches": len(batches),
    }


def transform_step(event: events.BatchStep, deps: Deps) -> dict[str, Any]:
    """One batch of segments to data files that no snapshot names yet."""
    from schemahub.transform import transform_batch

    batch = Batch.from_json(event.batch)
    with (
        about(batch.stream, batch.interval),
        outages.named(),
        tempfile.TemporaryDirectory(prefix="schemahub-") as folder,
    ):
        manifest = transform_batch(deps.objects, load_mapping, batch, event.run.id, Path(folder))
    deps.count("RowsTransformed", manifest.rows)
    deps.count("RowsQuarantined", manifest.quarantined)
    return {"rows": manifest.rows, "quarantined": manifest.quarantined}


def publish_step(event: events.PublishStep, deps: Deps) -> dict[str, Any]:
    """All batches of the run in one snapshot, under the table's lock; then mark their segments.

    Raises:
        StaleBatch: a manifest is missing, or segments of it were published by another run. LockBusy, CommitConflict.
    """
    from schemahub.publish import publish

    manifests = _manifests(deps, event.batches_key, event.run.id)
    lease = deps.locks.acquire(PUBLISH_LOCK, event.execution.Id, event.run.arn, event.execution.RedriveCount)
    try:
        result = publish(
            lambda: open_table(deps), deps.objects, manifests, event.run.id, deps.ledger.mark_published, deps.clock
        )
    finally:
        # Only efficiency: a worker killed here leaves a lease that runs out.
        deps.locks.release(lease)
    deps.count("RowsPublished", result.rows)
    return asdict(result)


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
