"""Talking to an exchange as its mapping says: one request in, checked rows out.

Requests are made from the mapping; answers are cut into the exact text of each row, so that raw keeps what was sent
(``1.10`` stays ``1.10``). Nothing here retries: the errors say whether a retry makes sense, the state machine does it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import requests

from schemahub.answers import Row, any_of, codes_at, parse_json, parse_rows
from schemahub.clock import Clock, SystemClock
from schemahub.errors import (
    BadMapping,
    ExchangeRefused,
    ExchangeUnavailable,
    MalformedResponse,
    RateLimited,
    ResponseInterrupted,
    UnknownProduct,
)
from schemahub.mappings import NS, Mapping
from schemahub.pointers import at_pointer, element_of, members
from schemahub.streams import PRODUCT, Stream

MAX_BODY_BYTES = 20 * 1024 * 1024
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 20.0
WINDOW_MARGIN_S = 60.0
USER_AGENT = "schemahub/1 (+https://github.com/schemahub/schemahub)"


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
class Product:
    """A listed product: ours (``BTC-USDT``), the exchange's spelling and status, whether it trades or is gone."""

    product: str
    symbol: str
    status: str
    online: bool
    delisted: bool = False


class Exchange:
    """The requests of one exchange. Pacing is the caller's: each method sends exactly one request."""

    def __init__(self, mapping: Mapping, http: Http, base_url: str | None = None, clock: Clock | None = None) -> None:
        self.mapping = mapping
        self.http = http
        self.clock = clock or SystemClock()
        self.base_url = (base_url or mapping.base_url).rstrip("/")
        if base_url is not None and urlsplit(base_url).scheme not in ("http", "https"):
            raise BadMapping(f"endpoint {base_url[:80]!r} of {mapping.exchange} is not an http(s) URL")

    def page(self, stream: Stream, first: int, last: int) -> list[Row]:
        """The rows of one answer that asks for ``[first, last]``, in the order sent.

        A descending exchange is asked from ``last`` downwards, every other one from ``first`` upwards, and one that
        shows its newest trades only for these; rows outside the range are part of the answer and left to the caller.
        """
        spec = self.mapping.requests
        page, size = spec.page, spec.page_size
        if page.asks == "newest":
            return self.newest(stream, reaching_back_to=first)
        if page.asks == "time_from":
            # Rounded down: an answer may begin before the range, never behind its beginning.
            anchor = max(0, first - page.slack_ns - (not page.inclusive)) // NS[page.unit]
        else:
            anchor = last + 1 if page.descending else max(0, first - (not page.inclusive))
            size = min(size, last - first + 1) if spec.ids == "dense" else size
        return self._trades(stream, {**page.query, page.parameter: str(anchor), **self._size(size)})

    def newest(self, stream: Stream, reaching_back_to: int | None = None) -> list[Row]:
        """The newest page of a stream; of an exchange that has windows, the shortest that reaches back to a time."""
        query = self._size(self.mapping.requests.page_size)
        if windows := self.mapping.requests.page.windows:
            since_s = 0 if reaching_back_to is None else self.clock.now_ms() / 1000 - reaching_back_to / NS["s"]
            long_enough = [w for w in windows if w.seconds > since_s + WINDOW_MARGIN_S]
            query |= (long_enough or windows[-1:])[0].query
        return self._trades(stream, query)

    def _size(self, rows: int) -> dict[str, str]:
        name = self.mapping.requests.size_parameter
        return {name: str(rows)} if name else {}

    def products(self) -> list[Product]:
        """What the exchange lists, in our spelling.

        Products whose names ours cannot hold are left out, and those whose symbol is not the one that we would ask by:
        an auction (BTCAUCTION-USD) may be listed with the same base and quote as the market.
        """
        spec = self.mapping.products
        answer = self._send(spec.path, spec.query, None)
        try:
            rows = at_pointer(parse_json(answer.body), spec.rows)
        except MalformedResponse as error:
            raise MalformedResponse(f"products: {error.reason}", stream=self.mapping.exchange) from error
        try:
            like = at_pointer(parse_json(spec.example.encode()), spec.rows)
        except MalformedResponse as error:
            raise BadMapping(f"products/example: {error.reason}", stream=self.mapping.exchange) from error
        if type(rows) is not type(like) or {type(r) for r in members(rows)} - {type(r) for r in members(like)}:
            raise MalformedResponse("the product list is not a list like the example's", stream=self.mapping.exchange)
        found = filter(None, map(self._product, members(rows)))
        return sorted(found, key=lambda p: p.product)

    def _product(self, row: Any) -> Product | None:
        spec, mapping = self.mapping.products, self.mapping
        if any(str(element_of(row, name)) not in allowed for name, allowed in spec.only.items()):
            return None
        assets = spec.assets_of(row)
        product = "-".join(mapping.asset(a) for a in assets) if assets else ""
        if not PRODUCT.fullmatch(product):
            return None
        symbol = mapping.symbol_of(product)
        if not isinstance(row, str) and str(element_of(row, spec.symbol)) != symbol:
            return None
        status = str(element_of(row, spec.status)) if spec.status else ""
        disabled = bool(spec.disabled and element_of(row, spec.disabled))
        online = not disabled and (status in spec.online or not spec.status)
        return Product(product, symbol, status, online, status in spec.delisted)

    def _trades(self, stream: Stream, query: dict[str, str]) -> list[Row]:
        spec = self.mapping.requests
        symbol = self.mapping.symbol_of(stream.product)
        fixed = {k: v.format(symbol=symbol) for k, v in spec.query.items()}
        answer = self._send(spec.path.format(symbol=quote(symbol, safe="")), {**fixed, **query}, stream)
        try:
            return parse_rows(answer.body, self.mapping, symbol)
        except MalformedResponse as error:
            kind = answer.headers.get("content-type", "unknown type")
            raise MalformedResponse(f"{error.reason} (status 200, {kind})", stream=stream) from error

    def _send(self, path: str, params: dict[str, str], stream: Stream | None) -> Answer:
        about = stream or self.mapping.exchange
        try:
            answer = self.http.get(self.base_url + path, params)
        except (ExchangeUnavailable, ResponseInterrupted, ExchangeRefused, MalformedResponse) as error:
            raise type(error)(error.reason, stream=about, remedy=error.remedy) from error
        if refusal := self._refusal(answer, about, stream):
            raise refusal
        return answer

    def _refusal(self, answer: Answer, about: object, stream: Stream | None) -> Exception | None:
        """The error that the status means, or the code in the answer; None for a good answer."""
        status, errors = answer.status, self.mapping.errors
        codes = codes_at(answer.body, errors.at) if errors else []
        said = f"status {status}" + (f", {', '.join(codes)}" if codes else "")
        if status in self.mapping.limits.slow_down_status or (errors and any_of(codes, errors.slow_down)):
            return RateLimited(said, retry_after_s=retry_after_s(answer.headers.get("retry-after")), stream=about)
        if stream and self._means_unknown(status, codes):
            return UnknownProduct(f"{self.mapping.name} does not know this product ({said})", stream=about)
        text = answer.body[:120].decode("utf-8", "replace")
        if errors and any_of(codes, errors.unavailable):
            return ExchangeUnavailable(f"{said}: {text}", stream=about)
        if status == 200 and (not codes or (errors and not [c for c in codes if not any_of([c], errors.ok)])):
            return None
        if status >= 500 or status == 408:
            return ExchangeUnavailable(f"{said}: {text}", stream=about)
        if status == 200:
            return MalformedResponse(f"{said}, which the mapping does not know: {text}", stream=about)
        if 300 <= status < 400:
            return ExchangeRefused(
                f"redirected to {answer.headers.get('location', '?')[:120]!r}, not followed",
                status=status,
                stream=about,
            )
        return ExchangeRefused(f"{said}: {text}", status=status, stream=about)

    def _means_unknown(self, status: int, codes: list[str]) -> bool:
        known = self.mapping.errors.unknown_product if self.mapping.errors else ()
        if known:
            return any_of(codes, known)
        return status in self.mapping.requests.unknown_product_status


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
