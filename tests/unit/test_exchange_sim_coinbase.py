"""The simulator's Coinbase protocol: cursors, headers, errors, as the real exchange documents them."""

import json
import re

import pytest

from local.exchange_sim import Simulator, build_world

QUICK = {"latency_ms": {"mean": 0, "jitter": 0}, "clock": {"frozen": True}}


@pytest.fixture
def simulator():
    return Simulator(build_world({**QUICK, "coinbase": {"limit": "none"}}))


def get(simulator, path, **query):
    answer = simulator.get("coinbase", path, {key: str(value) for key, value in query.items()}, "1.1.1.1")
    return answer.status, json.loads(answer.body), answer.headers


def trades(simulator, product="BTC-USD", **query):
    status, rows, headers = get(simulator, f"/products/{product}/trades", **query)
    assert status == 200
    return rows, headers


def head(simulator, product="BTC-USD"):
    return simulator.listing("coinbase", product).source.head(simulator.clock.now_us())


def test_without_a_cursor_the_newest_trades_come_newest_first(simulator):
    rows, headers = trades(simulator)
    ids = [row["trade_id"] for row in rows]
    assert ids == list(range(head(simulator), head(simulator) - 1000, -1))
    assert headers == {"CB-BEFORE": str(ids[0]), "CB-AFTER": str(ids[-1])}


def test_a_trade_has_the_fields_and_forms_of_the_real_one(simulator):
    row = trades(simulator, limit=1)[0][0]
    assert list(row) == ["trade_id", "side", "size", "price", "time"]
    assert isinstance(row["trade_id"], int)
    assert row["side"] in ("buy", "sell")
    assert re.fullmatch(r"\d+\.\d{8}", row["price"])
    assert re.fullmatch(r"\d+\.\d{8}", row["size"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", row["time"])


def test_after_is_older_and_exclusive(simulator):
    cursor = head(simulator) - 5_000
    rows, _ = trades(simulator, after=cursor, limit=10)
    assert [row["trade_id"] for row in rows] == list(range(cursor - 1, cursor - 11, -1))


def test_before_is_the_newest_page_of_the_newer_ones_not_the_next_page(simulator):
    top = head(simulator)
    rows, _ = trades(simulator, before=top - 5_000, limit=10)
    assert [row["trade_id"] for row in rows] == list(range(top, top - 10, -1))
    rows, _ = trades(simulator, before=top - 3, limit=10)
    assert [row["trade_id"] for row in rows] == [top, top - 1, top - 2]


def test_before_the_head_there_is_nothing_newer(simulator):
    rows, headers = trades(simulator, before=head(simulator))
    assert (rows, headers) == ([], {})


def test_paging_by_cb_after_walks_the_whole_history_without_a_gap():
    genesis = "2026-01-01T00:00:00Z"
    config = {"products": [{"name": "BTC-USD", "genesis": genesis, "first_id": 7, "trades_per_day": 40_000}]}
    simulator = Simulator(build_world({**QUICK, "coinbase": {**config, "limit": None}}))
    listing = simulator.listing("coinbase", "BTC-USD")
    six_hours_in_s = listing.source.product.genesis_us / 1e6 + 6 * 3600
    simulator.clock.set(six_hours_in_s - simulator.clock.real_s(), None, True)
    seen, query = [], {}
    while True:
        rows, headers = trades(simulator, **query)
        if not rows:
            break
        seen += rows
        query = {"after": headers["CB-AFTER"], "limit": 1000}
    assert [row["trade_id"] for row in seen] == list(range(head(simulator), 6, -1))
    assert len(seen) >= 9_999
    assert seen[::-1] == simulator.trades("coinbase", "BTC-USD", 7, head(simulator))


def test_a_limit_above_1000_is_clipped(simulator):
    assert len(trades(simulator, limit=5000)[0]) == 1000


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "-1"}, {"limit": "x"}, {"after": "abc"},
                                   {"before": "1.5"}, {"after": ""}])  # fmt: skip
def test_bad_parameters_are_400(simulator, query):
    status, body, _ = get(simulator, "/products/BTC-USD/trades", **query)
    assert status == 400
    assert body == {"message": f'Invalid value for "{next(iter(query))}"'}


@pytest.mark.parametrize("path", ["/products/NO-PE/trades", "/products/NO-PE", "/nonsense"])
def test_the_unknown_is_404(simulator, path):
    assert get(simulator, path)[:2] == (404, {"message": "NotFound"})


def test_products_list_what_trades_and_what_does_not(simulator):
    status, products, _ = get(simulator, "/products")
    assert status == 200
    by_id = {one["id"]: one for one in products}
    assert by_id["BTC-USD"]["base_currency"] == "BTC"
    assert by_id["BTC-USD"]["quote_currency"] == "USD"
    assert (by_id["BTC-USD"]["status"], by_id["BTC-USD"]["trading_disabled"]) == ("online", False)
    assert (by_id["REP-USD"]["status"], by_id["REP-USD"]["trading_disabled"]) == ("delisted", True)
    assert get(simulator, "/products/BTC-USD")[1] == by_id["BTC-USD"]


def test_the_head_grows_as_time_passes(simulator):
    before = head(simulator)
    simulator.clock.set(offset_s=None, advance_s=86_400, frozen=None)
    grown = trades(simulator, limit=1)[0][0]["trade_id"] - before
    assert 43_990 <= grown <= 44_010
    assert simulator.trades("coinbase", "BTC-USD", before, before) != []
