"""Files of an exchange's history: which there are for a time, where they lie, and what is known of each.

What became of a file is an object of its own in S3, ``schemahub/archives/{exchange}/{product}/{name}.json``: the
checksum that the exchange published, the SHA-256 of what was read, the rows, everything that was wrong with it. A file
whose published checksum is another one later was re-issued; ``archive_correct`` then takes it anew.
"""

from __future__ import annotations

import calendar
import datetime as dt
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from schemahub.errors import ArchiveUnreadable, BadStateInput, CorruptState
from schemahub.mappings import Archive, Mapping
from schemahub.objects import ObjectStore
from schemahub.streams import PREFIX, Stream

FOLDER = f"{PREFIX}archives/"
CORRECTIONS = "corrections/"
Kind = Literal["daily", "monthly"]
Checksum = Literal["verified", "missing", "mismatch", "unknown"]
"""``missing``: the exchange publishes none for this file; ``unknown``: the file itself is not there."""
MAX_CHECKSUM_BYTES = 4096
MAX_ATTEMPTS = 20
"""Looks in vain that a file's state remembers."""

_SHA256 = re.compile(rb"([0-9a-fA-F]{64})[ \t]+\*?(\S+)\s*")


@dataclass(frozen=True, order=True)
class ArchiveFile:
    """One file: a day's or a month's trades of one stream."""

    stream: Stream
    kind: Kind
    begin: dt.date
    path: str
    """Below the archive's address, with a leading slash."""

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def member(self) -> str:
        """The one file that the zip may hold."""
        return self.name.removesuffix(".zip") + ".csv"

    @property
    def end(self) -> dt.date:
        """The day after its last."""
        return self.begin + dt.timedelta(days=1) if self.kind == "daily" else _next_month(self.begin)

    @property
    def period_us(self) -> tuple[int, int]:
        """Microseconds since the epoch: from, and up to but not at."""
        return _micros(self.begin), _micros(self.end)

    @property
    def state_key(self) -> str:
        return f"{folder_of(self.stream)}{self.name}.json"

    def to_json(self) -> dict[str, Any]:
        return {"stream": self.stream.to_json(), "kind": self.kind, "begin": self.begin.isoformat()}

    @classmethod
    def from_json(cls, value: Any, mapping: Mapping) -> ArchiveFile:
        """The path is the mapping's, never the payload's. Raises BadStateInput."""
        try:
            stream, kind = Stream.from_json(value["stream"]), value["kind"]
            begin = dt.date.fromisoformat(value["begin"])
            if stream.exchange != mapping.exchange or kind not in ("daily", "monthly"):
                raise ValueError(f"{kind!r} of {stream}")
            return file_of(mapping, stream, kind, begin)
        except (KeyError, TypeError, ValueError) as error:
            raise BadStateInput(f"{str(value)[:80]!r} is not a file of an archive: {error!r}"[:300]) from error


def folder_of(stream: Stream) -> str:
    return f"{FOLDER}{stream.exchange}/{stream.product}/"


def archive_of(mapping: Mapping) -> Archive | None:
    """The archive that history may be taken from: whole files whose ids are those of the API; None without one."""
    archive = mapping.archive
    usable = archive is not None and archive.replaces is None and archive.daily.endswith(".zip")
    return archive if usable and mapping.counted and mapping.fields.ts_type == "epoch" else None


def file_of(mapping: Mapping, stream: Stream, kind: Kind, begin: dt.date) -> ArchiveFile:
    """Raises BadStateInput: the exchange has no such files, or a month does not begin on its first day."""
    archive = archive_of(mapping)
    template = archive and (archive.daily if kind == "daily" else archive.monthly)
    if not template or (kind == "monthly" and begin.day != 1):
        raise BadStateInput(f"{mapping.exchange} has no {kind} file of {begin}", stream=stream)
    parts = {"yyyy": f"{begin.year:04d}", "mm": f"{begin.month:02d}", "dd": f"{begin.day:02d}"}
    return ArchiveFile(stream, kind, begin, template.format(symbol=mapping.symbol_of(stream.product), **parts))


def files_for(
    mapping: Mapping, stream: Stream, since_us: int, until_us: int, now_ms: int, absent: frozenset[str] = frozenset()
) -> list[ArchiveFile]:
    """The files that hold ``[since_us, until_us)``, months where whole ones are wanted, as far as they are out by now.

    Args:
        absent: names of files that were looked for in vain; the days of such a month are taken one by one.
    """
    archive = archive_of(mapping)
    if archive is None or until_us <= since_us:
        return []
    out_before = now_ms * 1000 - int(archive.available_after_hours * 3600e6)
    day, last, files = _date(since_us), _date(until_us - 1), list[ArchiveFile]()
    while day <= last:
        month = None
        if archive.monthly and day.day == 1 and _next_month(day) - dt.timedelta(days=1) <= last:
            month = file_of(mapping, stream, "monthly", day)
        if month and month.name not in absent and month.period_us[1] <= out_before:
            files.append(month)
            day = month.end
            continue
        daily = file_of(mapping, stream, "daily", day)
        if daily.name not in absent and daily.period_us[1] <= out_before:
            files.append(daily)
        day = daily.end
    return files


def address_of(mapping: Mapping, endpoint: str | None) -> str:
    """Where the exchange's files lie: its own address, or below the endpoint that stands in for it (the simulator)."""
    archive = archive_of(mapping)
    if archive is None:
        raise BadStateInput(f"{mapping.exchange} has no archive that history can be taken from")
    return f"{endpoint.rstrip('/')}/archive" if endpoint else archive.base_url


