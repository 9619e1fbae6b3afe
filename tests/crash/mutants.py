"""Guards of the product taken away, one at a time: what the crash matrix must see.

Without a crash each of these mutants does its work as the true product does; that is checked, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from schemahub import ingest, mirror, publish, raw
from schemahub.catalog import LakeCatalog
from schemahub.commit import segment_of
from schemahub.deps import Deps
from schemahub.ledger import Ledger, Watermark
from schemahub.streams import Chunk, RawObject, Segment
from tests.crash.worlds import STREAMS


@dataclass(frozen=True)
class Mutant:
    """``where``: a part of the state and of the call of effects at which it is enough to strike, in ``mode``."""

    name: str
    apply: Callable[[Deps], None]
    where: tuple[str, str]
    mode: str
    scenario: str = "first"


def publish_blindly(deps: Deps) -> None:
    """The publisher appends without asking the table's properties what is in it."""
    publish._not_yet = lambda table, manifests: list(manifests)  # type: ignore[assignment]


def mark_before_the_snapshot(deps: Deps) -> None:
    """Segments leave the pending index before the snapshot holds them."""
    append = publish._append

    def marked_first(table: Any, bucket: str, manifests: Sequence[Any], run_id: str) -> None:
        for manifest in manifests:
            deps.ledger.mark_published(manifest.batch.segments, "soon")
        append(table, bucket, manifests, run_id)

    publish._append = marked_first


def never_mark_what_the_table_has(deps: Deps) -> None:
    """ListPending leaves segments pending whose snapshot a crashed publisher has made."""
    truly = publish.reconcile
    publish.reconcile = lambda segments, published: ([], truly(segments, published)[1])


def mirror_before_the_commit(deps: Deps) -> None:
    """The mirror tells of a watermark that the table does not have yet."""
    commit = Ledger.commit

    def mirrored_first(self: Ledger, locks: Any, lease: Any, segments: Any, base: Any, now_ms: int) -> None:
        stream = segments[0].stream
        mark = self.watermark(stream)
        ahead = Watermark(mark.low if mark else segments[0].first, segments[-1].last, lease.fence, now_ms)
        deps.objects.put(stream.mirror_key, mirror.body_of(stream, ahead))
        commit(self, locks, lease, segments, base, now_ms)

    Ledger.commit = mirrored_first  # type: ignore[method-assign, assignment]


def raw_after_the_commit(deps: Deps) -> None:
    """Fetched trades are parked elsewhere, and come to their place when their segments are committed."""
    store, find, commit, put_new = raw.store, raw.find, Ledger.commit, deps.objects.put_new

    def park(key: str, body: bytes, metadata: dict[str, str]) -> bool:
        return put_new(parked(key), body, metadata) or True

    def find_parked(objects: Any, stream: Any, chunk: Chunk) -> RawObject | None:
        there = find(objects, stream, chunk)
        for key in objects.list(parked(f"{stream.raw_prefix}{chunk.first:020d}_{chunk.last:020d}_")):
            one = raw.describe(objects, key)
            there = there or (one and replace(one, key=key.replace("/parked/", "/", 1)))
        return there

    def committed_first(self: Ledger, locks: Any, lease: Any, segments: Sequence[Segment], *rest: Any) -> None:
        commit(self, locks, lease, segments, *rest)
        for segment in segments:
            key = parked(segment.raw_key)
            put_new(
                segment.raw_key,
                deps.objects.get(key) or b"",
                {k: str(v) for k, v in (deps.objects.head(key) or {}).items()},
            )

    raw.store = lambda objects, stream, found: store(SimpleNamespace(put_new=park), stream, found)  # type: ignore[arg-type]
    raw.find = find_parked
    Ledger.commit = committed_first  # type: ignore[method-assign, assignment]


def parked(key: str) -> str:
    return key.replace("schemahub/", "schemahub/parked/", 1)


def list_raw_instead_of_the_ledger(deps: Deps) -> None:
    """The transform takes every raw object that lies there: also the tail of a plan that nobody committed."""

    def listed(self: Ledger) -> list[Segment]:
        from schemahub.catalog import published_so_far

        there = published_so_far(LakeCatalog(deps.session), deps.objects, deps.settings.database, deps.settings.table)
        found = []
        for stream in STREAMS:
            for key in deps.objects.list(stream.raw_prefix):
                one = raw.describe(deps.objects, key)
                if one and not any(a <= one.first and one.last <= b for a, b in there.get(stream, [])):
                    found.append(self.segment(stream, one.first) or segment_of(stream, one, "run", "rest", 0))
        return found

    Ledger.pending = listed  # type: ignore[method-assign, assignment]


def forget_failed_streams(deps: Deps) -> None:
    """CloseRun takes every stream for finished."""
    ingest._came_to_its_end = lambda deps, stream, run: True


def repeat_the_pointer(deps: Deps) -> None:
    """The call that moves Glue's pointer is repeated by boto3 when its answer is lost."""
    made = LakeCatalog.__init__

    def often(self: LakeCatalog, session: Any) -> None:
        made(self, session)
        self._once = self.glue

    LakeCatalog.__init__ = often  # type: ignore[method-assign]


def keep_the_lock_for_ever(deps: Deps) -> None:
    """A lease never runs out."""
    deps.locks._lease_ms = 10**12


POINTER = ("Publish", "UpdateTable")
MUTANTS = (
    Mutant("publish_blindly", publish_blindly, POINTER, "after"),
    Mutant("mark_before_the_snapshot", mark_before_the_snapshot, ("Publish", "manifest list"), "before"),
    Mutant("never_mark_what_the_table_has", never_mark_what_the_table_has, POINTER, "after"),
    Mutant("mirror_before_the_commit", mirror_before_the_commit, ("CommitSegments", "mirror"), "after"),
    Mutant("raw_after_the_commit", raw_after_the_commit, ("CommitSegments", "TransactWriteItems"), "after"),
    Mutant("list_raw_instead_of_the_ledger", list_raw_instead_of_the_ledger, ("FetchChunk", "raw"), "after", "next"),
    Mutant("forget_failed_streams", forget_failed_streams, ("PlanStream", "chunks"), "cut"),
    Mutant("repeat_the_pointer", repeat_the_pointer, POINTER, "lost"),
    Mutant("keep_the_lock_for_ever", keep_the_lock_for_ever, ("OpenRun", "ingest"), "after"),
)
