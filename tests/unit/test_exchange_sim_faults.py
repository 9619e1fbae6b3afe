"""Every fault kind does what it says, to the requests it is meant for and to no other."""

import gzip
import json
import math
from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from local.exchange_sim import Simulator, build_world
from local.exchange_sim.faults import KINDS, BadFault

TOP = 580_100_000  # an id well inside the history; pages below are asked with after=TOP


@pytest.fixture
def sim():
    quick = {"latency_ms": {"mean": 0, "jitter": 0}, "clock": {"frozen": True}}
    return Simulator(build_world({**quick, "coinbase": {"limit": "none"}, "binance": {"limit": "none"}}))


def add(sim, kind, exchange="coinbase", product="BTC-USD", **more):
    return sim.faults.add([{"kind": kind, "exchange": exchange, "product": product, **more}], sim.clock.now_us())


def page(sim, product="BTC-USD", after=TOP, limit=100):
    query = {"after": str(after), "limit": str(limit)}
    return sim.get("coinbase", f"/products/{product}/trades", query, "a")


def rows(sim, **query):
    answer = page(sim, **query)
    assert answer.status == 200
    return json.loads(answer.body)


def ids(sim, **query):
    return [row["trade_id"] for row in rows(sim, **query)]


def binance_rows(sim, first=3_300_100_000, limit=100):
    query = {"symbol": "BTCUSDT", "fromId": str(first), "limit": str(limit)}
    return json.loads(sim.get("binance", "/api/v3/aggTrades", query, "a").body)


DENSE = list(range(TOP - 1, TOP - 101, -1))


# What a fault meets


def test_without_faults_the_page_is_whole(sim):
    assert ids(sim) == DENSE


def test_times_request_numbers_kind_and_product_restrict_a_fault(sim):
    add(sim, "http_status", times=1)
    assert [page(sim).status for _ in range(3)] == [503, 200, 200]
    sim.faults.clear()
    add(sim, "http_status", match={"requests": [2, 3]})
    assert [page(sim).status for _ in range(5)] == [200, 503, 503, 200, 200]
    sim.faults.clear()
    add(sim, "http_status", match={"on": "head"})
    assert page(sim).status == 200
    assert sim.get("coinbase", "/products/BTC-USD/trades", {"limit": "1"}, "a").status == 503
    sim.faults.clear()
    add(sim, "http_status", product="ETH-USD")
    assert page(sim).status == 200
    assert page(sim, product="ETH-USD", after=490_100_000).status == 503


def test_a_fault_can_wait_for_an_id(sim):
    add(sim, "http_status", match={"ids": [TOP - 150, TOP - 140]})
    assert page(sim).status == 200
    assert page(sim, after=TOP - 100).status == 503


def test_ids_can_be_given_from_the_head(sim):
    head = sim.listing("coinbase", "BTC-USD").source.head(sim.clock.now_us())
    shown = add(sim, "skip_rows", match={"from_head": [-20, -11]})
    assert shown[0]["match"]["ids"] == (head - 20, head - 11)


def test_a_fault_without_a_product_meets_discovery_too(sim):
    add(sim, "http_status", product=None, status=500, times=1)
    assert sim.get("coinbase", "/products", {}, "a").status == 500


def test_clearing_restores_the_truth_and_counters_tell(sim):
    number = add(sim, "empty_list")[0]["id"]
    add(sim, "http_status", product="ETH-USD")
    assert ids(sim) == []
    assert [fault["fired"] for fault in sim.faults.shown()] == [1, 0]
    sim.faults.clear(number)
    assert [fault["kind"] for fault in sim.faults.shown()] == ["http_status"]
    assert ids(sim) == DENSE


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "nonsense", "exchange": "coinbase"},
        {"kind": "hang", "exchange": "nowhere"},
        {"kind": "hang", "exchange": "coinbase", "second": 3},
        {"kind": "hang", "exchange": "coinbase", "product": "NO-PE"},
        {"kind": "hang", "exchange": "coinbase", "match": {"id": [1, 2]}},
        {"kind": "hang", "exchange": "coinbase", "match": {"on": "pages"}},
        {"kind": "hang", "exchange": "coinbase", "match": {"from_head": [-2, -1]}},
        {"kind": "missing_forever", "exchange": "coinbase", "product": "BTC-USD"},
        {"kind": "delisted", "exchange": "coinbase", "product": "BTC-USD", "times": 1},
        {"kind": "wrong_unit", "exchange": "coinbase"},
        {"kind": "relist", "exchange": "coinbase"},
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_and_sets_nothing(sim, fault):
    with pytest.raises(BadFault):
        sim.faults.add([{"kind": "hang", "exchange": "coinbase"}, fault], sim.clock.now_us())
    assert sim.faults.shown() == []


