"""Watermarks, segments, holes and fills from what S3 holds, after StreamsTable was lost, in part or as a whole.

The mirror says how far a stream was committed, and so do the table's published ranges; raw objects say with what. An
object that a crashed run left behind may overlap committed ones; any tiling holds the same trades, and where a
publication's manifest or the edges of what is published say which one was committed, that one is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from schemahub import mirror, raw
from schemahub.commit import segment_of
from schemahub.corrections import replaced_keys
from schemahub.deps import Deps
from schemahub.errors import CorruptState
from schemahub.holes import Hole, committed_holes, with_fills
from schemahub.ingest import read_seed
from schemahub.ledger import Watermark
from schemahub.remains import Remains, certified_holes
from schemahub.streams import PREFIX, Interval, Segment, Stream, common, covers, merge, minus, overlapping

Tile = tuple[int, int, str]
"""First and last position, key of the raw object."""


@dataclass(frozen=True)
class Rebuilt:
    """What was put back for one stream; nothing where the table already held it all."""

    stream: Stream
    low: int
    high: int
    segments: int
    fills: int = 0
    holes: int = 0
    watermark: bool = False
    """Whether the watermark was put back or moved."""
    notes: tuple[str, ...] = ()
    """What was found to be wrong, in words."""

    @property
    def changed(self) -> bool:
        return bool(self.segments or self.fills or self.holes or self.watermark)


@dataclass(frozen=True)
class State:
    """A stream as the table and S3 have it."""

    stream: Stream
    mark: Watermark | None
    segments: tuple[Segment, ...]
    fills: tuple[Segment, ...]
    holes: tuple[Hole, ...]
    mirrored: Watermark | None
    unreadable: bool
    """There is a mirror, and it is not one."""
    published: tuple[Interval, ...]
    joined: tuple[Interval, ...] = ()
    """Ranges without a segment that raw objects tile, where no watermark is left to say whether they were committed."""

    @property
    def _spans(self) -> list[Interval]:
        return merge([*self.published, *self.joined, *(s.interval for s in self.segments)])

    @property
    def proved(self) -> Interval | None:
        """The run ``[low, high]`` that anything says was committed.

        Below the lowest known ``low`` lie islands. Where no watermark is left, the run begins with what hangs together
        at its upper end; what is below comes back as islands, and the next backfill fetches what lies between.
        """
        marks = [Interval(m.low, m.high) for m in (self.mark, self.mirrored) if m]
        spans = self._spans
        if not marks and not spans:
            return None
        high = max(i.last for i in [*marks, *spans])
        return Interval(min(i.first for i in marks) if marks else spans[-1].first, high)

    @property
    def islands(self) -> list[Interval]:
        """Ranges below the run that the table or the ledger says were committed."""
        return minus(self._spans, [self.proved]) if self.proved else []


def notes_of(state: State) -> list[str]:
    """What does not fit together, before anything is put back."""
    mark, mirrored, proved = state.mark, state.mirrored, state.proved
    said = [f"{state.stream.mirror_key} is not a mirror of this stream"] if state.unreadable else []
    if proved is None:
        return said
    if mirrored is None and not state.unreadable:
        said.append("there is no mirror")
    elif mirrored and (mirrored.low > proved.first or mirrored.high < proved.last):
        said.append(
            f"the mirror is older: it says {mirrored.low}..{mirrored.high}, committed is {proved.first}..{proved.last}"
        )
    missing = sum(part.size for part in minus([proved, *state.islands], [s.interval for s in state.segments]))
    if mark is None and not state.segments:
        said.append("the table has lost the stream")
    elif mark is None:
        said.append(f"the table is half restored: {len(state.segments)} segments and no watermark")
    elif (mark.low, mark.high) != (proved.first, proved.last):
        said.append(f"the table is older: its watermark is {mark.low}..{mark.high}")
    if missing and (mark or state.segments):
        said.append(f"the table is half restored: {missing} positions have no segment")
    return said


def tiling(tiles: Iterable[Tile], low: int, high: int) -> list[Tile] | None:
    """Objects that follow each other from ``low`` to ``high`` without hole or overlap; None where none do."""
    by_first: dict[int, list[Tile]] = defaultdict(list)
    for tile in tiles:
        if low <= tile[0] and tile[1] <= high:
            by_first[tile[0]].append(tile)
    # Backwards, each position remembers the first tile of a way to the end: linear, whatever was left behind.
    way: dict[int, Tile] = {}
    for first in sorted(by_first, reverse=True):
        # Of two looks at one range the commit took the fuller one (raw.find).
        for tile in sorted(by_first[first], key=lambda t: (-t[1], -_count(t))):
            if tile[1] == high or tile[1] + 1 in way:
                way[first] = tile
                break
    path: list[Tile] = []
    at = low
    while at <= high:
        if at not in way:
            return None
        path.append(way[at])
        at = way[at][1] + 1
    return path


def _count(tile: Tile) -> int:
    parsed = raw.parse_raw_key(tile[2])
    return parsed[2] if parsed else 0


def mirrored_streams(deps: Deps) -> list[Stream]:
    """Every stream that has a mirror."""
    prefix = f"{PREFIX}checkpoints/"
    streams = []
    for key in deps.objects.list(prefix):
        exchange, _, product = key.removeprefix(prefix).removesuffix(".json").partition("/")
        streams.append(Stream(exchange, product))
    return streams


def named_streams(deps: Deps) -> set[Stream]:
    """Every stream that the seed list, the parameter or a mirror names: one that left the seed keeps its mirror."""
    return {*read_seed(deps), *map(Stream.parse, deps.settings.products), *mirrored_streams(deps)}


def read_state(deps: Deps, stream: Stream, remains: Remains) -> State:
    body = deps.objects.get(stream.mirror_key)
    mirrored = mirror.parse(stream, body) if body is not None else None
    ledger = deps.ledger
    return State(
        stream,
        ledger.watermark(stream),
        tuple(ledger.segments(stream)),
        tuple(ledger.segments(stream.fills)),
        tuple(ledger.holes(stream)),
        mirrored,
        body is not None and mirrored is None,
        tuple(remains.published.get(stream, ())),
    )


def rebuild(deps: Deps, stream: Stream, dry_run: bool = False, remains: Remains | None = None) -> Rebuilt | None:
    """Put back what S3 proves and the table lacks; None where nothing proves that the stream was ever committed.

    Without ``remains`` every segment comes back as not yet published; the next transform finds them in the table.

    Raises:
        CorruptState: the raw objects do not tile what was committed, or committed segments overlap.
        TableAhead: a run moved the watermark meanwhile.
    """
    remains = remains or Remains()
    state = read_state(deps, stream, remains)
    if not (state.mark or state.mirrored):
        state = _join(deps, state)
    proved, notes = state.proved, notes_of(state)
    if proved is None:
        return Rebuilt(stream, 0, -1, 0, notes=tuple(notes)) if notes else None
    if twice := overlapping([s.interval for s in state.segments]):
        raise CorruptState("two committed segments overlap", stream=stream, span=twice[0][1])
    segments = _segments(deps, state, proved, remains)
    fills = _fills(deps, state, segments, remains)
    holes = _holes(deps, state, [*state.segments, *segments], [*state.fills, *fills])
    moved = state.mark is None or (state.mark.low, state.mark.high) != proved
    if not dry_run:
        deps.ledger.put_back(fills, ())
        if moved:
            updated = state.mirrored.updated_at if state.mirrored else deps.clock.now_ms()
            fence = _fence(deps, state)
            deps.ledger.restore(stream, proved.first, proved.last, segments, updated, fence=fence, holes=holes)
        else:
            deps.ledger.put_back(segments, holes)
    return Rebuilt(stream, proved.first, proved.last, len(segments), len(fills), len(holes), moved, tuple(notes))


def _join(deps: Deps, state: State) -> State:
    """The state with its islands joined to the run, from above, as long as raw objects tile what lies between."""
    tiles = _tiles(deps, state.stream) if state.islands else []
    for island in reversed(state.islands):
        assert state.proved is not None
        between = Interval(island.last + 1, state.proved.first - 1)
        if tiling(tiles, *between) is None:
            break
        state = replace(state, joined=(*state.joined, between))
    return state


def _fence(deps: Deps, state: State) -> int:
    """The fence of the last commit, unless the lock was lost too: then no new holder would reach it."""
    known = max((m.fence for m in (state.mark, state.mirrored) if m), default=0)
    return known if deps.locks.fence(state.stream.lock_id) >= known else 0


def _segments(deps: Deps, state: State, proved: Interval, remains: Remains) -> list[Segment]:
    """The segments that are missing, from manifests and otherwise from the raw objects."""
    stream, found = state.stream, list[Segment]()
    spans = minus([proved, *state.islands], [s.interval for s in state.segments])
    replaced, instead = replaced_keys(deps.objects, stream)
    recorded = {f: s for f, s in remains.segments.get(stream, {}).items() if s.raw_key not in replaced}
    for span in spans:
        found += [s for first, s in recorded.items() if span.first <= first and s.last <= span.last]
    if twice := overlapping([s.interval for s in found]):
        raise CorruptState("manifests name segments that overlap", stream=stream, span=twice[0][1])
    tiles = [t for t in _tiles(deps, stream) if _in_use(t[2], replaced, instead)] if spans else []
    for span in minus(spans, [s.interval for s in found]):
        # What is published was published whole, so its edges are edges of segments.
        for part in sorted([*minus([span], state.published), *common([span], state.published)]):
            found += _from_raw(deps, state, tiles, part)
    return [_marked(s, remains) for s in sorted(found, key=lambda s: s.first)]


def _in_use(key: str, replaced: set[str], instead: set[str]) -> bool:
    """Not one that a correction put out of use, nor an edition that none put in."""
    return key in instead if raw.edition_of(key) else key not in replaced


def _from_raw(deps: Deps, state: State, tiles: Sequence[Tile], span: Interval) -> list[Segment]:
    path = tiling(tiles, span.first, span.last)
    if path is None:
        raise CorruptState(
            "the raw objects do not tile what was committed",
            stream=state.stream,
            span=span,
            remedy="Restore the missing objects' versions in S3, then rebuild again.",
        )
    return _described(deps, state, state.stream, [key for _, _, key in path])


def _described(deps: Deps, state: State, stream: Stream, keys: Iterable[str]) -> list[Segment]:
    known = state.mirrored or state.mark
    committed_at = known.updated_at if known else deps.clock.now_ms()
    segments = []
    for key in keys:
        found = raw.describe(deps.objects, key)
        if found is None:
            raise CorruptState(f"{key} lacks its metadata", stream=stream)
        segments.append(segment_of(stream, found, "rebuild", "rebuild", committed_at))
    return segments


def _marked(segment: Segment, remains: Remains) -> Segment:
    return replace(segment, published_in=remains.snapshot_of(segment))


def _tiles(deps: Deps, stream: Stream) -> list[Tile]:
    named = ((raw.parse_raw_key(key), key) for key in deps.objects.list(stream.raw_prefix))
    return [(parsed[0], parsed[1], key) for parsed, key in named if parsed]


def _fills(deps: Deps, state: State, restored: Sequence[Segment], remains: Remains) -> list[Segment]:
    """Fills that are missing: published ones, then every durable object that lies in a hole and overlaps none.

    One that a crashed repair left behind is adopted by this: it holds trades that the exchange showed, and the next
    repair would have committed the same.
    """
    line = state.stream.fills
    open_ids = merge((a.first, a.last) for s in [*state.segments, *restored] for a in s.absent)
    have = [f.interval for f in state.fills]
    published = remains.published.get(line, [])
    recorded = remains.segments.get(line, {})
    found = [s for s in recorded.values() if not common(have, [s.interval])]
    tiles = _tiles(deps, line)
    for span in minus(published, [*have, *(s.interval for s in found)]):
        path = tiling(tiles, span.first, span.last)
        if path is None:
            raise CorruptState("the raw objects do not tile a published fill", stream=line, span=span)
        found += _described(deps, state, line, [key for _, _, key in path])
    for first, last, key in sorted(tiles, key=lambda t: t[0] - t[1]):
        taken = [*have, *(s.interval for s in found)]
        if covers(open_ids, (first, last)) and not common(taken, [(first, last)]):
            found += _described(deps, state, line, [key])
    return [_marked(s, remains) for s in sorted(found, key=lambda s: s.first)]


def _holes(deps: Deps, state: State, segments: Sequence[Segment], fills: Sequence[Segment]) -> list[Hole]:
    """Items of the holes that have none: as certified or as committed, with what the fills hold."""
    there = {hole.first for hole in state.holes}
    missing = [hole for hole in committed_holes(segments) if hole.first not in there]
    certified = certified_holes(deps.objects, state.stream) if missing else {}
    filled = [f.interval for f in fills]
    holes = []
    for committed in missing:
        hole = certified.get((committed.first, committed.last), committed)
        new = minus(common(filled, [(hole.first, hole.last)]), hole.filled)
        holes.append(replace(with_fills(hole, new), evidence="came later") if new else hole)
    return holes
