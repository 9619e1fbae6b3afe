"""Fetching a chunk where counting proves nothing: positions are times, or ids that skip numbers.

What proves a chunk is that its answers are linked, from a trade before it to a trade behind it. The first question
begins before the chunk (behind it where answers go towards older trades), and a trade there must be shown; each further
one begins at a trade that the answer before it ended with, inclusively, and that trade must come back. The trades that
the plan saw at both its ends must be among those shown. So an exchange that skips, prunes its history, ignores the
cursor or serves from a stale node cannot pass. Trades may share a time, so a full answer may cut the group of its last
time: a group counts only when an answer shows it whole, which goes on behind it or ends there without being full; what
was seen of a cut group must be in the whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from schemahub.answers import Row
from schemahub.errors import EmptyPage, IncompletePage, PageConflict, TieOverflow
from schemahub.fetch import SECOND_LOOK_AFTER_S, Fetched
from schemahub.streams import MAX_POSITION, Absent, Chunk, Edges, Interval, Stream

FEW = 8
"""Trades before a chunk that its first answer shows, at least: one of them is enough."""


class PageSource(Protocol):
    """One request for rows of ``[first, last]``, paced; see ``exchanges.Exchange.page``."""

    def page(self, stream: Stream, first: int, last: int, *, pages_left: int) -> list[Row]: ...


def fetch_linked(
    source: PageSource,
    stream: Stream,
    chunk: Chunk,
    *,
    page_size: int,
    descending: bool,
    unit: int,
    ties: bool,
    pause: Callable[[float], None],
    tick: Callable[[], None] = lambda: None,
) -> Fetched:
    """All rows of ``chunk``, complete or an error.

    Args:
        unit: nanoseconds of the exchange's finest unit of time (the chunk ends with one), 1 where positions are ids.
        ties: positions are times, which trades may share.
        pause: sleeps for seconds before a second look.
        tick: called after each answer (lease renewal).

    Raises:
        EmptyPage: an answer without rows, although trades lie at both ends of the chunk or behind them.
        IncompletePage: the answers are not linked, begin behind the chunk's beginning or end before its end.
        PageConflict: a trade came twice with different contents.
        TieOverflow: more trades at one time than an answer holds.
    """
    walk = _Walk(source, stream, chunk, page_size, -1 if descending else 1, tick)
    start, end = walk.along(chunk.first, chunk.last)
    within = end - (unit - 1) * walk.sign
    answer = walk.begin(start, ties)
    while not walk.is_before(end, answer.last):
        at, last = answer.at, answer.last
        if last == end and not ties and walk.may_stop_at(end):
            break
        if ties and not walk.is_before(last, within) and not answer.full and walk.may_end():
            # Nothing behind it proves this group whole, so it must look the same a little later.
            pause(SECOND_LOOK_AFTER_S)
            walk.ask(last)
            break
        if last == at and answer.full:
            raise TieOverflow(f"{page_size} trades at one time fill a whole answer", stream=stream, span=(at, at))
        if last == at:
            raise IncompletePage("the answers end before the chunk does", stream=stream, span=(chunk.first, chunk.last))
        answer = walk.ask(last)
    walk.check_known()
    return walk.result()


def fetch_newest(
    source: PageSource, stream: Stream, chunk: Chunk, *, unit: int, window_from: int | None, tick: Callable[[], None]
) -> Fetched:
    """The rows of ``chunk`` from an exchange that shows its newest trades only.

    An answer that does not reach back to a trade before the chunk (nor, where it promises all since ``window_from``, to
    the chunk's beginning) has lost trades for good: their range is recorded as ``lost``, never passed over in silence.
    Before anything is committed nothing can be lost: what a first run gets begins where the answer does.

    Raises:
        EmptyPage, IncompletePage: no trades, none at the chunk's end or behind it (a stale node), or not all that the
            plan saw. PageConflict: one trade with two contents.
    """
    walk = _Walk(source, stream, chunk, 0, 1, tick)
    oldest, newest = walk.look()
    if newest <= chunk.last - unit:
        raise IncompletePage(
            "the newest trades are older than the chunk's end", stream=stream, span=(chunk.first, chunk.last)
        )
    walk.check_known()
    if oldest < chunk.first or (window_from is not None and window_from <= chunk.first):
        return walk.result()
    if chunk.known is not None and chunk.known.base is None:
        return walk.result_from(-(-window_from // unit) * unit if window_from else oldest // unit * unit + unit)
    # The answer's oldest group may be cut. Its trades belong to the hole, so that a file of the exchange can fill it
    # without a duplicate.
    whole_from = oldest + 1 if window_from is None else window_from
    return walk.result(Absent(chunk.first, min(whole_from - 1, chunk.last), "lost"))


class _Answer(NamedTuple):
    """What was asked for, and the two ends of what came, in the direction of travel."""

    at: int
    first: int
    last: int
    full: bool


@dataclass
class _Walk:
    """What has come so far. ``sign`` is the direction of travel: 1 towards newer trades, -1 towards older ones."""

    source: PageSource
    stream: Stream
    chunk: Chunk
    page_size: int
    sign: int
    tick: Callable[[], None]
    groups: dict[int, dict[str, str]] = field(default_factory=dict)
    """Texts by trade id of each position that was shown; the last group of a full answer may still be cut."""
    requests: int = 0
    repeated: int = 0
    outside: int = 0

    def begin(self, start: int, ties: bool) -> _Answer:
        """Ask from before ``start`` until a trade before it is shown.

        Raises:
            IncompletePage: none is shown, back to the trade that the plan knows of.
        """
        known = self.chunk.known
        if self.sign > 0:
            # A first run begins with the unit of the trade that it knows.
            witness, bound = known and known.base, min(start, known.base or 0 if known else 0)
        else:
            witness = bound = known.head if known else MAX_POSITION - 1
        reach = max(1, known.pace * max(FEW, self.page_size // 32) if known else self.chunk.size // 64)
        nothing_from = start
        while True:
            at = start - reach * self.sign
            at = max(at, bound) if self.sign > 0 else min(at, bound)
            answer = self.ask(at)
            if self.is_before(answer.first, start):
                return self._closer(answer, nothing_from, start)
            # Ids are unique: towards older ones, the trade at the chunk's end is as good as one behind it.
            if (answer.first == start and not ties and (self.sign < 0 or not known)) or answer.first == witness:
                return answer
            if at == bound:
                raise IncompletePage(
                    "the answer does not begin with the trade at the watermark: history was pruned, or it skips"
                    if self.sign > 0
                    else "the answer does not begin with the trade at the plan's head: it skips, or the node is stale",
                    stream=self.stream,
                    span=(self.chunk.first, self.chunk.last),
                )
            nothing_from = at
            reach *= 8

    def _closer(self, answer: _Answer, nothing_from: int, start: int) -> _Answer:
        """An answer before ``start`` that is not far from it: the step back over a quiet time may have been large."""
        while abs(nothing_from - answer.last) > FEW * max(1, abs(answer.last - answer.at)) and self.is_before(
            answer.last, nothing_from
        ):
            middle = self.ask((answer.last + nothing_from) // 2)
            if self.is_before(middle.first, start):
                answer = middle
            else:
                nothing_from = middle.at
        return answer

    def may_stop_at(self, end: int) -> bool:
        """Whether the walk is done at the chunk's last id: the trade before a chunk must be shown, if there is one."""
        known = self.chunk.known
        return self.sign > 0 or known is None or known.base == end

    def may_end(self) -> bool:
        """Whether answers may end with the chunk: behind every other chunk lies the trade at the plan's head."""
        known = self.chunk.known
        return known is None or known.head <= self.chunk.last

    def check_known(self) -> None:
        """Raises IncompletePage when the answers pass over a trade that the plan knows of."""
        if (known := self.chunk.known) is None:
            return
        low, high = min(self.groups), max(self.groups)
        if known.base is not None and low <= known.base <= high and known.base not in self.groups:
            missing = known.base
        elif low <= known.head <= max(high, self.chunk.last) and known.head not in self.groups:
            missing = known.head
        else:
            return
        raise IncompletePage(
            "a trade that was there is not shown any more", stream=self.stream, span=(missing, missing)
        )

    def ask(self, at: int) -> _Answer:
        """Keep what the answer from ``at`` on shows."""
        first, last = self.along(at, self.chunk.last if self.sign > 0 else self.chunk.first)
        page = self._page(first, last)
        rows = [row for row in page if not self.is_before(row.position, at)]
        if not rows:
            raise IncompletePage(
                "the answer holds only trades that nobody asked for", stream=self.stream, span=(first, last)
            )
        shown = self._groups_of(rows)
        self.outside += len(page) - len(rows)
        self._link(at, shown)
        one, other = self.along(min(shown), max(shown))
        return _Answer(at, one, other, len(page) >= self.page_size)

    def look(self) -> tuple[int, int]:
        """Keep what the newest answer shows; the positions of its oldest and its newest trade."""
        shown = self._groups_of(self._page(self.chunk.first, self.chunk.last))
        self.groups.update(shown)
        return min(shown), max(shown)

    def _page(self, first: int, last: int) -> list[Row]:
        page = self.source.page(self.stream, first, last, pages_left=1)
        self.requests += 1
        self.tick()
        if not page:
            raise EmptyPage("status 200 and no rows", stream=self.stream, span=(first, last))
        return page

    def _groups_of(self, rows: Sequence[Row]) -> dict[int, dict[str, str]]:
        groups: dict[int, dict[str, str]] = {}
        for row in rows:
            group = groups.setdefault(row.position, {})
            self.repeated += row.trade_id in group
            if group.setdefault(row.trade_id, row.text) != row.text:
                raise self._conflict(row.trade_id, row.position)
        return groups

    def _link(self, at: int, shown: dict[int, dict[str, str]]) -> None:
        """Take the groups of an answer; the one it begins with must hold all that was seen of it before."""
        seen, now = self.groups.get(at, {}), shown.get(at, {})
        for trade_id, text in seen.items():
            if trade_id not in now:
                raise IncompletePage(
                    "the answer does not begin with the trades that the one before it ended with",
                    stream=self.stream,
                    span=(at, at),
                )
            if now[trade_id] != text:
                raise self._conflict(trade_id, at)
        self.repeated += len(seen)
        self.groups.update(shown)

    def _conflict(self, trade_id: str, position: int) -> PageConflict:
        return PageConflict(
            f"two different trades have the id {trade_id[:64]}", stream=self.stream, span=(position, position)
        )

    def result(self, lost: Absent | None = None) -> Fetched:
        """The rows of the chunk by position; those of one time by number, so that every look writes the same bytes."""
        first = lost.last + 1 if lost else self.chunk.first
        inside = [at for at in sorted(self.groups) if first <= at <= self.chunk.last]
        beyond = sum(len(group) for at, group in self.groups.items()) - sum(len(self.groups[at]) for at in inside)
        texts = tuple(self.groups[at][i] for at in inside for i in sorted(self.groups[at], key=lambda i: (len(i), i)))
        absent = (lost,) if lost else ()
        return Fetched(
            self.chunk, texts, absent, self.requests, self.repeated, self.outside + beyond, False, self.edges()
        )

    def result_from(self, first: int) -> Fetched:
        """The rows from ``first`` on, as a chunk that begins there.

        Raises:
            IncompletePage: nothing of the chunk is shown whole any more; a new plan looks at newer trades.
        """
        if first > self.chunk.last:
            raise IncompletePage(
                "the newest trades are all newer than a first run's plan",
                stream=self.stream,
                span=(self.chunk.first, self.chunk.last),
            )
        self.chunk = replace(self.chunk, first=first)
        return self.result()

    def edges(self) -> Edges:
        """The trades at both ends of the chunk, as far as they were shown."""
        before = max((at for at in self.groups if at < self.chunk.first), default=None)
        return Edges(before, max((at for at in self.groups if at <= self.chunk.last), default=None))

    def is_before(self, one: int, other: int) -> bool:
        """Whether ``one`` comes before ``other`` in the direction of travel."""
        return (other - one) * self.sign > 0

    def along(self, first: int, last: int) -> Interval:
        """The two ends in the direction of travel."""
        return Interval(first, last) if self.sign > 0 else Interval(last, first)