# Rows


def test_empty_list(sim):
    add(sim, "empty_list", match={"ids": [TOP - 50, TOP - 50]})
    assert ids(sim) == []
    assert ids(sim, after=TOP - 100) != []


def test_skip_rows_loses_ids_without_filling_up(sim):
    add(sim, "skip_rows", match={"ids": [TOP - 12, TOP - 10]})
    assert ids(sim) == [one for one in DENSE if not TOP - 12 <= one <= TOP - 10]


def test_duplicate_rows(sim):
    add(sim, "duplicate_rows", match={"ids": [TOP - 3, TOP - 3]})
    assert ids(sim)[:5] == [TOP - 1, TOP - 2, TOP - 3, TOP - 3, TOP - 4]


def test_unordered_rows(sim):
    add(sim, "unordered_rows")
    assert ids(sim) == DENSE[::-1]


def test_overlap_repeats_trades_of_the_neighbour_page(sim):
    add(sim, "overlap", rows=2)
    assert ids(sim) == [TOP + 1, TOP, *DENSE]
    add(sim, "overlap", exchange="binance", product="BTCUSDT", rows=2)
    assert [row["a"] for row in binance_rows(sim)[:3]] == [3_300_099_998, 3_300_099_999, 3_300_100_000]


def test_missing_forever_leaves_a_hole_and_full_pages(sim):
    add(sim, "missing_forever", match={"ids": [TOP - 10, TOP - 6]})
    expected = [one for one in range(TOP - 1, TOP - 106, -1) if not TOP - 10 <= one <= TOP - 6]
    assert ids(sim) == expected
    add(sim, "missing_forever", "binance", "BTC-USDT", match={"ids": [3_300_100_000, 3_300_100_009]})
    assert binance_rows(sim)[0]["a"] == 3_300_100_010


def test_late_ids_appear_after_their_time(sim):
    add(sim, "late_ids", match={"ids": [TOP - 2, TOP - 1]}, after_s=60)
    assert ids(sim)[0] == TOP - 3
    sim.clock.set(None, 61, None)
    assert ids(sim) == DENSE


def test_late_ids_at_the_head_hold_the_head_back(sim):
    add(sim, "late_ids", match={"from_head": [-4, 1_000_000]})
    head = sim.listing("coinbase", "BTC-USD").source.head(sim.clock.now_us())
    newest = sim.get("coinbase", "/products/BTC-USD/trades", {"limit": "1"}, "a")
    assert json.loads(newest.body)[0]["trade_id"] == head - 5


def test_relist_starts_ids_again(sim):
    add(sim, "relist", first_id=1, age_s=3600)
    newest = json.loads(sim.get("coinbase", "/products/BTC-USD/trades", {"limit": "1"}, "a").body)[0]
    assert newest["trade_id"] == pytest.approx(44_000 / 24, abs=2)
    assert ids(sim, after=11) == list(range(10, 0, -1))


def test_delisted_is_404_and_400_and_gone_from_discovery(sim):
    add(sim, "delisted")
    add(sim, "delisted", "binance", "BTC-USDT")
    add(sim, "delisted", product="ETH-USD", listed=True)
    assert page(sim).status == 404
    listed = {one["id"]: one["status"] for one in json.loads(sim.get("coinbase", "/products", {}, "a").body)}
    assert "BTC-USD" not in listed
    assert listed["ETH-USD"] == "delisted"
    answer = sim.get("binance", "/api/v3/aggTrades", {"symbol": "BTCUSDT"}, "a")
    assert (answer.status, json.loads(answer.body)["code"]) == (400, -1121)


def test_mutate_changes_a_trade_from_the_second_look_on(sim):
    add(sim, "mutate", match={"ids": [TOP - 1, TOP - 1]})
    first, second, third = (rows(sim)[0] for _ in range(3))
    assert first == sim.trades("coinbase", "BTC-USD", TOP - 1, TOP - 1)[0]
    assert second == third
    assert second["size"] != first["size"]
    assert {**second, "size": first["size"]} == first


