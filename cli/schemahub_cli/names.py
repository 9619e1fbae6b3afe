"""Streams that somebody names: well-formed, and known, or an error that names what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from schemahub.errors import BadProductId, SchemaHubError, UnknownProduct, UnknownStream
from schemahub.mappings import exchanges, load_mapping
from schemahub.streams import Stream, example_product

if TYPE_CHECKING:
    from schemahub.deps import Deps
    from schemahub_cli.target import Target

SHOWN = 3
EXAMPLE = "coinbase"
"""Of an exchange, where none was named."""


def parse(names: Iterable[str] | None) -> list[Stream]:
    """The streams of trades that are named, each once, in their order.

    Raises:
        BadProductId: one is not of the form ``exchange:PRODUCT``; the remedy writes it as it was probably meant.
    """
    return list(dict.fromkeys(_stream(name) for name in names or ()))


def _stream(name: str) -> Stream:
    try:
        stream = Stream.parse(name)
    except BadProductId as error:
        words = re.split(r"[^A-Za-z0-9_]+", name)
        # The exchange is told apart from the product by what there is, not only by its place.
        named = words[0].lower() if words[0].lower() in exchanges() else None
        product = example_product("-".join(words[1:3]) if named and any(words[1:]) else "BTC-USD" if named else name)
        error.remedy = f"Write it as exchange:PRODUCT, for example {named or EXAMPLE}:{product}."
        raise
    if stream != stream.trades:
        raise BadProductId(
            f"{stream} is not a stream of trades",
            remedy=f"Name the trades: {stream.exchange}:{stream.product}. What filled their holes goes with them.",
        )
    return stream


def written(stream: Stream) -> str:
    """A stream as the options take it."""
    return f"{stream.exchange}:{stream.product}"


def committed(deps: Deps, streams: Sequence[Stream], published: Iterable[Stream] = ()) -> list[Stream]:
    """The streams, sorted, if the ledger (or the table: ``published``) has something of each of them.

    Raises:
        UnknownStream: one was never pulled; the nearest names of those that were, or how to pull it.
    """
    also = set(published)
    for stream in streams:
        if stream not in also and deps.ledger.watermark(stream) is None and deps.ledger.lowest(stream) is None:
            raise _never_pulled(deps, stream, also)
    return sorted(set(streams))


def _never_pulled(deps: Deps, stream: Stream, also: set[Stream]) -> UnknownStream:
    known = known_streams(deps) | also
    if stream in known:
        remedy = f"Pull it first: `schemahub run -p {written(stream)}`."
        return UnknownStream(f"nothing of {written(stream)} is committed yet", remedy=remedy)
    return UnknownStream(f"there is no stream {written(stream)}" + meant(written(stream), map(written, known)))


def known_streams(deps: Deps) -> set[Stream]:
    """What the seed list, the parameter and the mirrors name; empty where they cannot be read: only hints need them."""
    from schemahub.rebuild import named_streams

    try:
        return named_streams(deps)
    except SchemaHubError:
        return set()


def meant(name: str, known: Iterable[str]) -> str:
    """``; did you mean …?`` with the nearest names, or nothing where none is near."""
    near = difflib.get_close_matches(name, sorted(set(known)), n=SHOWN)
    return f"; did you mean {', '.join(near)}?" if near else ""


def pullable(where: Target, streams: Sequence[Stream], *, from_archives: bool = False) -> None:
    """Check that a run could pull each of the streams, before anything is started.

    What the seed knows as listed, or the ledger has already, needs no more than that. Of the rest the exchange is
    asked once, within its limit.

    Args:
        from_archives: take any product of an exchange that has files of history: they may be all there is of it.

    Raises:
        UnknownExchange, UnknownProduct: with the nearest names. ExchangeError, ThrottleError: it cannot be asked now.
    """
    from schemahub.seed import read
    from schemahub_cli.seed import look

    mappings = {s.exchange: load_mapping(s.exchange) for s in streams}
    seed = read(where.deps.objects) if streams else None
    listed = {(i.exchange, i.product) for i in seed.instruments} if seed else set()
    listed |= {(e["exchange"], e["product"]) for e in seed.streams} if seed else set()
    asked: dict[str, set[str]] = {}
    for stream in streams:
        if (stream.exchange, stream.product) in listed or where.deps.ledger.watermark(stream) is not None:
            continue
        if from_archives and mappings[stream.exchange].archive is not None:
            continue
        if stream.exchange not in asked:
            asked[stream.exchange] = {p.product for p in look(where, stream.exchange).listed}
        if stream.product not in asked[stream.exchange]:
            near = meant(written(stream), (f"{stream.exchange}:{p}" for p in asked[stream.exchange]))
            raise UnknownProduct(
                f"{mappings[stream.exchange].name} does not list {stream.product}{near}", stream=stream
            )


def complete_exchange(incomplete: str) -> list[str]:
    """Exchanges for the shell's completion."""
    return [name for name in exchanges() if name.startswith(incomplete)]


def complete_stream(incomplete: str) -> list[str]:
    """Beginnings of streams for the shell's completion. Products are left out: a key press must not ask a stack."""
    return [f"{name}:" for name in exchanges() if f"{name}:".startswith(incomplete)]
