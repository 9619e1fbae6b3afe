"""Two exchanges behind requests' own decoding: what they answer is bytes, headers and broken connections."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import HTTPResponse

NOW_MS = 1_710_400_000_000
"""2024-03-14 07:06:40 UTC."""
OLDEST_S = NOW_MS // 1000 - 10_000
FAILURES: dict[str, Exception] = {
    "timeout": requests.exceptions.ReadTimeout("read timed out"),
    "refused": requests.exceptions.ConnectionError("connection refused"),
    "tls": requests.exceptions.SSLError("certificate verify failed: self-signed certificate"),
}


def coinbase_row(number: int) -> dict[str, Any]:
    """One trade a second."""
    at = datetime.fromtimestamp(OLDEST_S + number, UTC)
    return {
        "trade_id": number,
        "side": "sell" if number % 3 else "buy",
        "size": f"0.{number:08d}",
        "price": f"{60_000 + number}.25000000",
        "time": f"{at:%Y-%m-%dT%H:%M:%S}.000000Z",
    }


def binance_row(number: int) -> dict[str, Any]:
    return {
        "a": number,
        "p": "60000.1",
        "q": "0.5",
        "f": number,
        "l": number,
        "T": (OLDEST_S + number) * 1000,
        "m": bool(number % 2),
        "M": True,
    }


@dataclass
class Market(BaseAdapter):
    """Both exchanges, honest but for ``spoils``: each says which requests it meets (``on``, ``times``) and with what.

    ``status``, ``headers``, ``body`` and ``encoding`` replace the answer; ``rows`` change the honest rows of it;
    ``fail`` breaks the connection; ``cut`` ends the body early.
    """

    newest: int = 19
    spoils: list[dict[str, Any]] = field(default_factory=list)
    requests: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self._build = HTTPAdapter().build_response

    def close(self) -> None:
        pass

    def send(self, request: Any, **_: Any) -> requests.Response:
        self.requests += 1
        kind, rows = self._honest(urlsplit(request.url))
        spoil = next((s for s in self.spoils if s.get("on", kind) == kind and s.get("times", 1) > 0), {})
        if "times" in spoil:
            spoil["times"] -= 1
        if "fail" in spoil:
            raise FAILURES[spoil["fail"]]
        for change in spoil.get("rows", ()):
            rows = spoilt(rows, change)
        body = as_bytes(spoil["body"]) if "body" in spoil else json.dumps(rows).encode()
        headers = {"content-type": "application/json", **spoil.get("headers", {})}
        if "encoding" in spoil:
            headers["content-encoding"] = "gzip"
            body = gzip.compress(body) if spoil["encoding"] == "gzip" else body
        if "cut" in spoil:
            headers["content-length"] = str(len(body))
            body = body[: spoil["cut"]]
        raw = HTTPResponse(
            io.BytesIO(body), headers, spoil.get("status", 200), preload_content=False, enforce_content_length=True
        )
        return self._build(request, raw)

    def _honest(self, url: Any) -> tuple[str, Any]:
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        size = int(query.get("limit", 1))
        if url.path.endswith("/trades"):
            above = int(query.get("after", self.newest + 1))
            ids = range(min(above, self.newest + 1) - 1, max(0, min(above, self.newest + 1) - 1 - size), -1)
            return ("page" if "after" in query else "head"), [coinbase_row(i) for i in ids]
        if url.path.endswith("/aggTrades"):
            first = int(query.get("fromId", max(1, self.newest - size + 1)))
            ids = range(first, min(first + size - 1, self.newest) + 1)
            return ("page" if "fromId" in query else "head"), [binance_row(i) for i in ids]
        return "products", [
            {"id": "BTC-USD", "base_currency": "BTC", "quote_currency": "USD", "status": "online"},
            {"id": "REP-USD", "base_currency": "REP", "quote_currency": "USD", "status": "delisted"},
        ]


def spoilt(rows: list[dict[str, Any]], change: dict[str, Any]) -> list[Any]:
    """Honest rows with one change: ``{"id": 65, "set": …}``, ``drop``, ``twice``, ``keep``, ``add``, ``order``."""
    key = "trade_id" if rows and "trade_id" in rows[0] else "a"
    match change:
        case {"id": number, "set": values}:
            return [{**r, **values} if r.get(key) == number else r for r in rows]
        case {"id": number, "without": name}:
            return [{k: v for k, v in r.items() if r.get(key) != number or k != name} for r in rows]
        case {"drop": [first, last]}:
            return [r for r in rows if not first <= r[key] <= last]
        case {"twice": number, **rest}:
            return [*rows, *({**r, **rest.get("set", {})} for r in rows if r[key] == number)]
        case {"keep": count}:
            return rows[:count]
        case {"add": row}:
            return [*rows, row]
        case {"every": values}:
            return [{**r, **values} for r in rows]
        case {"order": "shuffled"}:
            return rows[1::2] + rows[::2]
    raise AssertionError(f"no such change: {change}")


def as_bytes(value: Any) -> bytes:
    """Text, bytes, or any document as JSON."""
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "surrogatepass")
