"""The seed list: which products a run pulls, discovered from what the exchanges list and kept in the bucket."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from schemahub import SCHEMA_VERSION
from schemahub.errors import BadConfig, BadInput, BadProductId, UnknownProduct
from schemahub.exchanges import Product
from schemahub.objects import ObjectStore
from schemahub.streams import PREFIX, Stream

SEED_KEY = f"{PREFIX}config/products.json"
Entry = dict[str, str]


@dataclass(frozen=True)
class Choice:
    """Which of an exchange's products to take. Empty means: all that trade."""

    products: tuple[str, ...] = ()
    regex: str | None = None
    quotes: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True)
class Change:
    """What a new seed list changes."""

    added: list[str]
    removed: list[str]
    kept: list[str]

    def to_json(self) -> dict[str, Any]:
        return {"added": self.added, "removed": self.removed, "kept": len(self.kept)}


def choose(exchange: str, listed: Sequence[Product], choice: Choice) -> list[Entry]:
    """The entries of ``exchange`` that ``choice`` takes, in the order of their names (or as named).

    Raises:
        UnknownProduct: a product that is named is not listed, or does not trade.
        BadInput: the regular expression is not one, or nothing is left: a slip must not empty the list.
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
    if not taken:
        raise BadInput(
            f"the choice takes no product of the {len(trading)} that trade",
            stream=exchange,
            remedy="Correct --product, --regex or --quote; the seed list was left as it is.",
        )
    return [{"exchange": exchange, "product": p.product, "symbol": p.symbol, "status": p.status} for p in taken]


def read(objects: ObjectStore) -> list[Entry]:
    """The entries of the bucket's seed list; none when it has not been written yet.

    Raises:
        BadConfig: it is not a seed list.
    """
    body = objects.get(SEED_KEY)
    if body is None:
        return []
    try:
        entries = json.loads(body)["streams"]
        for entry in entries:
            Stream(entry["exchange"], entry["product"])
    except (ValueError, KeyError, TypeError, RecursionError, BadProductId) as error:
        raise BadConfig(f"{SEED_KEY} is not readable: {error!r}") from error
    return list(entries)


def replace(old: Sequence[Entry], new: Sequence[Entry], exchanges: Iterable[str]) -> list[Entry]:
    """The list where the entries of ``exchanges`` are ``new`` and those of all others stay."""
    asked = set(exchanges)
    return sorted([*(e for e in old if e["exchange"] not in asked), *new], key=lambda e: (e["exchange"], e["product"]))


def change(old: Sequence[Entry], new: Sequence[Entry]) -> Change:
    """What differs between two lists."""
    before, after = ({f"{e['exchange']}:{e['product']}" for e in entries} for entries in (old, new))
    return Change(sorted(after - before), sorted(before - after), sorted(before & after))


def write(objects: ObjectStore, entries: Sequence[Entry]) -> None:
    """Store the list for the next run."""
    document = {"schema_version": SCHEMA_VERSION, "streams": list(entries)}
    objects.put(SEED_KEY, json.dumps(document, indent=1).encode())
