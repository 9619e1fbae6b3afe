"""What faults do to rows and to answers: the sicknesses that real exchanges have shown."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any

from .messages import Answer, Fields, Json, Window
from .sources import Row, Source, Span

ROW_KINDS: dict[str, dict[str, Any]] = {
    "empty_list": {},  # [] with 200
    "skip_rows": {"rows": 1},
    "duplicate_rows": {"rows": 1},
    "unordered_rows": {"rows": None},  # reversed; without ids or rows: the whole page
    "overlap": {"rows": 3},  # so many trades beyond the cursor, which the neighbour page has too
    "mutate": {"rows": 1, "field": "size"},  # another value, from the second look on
    "wrong_unit": {"rows": 1, "factor": 1000},  # Binance: T in microseconds
    "clock_backwards": {"rows": 1, "seconds": 3600.0},
    "odd_numbers": {"rows": 1},  # price with an exponent, size with 18 decimals
    "bad_price": {"rows": 1, "value": "0"},
    "nan": {"rows": 1, "value": "NaN"},  # a bare NaN, Infinity or -Infinity, which is not JSON
    "extra_field": {"rows": 1, "field": "venue", "value": "sim"},
    "missing_field": {"rows": 1, "field": "price"},
    "set_field": {"rows": 1, "field": "id", "value": None},
}
"""`field` is id, price, size or time, whatever the exchange calls it, or a raw name."""

ANSWER_KINDS: dict[str, dict[str, Any]] = {
    "http_status": {"status": 503, "retry_after": None, "body": ""},
    "hang": {"seconds": 30.0},  # silence, then the true answer
    "trickle": {"seconds": 30.0},  # the true answer, a few bytes at a time
    "reset": {"how": "reset"},  # half of the body, then RST; how: close ends it early but politely
    "truncated_json": {"share": 0.5},  # a whole HTTP answer whose JSON stops in the middle
    "html_200": {},
    "empty_body": {},
    "bom": {},  # a byte order mark before the JSON
    "object_200": {"body": {"message": "try again later"}},  # an object where a list belongs
    "redirect": {"status": 302, "location": "http://mirror.invalid/"},
    "gzip_bomb": {"megabytes": 60},  # so many megabytes of zeros, small on the wire
}

_HTML = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body></body></html>"


def spoil_rows(
    kind: str,
    args: Json,
    rows: list[Row],
    ids: Span | None,
    fields: Fields,
    asked: tuple[Window, Source],
) -> list[Row]:
    """Apply one row fault to the ascending rows of an answer."""
    if kind == "empty_list":
        return []
    if kind == "overlap":
        return _overlap(rows, args["rows"], *asked)
    low, high = _touched(rows, ids, args["rows"])
    before, touched, after = rows[:low], rows[low:high], rows[high:]
    if kind == "skip_rows":
        return before + after
    if kind == "duplicate_rows":
        return before + touched + touched + after
    if kind == "unordered_rows":
        return before + touched[::-1] + after
    change = _CHANGES[kind]
    return before + [_changed(row, change, args, fields) for row in touched] + after


def _touched(rows: list[Row], ids: Span | None, count: int | None) -> tuple[int, int]:
    """The slice of rows that a fault touches."""
    if ids is not None:
        inside = [at for at, row in enumerate(rows) if ids[0] <= row[0] <= ids[1]]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)
    if count is None:
        return 0, len(rows)
    low = max(0, (len(rows) - count) // 2)
    return low, low + count


def _overlap(rows: list[Row], count: int, window: Window, source: Source) -> list[Row]:
    if window.newest:
        return rows + source.oldest(rows[-1][0] + 1, rows[-1][0] + count, count)
    return source.newest(rows[0][0] - count, rows[0][0] - 1, count) + rows


def _changed(row: Row, change: Callable[[Any, Json, Fields], None], args: Json, fields: Fields) -> Row:
    trade = json.loads(row[1])
    change(trade, args, fields)
    return row[0], json.dumps(trade, separators=(",", ":"))


def _name(args: Json, fields: Fields) -> Any:
    """The exchange's own name (or place in the row) of the field that a fault is about."""
    return getattr(fields, str(args["field"]), args["field"])