def test_wrong_unit_is_a_thousand_times_too_large(sim):
    truth = binance_rows(sim)[0]["T"]
    add(sim, "wrong_unit", "binance", "BTCUSDT", match={"ids": [3_300_100_000, 3_300_100_000]})
    assert binance_rows(sim)[0]["T"] == truth * 1000


def test_clock_backwards(sim):
    truth = rows(sim)[0]["time"]
    add(sim, "clock_backwards", match={"ids": [TOP - 1, TOP - 1]}, seconds=90)
    moved = datetime.fromisoformat(truth) - datetime.fromisoformat(rows(sim)[0]["time"])
    assert moved == timedelta(seconds=90)
    truth_ms = binance_rows(sim)[0]["T"]
    add(sim, "clock_backwards", "binance", "BTCUSDT", match={"ids": [3_300_100_000] * 2}, seconds=90)
    assert binance_rows(sim)[0]["T"] == truth_ms - 90_000


def test_odd_numbers_are_numbers_that_a_float_cannot_hold(sim):
    truth = rows(sim)[0]
    add(sim, "odd_numbers", match={"ids": [TOP - 1, TOP - 1]})
    odd = rows(sim)[0]
    assert "E+" in odd["price"]
    assert Decimal(odd["price"]) == Decimal(truth["price"])
    assert len(odd["size"].partition(".")[2]) == 18


@pytest.mark.parametrize("value", ["0", "-1.5"])
def test_bad_price(sim, value):
    add(sim, "bad_price", value=value)
    assert [row["price"] for row in rows(sim)].count(value) == 1


def test_nan_is_a_bare_word(sim):
    add(sim, "nan", match={"ids": [TOP - 1, TOP - 1]})
    assert b'"price":NaN' in page(sim).body
    assert math.isnan(rows(sim)[0]["price"])


def test_extra_missing_and_replaced_fields(sim):
    only = {"match": {"ids": [TOP - 1, TOP - 1]}}
    add(sim, "extra_field", **only, field="venue", value=7)
    add(sim, "missing_field", **only, field="time")
    add(sim, "set_field", **only, field="id", value="12")
    first, second = rows(sim)[:2]
    assert sorted(first) == ["price", "side", "size", "trade_id", "venue"]
    assert first["trade_id"] == "12"
    assert sorted(second) == ["price", "side", "size", "time", "trade_id"]


# Answers


def test_http_status_with_retry_after_and_body(sim):
    add(sim, "http_status", status=429, retry_after=7, body={"message": "slow"})
    answer = page(sim)
    assert (answer.status, answer.headers["Retry-After"], answer.body) == (429, "7", b'{"message": "slow"}')
    assert sim.stats()["coinbase"]["rate_limited"] == 0, "the limiter did not refuse it"


def test_hang_and_its_other_name_keep_silent_before_the_truth(sim):
    add(sim, "hang", seconds=2)
    add(sim, "timeout", seconds=3)
    answer = page(sim)
    assert answer.delay_s == 5
    assert len(json.loads(answer.body)) == 100


def test_trickle_and_reset_break_on_the_wire(sim):
    add(sim, "trickle", seconds=4)
    add(sim, "reset", how="close")
    answer = page(sim)
    assert (answer.trickle_s, answer.cut) == (4, "close")


def test_truncated_json(sim):
    whole = page(sim).body
    add(sim, "truncated_json")
    assert page(sim).body == whole[: len(whole) // 2]


def test_bodies_that_are_no_list(sim):
    for kind in ("html_200", "empty_body", "object_200", "bom"):
        sim.faults.clear()
        add(sim, kind)
        answer = page(sim)
        assert answer.status == 200
        with pytest.raises((ValueError, AssertionError)):
            assert isinstance(json.loads(answer.body.decode()), list)


def test_redirect_names_another_host(sim):
    add(sim, "redirect")
    assert (page(sim).status, page(sim).headers["Location"]) == (302, "http://mirror.invalid/")


def test_gzip_bomb_is_small_on_the_wire_and_bounded(sim):
    add(sim, "large_body", megabytes=3)
    answer = page(sim)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert len(answer.body) < 10_000
    assert gzip.decompress(answer.body) == bytes(3 * 2**20)


def test_every_kind_has_a_test_here():
    with open(__file__, encoding="utf-8") as file:  # noqa: PTH123
        text = file.read()
    names = KINDS.keys() - {"gzip_bomb"}  # posted by its other name
    assert [kind for kind in names if f'"{kind}"' not in text] == []
