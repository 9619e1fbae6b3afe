"""A task of ECS that takes files which were issued again. Like a backfill's task it never decides success.

It takes the stream's backfill lock itself, each attempt as an owner of its own in the same run: what an attempt that
was killed still does is refused by its fence, and nobody waits for its lease.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from schemahub import outages, reissues
from schemahub.archives import ArchiveFile
from schemahub.deps import Deps, logger
from schemahub.errors import ArchiveError, BadStateInput, ExchangeError, LockBusy, about
from schemahub.mappings import load_mapping
from schemahub.streams import Stream

MAX_FILES = 100
KIND = "correct"
EXIT_CODES = {"done": 0, "busy": 0, "incomplete": 1, "stopped": 143}


@dataclass(frozen=True)
class CorrectionSpec:
    """All that one task has to know. ``run`` is the execution that its lock belongs to."""

    run: str
    stream: Stream
    files: tuple[ArchiveFile, ...]
    kind: str = KIND

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": KIND,
            "run": self.run,
            "stream": self.stream.to_json(),
            "files": [file.to_json() for file in self.files],
        }

    @classmethod
    def from_json(cls, value: Any) -> CorrectionSpec:
        """Raises BadStateInput for what is not a task of this release."""
        try:
            if value["schema_version"] != 1 or value["kind"] != KIND:
                raise ValueError(f"schema_version {value['schema_version']!r}, kind {value['kind']!r}")
            run, stream, files = value["run"], Stream.from_json(value["stream"]), value["files"]
            if not isinstance(run, str) or not run:
                raise ValueError("run is not text")
            if not isinstance(files, list) or not 1 <= len(files) <= MAX_FILES:
                raise ValueError("files are not a list of some files")
            mapping = load_mapping(stream.exchange)
            found = tuple(ArchiveFile.from_json(file, mapping) for file in files)
            if any(file.stream != stream for file in found):
                raise ValueError("a file of another stream")
            return cls(run, stream, found)
        except (KeyError, TypeError, ValueError) as error:
            raise BadStateInput(f"{str(value)[:80]!r} is not a task of corrections: {error!r}"[:300]) from error


@dataclass(frozen=True)
class Corrected:
    """How the task ended. ``errors``: files that cannot be had now, by the error's name."""

    status: Literal["done", "busy", "incomplete", "stopped"]
    files: int
    errors: dict[str, str]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_corrections(deps: Deps, spec: CorrectionSpec, stop: threading.Event, work_dir: Path) -> Corrected:
    """Take the files of one stream that are still not the published ones. An archive that cannot be had fails the task
    only where another attempt may cure it; what a backfill holds is left for the next run.

    Raises:
        LockLost: another took the lock. CorruptState, StoreError: the ledger cannot be written.
    """
    # Here, because it loads Arrow: tasks that ask the exchange keep that memory.
    from schemahub.archive_correct import correct_files
    from schemahub.archive_ingest import Stopped

    errors: dict[str, str] = {}
    passing = False

    def failed(file: ArchiveFile, error: ArchiveError | ExchangeError) -> None:
        nonlocal passing
        passing = passing or isinstance(error, ExchangeError)
        errors[file.name] = type(error).__name__
        logger.warning("the issue cannot be had", extra={"file": file.name, "reason": str(error)[:300]})

    owner = f"{spec.run}/{deps.rng.getrandbits(64):016x}"
    with about(spec.stream), outages.named():
        again: list[ArchiveFile] = []
        try:
            again = reissues.look_for_reissues(deps, spec.stream, only=spec.files)
            if again:
                correct_files(deps, spec.stream, again, owner, spec.run, work_dir, stop, failed=failed)
        except Stopped:
            return Corrected("stopped", len(again), errors)
        except LockBusy:
            return Corrected("busy", len(again), errors)
    return Corrected("incomplete" if passing else "done", len(again), errors)
