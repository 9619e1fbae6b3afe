"""Talking to an exchange as its mapping says: one request in, checked rows out.

Requests are made from the mapping; answers are cut into the exact text of each row, so that raw keeps what was sent
(``1.10`` stays ``1.10``). Nothing here retries: the errors say whether a retry makes sense, the state machine does it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import requests

from schemahub.errors import (
    BadMapping,
    ExchangeRefused,
    ExchangeUnavailable,
    MalformedResponse,
    RateLimited,
    ResponseInterrupted,
    UnknownProduct,
)
from schemahub.mappings import Mapping
from schemahub.streams import MAX_POSITION, Stream

MAX_BODY_BYTES = 20 * 1024 * 1024
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 20.0
USER_AGENT = "schemahub/1 (+https://github.com/schemahub/schemahub)"
UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True)
class Answer:
    """What came back: status, headers (lower case) and body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Http(Protocol):
    def get(self, url: str, params: dict[str, str]) -> Answer:
        """One GET. Raises ExchangeUnavailable (nothing came) or ResponseInterrupted (the body broke off)."""
        ...


class RequestsHttp:
    """``Http`` over requests: no redirects, a bound on the body, verified TLS."""

    def __init__(self, session: requests.Session | None = None) -> None:
        self.session = session or requests.Session()
        self.session.headers["User-Agent"] = USER_AGENT

    def get(self, url: str, params: dict[str, str]) -> Answer:
        try:
            with self.session.get(
                url, params=params, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S), allow_redirects=False, stream=True
            ) as response:
                body = b"".join(self._bounded(response))
                return Answer(response.status_code, {k.lower(): v for k, v in response.headers.items()}, body)
        except requests.exceptions.SSLError as error:
            remedy = "Check the clock and the certificates; verification is never turned off."
            raise ExchangeRefused(f"TLS failed: {_short(error)}", remedy=remedy) from error
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError) as error:
            raise ResponseInterrupted(f"the answer broke off: {_short(error)}") from error
        except requests.exceptions.RequestException as error:
            raise ExchangeUnavailable(f"no answer: {_short(error)}") from error

    @staticmethod
    def _bounded(response: requests.Response) -> Iterator[bytes]:
        size = 0
        for block in response.iter_content(64 * 1024):
            size += len(block)
            if size > MAX_BODY_BYTES:
                raise MalformedResponse(f"the answer is larger than {MAX_BODY_BYTES // 2**20} MiB")
            yield block


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@dataclass(frozen=True)
class Row:
    """One trade as sent: its id, its time (µs since the epoch, None when unreadable) and its exact JSON text."""

    id: int
    ts_us: int | None
    text: str


@dataclass(frozen=True)
class Product:
    """A listed product: ours (``BTC-USDT``), the exchange's spelling and status, whether it trades or is gone."""

    product: str
    symbol: str
    status: str
    online: bool
    delisted: bool = False