def _mutate(trade: Any, args: Json, fields: Fields) -> None:
    name = _name(args, fields)
    value = str(trade[name])
    other = value[:-1] + str((int(value[-1]) + 1) % 10)
    trade[name] = other if isinstance(trade[name], str) else int(other)


def _wrong_unit(trade: Any, args: Json, fields: Fields) -> None:
    time = trade[fields.time]
    trade[fields.time] = type(time)(Decimal(str(time)) * args["factor"])


def _clock_backwards(trade: Any, args: Json, fields: Fields) -> None:
    time = trade[fields.time]
    if isinstance(time, int | float) or time.isdecimal():
        unit = 1000 if Decimal(str(time)) > 10**11 else 1
        trade[fields.time] = type(time)(Decimal(str(time)) - round(args["seconds"] * unit))
    else:
        earlier = datetime.fromisoformat(time) - timedelta(seconds=args["seconds"])
        trade[fields.time] = earlier.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _odd_numbers(trade: Any, args: Json, fields: Fields) -> None:
    trade[fields.price] = f"{Decimal(trade[fields.price]):E}"
    trade[fields.size] = f"{Decimal(trade[fields.size]) + Decimal('1E-18'):.18f}"


def _bad_price(trade: Any, args: Json, fields: Fields) -> None:
    trade[fields.price] = args["value"]


def _nan(trade: Any, args: Json, fields: Fields) -> None:
    trade[fields.price] = float(args["value"])


def _missing_field(trade: Any, args: Json, fields: Fields) -> None:
    name = _name(args, fields)
    if not isinstance(trade, dict) or name in trade:
        del trade[name]


def _set_field(trade: Any, args: Json, fields: Fields) -> None:
    trade[_name(args, fields)] = args["value"]


_CHANGES: dict[str, Callable[[Any, Json, Fields], None]] = {
    "mutate": _mutate,
    "wrong_unit": _wrong_unit,
    "clock_backwards": _clock_backwards,
    "odd_numbers": _odd_numbers,
    "bad_price": _bad_price,
    "nan": _nan,
    "extra_field": _set_field,
    "missing_field": _missing_field,
    "set_field": _set_field,
}


def spoil_answer(kind: str, args: Json, answer: Answer) -> Answer:
    """Apply one answer fault."""
    if kind == "http_status":
        _http_status(answer, args)
    elif kind == "hang":
        answer.delay_s += args["seconds"]
    elif kind == "trickle":
        answer.trickle_s += args["seconds"]
    elif kind == "reset":
        answer.cut = args["how"]
    elif kind == "truncated_json":
        answer.body = answer.body[: int(len(answer.body) * args["share"])]
    elif kind == "html_200":
        answer.status, answer.body, answer.content_type = 200, _HTML, "text/html"
    elif kind == "empty_body":
        answer.body = b""
    elif kind == "bom":
        answer.body = b"\xef\xbb\xbf" + answer.body
    elif kind == "object_200":
        answer.status, answer.body = 200, json.dumps(args["body"]).encode()
    elif kind == "redirect":
        answer.status, answer.body = args["status"], b""
        answer.headers["Location"] = args["location"]
    elif kind == "gzip_bomb":
        answer.body = _zeros(args["megabytes"])
        answer.headers["Content-Encoding"] = "gzip"
    return answer


def _http_status(answer: Answer, args: Json) -> None:
    body = args["body"]
    answer.status = args["status"]
    answer.body = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    if args["retry_after"] is not None:
        answer.headers["Retry-After"] = str(args["retry_after"])


@lru_cache(maxsize=2)
def _zeros(megabytes: int) -> bytes:
    """A gzip stream of zeros, never held in memory whole."""
    squeeze = zlib.compressobj(9, wbits=31)
    return b"".join(squeeze.compress(bytes(2**20)) for _ in range(megabytes)) + squeeze.flush()
