"""What a transform takes and what it hands to the publisher: batches of segments, data files, manifests."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from schemahub.errors import BadInput, BadStateInput, CorruptState
from schemahub.streams import PREFIX, TRADES, Interval, Segment, Stream, position
from schemahub.table import COLUMNS, OPTIONAL

MAX_BATCH_ROWS = 1_000_000
MAX_BATCH_BYTES = 150_000
"""A batch is the payload of one child execution, for which Step Functions' hard limit is 256 KiB."""

_BATCH_ID = re.compile(r"[0-9a-f]{32}")
_PLAIN: dict[str, tuple[type, ...]] = {"string": (str,), "double": (int, float), "timestamptz": (int,)}


@dataclass(frozen=True)
class Batch:
    """Neighbouring committed segments of one stream that one worker transforms together."""

    batch_id: str
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments:
            raise BadStateInput("a batch without segments")
        if not _BATCH_ID.fullmatch(str(self.batch_id)) or self.batch_id != _identity(self.segments):
            raise BadStateInput(f"batch id {str(self.batch_id)[:40]!r} is not that of its segments")
        for before, after in zip(self.segments, self.segments[1:], strict=False):
            if after.stream != before.stream or after.first != before.last + 1:
                raise BadStateInput(
                    f"a batch must be neighbours of one stream, not {before.stream} up to "
                    f"{before.last} and {after.stream} from {after.first}"
                )

    @property
    def stream(self) -> Stream:
        return self.segments[0].stream

    @property
    def interval(self) -> Interval:
        return Interval(self.segments[0].first, self.segments[-1].last)

    @property
    def count(self) -> int:
        """Rows that the exchange delivered."""
        return sum(s.count for s in self.segments)

    @classmethod
    def of(cls, segments: Iterable[Segment]) -> Batch:
        chosen = tuple(segments)
        return cls(_identity(chosen), chosen)

    @classmethod
    def from_json(cls, value: Any) -> Batch:
        if not isinstance(value, dict) or value.keys() != {"batch_id", "segments"}:
            raise BadStateInput(f"{str(value)[:80]!r} is not a batch")
        if not isinstance(value["segments"], list):
            raise BadStateInput(f"batch {str(value['batch_id'])[:40]} holds no list of segments")
        return cls(value["batch_id"], tuple(Segment.from_json(s) for s in value["segments"]))

    def to_json(self) -> dict[str, Any]:
        return {"batch_id": self.batch_id, "segments": [s.to_json() for s in self.segments]}


def _identity(segments: tuple[Segment, ...]) -> str:
    """A function of what is in the segments: the same batch has the same id in every run."""
    text = "\n".join(f"{s.stream} {s.first} {s.last} {s.commit_id} {s.sha256}" for s in segments)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def make_batches(
    segments: Iterable[Segment], max_rows: int = MAX_BATCH_ROWS, max_bytes: int = MAX_BATCH_BYTES
) -> list[Batch]:
    """Cut pending segments into batches: neighbours of one stream, at most ``max_rows`` rows (or one segment).

    Raises:
        CorruptState: two segments of a stream overlap.
    """
    return [
        Batch.of(group) for group in _groups(sorted(segments, key=lambda s: (s.stream, s.first)), max_rows, max_bytes)
    ]


def _groups(ordered: list[Segment], max_rows: int, max_bytes: int) -> Iterator[list[Segment]]:
    group: list[Segment] = []
    rows = size = 0
    for segment in ordered:
        weight = len(json.dumps(segment.to_json())) + 2
        if group and group[-1].stream == segment.stream and segment.first <= group[-1].last:
            raise CorruptState(
                "two committed segments overlap", stream=segment.stream, span=(segment.first, group[-1].last)
            )
        if group and (
            group[-1].stream != segment.stream
            or group[-1].last + 1 != segment.first
            or rows + segment.count > max_rows
            or size + weight > max_bytes
        ):
            yield group
            group, rows, size = [], 0, 0
        group.append(segment)
        rows, size = rows + segment.count, size + weight
    if group:
        yield group


