"""The first commit of a stream that no run has pulled yet, so that a backfill has a watermark to go on below.

It is what a first run of one page would commit: the newest settled trades, under the stream's own lock and by the
ordinary fenced transaction. All rules of the watermark hold from then on: an ingest goes on above it, the backfill
below it, and where both begin at the same time one of them finds the other's commit. Of a product that the exchange
does not show any more it is the newest block of its archive (``archive_anchor``).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from schemahub import ingest, mirror, plan
from schemahub.archives import archive_of
from schemahub.commit import Fenced, commit_segments, segment_of
from schemahub.deps import Deps
from schemahub.errors import ExchangeError, IncompletePage, LockBusy, LockLost, ThrottleError, UnknownProduct
from schemahub.ledger import Watermark
from schemahub.locks import Lease, Renewer
from schemahub.mappings import load_mapping
from schemahub.pacing import PacedExchange
from schemahub.paging import ColdStart, Linked, paging_of
from schemahub.streams import Chunk, RawObject, Stream

if TYPE_CHECKING:
    from schemahub.archive_ingest import ArchiveReport
    from schemahub.fetch import Fetched

PAGES = (0.5, 8, 64)
"""How many pages back the newest settled trade is looked for: after a rush all of the newest page may be too young."""
WAIT_S, PAUSE_S = 300.0, 5.0
"""How long an ingest that holds the stream is waited for: its own first commit is as good."""


def establish(
    deps: Deps, stream: Stream, owner: Lease, tick: Callable[[], None] = lambda: None, *, files: bool = False
) -> Watermark:
    """The stream's watermark, made by the commit of its newest settled trades where there is none.

    Args:
        owner: whose execution, run and attempt take the stream's lock for it.
        tick: called while an ingest is waited for, or a file is read.
        files: of a product that the exchange does not show any more, take the newest rows of its archive.

    Raises:
        UnknownProduct: the exchange shows no such product; the nearest names that it lists are in the remedy.
        IncompletePage: none of its trades has settled yet.
        LockBusy: an ingest held the stream all the time and committed nothing.
        LockLost: another execution took the lock over before the commit.
    """
    for _ in range(round(WAIT_S / PAUSE_S)):
        if (mark := deps.ledger.watermark(stream)) is not None:
            _give_back(deps, stream, owner)
            return mark
        try:
            lease = deps.locks.acquire(stream.lock_id, owner.owner, owner.run, owner.attempt)
        except LockBusy:
            tick()
            deps.clock.sleep(PAUSE_S)
            continue
        try:
            return _commit(deps, stream, lease, tick, files)
        finally:
            deps.locks.release(lease)
    raise LockBusy(
        "an ingest holds the stream and has committed nothing yet",
        stream=stream,
        remedy="Start the backfill again once that run has ended.",
    )


def _give_back(deps: Deps, stream: Stream, owner: Lease) -> None:
    """Release what an attempt of the same execution still holds that died after its commit."""
    holder = deps.locks.holder(stream.lock_id)
    if holder is not None and holder.owner == owner.owner:
        deps.locks.release(holder)


def _commit(deps: Deps, stream: Stream, lease: Lease, tick: Callable[[], None], files: bool) -> Watermark:
    # A mirror without a watermark is a table that was lost or restored: a human must look, as for an ingest.
    mirror.heal(deps.objects, deps.ledger, stream)
    if (mark := deps.ledger.watermark(stream)) is not None:
        return mark
    renewer = Renewer(deps.locks.renew, lease, deps.clock)

    def both() -> None:
        tick()
        renewer.tick()

    source = "rest"
    try:
        found, _ = ingest.make_durable(deps, stream, newest_chunk(deps, stream), lambda: None)
    except UnknownProduct as error:
        found, source = _from_files(deps, stream, error, both, files), "archive"
    segment = segment_of(stream, found, lease.run.rsplit(":", 1)[-1], source, deps.clock.now_ms())
    outcome = commit_segments(deps.ledger, deps.locks, lease, [segment], None, deps.clock)
    mark = deps.ledger.watermark(stream)
    if isinstance(outcome, Fenced) or mark is None:
        raise LockLost("the lock was taken over before the first commit", stream=stream)
    mirror.heal_quietly(deps.objects, deps.ledger, stream)
    deps.count("SegmentsCommitted", 1)
    return mark


def _from_files(
    deps: Deps, stream: Stream, unknown: UnknownProduct, tick: Callable[[], None], files: bool
) -> RawObject:
    """The newest rows of the stream's archive, durable. Raises ``unknown`` where there is none."""
    newest = _archived(deps, stream, unknown, tick, files)
    from schemahub import archive_anchor, archive_ingest

    fetched, report = newest
    found = archive_ingest.make_durable(deps, stream, fetched)
    archive_anchor.note(deps, report)
    return found


