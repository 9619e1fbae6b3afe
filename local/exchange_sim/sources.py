"""Where the rows of a product come from: generated history, or (recordings.py) a recorded file.

A row is `(id, text)`: the text is the JSON object exactly as it goes over the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from . import generator
from .generator import Product, Tick

Row = tuple[int, str]
Span = tuple[int, int]
"""A closed range of ids."""


class Source(Protocol):
    """A product's history as rows, ascending by id."""

    @property
    def first_id(self) -> int:
        """The oldest id."""

    def head(self, now_us: int) -> int:
        """The newest id at that time; below `first_id` while there is none."""

    def oldest(self, first: int, last: int, limit: int) -> list[Row]:
        """Up to `limit` rows of the ids `first..last`, from the oldest on, ascending."""

    def newest(self, first: int, last: int, limit: int) -> list[Row]:
        """Up to `limit` rows of the ids `first..last`, the newest ones, ascending."""

    def first_at_or_after(self, time_us: int) -> int:
        """The smallest id whose time is `time_us` or later; beyond the head if there is none."""


class Generated:
    """Endless history of a generated product, in an exchange's own words."""

    def __init__(self, product: Product, render: Callable[[Iterable[Tick]], list[Row]]) -> None:
        self.product = product
        self.render = render

    @property
    def first_id(self) -> int:
        return self.product.first_id

    def head(self, now_us: int) -> int:
        return generator.head_at(self.product, now_us)

    def oldest(self, first: int, last: int, limit: int) -> list[Row]:
        first = max(first, self.product.first_id)
        return self._rows(first, min(last, first + limit - 1))

    def newest(self, first: int, last: int, limit: int) -> list[Row]:
        return self._rows(max(first, self.product.first_id, last - limit + 1), last)

    def first_at_or_after(self, time_us: int) -> int:
        return generator.first_at_or_after(self.product, time_us)

    def _rows(self, first: int, last: int) -> list[Row]:
        return self.render(generator.ticks(self.product, first, last)) if first <= last else []


def newest_rows(source: Source, spans: Sequence[Span], limit: int) -> list[Row]:
    """The newest `limit` rows of the ascending visible `spans`, ascending."""
    rows: list[Row] = []
    for first, last in reversed(spans):
        if len(rows) >= limit:
            break
        rows = source.newest(first, last, limit - len(rows)) + rows
    return rows


def oldest_rows(source: Source, spans: Sequence[Span], limit: int) -> list[Row]:
    """The oldest `limit` rows of the ascending visible `spans`, ascending."""
    rows: list[Row] = []
    for first, last in spans:
        if len(rows) >= limit:
            break
        rows += source.oldest(first, last, limit - len(rows))
    return rows


def subtract(span: Span, holes: Iterable[Span]) -> list[Span]:
    """What is left of `span` without `holes`, ascending and disjoint; empty if nothing is."""
    left: list[Span] = []
    first, last = span
    for hole_first, hole_last in sorted(holes):
        if hole_last < first:
            continue
        if hole_first > last:
            break
        if hole_first > first:
            left.append((first, hole_first - 1))
        first = hole_last + 1
    if first <= last:
        left.append((first, last))
    return left
