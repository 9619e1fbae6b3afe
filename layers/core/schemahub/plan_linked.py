"""Planning where counting proves nothing: positions are times, or ids that skip numbers. All of it is pure.

The head has a trade behind it, so that the last answer of every chunk goes on behind its end. How many trades a stretch
holds is only known roughly: chunks are sized by the pace of the newest answer, rounded to a power of two, so that a
later plan cuts at the same places and finds what was fetched.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemahub.answers import Row
from schemahub.errors import EmptyPage
from schemahub.plan import Head, check_times
from schemahub.streams import Stream

QUIET_US = 600_000_000
"""The newest trade of all has nothing behind it; after so long it counts all the same (a product may be delisted)."""
TABLE_UNIT_NS = 1_000
"""The table's times are microseconds: a chunk must not end within one."""


def step_of(tick_ns: int, by_time: bool) -> int:
    """Positions of the smallest range that a chunk may end with: a unit of time, or one id."""
    return max(tick_ns, TABLE_UNIT_NS) if by_time else 1


def last_of(position: int, step: int) -> int:
    """The last position of the unit that holds ``position``."""
    return position // step * step + step - 1


def linked_head(rows: Sequence[Row], stream: Stream, now_us: int, settle_seconds: float, step: int) -> Head:
    """The newest settled trade that has another behind it, by the newest answer; positions at the end of their unit.

    ``settled`` is below all rows where none of them counts yet.

    Raises:
        EmptyPage: no trades at all; MalformedResponse: a trade without a readable time.
    """
    if not rows:
        raise EmptyPage("the exchange shows no trades", stream=stream)
    check_times(rows, stream)
    before_us = now_us - int(settle_seconds * 1e6)
    newest = max(row.position for row in rows)
    young = [row.position for row in rows if (row.ts_us or 0) > before_us]
    quiet = all((row.ts_us or 0) <= now_us - QUIET_US for row in rows)
    limit = min(young) if young else newest + 1 if quiet else newest
    units = {last_of(row.position, step) for row in rows}
    counted = [unit for unit in units if unit < last_of(limit, step) or (quiet and not young)]
    oldest = min(row.position for row in rows)
    return Head(max(counted, default=oldest // step * step - 1), last_of(newest, step))


def pace(rows: Sequence[Row]) -> float:
    """Positions between two trades of an answer, on average."""
    positions = [row.position for row in rows]
    return max(1.0, (max(positions) - min(positions)) / max(1, len(positions) - 1))


def chunk_size(rows: Sequence[Row], trades: int, step: int) -> int:
    """Positions of a chunk that holds about ``trades`` trades (half to all of them) at the newest answer's pace."""
    units = max(1, int(pace(rows) * trades / step))
    return step << (units.bit_length() - 1)


def cold_start_by_time(rows: Sequence[Row], target_us: int, most_trades: int, step: int) -> int:
    """Where a first run begins: at ``target_us``, later if more than ``most_trades`` trades would come at this pace."""
    newest = max(row.position for row in rows)
    return max(target_us * 1000, newest - int(pace(rows) * most_trades), 1) // step * step


def cold_start_newest(rows: Sequence[Row], target_us: int, step: int, whole: bool) -> int:
    """Where a first run begins if only the newest trades are shown: behind the oldest unit, which may be cut."""
    oldest = min(row.position for row in rows)
    return max(target_us * 1000 // step * step, oldest // step * step + (0 if whole else step))
