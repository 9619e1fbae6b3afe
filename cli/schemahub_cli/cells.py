"""Values of a query's answer as text: exact, the same for a screen, CSV and JSON; a column of a batch at a time.

A double is Python's ``repr``: its shortest form that reads back as the same number. A DECIMAL has all its digits. Times
are ISO 8601, with Z where they are UTC. Bytes are 0x and hexadecimal. Lists, structs and maps are JSON.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_ESCAPED = r'["\\\x00-\x1f]'
_QUOTED = r'[",\r\n]'
_ENDLESS = {2**63 - 1: "infinity", -(2**63) + 1: "-infinity"}
"""DuckDB's times without end, as Arrow gets them."""
_FIXED = r"^-?\d+\.\d+$"


def text(column: pa.Array) -> pa.Array:
    """Each value as text; null stays null."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return text(column.dictionary_decode())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column
    if pa.types.is_floating(kind):
        return _doubles(column)
    if pa.types.is_decimal(kind):
        return _each(column, lambda value: f"{value:f}")
    if pa.types.is_timestamp(kind):
        return _times(column)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _each(column, lambda value: f"0x{value.hex()}")
    if pa.types.is_interval(kind):
        return _each(column, _interval)
    if pa.types.is_nested(kind):
        return pa.array(_nested(column), pa.string())
    return column.cast(pa.string())


def json_text(column: pa.Array) -> pa.Array:
    """Each value as JSON; null, NaN and the infinities, which JSON does not have, are ``null``.

    A DECIMAL with a fraction is a string, so that no reader rounds it.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return json_text(column.dictionary_decode())
    plain = text(column)
    if pa.types.is_floating(kind):
        plain = pc.if_else(pc.is_finite(column), plain, None)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        if pc.any(pc.match_substring_regex(plain, _ESCAPED)).as_py():
            plain = _each(plain, lambda value: json.dumps(value, ensure_ascii=False))
        else:
            plain = _wrapped(plain)
    elif not (_whole(kind) or pa.types.is_boolean(kind) or pa.types.is_nested(kind) or pa.types.is_null(kind)):
        plain = _wrapped(plain)
    return pc.fill_null(plain, "null")


def csv_text(column: pa.Array, *, alone: bool = False) -> pa.Array:
    """Each value as a field of CSV (RFC 4180): null is empty, an empty text is ``""``.

    ``alone``: the only field of its line, where nothing at all would be a blank line.
    """
    plain = text(column)
    if _textual(column.type):
        quote = pc.or_(pc.match_substring_regex(plain, _QUOTED), pc.equal(plain, ""))
        plain = pc.if_else(quote, _wrapped(pc.replace_substring(plain, '"', '""')), plain)
    return pc.fill_null(plain, '""' if alone else "")


def is_number(kind: pa.DataType) -> bool:
    """Whether people want the column at the right."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0))


def _textual(kind: pa.DataType) -> bool:
    plain = is_number(kind) or pa.types.is_temporal(kind) or pa.types.is_boolean(kind)
    return not plain


def _wrapped(column: pa.Array) -> pa.Array:
    quote = pa.scalar('"', column.type)
    return pc.binary_join_element_wise(quote, column, quote, pa.scalar("", column.type))


def _each(column: pa.Array, change: Any) -> pa.Array:
    return pa.array([None if v is None else change(v) for v in column.to_pylist()], pa.string())


def _doubles(column: pa.Array) -> pa.Array:
    """Arrow writes the same digits as ``repr``, in its notation for most numbers; the others go through ``repr``."""
    digits = column.cast(pa.string())
    small = pc.less(pc.abs(column.cast(pa.float64())), 1e-3)
    same = pc.and_(pc.match_substring_regex(digits, _FIXED), pc.invert(small))
    if pc.all(pc.or_kleene(same, pc.is_null(digits))).as_py():
        return digits
    changed = [
        d if d is None or s else repr(float(d)) for d, s in zip(digits.to_pylist(), same.to_pylist(), strict=True)
    ]
    return pa.array(changed, pa.string())


def _times(column: pa.Array) -> pa.Array:
    kind = column.type
    plain = column.cast(pa.timestamp(kind.unit)).cast(pa.string())
    strange = pc.starts_with(plain, "<")
    iso = pc.replace_substring(plain, " ", "T")
    iso = pc.binary_join_element_wise(iso, "Z", "") if kind.tz else iso
    if not pc.any(strange).as_py():
        return iso
    counts = pc.if_else(strange, column.cast(pa.int64()), None).to_pylist()
    if not {*counts} <= {None, *_ENDLESS}:
        raise pa.ArrowInvalid("a time is further away than a calendar reaches")
    return pa.array(
        [t if n is None else _ENDLESS[n] for t, n in zip(iso.to_pylist(), counts, strict=True)], pa.string()
    )


def _interval(value: Any) -> str:
    """ISO 8601: ``P1M2DT3.5S``."""
    seconds, rest = divmod(abs(value.nanoseconds), 1_000_000_000)
    part = f"{'-' if value.nanoseconds < 0 else ''}{seconds}" + (f".{rest:09d}".rstrip("0") if rest else "")
    return f"P{value.months}M{value.days}DT{part}S"


def _nested(column: pa.Array) -> list[str | None]:
    kind = column.type
    if pa.types.is_struct(kind):
        names = [json.dumps(kind.field(i).name, ensure_ascii=False) for i in range(kind.num_fields)]
        parts = [json_text(child).to_pylist() for child in column.flatten()]
        objects = (
            "{" + ", ".join(map(": ".join, zip(names, row, strict=True))) + "}" for row in zip(*parts, strict=True)
        )
        return [made if valid else None for made, valid in zip(objects, column.is_valid().to_pylist(), strict=True)]
    if pa.types.is_map(kind):
        return [None if not row.is_valid else _object(row.values) for row in column]
    return [None if not row.is_valid else f"[{', '.join(json_text(row.values).to_pylist())}]" for row in column]


def _object(entries: pa.Array) -> str:
    """A map as a JSON object: its keys as text."""
    keys, values = (entries.field(i) for i in (0, 1))
    named = (json.dumps(key, ensure_ascii=False) for key in text(keys).to_pylist())
    return "{" + ", ".join(map(": ".join, zip(named, json_text(values).to_pylist(), strict=True))) + "}"
