"""Asking for a hole on more than one path: which first, what is left for the next, and when together they deny it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from schemahub.deps import Deps
from schemahub.fetch import Fetched
from schemahub.holes import Hole, Look
from schemahub.mappings import exchanges, load_mapping
from schemahub.paths import look_along, others_first, paths_of
from schemahub.streams import Chunk, Interval, Stream

STREAM = Stream("coinbase", "BTC-USD")
HOLE = Hole(STREAM, 100, 109, "exchange_skipped", 0, 0)
NOBODY = cast(Deps, None)


@dataclass
class Fake:
    """A path that shows some ids, and says why where it does not deny the rest; without ids and reason it is mute."""

    source: str
    shows: tuple[Interval, ...] = ()
    reason: str | None = ""
    quiet_s: float | None = None
    asked: list[list[Interval]] = field(default_factory=list)

    def look(self, deps: Any, hole: Hole, tick: Any) -> tuple[Look, list[Fetched]] | None:
        self.asked.append(hole.left)
        if self.reason is None:
            return None
        came = [Fetched(Chunk(*part), ("{}",) * part.size, (), 1) for part in self.shows]
        return Look(self.shows, not self.reason, self.reason, self.quiet_s), came


def look(*paths: Fake) -> tuple[Look, list[Fetched]]:
    return look_along(paths, NOBODY, HOLE, lambda: None)


def test_every_exchange_can_be_asked_and_rest_is_among_the_paths() -> None:
    for name in exchanges():
        assert "rest" in [path.source for path in paths_of(load_mapping(name))]


@pytest.mark.parametrize(("source", "order"), [
    ("rest", ["archive", "rest"]), ("archive", ["rest", "archive"]), ("repair", ["rest", "archive"]),
    (None, ["rest", "archive"]),
])  # fmt: skip
def test_the_paths_that_the_segment_did_not_come_by_are_asked_first(source: str | None, order: list[str]) -> None:
    assert [path.source for path in others_first((Fake("rest"), Fake("archive")), source)] == order


def test_the_next_path_is_asked_only_for_what_is_left_and_not_at_all_for_nothing() -> None:
    first, second, third = Fake("a", (Interval(100, 104),)), Fake("b", (Interval(105, 109),)), Fake("c")
    seen, came = look(first, second, third)
    assert (first.asked, second.asked, third.asked) == ([[Interval(100, 109)]], [[Interval(105, 109)]], [])
    assert seen.found == (Interval(100, 104), Interval(105, 109))
    assert [f.chunk for f in came] == [Chunk(100, 104), Chunk(105, 109)]


def test_a_hole_is_denied_only_by_all_who_say_anything() -> None:
    assert look(Fake("a"), Fake("b", quiet_s=7.0))[0] == Look((), True, "", 7.0)
    assert look(Fake("a", reason="not there yet"), Fake("b"))[0].denied is False
    assert look(Fake("a"), Fake("b", reason="only newer trades"))[0] == Look((), False, "only newer trades")


def test_a_path_that_cannot_say_anything_is_no_look() -> None:
    assert look(Fake("a", reason=None), Fake("b"))[0] == Look()
    assert look(Fake("a", reason=None))[0] == Look((), False, "no path reaches there")
