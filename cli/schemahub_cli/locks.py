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
    from schemahub.ingest import process_lock, read_seed

    locks = where.deps.locks
    streams = read_seed(where.deps)
    held = [*map(process_lock, exchanges()), *(s.lock_id for s in streams), PUBLISH_LOCK]
    held += [s.backfill_lock_id for s in streams]
    holders = {lease.run for lock_id in held if (lease := locks.holder(lock_id))}
    dead = [run for run in sorted(holders) if not _is_running(where, run)]
    return [lock_id for run in dead for lock_id in locks.release_run(run)]


def _is_running(where: Target, arn: str) -> bool:
    if not arn.startswith("arn:"):
        return True  # a command on somebody's machine (`schemahub gaps --repair`): its lease runs out
    try:
        return executions.describe(where, arn).running
    except ClientError as error:
        if error.response["Error"]["Code"] == "ExecutionDoesNotExist":
            return False
        raise
