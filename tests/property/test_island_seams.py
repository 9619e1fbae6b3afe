"""Islands of linked answers, fetched while the exchange's history changes: what lacks trades never gets in silently.

It is refused (``Torn``), or, where it was committed before its neighbour showed what it lacks, somebody is told.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from schemahub import commit, coverage, raw
from schemahub.commit import Committed, commit_segments, segment_of
from schemahub.commit_below import Seams, Torn, commit_islands, lower
from schemahub.locks import Lease
from schemahub.streams import Chunk, Known, RawObject, Segment
from tests.property.test_fetch_linked import ANY, REFUSED, STREAM, History, Planned, linked, truth
from tests.property.test_islands import make_stores
from tests.unit.stores import BUCKET, NOW, Stores


@dataclass
class Filling:
    """A backfill of a plan's chunks, below an ingest that holds the last of them."""

    planned: Planned
    stores: Stores
    lease: Lease
    said: list[str] = field(default_factory=list)
    torn: set[str] = field(default_factory=set)
    waiting: list[RawObject] = field(default_factory=list)

    @classmethod
    def of(cls, planned: Planned) -> Filling:
        stores = make_stores()
        top = max(planned.chunks)
        found = raw.store(stores.objects, STREAM, linked(planned.history, top, planned.unit, planned.ties))
        held = stores.locks.acquire(STREAM.lock_id, "ingest", "ingest")
        segment = segment_of(STREAM, found, "ingest", "rest", NOW)
        assert isinstance(commit_segments(stores.ledger, stores.locks, held, [segment], None, stores.clock), Committed)
        planned.history.asked = 0
        return cls(planned, stores, stores.locks.acquire(STREAM.backfill_lock_id, "filler", "filler"))

    @property
    def below(self) -> list[Chunk]:
        """The chunks in the order of fetching, without the ingest's."""
        return [c for c in self.planned.chunks if c != max(self.planned.chunks)]

    def fetch(self, chunk: Chunk) -> bool:
        """Make it durable, unless what came proves nothing."""
        try:
            found = linked(self.planned.history, chunk, self.planned.unit, self.planned.ties)
        except REFUSED:
            return False
        self.waiting.append(raw.store(self.stores.objects, STREAM, found))
        return True

    def commit(self) -> None:
        """What waits, as a task commits it."""
        if not self.waiting:
            return
        borders = Seams(self.stores.objects, lambda what, about: self.said.append(what))
        segments = [segment_of(STREAM, found, "run", "rest", NOW) for found in self.waiting]
        self.waiting = []
        outcome = commit_islands(
            self.stores.ledger, self.stores.locks, self.lease, segments, self.stores.clock, borders
        )
        assert isinstance(outcome, Committed | Torn)
        if isinstance(outcome, Torn):
            self.torn.update(s.raw_key for s in outcome.segments)
        lower(self.stores.ledger, self.stores.locks, self.lease, STREAM, self.stores.clock)

    def lacking(self) -> list[Segment]:
        """Committed segments that are not what the exchange had."""
        return [s for s in self.stores.ledger.segments(STREAM) if self.held(s) != self.had(s)]

    def held(self, segment: Segment) -> list[str]:
        return raw.read(self.stores.objects, segment.raw_key, segment.sha256, segment.count).decode().splitlines()

    def had(self, segment: Segment) -> list[str]:
        return truth(self.planned.history, Chunk(*segment.interval))


def fill(filling: Filling, groups: list[bool]) -> None:
    """Fetch chunk by chunk; ``groups`` says behind which of them is committed."""
    for number, chunk in enumerate(filling.below):
        filling.fetch(chunk)
        if groups[number % len(groups)]:
            filling.commit()
    filling.commit()


GROUPS = st.lists(st.booleans(), min_size=1, max_size=6)


@given(ANY, GROUPS, st.data())
def test_what_is_pruned_skipped_or_stale_is_whole_or_refused(
    planned: Planned, groups: list[bool], data: st.DataObject
) -> None:
    """Each chunk is exact by itself; so all borders agree, and nothing is refused without a reason."""
    assume(len(planned.chunks) > 1)
    history, filling = planned.history, Filling.of(planned)
    rows = history.rows()
    kept, since = data.draw(st.integers(0, len(rows))), data.draw(st.integers(1, 12))
    # As of the first run: trades that share their time with the one that history begins with are no loss.
    assume(not kept or (planned.chunks[0].known or Known(0, 0, 1)).base != rows[kept - 1].position)
    had_until = data.draw(st.sampled_from(history.positions))
    stale = data.draw(st.sets(st.integers(1, 12)))
    history.skipped = data.draw(st.dictionaries(st.integers(1, 12), st.integers(1, 6), max_size=3))
    history.spoil = lambda asked, rows: [
        row
        for number, row in enumerate(rows)
        if (asked < since or number >= kept) and (asked not in stale or row.position <= had_until)
    ]
    fill(filling, groups)
    event(f"committed: {len(list(filling.stores.ledger.segments(STREAM)))}")
    assert filling.lacking() == []
    assert not filling.torn
    assert not filling.said


