"""Endless deterministic trade history: trade `n` is a pure function of (seed, exchange, product, n).

No files and no state: a page is computed when it is asked for, on any machine, in any process, with
the same bytes. Everything is integer arithmetic over SHAKE-128, because a `sin` or a vectorised float
may differ in the last bit between platforms and would move a price by a tick.

Time runs on a grid: trade `n` happens inside its own interval
`[genesis + n * interval, genesis + (n + 1) * interval]`, so that "which trades exist at time t" needs
no search. In about one pair of eight the two trades meet on their common border: trades of one taker
order share their time on a real exchange too, and paging by time is wrong there.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

BLOCK = 1024
"""Trades per block of noise: one SHAKE digest serves them all."""
UNIT = 10**8
"""Prices and sizes are integers in 1e-8, the precision both exchanges print."""
DAY_US = 86_400_000_000

# The walk: (log2 of the distance between two knots, amplitude in billionths of the base price).
# The amplitudes add up to less than 1, hence a price is always positive.
_OCTAVES = (
    (22, 250_000_000),
    (19, 120_000_000),
    (16, 60_000_000),
    (13, 20_000_000),
    (10, 5_000_000),
)


@dataclass(frozen=True, slots=True)
class Product:
    """What a product's whole history is computed from."""

    exchange: str
    name: str
    """As it stands in the exchange's URLs: `BTC-USD`, `BTCUSDT`."""
    base: str
    quote: str
    price_ticks: int
    """The base price in ticks; the walk stays within about ±45 % of it."""
    price_decimals: int
    size_units: int
    """A typical size, in 1e-8 of the base currency."""
    interval_us: int
    genesis_us: int
    first_id: int
    seed: int = 1
    ends_us: int | None = None
    """No trades after this time (a delisted product); None: trading goes on."""
    status: str = "online"
    """`online`, `delisted` or `offline`; Binance shows anything but online as BREAK."""

    @property
    def key(self) -> str:
        """What the noise is drawn from."""
        return f"{self.seed}/{self.exchange}/{self.name}"


@dataclass(frozen=True, slots=True)
class Trade:
    """One generated trade, before an exchange puts it into its own words."""

    id: int
    time_us: int
    price: int
    """In 1e-8."""
    size: int
    """In 1e-8."""
    buyer_is_maker: bool
    first_fill: int
    last_fill: int


Tick = tuple[int, int, int, int, bool, int, int]
"""The fields of `Trade` as a bare tuple: pages are made of a thousand of them."""


@lru_cache(maxsize=256)
def _noise(key: str, block: int) -> tuple[int, ...]:
    """64 random bits for each trade of a block."""
    digest = hashlib.shake_128(f"{key}/{block}".encode()).digest(8 * BLOCK)
    return struct.unpack(f"<{BLOCK}Q", digest)


@lru_cache(maxsize=4096)
def _knot(key: str, octave: int, index: int) -> int:
    """A signed 31-bit number at a knot of the walk."""
    digest = hashlib.blake2b(f"{key}/{octave}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") - 2**31


def _level(product: Product, n: int) -> int:
    """The smooth part of the price at trade `n`, in ticks."""
    billionths = 10**9
    for log2, amplitude in _OCTAVES:
        index, rest = n >> log2, n & ((1 << log2) - 1)
        low, high = _knot(product.key, log2, index), _knot(product.key, log2, index + 1)
        billionths += (((high - low) * rest >> log2) + low) * amplitude >> 31
    return product.price_ticks * billionths // 10**9


def ticks(product: Product, first: int, last: int) -> Iterator[Tick]:
    """The trades of the ids `first..last` (both inside the history), ascending.

    The loop is written flat: it is the whole cost of a page.
    """
    key, interval, genesis = product.key, product.interval_us, product.genesis_us
    to_units = 10 ** (8 - product.price_decimals)
    spread, typical = max(1, product.price_ticks // 4000), product.size_units
    low, high = first - product.first_id, last - product.first_id
    for block in range(low // BLOCK, high // BLOCK + 1):
        start = block * BLOCK
        noise = _noise(key, block)
        level = _level(product, start)
        slope = _level(product, start + BLOCK) - level
        for n in range(max(low, start), min(high, start + BLOCK - 1) + 1):
            j = n - start
            bits = noise[j]
            if noise[j & -2] & 7:
                time_us = genesis + n * interval + ((bits >> 32) * interval >> 32)
            else:  # this pair of trades meets on its border
                time_us = genesis + (n | 1) * interval
            price = level + (slope * j >> 10) + (((bits >> 8 & 255) - 128) * spread >> 7)
            u = bits >> 16 & 0xFFFF
            # Fills of an aggregate: ids advance by 3 a trade, shifted by 0..2; block borders fix 0.
            shift = (bits >> 4 & 15) % 3 if j else 0
            shift_next = (noise[j + 1] >> 4 & 15) % 3 if j + 1 < BLOCK else 0
            yield (
                product.first_id + n,
                time_us,
                (price if price > 0 else 1) * to_units,
                1 + (typical * u * u * u >> 46),
                bool(bits & 8),
                3 * (product.first_id + n) + shift,
                3 * (product.first_id + n) + 2 + shift_next,
            )


def trades(product: Product, first: int, last: int) -> list[Trade]:
    """The oracle: every trade of the ids `first..last` that the product's history holds."""
    first = max(first, product.first_id)
    return [Trade(*tick) for tick in ticks(product, first, last)] if first <= last else []


def count_at(product: Product, now_us: int) -> int:
    """How many trades have happened at `now_us` (inclusive)."""
    if product.ends_us is not None:
        now_us = min(now_us, product.ends_us)
    if now_us < product.genesis_us:
        return 0
    n = (now_us - product.genesis_us) // product.interval_us
    return n + (time_of(product, product.first_id + n) <= now_us)


def time_of(product: Product, trade_id: int) -> int:
    """The time of one trade, µs since 1970."""
    return next(ticks(product, trade_id, trade_id))[1]


def head_at(product: Product, now_us: int) -> int:
    """The newest id at `now_us`; one below `first_id` while there is none."""
    return product.first_id + count_at(product, now_us) - 1


def first_at_or_after(product: Product, time_us: int) -> int:
    """The smallest id whose time is `time_us` or later (it may lie beyond the head)."""
    if time_us <= product.genesis_us:
        return product.first_id
    n = max(0, (time_us - product.genesis_us) // product.interval_us - 1)
    while time_of(product, product.first_id + n) < time_us:
        n += 1
    return product.first_id + n
