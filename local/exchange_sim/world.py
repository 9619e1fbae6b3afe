"""The simulated world: which products each exchange lists, its limit, its latency, the seed.

`build_world(config)` turns a plain mapping (YAML or JSON) into a `World`; every key is optional, an unknown
one is an error:

    seed: 1
    genesis: 2024-01-01T00:00:00Z     # when every product's history begins
    products: 40                      # short for coinbase: {products: 40}
    latency_ms: {mean: 30, jitter: 15}
    coinbase:                         # any exchange that has a mapping
      products: 40                    # P0001-USD ... P0040-USD, or a list: [BTC-USD, {name: X-USD, ...}]
      trades_per_day: 40000           # for every generated product of this exchange
      limit: {rate: 10, burst: 15}    # instead of the mapping's limit, or none
      latency_ms: {mean: 30, jitter: 15}
    binance:
      limit: {weight: 6000, per_seconds: 60, ban_after: 10, ban_s: 120}
    recordings:
      - {exchange: binance, product: XRPETH, path: XRPETH.jsonl.gz}
    clock: {offset_s: 0, frozen: false}
    faults: []                        # as in POST /_sim/faults
    archives: []                      # as in POST /_sim/archives
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from schemahub.mappings import Mapping as ExchangeMapping
from schemahub.mappings import exchanges as known_exchanges
from schemahub.mappings import load_mapping

from . import recordings
from .generator import DAY_US, UNIT, Product
from .limits import Limiter, TokenBucket, Unlimited, WeightWindow
from .messages import Listing
from .protocol import Protocol
from .sources import Generated

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
    ("BTC-USDT", 97_000.0, 2, 44_000, 3_300_000_000),
    ("ETH-USDT", 3_400.0, 2, 43_000, 1_900_000_000),
    ("SOL-USDT", 190.0, 2, 41_000, 640_000_000),
    ("XRP-USDT", 2.3, 4, 40_000, 720_000_000),
    ("DOGE-USDT", 0.33, 5, 40_500, 510_000_000),
    ("BNB-USDT", 690.0, 2, 39_000, 590_000_000),
    ("ADA-USDT", 0.9, 4, 38_500, 370_000_000),
    ("ETH-BTC", 0.035, 5, 38_000, 410_000_000),
]
# One delisted product each, in the default world: discovery has to leave it out.
_DELISTED = {
    "coinbase": Character("REP-USD", 12.0, 2, 900, 6_000_000),
    "binance": Character("WAVES-USDT", 1.2, 4, 9_000, 45_000_000),
}
_OWN = {
    "coinbase": [Character(*row) for row in _COINBASE],
    "binance": [Character(*row) for row in _BINANCE],
}
"""Products of exchanges that have a table of their own; the others list Binance's, in their quote asset."""
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
    protocol: Protocol
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
    archives: list[dict[str, Any]] = field(default_factory=list)
    """What is wrong with the files of history; see `archive_rows.KINDS`."""


def build_world(config: Mapping[str, Any] | None = None) -> World:
    """Build the world of a configuration. Raises BadWorld, BadRecording."""
    config = dict(config or {})
    _only(
        config,
        "configuration",
        {"seed", "genesis", "products", "latency_ms", "recordings", "clock", "faults", "archives", *known_exchanges()},
    )
    clock = dict(config.get("clock") or {})
    _only(clock, "clock", {"offset_s", "frozen"})
    exchanges = {}
    for name in known_exchanges():
        own = dict(config.get(name) or {})
        if name == "coinbase" and "products" in config:
            own.setdefault("products", config["products"])
        own.setdefault("latency_ms", config.get("latency_ms") or {})
        exchanges[name] = _exchange(load_mapping(name), own, int(config.get("seed", 1)), _genesis_us(config))
    for recording in config.get("recordings") or []:
        _add_recording(exchanges, dict(recording))
    return World(
        exchanges,
        float(clock.get("offset_s", 0)),
        bool(clock.get("frozen", False)),
        list(config.get("faults") or []),
        list(config.get("archives") or []),
    )


def world_of(mapping: ExchangeMapping, config: Mapping[str, Any]) -> World:
    """A world of one exchange, whose mapping need not lie in the mappings' folder. ``config``: what is its own."""
    own = {"latency_ms": {}, **config}
    return World({mapping.exchange: _exchange(mapping, own, 1, _genesis_us({}))})


def _exchange(mapping: ExchangeMapping, config: dict[str, Any], seed: int, genesis_us: int) -> Exchange:
    name = mapping.exchange
    _only(config, name, {"products", "trades_per_day", "limit", "latency_ms"})
    protocol, listings = Protocol(mapping), {}
    for product in _products(protocol, config.get("products"), seed, genesis_us, config.get("trades_per_day")):
        source = Generated(product, functools.partial(protocol.render, product.name))
        listings[product.name] = Listing(
            product.name, product.base, product.quote, product.price_decimals, product.status, source
        )
    _only(config["latency_ms"], f"{name}: latency_ms", {"mean", "jitter"})
    limiter = _limiter(protocol, config.get("limit", {}))
    return Exchange(name, protocol, listings, limiter, Latency(**config["latency_ms"]))


