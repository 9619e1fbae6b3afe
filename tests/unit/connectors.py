"""What the exchanges' documentation says of one real answer each, written by hand: nothing here reads a mapping."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

Asked = tuple[str, dict[str, str]]
"""URL and parameters of a request."""


@dataclass(frozen=True)
class Known:
    """One exchange: the trade and the product of its mapping's examples, its requests, its words for trouble."""

    product: str
    symbol: str
    trade_id: str
    side: str
    price: str
    quantity: str
    time_ns: int
    newest: Asked
    page: Asked
    """For the ids 5000..5009, or for the time 1700000000.123456789 s on."""
    unknown: tuple[int, Any]
    """Status and JSON of the answer to an unknown product."""
    limited: tuple[int, Any]
    symbols: dict[str, str]
    """Our products and the exchange's spelling of them."""


NS = 1_700_000_000_123_456_789

KNOWN = {
    "coinbase": Known(
        "BTC-USD", "BTC-USD", "18502034", "BUY", "73271.63", "0.00007448", 1_710_327_617_710_679_000,
        ("https://api.exchange.coinbase.com/products/BTC-USD/trades", {"limit": "1000"}),
        ("https://api.exchange.coinbase.com/products/BTC-USD/trades", {"after": "5010", "limit": "10"}),
        (404, {"message": "NotFound"}),
        (429, {"message": "Public rate limit exceeded"}),
        {"BTC-USD": "BTC-USD", "ETH-BTC": "ETH-BTC", "00-USD": "00-USD"},
    ),
    "binance": Known(
        "BTC-USDT", "BTCUSDT", "26129", "SELL", "0.01633102", "4.70443515", 1_498_793_709_153_000_000,
        ("https://api.binance.com/api/v3/aggTrades", {"symbol": "BTCUSDT", "limit": "1000"}),
        ("https://api.binance.com/api/v3/aggTrades", {"symbol": "BTCUSDT", "fromId": "5000", "limit": "10"}),
        (400, {"code": -1121, "msg": "Invalid symbol."}),
        (429, {"code": -1003, "msg": "Too much request weight used"}),
        {"BTC-USDT": "BTCUSDT", "1INCH-USDT": "1INCHUSDT", "USDC-USDT": "USDCUSDT"},
    ),
    "binance_us": Known(
        "BTC-USDT", "BTCUSDT", "26129", "SELL", "0.01633102", "4.70443515", 1_498_793_709_153_000_000,
        ("https://api.binance.us/api/v3/aggTrades", {"symbol": "BTCUSDT", "limit": "1000"}),
        ("https://api.binance.us/api/v3/aggTrades", {"symbol": "BTCUSDT", "fromId": "5000", "limit": "10"}),
        (400, {"code": -1121, "msg": "Invalid symbol."}),
        (418, {"code": -1003, "msg": "Way too many requests; IP banned"}),
        {"BTC-USDT": "BTCUSDT", "BTC-USD": "BTCUSD"},
    ),
    "kraken": Known(
        "BTC-USD", "XBTUSD", "61044952", "BUY", "30243.4", "0.34507674", 1_688_669_597_827_736_900,
        ("https://api.kraken.com/0/public/Trades", {"pair": "XBTUSD", "count": "1000"}),
        ("https://api.kraken.com/0/public/Trades", {"pair": "XBTUSD", "since": str(NS - 1000), "count": "1000"}),
        (200, {"error": ["EQuery:Unknown asset pair"]}),
        (200, {"error": ["EService: Throttled: 1688669597"]}),
        {"BTC-USD": "XBTUSD", "DOGE-EUR": "XDGEUR", "ETH-BTC": "ETHXBT", "USTC-USD": "USTUSD", "USDT-USD": "USDTUSD"},
    ),
    "bitstamp": Known(
        "BTC-USD", "btcusd", "90574283", "SELL", "8194.79", "0.00288599", 1_560_481_868_000_000_000,
        ("https://www.bitstamp.net/api/v2/transactions/btcusd/", {"time": "hour"}),
        ("https://www.bitstamp.net/api/v2/transactions/btcusd/", {"time": "day"}),
        (404, {"status": "error", "reason": "Unknown market", "response_code": "404.003"}),
        (429, {"status": "error", "reason": "Rate limit", "response_code": "400.002"}),
        {"BTC-USD": "btcusd", "PEPE-USD": "pepeusd", "ETH-BTC": "ethbtc"},
    ),
    "gemini": Known(
        "BTC-USD", "btcusd", "2840140831246421", "BUY", "73268.24", "0.00028921", 1_710_325_796_526_000_000,
        ("https://api.gemini.com/v1/trades/btcusd", {"limit_trades": "500"}),
        ("https://api.gemini.com/v1/trades/btcusd", {"since_tid": "4999", "limit_trades": "500"}),
        (400, {"result": "error", "reason": "InvalidSymbol", "message": "Supplied value 'x' is not a valid symbol"}),
        (429, {"result": "error", "reason": "RateLimit", "message": "Requests were made too frequently"}),
        {"BTC-USD": "btcusd", "PAXG-USD": "paxgusd", "BTC-GUSD": "btcgusd", "ETH-BTC": "ethbtc", "BTC-USDT": "btcusdt"},
    ),
    "okx": Known(
        "BTC-USDT", "BTC-USDT", "15826757", "SELL", "0.07065", "0.119501", 1_621_446_178_316_000_000,
        ("https://www.okx.com/api/v5/market/history-trades", {"instId": "BTC-USDT", "type": "1", "limit": "100"}),
        (
            "https://www.okx.com/api/v5/market/history-trades",
            {"instId": "BTC-USDT", "type": "1", "after": "5010", "limit": "100"},
        ),
        (200, {"code": "51001", "msg": "Instrument ID does not exist", "data": []}),
        (200, {"code": "50011", "msg": "Too Many Requests", "data": []}),
        {"BTC-USDT": "BTC-USDT", "ETH-BTC": "ETH-BTC"},
    ),
    "bybit": Known(
        "BTC-USDT", "BTCUSDT", "2100000000007764263", "BUY", "16618.49", "0.00012", 1_672_052_955_758_000_000,
        ("https://api.bybit.com/v5/market/recent-trade", {"category": "spot", "symbol": "BTCUSDT", "limit": "60"}),
        ("https://api.bybit.com/v5/market/recent-trade", {"category": "spot", "symbol": "BTCUSDT", "limit": "60"}),
        (200, {"retCode": 10001, "retMsg": "Not supported symbols", "result": {}}),
        (403, "access too frequent"),
        {"BTC-USDT": "BTCUSDT", "ETH-BTC": "ETHBTC", "1INCH-USDC": "1INCHUSDC"},
    ),
    "bitfinex": Known(
        "BTC-USD", "tBTCUSD", "1254284003", "BUY", "16575", "0.00007152", 1_668_971_823_091_000_000,
        ("https://api-pub.bitfinex.com/v2/trades/tBTCUSD/hist", {"limit": "10000"}),
        (
            "https://api-pub.bitfinex.com/v2/trades/tBTCUSD/hist",
            {"sort": "1", "start": "1700000000123", "limit": "10000"},
        ),
        (500, ["error", 10020, "symbol: invalid"]),
        (429, {"error": "ERR_RATE_LIMIT"}),
        {"BTC-USD": "tBTCUSD", "BTC-USDT": "tBTCUST", "AVAX-USD": "tAVAX:USD", "USDT-USD": "tUSTUSD"},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Unified:
    """A row as the table holds it."""

    trade_id: str
    side: str | None
    price: Decimal
    quantity: Decimal
    time_ns: int
