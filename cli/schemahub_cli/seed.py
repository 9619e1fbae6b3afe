"""What ``update-seed`` does: ask the exchanges what they list, choose what runs pull, keep what is known of all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from schemahub import instruments, seed
from schemahub.errors import BadInput, ExchangeError, SchemaHubError, ThrottleError, UnknownProduct
from schemahub.exchanges import Product
from schemahub.seed import Entry, Seed
from schemahub.streams import Stream
from schemahub_cli.target import Target


@dataclass(frozen=True)
class Choice:
    """Which of an exchange's products to take. Empty means: all that trade."""

    products: tuple[str, ...] = ()
    regex: str | None = None
    quotes: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True)
class Change:
    """What a new seed changes: streams that runs pull, and instruments that came, went or are otherwise different."""

    added: list[str]
    removed: list[str]
    kept: list[str]
    instruments: int
    changed: list[str]
    delisted: list[str]

    def to_json(self) -> dict[str, Any]:
        return {
            "added": self.added,
            "removed": self.removed,
            "kept": len(self.kept),
            "instruments": {"known": self.instruments, "changed": len(self.changed), "delisted": self.delisted},
        }


@dataclass(frozen=True)
class Look:
    """An exchange's list as one answer showed it, at ``seen_s`` (seconds since the epoch)."""

    exchange: str
    listed: tuple[Product, ...]
    seen_s: int


def look(target: Target, exchange: str) -> Look:
    """Ask an exchange what it lists: one paced request. Raises what ``PacedExchange.products`` raises."""
    from schemahub.pacing import PacedExchange

    return Look(
        exchange,
        tuple(PacedExchange.of(target.deps, exchange).products()),
        target.deps.clock.now_ms() // 1000,
    )


def look_at_all(
    target: Target, exchanges: Iterable[str], known: Sequence[instruments.Instrument], *, accept_delisted: bool = False
) -> tuple[list[Look], dict[str, SchemaHubError]]:
    """What the exchanges list, and for each without a usable answer or mapping why. One of them never stops the others.

    BadInput is a mapping that somebody is still writing, or names of products that are none.
    """
    looks, failures = [], dict[str, SchemaHubError]()
    for exchange in exchanges:
        try:
            seen = look(target, exchange)
            instruments.check_list(exchange, known, seen.listed, accept_delisted=accept_delisted)
        except (BadInput, ExchangeError, ThrottleError) as error:
            failures[exchange] = error
        else:
            looks.append(seen)
    return looks, failures


def choose(exchange: str, listed: Sequence[Product], choice: Choice) -> list[Entry]:
    """The entries of ``exchange`` that ``choice`` takes, in the order of their names (or as named).

    Raises:
        UnknownProduct: a product that is named is not listed, or does not trade.
        BadInput: the regular expression is not one.
    """
    trading = {p.product: p for p in listed if p.online}
    if choice.products:
        for name in choice.products:
            Stream(exchange, name)
            if name not in trading:
                status = next((p.status for p in listed if p.product == name), None)
                raise UnknownProduct(
                    f"{name} is {status}" if status else f"{name} is not listed", stream=f"{exchange}#{name}"
                )
        names: Iterable[str] = choice.products
    else:
        names = sorted(trading)
    try:
        pattern = re.compile(choice.regex or "")
    except re.error as error:
        raise BadInput(f"--regex {choice.regex!r}: {error}") from error
    quotes = {q.upper() for q in choice.quotes}
    taken = [trading[n] for n in names if pattern.search(n) and (not quotes or n.rsplit("-", 1)[1] in quotes)][
        : choice.limit
    ]
    return [{"exchange": exchange, "product": p.product, "symbol": p.symbol, "status": p.status} for p in taken]


def check_choice(looks: Sequence[Look], choice: Choice) -> None:
    """Refuse a choice that takes nothing of all exchanges together: a slip must not empty the list.

    One of them may well have nothing of it (not every exchange quotes in USD). Raises what ``choose`` raises, too.
    """
    taken = [entry for seen in looks for entry in choose(seen.exchange, seen.listed, choice)]
    if not taken:
        trading = sum(p.online for seen in looks for p in seen.listed)
        raise BadInput(
            f"the choice takes no product of the {trading} that trade",
            stream=", ".join(seen.exchange for seen in looks),
            remedy="Correct --product, --regex or --quote; the seed list was left as it is.",
        )


def merged(old: Seed, seen: Look, choice: Choice) -> Seed:
    """The seed after a look: the streams of its exchange are what ``choice`` takes, its instruments are merged."""
    others = [e for e in old.streams if e["exchange"] != seen.exchange]
    streams = [*others, *choose(seen.exchange, seen.listed, choice)]
    return Seed(
        tuple(sorted(streams, key=lambda e: (e["exchange"], e["product"]))),
        instruments.merge(old.instruments, seen.exchange, seen.listed, seen.seen_s),
    )


def change(old: Seed, new: Seed) -> Change:
    """What differs between two seeds."""
    before, after = ({f"{e['exchange']}:{e['product']}" for e in s.streams} for s in (old, new))
    known = {i.key: i for i in old.instruments}
    changed = [i for i in new.instruments if known.get(i.key) != i]
    gone = [i for i in changed if i.status == instruments.DELISTED and i.key in known]
    return Change(
        sorted(after - before),
        sorted(before - after),
        sorted(before & after),
        len(new.instruments),
        [":".join(i.key) for i in changed],
        [":".join(i.key) for i in gone if known[i.key].status != instruments.DELISTED],
    )


def store(
    target: Target, choices: Sequence[tuple[Look, Choice]], *, only: Iterable[str] | None = None
) -> tuple[Seed, Seed]:
    """Write the seed, then the table ``instruments`` from it; the seed before and after.

    ``only``: no other exchange's streams stay in the list.

    Raises:
        CommitConflict: others kept writing. The next ``update-seed`` repairs a table that was left behind.
    """
    from schemahub import instruments_table
    from schemahub.catalog import LakeCatalog

    def after(old: Seed) -> Seed:
        if only is not None:
            old = replace(old, streams=tuple(e for e in old.streams if e["exchange"] in set(only)))
        for seen, choice in choices:
            old = merged(old, seen, choice)
        return old

    deps = target.deps
    found = seed.update(deps.objects, after)
    instruments_table.publish(LakeCatalog(target.session), deps.objects, deps.settings.database, deps.clock)
    return found
