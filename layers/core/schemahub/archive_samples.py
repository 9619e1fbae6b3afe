"""Does a file say what the API says? A few ids of it are compared, and where they differ, how far that goes.

A file with the ids of other trades (binance-public-data#353) has the right number of rows: only a look at the API shows
it. The first and the last id are always compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow.compute as pc

from schemahub.archive_reconcile import Difference, Found, Rest, same_trade
from schemahub.archive_sort import Spill
from schemahub.streams import Chunk

INNER = 3
"""Samples between the first and the last."""


def suspects(chunks: Sequence[Chunk], spill: Spill, rest: Rest, found: Found) -> set[Chunk]:
    """The chunks whose rows the API contradicts in a sample, and their neighbours as far as it goes on doing so."""
    if not chunks:
        return set()
    judge = _Judge(spill, rest, found)
    last = len(chunks) - 1
    places = sorted({0, last, *(last * n // (INNER + 1) for n in range(1, INNER + 1))})
    verdicts: dict[int, bool] = {}
    for place in places:
        chunk = chunks[place]
        wanted = (chunk.last,) if place == last and last else (chunk.first, chunk.last) if not last else (chunk.first,)
        said = [judge.agrees(number) for number in wanted]
        if any(v is not None for v in said):
            verdicts[place] = False not in said
    bad = [place for place, good in verdicts.items() if not good]
    good = [place for place, fine in verdicts.items() if fine]

    def agrees(place: int) -> bool:
        middle = (chunks[place].first + chunks[place].last) // 2
        return judge.agrees(middle) is not False

    spoiled: set[int] = set()
    for place in bad:
        if place not in spoiled:
            below = max((g for g in good if g < place), default=-1)
            above = min((g for g in good if g > place), default=len(chunks))
            # Where it begins and ends inside a chunk, a sample of that chunk may have hit its good part.
            spoiled |= set(range(_edge(place, below, agrees) - 1, _edge(place, above, agrees) + 2))
    return {chunks[place] for place in spoiled if 0 <= place <= last}


def _edge(bad: int, good: int, agrees: Callable[[int], bool]) -> int:
    """The last bad place on the way from a bad to a good one."""
    while abs(good - bad) > 1:
        middle = (good + bad) // 2
        if agrees(middle):
            good = middle
        else:
            bad = middle
    return bad


class _Judge:
    """Single ids of the file against the API."""

    def __init__(self, spill: Spill, rest: Rest, found: Found) -> None:
        self.spill, self.rest, self.found = spill, rest, found
        self._number, self._rows = -1, spill.bucket(-1)

    def agrees(self, position: int) -> bool | None:
        """None where the file has no row or two of them, or the API shows none: nothing can be said."""
        if position // self.spill.width != self._number:
            self._number = position // self.spill.width
            self._rows = self.spill.bucket(self._number)
        lines = self._rows.filter(pc.equal(self._rows["id"], position))["line"].to_pylist()
        if len(lines) != 1 or (shown := self.rest.row(position)) is None:
            return None
        self.found.compared += 1
        if same_trade(self.rest.mapping, lines[0], shown):
            return True
        self.found.note(Difference(position, "the API shows another trade", (lines[0],), shown))
        return False
