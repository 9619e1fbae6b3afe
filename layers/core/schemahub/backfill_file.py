"""A task that takes one file of an exchange's archive. Apart, because it needs Arrow, and a REST task its memory."""

from __future__ import annotations

import threading
from pathlib import Path

from schemahub.archive_ingest import ArchiveReport, run_planned
from schemahub.backfill_plan import TaskSpec
from schemahub.backfill_task import Committer
from schemahub.deps import Deps, logger
from schemahub.errors import BadStateInput
from schemahub.streams import RawObject


def take_file(
    deps: Deps, spec: TaskSpec, committer: Committer, work_dir: Path | None, stop: threading.Event
) -> ArchiveReport:
    """Commit what the task's file has of its range; see ``archive_ingest.ingest_file``.

    Raises:
        BadStateInput: there is nowhere to write, or the exchange has no such files.
        LockLost: somebody else is in charge of what lies below the stream's watermark.
    """
    if work_dir is None:
        raise BadStateInput("a file needs a directory to be spooled in", stream=spec.stream)

    def add(raw: RawObject) -> None:
        size = (deps.objects.head(raw.key) or {}).get("size", 0)
        committer.tally.total.update(chunks_fetched=1, trades=raw.count, bytes=size)
        committer.add(raw)

    report = run_planned(deps, spec, stop, work_dir, add, committer.commit, committer.beat)
    committer.tally.total["requests"] += report.requests
    logger.info("file taken", extra={"report": {**report.to_json(), "differences": len(report.found.differences)}})
    return report
