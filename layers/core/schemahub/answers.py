"""Reading an exchange's answer as its mapping says: the exact text of each row, the codes, the products' fields.

Answers are cut into the exact text of each row, so that raw keeps what was sent (``1.10`` stays ``1.10``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from schemahub.errors import MalformedResponse
from schemahub.mappings import NS, Mapping
from schemahub.pointers import at_pointer, element_of, only_list
from schemahub.streams import MAX_POSITION

INTEGER_ID = re.compile(r"0|[1-9][0-9]{0,18}")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ABSURD_TIME = 10**20
"""No epoch of any unit comes near: what is greater is no time at all."""


@dataclass(frozen=True)
class Row:
    """One trade as sent: its position, its time, its exact JSON text, the exchange's own number for it."""

    position: int
    """The trade's id, or nanoseconds since the epoch where the stream's positions are times."""
    ts_us: int | None
    """Microseconds since the epoch, None when unreadable."""
    text: str
    trade_id: str = ""


def codes_at(body: bytes, pointer: str) -> list[str]:
    """The codes at ``pointer``, as texts; none where the answer has no such place."""
    try:
        found = at_pointer(json.loads(body), pointer)
    except (ValueError, RecursionError, MalformedResponse):
        return []
    if isinstance(found, list):
        # Bitfinex: ["error", 10020, "symbol: invalid"] where a good answer has a trade.
        return [v[:100] for v in found if isinstance(v, str)]
    return [str(found)[:100]] if isinstance(found, str | int) and found != "" else []


def any_of(codes: list[str], known: tuple[str, ...]) -> bool:
    return any(code == k or (k.endswith("*") and code.startswith(k[:-1])) for code in codes for k in known)


def parse_json(body: bytes) -> Any:
    """JSON of an answer; NaN and Infinity, which JSON does not have, are refused."""
    try:
        return json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedResponse(f"the answer is not JSON: {_short(error)}; it begins {body[:60]!r}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_SPACE = re.compile(r"[ \t\r\n]*")


def parse_rows(body: bytes, mapping: Mapping, symbol: str | None = None) -> list[Row]:
    """The rows of an answer, each with its exact text on one line.

    ``symbol`` is the exchange's spelling of the product that was asked for.

    Raises:
        MalformedResponse: not JSON, no list of rows, a row without the id or time that its position is made of, or one
            that names another product.
    """
    return _rows(body, mapping, mapping.requests.rows, symbol)


def parse_elements(body: bytes, mapping: Mapping) -> list[Row]:
    """Like ``parse_rows`` for a JSON array of rows without anything around it (a recording, a file)."""
    return _rows(body, mapping, "")


def _rows(body: bytes, mapping: Mapping, pointer: str, symbol: str | None = None) -> list[Row]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedResponse(f"the answer is not UTF-8: {_short(error)}") from error
    try:
        if pointer:
            at_pointer(json.loads(text, parse_constant=_no_constant), pointer)
            text = _text_at_pointer(text, pointer)
        return [_row(value, raw, mapping, symbol) for value, raw in _elements(text, 0)]
    except (ValueError, RecursionError) as error:
        raise MalformedResponse(f"the answer is not JSON: {_short(error)}; it begins {body[:60]!r}") from error


def _text_at_pointer(text: str, pointer: str) -> str:
    """The exact text of the value at ``pointer`` in a document that is known to hold it."""
    for part in pointer.split("/")[1:]:
        wanted = only_list(json.loads(text)) if part == "*" else part
        at = text.index("{") + 1
        while True:
            key, at = _DECODER.raw_decode(text, _skip(text, at))
            at = _skip(text, _skip(text, at) + 1)
            _, end = _DECODER.raw_decode(text, at)
            if key == wanted:
                text = text[at:end]
                break
            at = _skip(text, end) + 1
    return text


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _elements(text: str, at: int) -> Iterator[tuple[Any, str]]:
    """Each element of a JSON array with its text; line breaks (only ever between tokens) become nothing."""
    at = _skip(text, at)
    if text[at : at + 1] != "[":
        json.loads(text, parse_constant=_no_constant)
        raise ValueError("a list of trades was expected")
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        at += 1
    else:
        while True:
            value, end = _DECODER.raw_decode(text, at)
            raw = text[at:end]
            yield value, raw if "\n" not in raw and "\r" not in raw else re.sub(r"[\r\n]+", "", raw)
            at = _skip(text, end)
            separator = text[at : at + 1]
            at += 1
            if separator == "]":
                break
            if separator != ",":
                raise ValueError(f"the list breaks off at character {at}")
            at = _skip(text, at)
    if text[at:].strip():
        raise ValueError("something follows the list")


def _row(value: Any, raw: str, mapping: Mapping, symbol: str | None) -> Row:
    fields = mapping.fields
    if not isinstance(value, list if fields.in_arrays else dict):
        raise MalformedResponse(f"{raw[:80]!r} is not a trade {'array' if fields.in_arrays else 'object'}")
    if symbol is not None and fields.product is not None and element_of(value, fields.product) != symbol:
        said = str(element_of(value, fields.product))
        raise MalformedResponse(f"a trade of {said[:40]!r} came, {symbol!r} was asked for: {raw[:80]!r}")
    trade_id = _trade_id(element_of(value, fields.trade_id), mapping)
    time_ns = _time_ns(_time_text(value, raw, mapping), mapping)
    if not mapping.by_time:
        return Row(int(trade_id), time_ns and time_ns // 1000, raw, trade_id)
    if time_ns is None or not 0 < time_ns <= MAX_POSITION:
        # Without its time nobody knows whose chunk it is.
        raise MalformedResponse(f"the time of trade {trade_id[:40]} cannot be read: {raw[:80]!r}")
    return Row(time_ns, time_ns // 1000, raw, trade_id)


def _trade_id(value: Any, mapping: Mapping) -> str:
    """The trade's id as text. Integers may be sent as numbers or as text (Coinbase has done both); both are exact."""
    if mapping.fields.id_type == "text":
        if type(value) not in (int, str) or not re.fullmatch(r"[!-~]{1,64}", str(value)):
            raise MalformedResponse(f"trade id {str(value)[:40]!r} is not a text of 1 to 64 characters")
        return str(value)
    text = str(value) if type(value) in (int, str) else ""
    if not INTEGER_ID.fullmatch(text) or int(text) > MAX_POSITION:
        raise MalformedResponse(f"trade id {str(value)[:40]!r} is not an integer from 0 on")
    return text


def _time_text(value: Any, raw: str, mapping: Mapping) -> str:
    """The time as it was written: a float would lose digits of 1688669597.827736900."""
    found = element_of(value, mapping.fields.trade_ts)
    if not isinstance(found, float):
        return str(found)
    exact = json.loads(raw, parse_float=str)
    return str(element_of(exact, mapping.fields.trade_ts))


def _time_ns(text: str, mapping: Mapping) -> int | None:
    """Nanoseconds since the epoch, as far as planning needs it; the transform judges the time strictly."""
    try:
        if mapping.fields.ts_type == "epoch":
            number = Decimal(text)
            # 1e999999999 is a number, and has a billion digits as an integer.
            return int(number * NS[mapping.fields.ts_unit or "ms"]) if abs(number) < ABSURD_TIME else None
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
        since = when.replace(tzinfo=when.tzinfo or UTC) - EPOCH
        return (since.days * 86_400 + since.seconds) * NS["s"] + since.microseconds * NS["us"]
    except (ValueError, TypeError, ArithmeticError):
        return None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
