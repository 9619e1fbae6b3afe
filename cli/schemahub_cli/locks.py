"""Locks of runs that have ended: released before a new run starts, as the rule on failed executions does in AWS."""

from __future__ import annotations

from botocore.exceptions import ClientError

from schemahub.mappings import exchanges
from schemahub_cli import executions
from schemahub_cli.target import Target


def release_dead(where: Target) -> list[str]:
    """Release what runs hold that are not running any more (killed, aborted); returns the lock ids.

    The process locks name the runs; each run's locks on its streams go with it. Safe even when a task of a dead run is
    still alive somewhere: the next holder gets a new fence, and the old one can commit nothing (design §3).
    """
    from schemahub.ingest import process_lock

    locks = where.deps.locks
    holders = {lease.run for name in exchanges() if (lease := locks.holder(process_lock(name)))}
    dead = [run for run in sorted(holders) if not _is_running(where, run)]
    return [lock_id for run in dead for lock_id in locks.release_run(run)]


def _is_running(where: Target, arn: str) -> bool:
    try:
        return executions.describe(where, arn).running
    except ClientError as error:
        if error.response["Error"]["Code"] == "ExecutionDoesNotExist":
            return False
        raise