@settings(max_examples=200)
@given(ANY, GROUPS, st.data())
def test_a_stretch_that_comes_and_goes_is_told_wherever_it_reaches_over_a_border(
    planned: Planned, groups: list[bool], data: st.DataObject
) -> None:
    assume(len(planned.chunks) > 1)
    history, filling = planned.history, Filling.of(planned)
    border = data.draw(st.sampled_from(sorted(planned.chunks)[1:])).first
    one, other = (border + sign * planned.unit * data.draw(st.integers(0, 20)) for sign in (-1, 1))
    hidden = data.draw(st.lists(st.booleans(), min_size=len(filling.below), max_size=len(filling.below)))
    came = dict[Chunk, bool]()
    for number, chunk in enumerate(filling.below):
        history.spoil = lambda _, rows, gone=hidden[number]: [
            r for r in rows if not (gone and one <= r.position <= other)
        ]
        if filling.fetch(chunk):
            came[chunk] = hidden[number]
        if groups[number % len(groups)]:
            filling.commit()
    filling.commit()
    event(f"lacking: {bool(filling.lacking())}, torn: {bool(filling.torn)}, said: {bool(filling.said)}")
    committed = {s.interval for s in filling.stores.ledger.segments(STREAM)}
    came[max(planned.chunks)] = False  # the ingest saw everything
    for below, above in itertools.pairwise(sorted(came)):
        between = max((p for p in history.positions if p <= below.last), default=-1)
        if below.last + 1 != above.first or came[below] == came[above] or not one <= between <= other:
            continue
        worse = below if came[below] else above
        name = f"{STREAM.raw_prefix}{worse.first:020d}_{worse.last:020d}_"
        assert any(text.startswith(name) for text in (*filling.torn, *filling.said)), "the one that lacks it is named"
        assert (worse.first, worse.last) not in committed or any(text.startswith(name) for text in filling.said)


def test_the_one_that_lacks_trades_is_refused_until_it_is_fetched_anew() -> None:
    """And where it was committed before anybody showed what it lacks, its neighbour is committed and it is told."""
    chunks = [Chunk(first, first + 9, Known(9, 39, 1)) for first in (10, 20, 30)]
    planned = Planned(History(list(range(1, 60)), 5), [chunks[1], chunks[0], chunks[2]], 1, ties=False)
    for committed_first in (False, True):
        filling = Filling.of(planned)
        planned.history.spoil = lambda _, rows: [r for r in rows if not 18 <= r.position <= 21]
        assert filling.fetch(chunks[0])
        if committed_first:
            filling.commit()
        planned.history.spoil = lambda _, rows: rows
        assert filling.fetch(chunks[1])
        filling.commit()
        low = coverage.watermark(filling.stores.ledger, STREAM).low
        if committed_first:
            assert (low, filling.torn, len(filling.said)) == (10, set(), 1)
            assert "_00000000000000000019_8.jsonl.zst is committed and lacks a trade" in filling.said[0]
            continue
        assert (low, len(filling.torn), filling.said) == (20, 1, [])
        assert filling.lacking() == []
        # Moved away by a human, and fetched again.
        [key] = filling.torn
        filling.stores.objects.client.delete_object(Bucket=BUCKET, Key=key)
        assert filling.fetch(chunks[0])
        filling.commit()
        assert coverage.watermark(filling.stores.ledger, STREAM).low == 10
        assert filling.lacking() == []


def test_of_two_in_one_call_the_one_at_fault_is_refused_whichever_transaction_is_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commit, "MAX_ITEMS_PER_TRANSACTION", 1)
    chunks = [Chunk(first, first + 9, Known(9, 39, 1)) for first in (10, 20, 30)]
    planned = Planned(History(list(range(1, 60)), 5), chunks, 1, ties=False)
    filling = Filling.of(planned)
    for chunk in filling.below:
        planned.history.spoil = lambda _, rows, first=chunk.first == 10: [
            r for r in rows if not (first and 18 <= r.position <= 21)
        ]
        assert filling.fetch(chunk)
    filling.commit()
    assert (len(filling.torn), filling.said, filling.lacking()) == (1, [], [])
    assert [s.first for s in filling.stores.ledger.segments(STREAM)] == [20, 30]
