"""The simulator's Binance protocol: aggTrades, exchangeInfo, errors, as the real exchange documents them."""

import json

import pytest

from local.exchange_sim import Simulator, build_world

QUICK = {"latency_ms": {"mean": 0, "jitter": 0}, "clock": {"frozen": True}}


@pytest.fixture
def simulator():
    return Simulator(build_world({**QUICK, "binance": {"limit": "none"}}))


def get(simulator, path, **query):
    answer = simulator.get("binance", path, {key: str(value) for key, value in query.items()}, "1.1.1.1")
    return answer.status, json.loads(answer.body)


def trades(simulator, **query):
    status, rows = get(simulator, "/api/v3/aggTrades", **{"symbol": "BTCUSDT", **query})
    assert status == 200
    return rows


def head(simulator):
    return simulator.listing("binance", "BTCUSDT").source.head(simulator.clock.now_us())


def test_without_parameters_the_newest_500_ascend(simulator):
    assert [row["a"] for row in trades(simulator)] == list(range(head(simulator) - 499, head(simulator) + 1))


def test_from_id_is_inclusive_and_ascends(simulator):
    first = head(simulator) - 5_000
    rows = trades(simulator, fromId=first, limit=1000)
    assert [row["a"] for row in rows] == list(range(first, first + 1000))
    assert list(rows[0]) == ["a", "p", "q", "f", "l", "T", "m", "M"]


def test_paging_by_from_id_reaches_the_head_without_a_gap(simulator):
    first = head(simulator) - 12_345
    seen, start = [], first
    while rows := trades(simulator, fromId=start, limit=1000):
        seen += rows
        start = rows[-1]["a"] + 1
    assert [row["a"] for row in seen] == list(range(first, head(simulator) + 1))
    assert seen == simulator.trades("binance", "BTCUSDT", first, head(simulator))


def test_from_id_below_the_history_starts_at_its_first_trade(simulator):
    assert trades(simulator, fromId=0, limit=1)[0]["a"] == 3_300_000_000


def test_times_select_inclusively(simulator):
    every = simulator.trades("binance", "BTCUSDT", head(simulator) - 300, head(simulator) - 100)
    start_ms, end_ms = every[50]["T"], every[120]["T"]
    rows = trades(simulator, startTime=start_ms, endTime=end_ms, limit=1000)
    assert rows == [row for row in every if start_ms <= row["T"] <= end_ms]


def test_a_limit_above_1000_is_clipped(simulator):
    assert len(trades(simulator, fromId=3_300_000_000, limit=5000)) == 1000


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"symbol": "NOPE"}, -1121),
        ({"symbol": ""}, -1102),
        ({"limit": "abc"}, -1100),
        ({"fromId": "-5"}, -1100),
        ({"limit": "0"}, -1130),
        ({"fromId": "5", "startTime": "5"}, -1128),
    ],
)
def test_errors_have_the_real_codes(simulator, query, code):
    status, body = get(simulator, "/api/v3/aggTrades", **{"symbol": "BTCUSDT", **query})
    assert status == 400
    assert body["code"] == code
    assert body["msg"]


def test_an_invalid_symbol_says_so_word_for_word(simulator):
    assert get(simulator, "/api/v3/aggTrades", symbol="NOPE")[1] == {"code": -1121, "msg": "Invalid symbol."}


def test_exchange_info_lists_symbols_and_limits(simulator):
    status, info = get(simulator, "/api/v3/exchangeInfo")
    assert status == 200
    symbols = {one["symbol"]: one for one in info["symbols"]}
    bitcoin = symbols["BTCUSDT"]
    assert (bitcoin["baseAsset"], bitcoin["quoteAsset"], bitcoin["status"]) == ("BTC", "USDT", "TRADING")
    assert symbols["WAVESUSDT"]["status"] == "BREAK"
    weight = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 6000}
    assert weight in info["rateLimits"]


def test_time_is_the_simulators(simulator):
    assert get(simulator, "/api/v3/time") == (200, {"serverTime": simulator.clock.now_us() // 1000})
    assert get(simulator, "/api/v3/ping") == (200, {})
