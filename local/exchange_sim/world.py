"""The simulated world: which products each exchange lists, its limit, its latency, the seed.

`build_world(config)` turns a plain mapping (YAML or JSON) into a `World`; every key is optional, an unknown
one is an error:

    seed: 1
    genesis: 2024-01-01T00:00:00Z     # when every product's history begins
    products: 40                      # short for coinbase: {products: 40}
    latency_ms: {mean: 30, jitter: 15}
    coinbase:
      products: 40                    # P0001-USD ... P0040-USD, or a list: [BTC-USD, {name: X-USD, ...}]
      trades_per_day: 40000           # for every generated product of this exchange
      limit: {rate: 10, burst: 15}    # or none
      latency_ms: {mean: 30, jitter: 15}
    binance:
      limit: {weight_per_minute: 6000, ban_after: 10, ban_s: 120}
    recordings:
      - {exchange: binance, product: XRPETH, path: XRPETH.jsonl.gz}
    clock: {offset_s: 0, frozen: false}
    faults: []                        # as in POST /_sim/faults
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from . import binance, coinbase, recordings
from .generator import DAY_US, UNIT, Product
from .limits import Limiter, TokenBucket, Unlimited, WeightWindow
from .messages import Listing
from .sources import Generated

PROTOCOLS: dict[str, ModuleType] = {"coinbase": coinbase, "binance": binance}
GENESIS = "2024-01-01T00:00:00Z"


class Character(NamedTuple):
    """What distinguishes one generated product from another."""

    name: str
    price: float
    price_decimals: int
    trades_per_day: int
    first_id: int


# The ten busiest Coinbase products hold 376,000 trades a day.
_COINBASE = [
    ("BTC-USD", 97_000.0, 2, 44_000, 580_000_000),
    ("ETH-USD", 3_400.0, 2, 43_000, 490_000_000),
    ("SOL-USD", 190.0, 2, 41_000, 210_000_000),
    ("XRP-USD", 2.3, 4, 40_000, 160_000_000),
    ("DOGE-USD", 0.33, 5, 38_000, 120_000_000),
    ("ADA-USD", 0.9, 4, 36_000, 98_000_000),
    ("AVAX-USD", 37.0, 2, 35_000, 61_000_000),
    ("LINK-USD", 21.0, 3, 34_000, 73_000_000),
    ("LTC-USD", 105.0, 2, 33_000, 104_000_000),
    ("DOT-USD", 7.1, 3, 32_000, 44_000_000),
    ("BCH-USD", 450.0, 2, 31_000, 57_000_000),
    ("UNI-USD", 13.2, 3, 30_500, 29_000_000),
    ("BTC-EUR", 93_000.0, 2, 31_500, 83_000_000),
    ("ETH-BTC", 0.035, 5, 30_000, 31_000_000),
]
_BINANCE = [
    ("BTCUSDT", 97_000.0, 2, 44_000, 3_300_000_000),
    ("ETHUSDT", 3_400.0, 2, 43_000, 1_900_000_000),
    ("SOLUSDT", 190.0, 2, 41_000, 640_000_000),
    ("XRPUSDT", 2.3, 4, 40_000, 720_000_000),
    ("DOGEUSDT", 0.33, 5, 40_500, 510_000_000),
    ("BNBUSDT", 690.0, 2, 39_000, 590_000_000),
    ("ADAUSDT", 0.9, 4, 38_500, 370_000_000),
    ("ETHBTC", 0.035, 5, 38_000, 410_000_000),
]
_DEFAULTS = {
    "coinbase": {row[0]: Character(*row) for row in _COINBASE},
    "binance": {row[0]: Character(*row) for row in _BINANCE},
}
# One delisted product each, in the default world: discovery has to leave it out.
_DELISTED = {
    "coinbase": Character("REP-USD", 12.0, 2, 900, 6_000_000),
    "binance": Character("WAVESUSDT", 1.2, 4, 9_000, 45_000_000),
}
_DELISTED_AFTER_US = 170 * DAY_US
# Binance symbols have no separator: the longest known quote that fits is the quote.
_QUOTES = ("FDUSD", "USDT", "USDC", "TUSD", "BUSD", "BTC", "ETH", "BNB", "EUR", "TRY", "USD")


class BadWorld(ValueError):
    """The configuration cannot be understood; the message names the key."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long an answer takes: uniform in `mean ± jitter` milliseconds."""

    mean: float = 30.0
    jitter: float = 15.0


@dataclass(slots=True)
class Exchange:
    """One exchange of the world."""

    name: str
    protocol: ModuleType
    listings: dict[str, Listing]
    limiter: Limiter
    latency: Latency


@dataclass(slots=True)
class World:
    """All that a simulator serves."""

    exchanges: dict[str, Exchange]
    offset_s: float = 0.0
    frozen: bool = False
    faults: list[dict[str, Any]] = field(default_factory=list)


def build_world(config: Mapping[str, Any] | None = None) -> World:
    """Build the world of a configuration. Raises BadWorld, BadRecording."""
    config = dict(config or {})
    _only(
        config,
        "configuration",
        {"seed", "genesis", "products", "latency_ms", "coinbase", "binance", "recordings", "clock", "faults"},
    )
    clock = dict(config.get("clock") or {})
    _only(clock, "clock", {"offset_s", "frozen"})
    exchanges = {}
    for name in PROTOCOLS:
        own = dict(config.get(name) or {})
        if name == "coinbase" and "products" in config:
            own.setdefault("products", config["products"])
        own.setdefault("latency_ms", config.get("latency_ms") or {})
        exchanges[name] = _exchange(name, own, int(config.get("seed", 1)), _genesis_us(config))
    for recording in config.get("recordings") or []:
        _add_recording(exchanges, dict(recording))
    return World(
        exchanges,
        float(clock.get("offset_s", 0)),
        bool(clock.get("frozen", False)),
        list(config.get("faults") or []),
    )


