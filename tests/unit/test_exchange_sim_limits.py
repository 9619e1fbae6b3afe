"""The published limits are enforced: a client that exceeds them is told so, exactly then."""

import json

import pytest

from local.exchange_sim import Simulator, build_world
from local.exchange_sim.limits import Granted, Refused, TokenBucket, WeightWindow

MINUTE_S = 60 * 28_000_000


def test_the_bucket_grants_its_burst_then_its_rate():
    bucket = TokenBucket(rate=10, burst=15)
    burst = [isinstance(bucket.take("a", 1, 100.0), Granted) for _ in range(20)]
    assert burst == [True] * 15 + [False] * 5
    assert bucket.take("a", 1, 100.05).status == 429
    assert isinstance(bucket.take("a", 1, 100.1001), Granted)


def test_at_most_burst_plus_rate_in_any_time():
    bucket = TokenBucket(rate=10, burst=15)
    granted = sum(isinstance(bucket.take("a", 1, 100 + n / 100), Granted) for n in range(1001))
    assert 114 <= granted <= 115


def test_each_address_has_its_own_bucket():
    bucket = TokenBucket(rate=10, burst=1)
    assert isinstance(bucket.take("a", 1, 1.0), Granted)
    assert isinstance(bucket.take("b", 1, 1.0), Granted)
    assert isinstance(bucket.take("a", 1, 1.0), Refused)


def test_a_calendar_minute_holds_6000_weight():
    window = WeightWindow()
    verdicts = [window.take("a", 4, MINUTE_S + 10.0) for _ in range(1501)]
    assert [verdict.used for verdict in verdicts[:3]] == [4, 8, 12]
    assert isinstance(verdicts[1499], Granted)
    assert (verdicts[1500].status, verdicts[1500].retry_after_s) == (429, 50)
    assert window.take("a", 4, MINUTE_S + 60.0) == Granted(4), "a new minute starts at zero"


def test_who_goes_on_after_429_is_banned_longer_and_longer():
    window = WeightWindow(weight=4, ban_after=3, ban_s=120)
    window.take("a", 4, MINUTE_S)
    verdicts = [window.take("a", 4, MINUTE_S + 1) for _ in range(6)]
    assert [verdict.status for verdict in verdicts] == [429, 429, 418, 418, 418, 418]
    assert [verdict.retry_after_s for verdict in verdicts[2:]] == [120, 120, 120, 240]
    assert isinstance(window.take("a", 4, MINUTE_S + 61), Refused), "a new minute does not lift a ban"
    assert isinstance(window.take("a", 4, MINUTE_S + 242), Granted)


def test_who_waits_after_429_is_not_banned():
    window = WeightWindow(weight=4, ban_after=3, ban_s=120)
    for minute in range(10):
        window.take("a", 4, MINUTE_S + 60 * minute)
        assert window.take("a", 4, MINUTE_S + 60 * minute).status == 429


@pytest.fixture
def simulator():
    return Simulator(build_world({"latency_ms": {"mean": 0, "jitter": 0}}), real_s=lambda: MINUTE_S + 5.0)


def test_a_bucket_of_15_is_full_after_15_requests(simulator):
    answers = [simulator.get("coinbase", "/products", {}, "1.1.1.1") for _ in range(16)]
    assert [answer.status for answer in answers] == [200] * 15 + [429]


def test_binance_counts_weights_and_says_when_to_come_back(simulator):
    query = {"symbol": "BTCUSDT", "limit": "1"}
    answer = simulator.get("binance", "/api/v3/exchangeInfo", {}, "1.1.1.1")
    assert answer.headers["X-MBX-USED-WEIGHT-1M"] == "20"
    answers = [simulator.get("binance", "/api/v3/aggTrades", query, "1.1.1.1") for _ in range(1506)]
    assert answers[0].headers["X-MBX-USED-WEIGHT-1M"] == "24"
    assert [answer.status for answer in answers[1494:]] == [200] + [429] * 9 + [418] * 2
    assert answers[1495].headers["Retry-After"] == "55"
    assert json.loads(answers[1495].body)["code"] == -1003
    assert answers[-1].headers["Retry-After"] == "120"
    assert json.loads(answers[-1].body)["code"] == -1003


def test_reset_gives_full_buckets_back(simulator):
    for _ in range(20):
        simulator.get("coinbase", "/products", {}, "1.1.1.1")
    simulator.reset()
    assert simulator.get("coinbase", "/products", {}, "1.1.1.1").status == 200
    assert simulator.stats()["coinbase"]["requests"] == 1


def test_limits_are_configurable():
    config = {"coinbase": {"limit": {"rate": 1, "burst": 2}}, "binance": {"limit": "none"}}
    simulator = Simulator(build_world(config), real_s=lambda: MINUTE_S + 5.0)
    statuses = [simulator.get("coinbase", "/products", {}, "a").status for _ in range(3)]
    assert statuses == [200, 200, 429]
    statuses = {simulator.get("binance", "/api/v3/exchangeInfo", {}, "a").status for _ in range(400)}
    assert statuses == {200}