@dataclass(frozen=True)
class DataFile:
    """A Parquet file of one partition with what the table's metadata needs to know, so that no footer is read again.

    ``lower`` and ``upper`` hold plain values by column name: text, numbers, and microseconds for times.
    """

    key: str
    day: str
    """The partition, ISO date in UTC."""
    sha256: str
    record_count: int
    file_size: int
    column_sizes: dict[str, int]
    lower: dict[str, Any]
    upper: dict[str, Any]
    split_offsets: tuple[int, ...]
    nulls: dict[str, int] = field(default_factory=dict)
    """NULLs of the optional columns that the file has."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> DataFile:
        """Raises KeyError, TypeError or ValueError for what no transform of this release wrote."""
        file = cls(**{**value, "split_offsets": tuple(position(o) for o in value["split_offsets"])})
        dt.date.fromisoformat(file.day)
        position(file.record_count, "record_count")
        position(file.file_size, "file_size")
        required, optional = {c.name for c in COLUMNS}, file.nulls.keys()
        if file.lower.keys() != required or file.upper.keys() != required or optional - {c.name for c in OPTIONAL}:
            raise ValueError(f"{file.key} does not describe every column")
        if file.column_sizes.keys() != required | optional:
            raise ValueError(f"{file.key} does not describe every column")
        for name, number in (*file.column_sizes.items(), *file.nulls.items()):
            position(number, name)
        for column in COLUMNS:
            for bound in (file.lower[column.name], file.upper[column.name]):
                if type(bound) not in _PLAIN[column.kind]:
                    raise ValueError(f"{file.key}: a bound of {column.name} is {bound!r}")
        return file


@dataclass(frozen=True)
class Manifest:
    """The result of one transformed batch: rows in data files plus rows in quarantine are all rows of its segments."""

    batch: Batch
    files: tuple[DataFile, ...]
    quarantined: int
    quarantine_key: str | None
    inexact: int = 0
    """Prices and quantities in the table that are not the decimal number that their double prints as."""
    unfit: int = 0
    """Prices and quantities that are NULL in the DECIMAL columns, because those cannot hold them exactly."""

    def __post_init__(self) -> None:
        if self.rows + self.quarantined != self.batch.count:
            raise CorruptState(
                f"{self.rows} rows and {self.quarantined} quarantined ones are not the "
                f"{self.batch.count} of the segments",
                stream=self.batch.stream,
                span=self.batch.interval,
            )

    @property
    def rows(self) -> int:
        return sum(f.record_count for f in self.files)

    def to_json(self) -> dict[str, Any]:
        return {
            "batch": self.batch.to_json(),
            "files": [asdict(f) for f in self.files],
            "rows": self.rows,
            "quarantined": self.quarantined,
            "quarantine_key": self.quarantine_key,
            "inexact": self.inexact,
            "unfit": self.unfit,
        }

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """Raises CorruptState for what is not a manifest, or one whose numbers do not add up."""
        try:
            return cls(
                Batch.from_json(value["batch"]),
                tuple(DataFile.from_json(f) for f in value["files"]),
                position(value["quarantined"], "quarantined"),
                value["quarantine_key"],
                position(value.get("inexact", 0), "inexact"),
                position(value.get("unfit", 0), "unfit"),
            )
        except (KeyError, TypeError, ValueError, AttributeError, BadInput) as error:
            raise CorruptState(f"a manifest is not readable: {error!r}"[:400]) from error


def manifest_key(run_id: str, batch_id: str) -> str:
    return f"{PREFIX}plans/{run_id}/manifests/{batch_id}.json"


def quarantine_key(batch: Batch, rederived_by: str | None = None) -> str:
    """A re-derivation keeps what earlier ones left: its objects carry its run's name."""
    stream, (first, last) = batch.stream, batch.interval
    # A fill may have the range of the chunk that was missing as a whole.
    kind = "" if stream.dataset == TRADES else f"{stream.dataset}_"
    name = f"{kind}{first:020d}_{last:020d}" + (f".{rederived_by}" if rederived_by else "")
    return f"{PREFIX}quarantine/{stream.exchange}/{stream.product}/{name}.jsonl.zst"