def _archived(
    deps: Deps, stream: Stream, unknown: UnknownProduct, tick: Callable[[], None], files: bool
) -> tuple[Fetched, ArchiveReport]:
    mapping = load_mapping(stream.exchange)
    if archive_of(mapping) is None:
        raise unknown
    if not files:
        raise UnknownProduct(
            f"{unknown.reason}, and this backfill may not use its archive", stream=stream,
            remedy="Files are taken by tasks: set BackfillSubnets, and leave --archives and the route to the plan.",
        ) from unknown  # fmt: skip
    # Here, because it loads Arrow: nearly every plan has no use for it.
    from schemahub.archive_anchor import newest_rows

    newest = newest_rows(deps, stream, tick)
    if newest is None:
        raise UnknownProduct(
            f"{unknown.reason}, nor has its archive any", stream=stream, remedy=unknown.remedy
        ) from unknown
    return newest


def foreseen(deps: Deps, stream: Stream, *, files: bool = False) -> Chunk:
    """What ``establish`` would commit. Asks the exchange and its archive, writes nothing; raises what it raises."""
    try:
        return newest_chunk(deps, stream)
    except UnknownProduct as error:
        fetched, _ = _archived(deps, stream, error, lambda: None, files)
        return fetched.chunk


def newest_chunk(deps: Deps, stream: Stream) -> Chunk:
    """The newest settled trades that the exchange's API shows. Writes nothing."""
    exchange, mapping = PacedExchange.of(deps, stream.exchange), load_mapping(stream.exchange)
    paging = paging_of(mapping)
    try:
        page = exchange.newest(stream)
    except UnknownProduct as error:
        raise _unknown(exchange, stream) from error
    head = paging.head(page, stream, deps.clock.now_ms() * 1000)
    for pages in PAGES:
        start = ColdStart(0, max(1, int(mapping.requests.page_size * pages)))
        begin = paging.first(exchange, stream, page, start)
        known = None
        if isinstance(paging, Linked) and begin.first <= head.settled:
            known = paging.known(page, head.settled, begin.trade)
        if chunks := plan.cut(begin.first, head.settled, paging.chunk_size(page, 1), known=known):
            return chunks[-1]
    raise IncompletePage("none of the newest trades has settled yet", stream=stream, span=(head.settled, head.newest))


def _unknown(exchange: PacedExchange, stream: Stream) -> UnknownProduct:
    """Names the products that are spelt like it, those that no longer trade too."""
    try:
        listed = {p.product: p.status for p in exchange.products()}
    except (ExchangeError, ThrottleError):
        listed = {}
    remedy = f"`schemahub update-seed --exchange {stream.exchange} --dry-run` shows what it lists."
    if (status := listed.get(stream.product)) is not None:
        said = f"{stream.exchange} lists it as {status or 'a product'} and shows no trades of it"
        return UnknownProduct(said, stream=stream, remedy=remedy)
    if near := difflib.get_close_matches(stream.product, listed, n=3, cutoff=0.5):
        remedy = f"Did you mean {' or '.join(f'{stream.exchange}:{name}' for name in near)}?"
    return UnknownProduct(f"{stream.exchange} shows no trades of it", stream=stream, remedy=remedy)