def _limiter(protocol: Protocol, limit: Any) -> Limiter:
    if limit in (None, False, "none"):
        return Unlimited()
    published, name = protocol.mapping.limits, protocol.mapping.exchange
    if published.burst >= published.amount:
        _only(limit, f"{name}: limit", {"rate", "burst"})
        status = published.slow_down_status[0]
        return TokenBucket(
            **{"rate": published.amount / published.per_seconds, "burst": published.burst, "status": status, **limit}
        )
    _only(limit, f"{name}: limit", {"weight", "per_seconds", "ban_after", "ban_s"})
    statuses = published.slow_down_status
    return WeightWindow(
        **{"weight": published.amount, "per_seconds": published.per_seconds, "statuses": statuses, **limit}
    )


def _characters(protocol: Protocol) -> dict[str, Character]:
    """The default products by our names."""
    own = _OWN.get(protocol.mapping.exchange)
    if own is None:
        quote = protocol.example_quote
        own = [c._replace(name=c.name.replace("USDT", quote)) for c in _OWN["binance"] if c.name.endswith("-USDT")]
    return {character.name: character for character in own}


def _products(protocol: Protocol, wanted: Any, seed: int, genesis_us: int, trades_per_day: int | None) -> list[Product]:
    known = _characters(protocol)
    if wanted is None:
        last = _DELISTED.get(
            protocol.mapping.exchange, Character(f"REP-{protocol.example_quote}", 12.0, 2, 900, 6_000_000)
        )
        gone = _product(protocol, last, seed, genesis_us)
        ends_us = genesis_us + _DELISTED_AFTER_US
        return [
            *_products(protocol, list(known), seed, genesis_us, trades_per_day),
            replace(gone, status="delisted", ends_us=ends_us),
        ]
    if isinstance(wanted, int):
        wanted = [f"P{number:04d}-{protocol.example_quote}" for number in range(1, wanted + 1)]
    products = []
    for item in wanted:
        own: dict[str, Any] = {"name": item} if isinstance(item, str) else dict(item)
        _only(own, f"{protocol.mapping.exchange}: products", {*Character._fields, "status", "genesis"})
        own["name"] = _unified(protocol, own["name"])
        character = known.get(own["name"]) or _arbitrary(own["name"])
        if trades_per_day:
            own.setdefault("trades_per_day", trades_per_day)
        character = character._replace(**{key: own[key] for key in character._fields if key in own})
        own_genesis_us = _genesis_us(own) if "genesis" in own else genesis_us
        product = _product(protocol, character, seed, own_genesis_us)
        products.append(replace(product, status=own.get("status", "online")))
    return products


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


def _product(protocol: Protocol, character: Character, seed: int, genesis_us: int) -> Product:
    base, quote = character.name.split("-")
    cheap_quote = quote not in ("BTC", "ETH")
    return Product(
        exchange=protocol.mapping.exchange,
        name=protocol.mapping.symbol_of(character.name),
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


def _add_recording(exchanges: dict[str, Exchange], config: dict[str, Any]) -> None:
    _only(config, "recordings", {"exchange", "product", "path", "base", "quote"})
    exchange, name = config["exchange"], config["product"]
    if exchange not in exchanges:
        raise BadWorld(f"recordings: unknown exchange {exchange!r}")
    protocol = exchanges[exchange].protocol
    ours = f"{config['base']}-{config['quote']}" if "base" in config else _unified(protocol, name)
    base, quote = ours.split("-")
    symbol = protocol.mapping.symbol_of(ours)
    source = recordings.load(protocol.mapping, symbol, Path(config["path"]))
    exchanges[exchange].listings[symbol] = Listing(symbol, base, quote, 8, "online", source)


def _unified(protocol: Protocol, name: str) -> str:
    """Our spelling of a product that is named in ours or in the exchange's. Raises BadWorld when it shows neither."""
    if re.fullmatch("[A-Z0-9]+-[A-Z0-9]+", name):
        return name
    for quote in _QUOTES:
        if name.endswith(quote) and name != quote:
            return f"{name.removesuffix(quote)}-{quote}"
    raise BadWorld(f"{protocol.mapping.exchange}: cannot tell base and quote of {name!r}; write it as BASE-QUOTE")


def _genesis_us(config: Mapping[str, Any]) -> int:
    value = config.get("genesis", GENESIS)
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


def _only(config: Mapping[str, Any], where: str, allowed: set[str]) -> None:
    if unknown := set(config) - allowed:
        raise BadWorld(f"{where}: unknown {sorted(unknown)}; possible: {sorted(allowed)}")