def _exchange(name: str, config: dict[str, Any], seed: int, genesis_us: int) -> Exchange:
    _only(config, name, {"products", "trades_per_day", "limit", "latency_ms"})
    protocol, listings = PROTOCOLS[name], {}
    for product in _products(name, config.get("products"), seed, genesis_us, config.get("trades_per_day")):
        listings[product.name] = _listed(product)
    _only(config["latency_ms"], f"{name}: latency_ms", {"mean", "jitter"})
    return Exchange(name, protocol, listings, _limiter(name, config.get("limit", {})), Latency(**config["latency_ms"]))


def _limiter(name: str, limit: Any) -> Limiter:
    if limit in (None, False, "none"):
        return Unlimited()
    if name == "coinbase":
        _only(limit, "coinbase: limit", {"rate", "burst"})
        return TokenBucket(**limit)
    _only(limit, "binance: limit", {"weight_per_minute", "ban_after", "ban_s"})
    return WeightWindow(**limit)


def _products(exchange: str, wanted: Any, seed: int, genesis_us: int, trades_per_day: int | None) -> list[Product]:
    known = _DEFAULTS[exchange]
    if wanted is None:
        gone = _product(exchange, _DELISTED[exchange], seed, genesis_us)
        ends_us = genesis_us + _DELISTED_AFTER_US
        return [
            *_products(exchange, list(known), seed, genesis_us, trades_per_day),
            replace(gone, status="delisted", ends_us=ends_us),
        ]
    if isinstance(wanted, int):
        wanted = [_numbered(exchange, number) for number in range(1, wanted + 1)]
    products = []
    for item in wanted:
        own: dict[str, Any] = {"name": item} if isinstance(item, str) else dict(item)
        _only(own, f"{exchange}: products", {*Character._fields, "status", "genesis"})
        character = known.get(own["name"]) or _arbitrary(own["name"])
        if trades_per_day:
            own.setdefault("trades_per_day", trades_per_day)
        character = character._replace(**{key: own[key] for key in character._fields if key in own})
        own_genesis_us = _genesis_us(own) if "genesis" in own else genesis_us
        product = _product(exchange, character, seed, own_genesis_us)
        products.append(replace(product, status=own.get("status", "online")))
    return products


def _numbered(exchange: str, number: int) -> str:
    return f"P{number:04d}-USD" if exchange == "coinbase" else f"P{number:04d}USDT"


def _arbitrary(name: str) -> Character:
    """Price, rate and first id of a product that no table knows, drawn from its name."""
    draw = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    decimals = draw % 4 + 2
    return Character(
        name,
        round(10 ** (5 - decimals) * (1 + draw % 89 / 10), decimals),
        decimals,
        30_000 + draw % 15_001,
        1_000_000 + draw % 900_000_000,
    )


def _product(exchange: str, character: Character, seed: int, genesis_us: int) -> Product:
    base, quote = split(exchange, character.name)
    cheap_quote = quote not in ("BTC", "ETH")
    return Product(
        exchange=exchange,
        name=character.name,
        base=base,
        quote=quote,
        price_ticks=max(1, round(character.price * 10**character.price_decimals)),
        price_decimals=character.price_decimals,
        size_units=max(1, round(400 / character.price * UNIT)) if cheap_quote else UNIT // 5,
        interval_us=DAY_US // character.trades_per_day,
        genesis_us=genesis_us,
        first_id=character.first_id,
        seed=seed,
    )


def _listed(product: Product) -> Listing:
    source = Generated(product, PROTOCOLS[product.exchange].render)
    return Listing(product.name, product.base, product.quote, product.price_decimals, product.status, source)


def _add_recording(exchanges: dict[str, Exchange], config: dict[str, Any]) -> None:
    _only(config, "recordings", {"exchange", "product", "path", "base", "quote"})
    exchange, name = config["exchange"], config["product"]
    if exchange not in exchanges:
        raise BadWorld(f"recordings: unknown exchange {exchange!r}")
    base, quote = split(exchange, name) if "base" not in config else (config["base"], config["quote"])
    source = recordings.load(exchange, name, Path(config["path"]))
    exchanges[exchange].listings[name] = Listing(name, base, quote, 8, "online", source)


def split(exchange: str, name: str) -> tuple[str, str]:
    """A product's base and quote from its name in URLs. Raises BadWorld when it shows neither."""
    if exchange == "coinbase":
        base, dash, quote = name.partition("-")
        if base and dash and quote:
            return base, quote
    else:
        for quote in _QUOTES:
            if name.endswith(quote) and name != quote:
                return name.removesuffix(quote), quote
    raise BadWorld(f"{exchange}: cannot tell base and quote of {name!r}; give base and quote")


def _genesis_us(config: Mapping[str, Any]) -> int:
    value = config.get("genesis", GENESIS)
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


def _only(config: Mapping[str, Any], where: str, allowed: set[str]) -> None:
    if unknown := set(config) - allowed:
        raise BadWorld(f"{where}: unknown {sorted(unknown)}; possible: {sorted(allowed)}")
