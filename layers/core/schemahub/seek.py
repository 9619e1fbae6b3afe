"""Where a moment lies on a stream's line, asked of the exchange itself: no index of ours reaches below the watermark.

Where positions are times, nothing needs to be asked. Ids are looked for by an interpolating search that uses every row
of an answer; every other question is the middle, so that it ends after about twice the logarithm of the range. Ids that
skip numbers, and history that begins or ends inside the range, only make answers that lie further away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schemahub import plan
from schemahub.answers import Row
from schemahub.deps import Deps
from schemahub.errors import NoHistory
from schemahub.mappings import Mapping, load_mapping
from schemahub.pacing import PacedExchange
from schemahub.plan_linked import step_of
from schemahub.streams import Interval, Stream

Ask = Callable[[int], Sequence[Row]]
"""Rows of one answer from a position on, in the exchange's direction of paging; none on the other side of it."""


def check_history(stream: Stream) -> Mapping:
    """The mapping of an exchange that shows its history by REST. Raises NoHistory for one that does not."""
    mapping = load_mapping(stream.exchange)
    if mapping.requests.page.asks == "newest":
        raise NoHistory(
            f"{mapping.name} shows only its newest trades, and its mapping names no archive to take history from",
            stream=stream,
        )
    return mapping


def position_at(deps: Deps, stream: Stream, when_us: int, within: Interval) -> int:
    """The first position of ``within`` whose trade is not older than ``when_us`` (microseconds since the epoch);
    ``within.last + 1`` where there is none.

    Exact as far as times do not run backwards along the ids; where they do, it is one of the places where they pass
    ``when_us``.

    Raises:
        NoHistory: the exchange shows its newest trades only.
        ExchangeError, ThrottleError: it cannot be asked now.
    """
    mapping = load_mapping(stream.exchange)
    if mapping.by_time:
        step = step_of(mapping.fields.tick_ns, True)
        return min(max(when_us * 1000 // step * step, within.first), within.last + 1)
    check_history(stream)
    return first_at(when_us, within, asker(deps, stream), mapping.requests.page.descending)


def beginning(deps: Deps, stream: Stream, within: Interval) -> int:
    """Where the exchange's history begins in ``within``: at ``within.first``, unless nothing older is shown.

    ``within.last + 1`` where it shows nothing at all in there. Where only newest trades are shown, files decide.
    """
    mapping = load_mapping(stream.exchange)
    if mapping.requests.page.asks == "newest":
        return within.first
    first = first_from(deps, stream, within)
    step = step_of(mapping.fields.tick_ns, mapping.by_time)
    return min(max(first // step * step, within.first), within.last + 1)


def first_from(deps: Deps, stream: Stream, within: Interval) -> int:
    """The position of the first trade in ``within``, or of one behind it; above ``within.last`` where there is none.

    Towards older trades it is the one at ``within.first`` or the next before it, where that much is shown.
    """
    ask = asker(deps, stream)
    rows = ask(within.first)
    if load_mapping(stream.exchange).requests.page.descending:
        # By ids that skip numbers: the first position of the range need not be a trade's.
        return rows[-1].position if rows else first_at(0, within, ask, True)
    return rows[0].position if rows else within.last + 1


def asker(deps: Deps, stream: Stream) -> Ask:
    """Asks the stream's exchange, each question a slot of the shared budget."""
    exchange, spec = PacedExchange.of(deps, stream.exchange), load_mapping(stream.exchange).requests
    descending, reach = spec.page.descending, spec.page_size - 1

    def ask(at: int) -> list[Row]:
        span = (max(0, at - reach), at) if descending else (at, at + reach)
        rows = exchange.page(stream, *span, kind="head")
        plan.check_times(rows, stream)
        near = [row for row in rows if (row.position <= at if descending else row.position >= at)]
        return sorted(near, key=lambda row: row.position)

    return ask


def first_at(when_us: int, within: Interval, ask: Ask, descending: bool) -> int:
    """The first position of ``within`` whose trade is not older than ``when_us``; ``within.last + 1`` if none is."""
    # All trades up to `below` are older; none that is not older lies from `top` up to `answer`.
    below, top, answer = within.first - 1, within.last + 1, within.last + 1
    below_us: int | None = None
    top_us: int | None = None
    for attempt in range(4 * 64):
        if top - below <= 1:
            break
        at = _guess(when_us, below, top, below_us, top_us, attempt)
        rows = ask(at)
        late = next((i for i, row in enumerate(rows) if (row.ts_us or 0) >= when_us), None)
        if late is None:
            # Descending, nothing at all is shown from here down; ascending, nothing from here up.
            if rows or descending:
                below, below_us = max(at, rows[-1].position if rows else at), rows[-1].ts_us if rows else None
            else:
                top, top_us = at, None
            continue
        found = rows[late]
        if late and found.position > below:
            return min(found.position, within.last + 1)
        top_us = found.ts_us
        top = min(at, found.position)
        answer = min(answer, found.position)
    return max(within.first, min(answer, within.last + 1))


def _guess(when_us: int, below: int, top: int, below_us: int | None, top_us: int | None, attempt: int) -> int:
    """The next position to ask, above ``below`` and under ``top``: by interpolation, every other time the middle."""
    if attempt % 2 or below_us is None or top_us is None:
        return (below + top) // 2
    share = (when_us - below_us) / max(1, top_us - below_us)
    return min(top - 1, max(below + 1, below + int(share * (top - below))))