class Exchange:
    """The requests of one exchange. Pacing is the caller's: each method sends exactly one request."""

    def __init__(self, mapping: Mapping, http: Http, base_url: str | None = None) -> None:
        self.mapping = mapping
        self.http = http
        self.base_url = (base_url or mapping.base_url).rstrip("/")
        if base_url is not None and urlsplit(base_url).scheme not in ("http", "https"):
            raise BadMapping(f"endpoint {base_url[:80]!r} of {mapping.exchange} is not an http(s) URL")

    def page(self, stream: Stream, first: int, last: int) -> list[Row]:
        """The rows of one answer that asks for ``[first, last]``, in the order sent.

        A descending exchange is asked from ``last`` downwards, an ascending one from ``first`` upwards; rows outside
        the range are part of the answer and left to the caller.
        """
        cursor = self.mapping.requests.cursor
        anchor = last + 1 if cursor.means == "below" else first
        size = min(self.mapping.requests.page_size, last - first + 1)
        return self._trades(stream, {cursor.parameter: str(anchor), self.mapping.requests.size_parameter: str(size)})

    def newest(self, stream: Stream) -> list[Row]:
        """The newest page of a stream."""
        return self._trades(stream, {self.mapping.requests.size_parameter: str(self.mapping.requests.page_size)})

    def products(self) -> list[Product]:
        """What the exchange lists, in our spelling.

        Products whose names ours cannot hold are left out, and those whose symbol is not the one that we would ask by:
        an auction (BTCAUCTION-USD) may be listed with the same base and quote as the market.
        """
        spec = self.mapping.products
        answer = self._send(spec.path, {}, None)
        try:
            rows = _at_pointer(parse_json(answer.body), spec.rows)
        except MalformedResponse as error:
            raise MalformedResponse(f"products: {error.reason}", stream=self.mapping.exchange) from error
        if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
            raise MalformedResponse("the product list is not a list of objects", stream=self.mapping.exchange)
        products = []
        for row in rows:
            product, symbol = f"{row.get(spec.base)}-{row.get(spec.quote)}", str(row.get(spec.symbol))
            status = str(row.get(spec.status))
            ours = re.fullmatch(r"[A-Z0-9]{1,20}-[A-Z0-9]{1,20}", product)
            if ours and symbol == self.mapping.symbol_of(product):
                disabled = bool(spec.disabled and row.get(spec.disabled))
                online = status in spec.online and not disabled
                products.append(Product(product, symbol, status, online, status in spec.delisted))
        return sorted(products, key=lambda p: p.product)

    def _trades(self, stream: Stream, query: dict[str, str]) -> list[Row]:
        spec = self.mapping.requests
        symbol = self.mapping.symbol_of(stream.product)
        fixed = {k: v.format(symbol=symbol) for k, v in spec.query.items()}
        answer = self._send(spec.path.format(symbol=quote(symbol, safe="")), {**fixed, **query}, stream)
        try:
            return parse_rows(answer.body, self.mapping)
        except MalformedResponse as error:
            kind = answer.headers.get("content-type", "unknown type")
            raise MalformedResponse(f"{error.reason} (status 200, {kind})", stream=stream) from error

    def _send(self, path: str, params: dict[str, str], stream: Stream | None) -> Answer:
        about = stream or self.mapping.exchange
        try:
            answer = self.http.get(self.base_url + path, params)
        except (ExchangeUnavailable, ResponseInterrupted, ExchangeRefused, MalformedResponse) as error:
            raise type(error)(error.reason, stream=about, remedy=error.remedy) from error
        if answer.status != 200:
            raise self._refusal(answer, about, stream)
        return answer

    def _refusal(self, answer: Answer, about: object, stream: Stream | None) -> Exception:
        """The error that a status other than 200 means."""
        status, spec = answer.status, self.mapping.requests
        said = answer.body[:120].decode("utf-8", "replace")
        if status in self.mapping.limits.slow_down_status:
            return RateLimited(
                f"status {status}", retry_after_s=retry_after_s(answer.headers.get("retry-after")), stream=about
            )
        if status >= 500 or status == 408:
            return ExchangeUnavailable(f"status {status}: {said}", stream=about)
        if stream and status in spec.unknown_product_status and self._says_unknown(answer.body):
            return UnknownProduct(f"{self.mapping.name} does not know this product (status {status})", stream=about)
        if 300 <= status < 400:
            return ExchangeRefused(
                f"redirected to {answer.headers.get('location', '?')[:120]!r}, not followed", stream=about
            )
        return ExchangeRefused(f"status {status}: {said}", stream=about)

    def _says_unknown(self, body: bytes) -> bool:
        code = self.mapping.requests.unknown_product_code
        if code is None:
            return True
        try:
            return bool(json.loads(body)["code"] == code)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds of a Retry-After header: a number or an HTTP date (RFC 9110 §10.2.3); None when absent or unreadable."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value.strip()):
        return float(value)
    try:
        when = datetime.strptime(value.strip(), "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError:
        return None
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())


def parse_json(body: bytes) -> Any:
    """JSON of an answer; NaN and Infinity, which JSON does not have, are refused."""
    try:
        return json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedResponse(f"the answer is not JSON: {_short(error)}; it begins {body[:60]!r}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _at_pointer(document: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        if not isinstance(document, dict) or part not in document:
            raise MalformedResponse(f"the answer has no {pointer!r}")
        document = document[part]
    return document


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_SPACE = re.compile(r"[ \t\r\n]*")


def parse_rows(body: bytes, mapping: Mapping) -> list[Row]:
    """The rows of an answer, each with its exact text on one line.

    Raises:
        MalformedResponse: not JSON, not a list of objects, or an id that is not an integer of 1..2^63-1.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedResponse(f"the answer is not UTF-8: {_short(error)}") from error
    out: list[Row] = []
    try:
        if mapping.requests.rows:
            _at_pointer(json.loads(text, parse_constant=_no_constant), mapping.requests.rows)
            text = _text_at_pointer(text, mapping.requests.rows)
        for value, raw in _elements(text, 0):
            out.append(_row(value, raw, mapping))
    except (ValueError, RecursionError) as error:
        raise MalformedResponse(f"the answer is not JSON: {_short(error)}; it begins {body[:60]!r}") from error
    return out


def _text_at_pointer(text: str, pointer: str) -> str:
    """The exact text of the value at ``pointer`` in a document that is known to hold it."""
    for wanted in pointer.split("/")[1:]:
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


def _row(value: Any, raw: str, mapping: Mapping) -> Row:
    if not isinstance(value, dict):
        raise MalformedResponse(f"{raw[:80]!r} is not a trade object")
    trade_id = value.get(mapping.fields.trade_id)
    if isinstance(trade_id, str) and re.fullmatch(r"[1-9][0-9]{0,18}", trade_id):
        # Coinbase has sent ids both as numbers and as text over the years; both are exact.
        trade_id = int(trade_id)
    if type(trade_id) is not int or not 0 < trade_id <= MAX_POSITION:
        raise MalformedResponse(f"trade id {str(trade_id)[:40]!r} is not a positive integer")
    return Row(trade_id, _ts_us(value.get(mapping.fields.trade_ts), mapping), raw)


def _ts_us(value: Any, mapping: Mapping) -> int | None:
    """The trade's time, as far as planning needs it; the transform judges it strictly."""
    try:
        if mapping.fields.ts_type == "epoch":
            return int(Decimal(str(value)) * 1_000_000 / UNITS_PER_SECOND[mapping.fields.ts_unit or "ms"])
        when = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        return int(when.replace(tzinfo=when.tzinfo or UTC).timestamp() * 1_000_000)
    except (ValueError, TypeError, ArithmeticError):
        return None
