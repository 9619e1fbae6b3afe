"""Locks of runs that have ended: released before a new run starts, as the rule on failed executions does in AWS."""

from __future__ import annotations

from botocore.exceptions import ClientError

from schemahub.mappings import exchanges
from schemahub_cli import executions
from schemahub_cli.target import Target

PUBLISH_LOCK = "publish#unified_trades"


def release_dead(where: Target) -> list[str]:
    """Release what runs hold that are not running any more (killed, aborted); returns the lock ids.

    Safe even when a task of a dead run is
    still alive somewhere: the next holder gets a new fence, and the old one can commit nothing (design §3).
    """
    dead = [run for run in sorted(set(_holders(where).values())) if not _is_running(where, run)]
    return [lock_id for run in dead for lock_id in where.deps.locks.release_run(run)]


def held_by(where: Target, arn: str) -> list[str]:
    """The locks that this execution holds now."""
    return [lock_id for lock_id, run in _holders(where).items() if run == arn]


def _holders(where: Target) -> dict[str, str]:
    """The run that holds each lock of the stack, for those that are held."""
    from schemahub.ingest import process_lock, read_seed

    streams = read_seed(where.deps)
    known = [*map(process_lock, exchanges()), *(s.lock_id for s in streams), PUBLISH_LOCK]
    known += [s.backfill_lock_id for s in streams]
    return {lock_id: lease.run for lock_id in known if (lease := where.deps.locks.holder(lock_id))}


def _is_running(where: Target, arn: str) -> bool:
    if not arn.startswith("arn:"):
        return True  # a command on somebody's machine (`schemahub gaps --repair`): its lease runs out
    try:
        return executions.describe(where, arn).running
    except ClientError as error:
        if error.response["Error"]["Code"] == "ExecutionDoesNotExist":
            return False
        raise