def parse_checksum(body: bytes, file: ArchiveFile) -> str:
    """The SHA-256 in a file of ``sha256sum``'s form. Raises ArchiveUnreadable for anything else."""
    match = _SHA256.fullmatch(body) if len(body) <= MAX_CHECKSUM_BYTES else None
    if match is None or match[2].decode("utf-8", "replace").rsplit("/", 1)[-1] != file.name:
        raise ArchiveUnreadable(f"the checksum of {file.name} cannot be read: {body[:80]!r}", stream=file.stream)
    return match[1].decode().lower()


# --- what is known of a file ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileState:
    """What became of a file. Times are milliseconds since the epoch."""

    file: ArchiveFile
    status: str
    """``ingested``, ``absent``, ``refused``, ``unreachable`` or ``stopped``; see ``archive_ingest``."""
    checksum: Checksum
    upstream_sha256: str | None
    """As the exchange published it."""
    sha256: str | None
    """Of the file that was read."""
    looked_at: int
    report: dict[str, Any]
    earlier: tuple[dict[str, Any], ...] = ()
    """Issues of the file that this one replaced, the oldest first."""

    @property
    def taken(self) -> str | None:
        """The SHA-256 of the issue whose rows were committed; None where none was."""
        return self.sha256 if self.status in ("ingested", "stopped") else None

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "file": self.file.to_json(),
            "name": self.file.name,
            "status": self.status,
            "checksum": self.checksum,
            "upstream_sha256": self.upstream_sha256,
            "sha256": self.sha256,
            "looked_at": self.looked_at,
            "report": self.report,
            "earlier": list(self.earlier),
        }

    def issue(self) -> dict[str, Any]:
        """This issue, as its successor remembers it."""
        names = ("status", "checksum", "upstream_sha256", "sha256", "looked_at")
        return {name: getattr(self, name) for name in names}


def read_state(objects: ObjectStore, file: ArchiveFile, mapping: Mapping) -> FileState | None:
    """Raises CorruptState for an object that is not one of ours."""
    return state_at(objects, file.state_key, mapping)


def parse_state(body: bytes, key: str, mapping: Mapping) -> FileState:
    try:
        value = json.loads(body)
        if value["schema_version"] != 1:
            raise ValueError(f"schema_version {value['schema_version']!r}")
        return FileState(
            ArchiveFile.from_json(value["file"], mapping),
            value["status"], value["checksum"], value["upstream_sha256"], value["sha256"],
            int(value["looked_at"]), dict(value["report"]), tuple(value["earlier"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, BadStateInput) as error:
        raise CorruptState(f"{key} is not the state of an archive's file: {error!r}"[:300]) from error


def write_state(objects: ObjectStore, state: FileState, before: FileState | None) -> FileState:
    """Put down what became of a file; ``before`` is what an earlier attempt left.

    A look that took nothing never hides the issue that was taken, and a later attempt at the same issue, which reads
    only what the earlier one left, never what that one found.
    """
    if before is not None and before.taken:
        if state.taken is None:
            report = {**before.report, "last_look": {**state.issue(), "report": state.report}}
            state = replace(before, report=report)
        elif state.taken != before.taken:
            state = replace(state, earlier=(*before.earlier, before.issue()))
        else:
            state = replace(state, earlier=before.earlier, report=_joined(before.report, state.report))
    elif before is not None:
        # What was tried in vain is part of the file's story: late, not what its checksum says, then right.
        tried = {name: before.report.get(name, "") for name in ("status", "error", "reason")}
        attempts = [*before.report.get("attempts", ()), {"looked_at": before.looked_at, **tried}]
        state = replace(state, report={**state.report, "attempts": attempts[-MAX_ATTEMPTS:]})
    objects.put(state.file.state_key, json.dumps(state.to_json(), indent=1).encode())
    return state


def _joined(before: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """The report of an issue that was taken in several attempts: the newest, with the earlier ones as its ``parts``."""
    if not report["rows"]:
        return {**before, "status": report["status"]}
    story = {"attempts": before["attempts"]} if "attempts" in before else {}
    earlier = {name: value for name, value in before.items() if name not in ("attempts", "parts")}
    return {**report, **story, "parts": [*before.get("parts", []), earlier]}


def state_keys(objects: ObjectStore, stream: Stream) -> Iterator[str]:
    """Keys of the states of a stream's files, by name."""
    folder = folder_of(stream)
    return (k for k in objects.list(folder) if k.endswith(".json") and "/" not in k.removeprefix(folder))


def state_at(objects: ObjectStore, key: str, mapping: Mapping) -> FileState | None:
    """Raises CorruptState for an object that is not one of ours."""
    body = objects.get(key)
    return parse_state(body, key, mapping) if body is not None else None


def states(objects: ObjectStore, stream: Stream, mapping: Mapping) -> Iterator[FileState]:
    """What is known of every file of a stream, by name."""
    found = (state_at(objects, key, mapping) for key in state_keys(objects, stream))
    return (state for state in found if state is not None)


def reissued(states: Sequence[FileState], published: dict[str, str]) -> list[ArchiveFile]:
    """Files whose published checksum (by name, as it is now) is not that of the issue that was taken."""
    return [s.file for s in states if s.taken and published.get(s.file.name, s.taken) != s.taken]


def _micros(day: dt.date) -> int:
    return calendar.timegm(day.timetuple()) * 1_000_000


def _date(us: int) -> dt.date:
    return dt.datetime.fromtimestamp(us // 1_000_000, dt.UTC).date()


def _next_month(day: dt.date) -> dt.date:
    return (day.replace(day=28) + dt.timedelta(days=4)).replace(day=1)
