"""Recorded files are served byte for byte, with the same paging protocol as generated history."""

import gzip
import json
from pathlib import Path

import pytest

from local.exchange_sim import Simulator, build_world
from local.exchange_sim.recordings import BadRecording, load
from schemahub.mappings import load_mapping

DATA = Path(__file__).parents[3] / "shared" / "data"
XRPETH = DATA / "binance" / "XRPETH-aggTrades.jsonl.gz"
PAGE = DATA / "binance" / "BTCUSDT-aggTrades-page-fromId-202790190.json"
MATCHES = DATA / "coinbase" / "websocket-matches.jsonl"
MATCH_PRODUCTS = {
    "SKL-USD": 53, "DASH-BTC": 16, "SKL-BTC": 9, "NMR-EUR": 9, "BAND-BTC": 9, "BAND-GBP": 5, "SKL-GBP": 2,
    "NU-GBP": 2, "YFI-BTC": 1, "CRV-EUR": 1,
}  # fmt: skip

recorded = pytest.mark.skipif(not XRPETH.exists(), reason=f"the recorded exchange data is not at {DATA}")


def simulator(*recordings):
    keys = ("exchange", "product", "path")
    return Simulator(
        build_world(
            {
                "latency_ms": {"mean": 0, "jitter": 0},
                "coinbase": {"limit": "none"},
                "binance": {"limit": "none"},
                "recordings": [dict(zip(keys, one, strict=True)) for one in recordings],
            }
        )
    )


def get(sim, exchange, path, **query):
    return sim.get(exchange, path, {key: str(value) for key, value in query.items()}, "a")


@recorded
def test_a_recorded_binance_file_comes_back_byte_for_byte():
    sim = simulator(("binance", "XRPETH", XRPETH))
    lines = gzip.decompress(XRPETH.read_bytes()).decode().splitlines()
    received, start = [], 0
    while True:
        body = get(sim, "binance", "/api/v3/aggTrades", symbol="XRPETH", fromId=start, limit=1000).body
        rows = json.loads(body)
        if not rows:
            break
        assert body.decode() == f"[{','.join(lines[len(received) : len(received) + len(rows)])}]"
        received += rows
        start = rows[-1]["a"] + 1
    assert received == [json.loads(line) for line in lines]
    assert len(received) == 12_477


@recorded
def test_without_a_cursor_the_recorded_end_is_the_head():
    sim = simulator(("binance", "XRPETH", XRPETH))
    rows = json.loads(get(sim, "binance", "/api/v3/aggTrades", symbol="XRPETH", limit=3).body)
    assert [row["a"] for row in rows] == [13_532_281, 13_532_282, 13_532_283]


@recorded
def test_a_recorded_json_array_keeps_its_bytes_too():
    sim = simulator(("binance", "BTCUSDT", PAGE))
    answer = get(sim, "binance", "/api/v3/aggTrades", symbol="BTCUSDT", fromId=202790190, limit=1000)
    assert answer.body == PAGE.read_bytes().strip()


@recorded
@pytest.mark.parametrize("product", MATCH_PRODUCTS)
def test_websocket_matches_become_rest_trades(product):
    sim = simulator(("coinbase", product, MATCHES))
    lines = [json.loads(line) for line in MATCHES.read_text().splitlines()]
    mine = {line["trade_id"]: line for line in lines if line.get("product_id") == product}
    rows = json.loads(get(sim, "coinbase", f"/products/{product}/trades").body)
    assert [row["trade_id"] for row in rows] == sorted(mine, reverse=True)
    assert len(rows) == MATCH_PRODUCTS[product]
    for row in rows:
        assert list(row) == ["trade_id", "side", "size", "price", "time"]
        assert all(row[field] == mine[row["trade_id"]][field] for field in row)
    older = json.loads(get(sim, "coinbase", f"/products/{product}/trades", after=rows[0]["trade_id"]).body)
    assert older == rows[1:]


@recorded
def test_recorded_products_are_discovered():
    sim = simulator(("binance", "XRPETH", XRPETH), ("coinbase", "SKL-USD", MATCHES))
    symbols = json.loads(get(sim, "binance", "/api/v3/exchangeInfo").body)["symbols"]
    found = {one["symbol"]: (one["baseAsset"], one["quoteAsset"], one["status"]) for one in symbols}
    assert found["XRPETH"] == ("XRP", "ETH", "TRADING")
    assert "SKL-USD" in {one["id"] for one in json.loads(get(sim, "coinbase", "/products").body)}


def test_a_hole_in_a_recording_stays_a_hole(tmp_path):
    path = tmp_path / "trades.jsonl"
    path.write_text("\n".join(json.dumps({"a": n, "p": "1", "q": "1", "T": 1000 + n}) for n in (1, 2, 900, 901)))
    sim = simulator(("binance", "AAAUSDT", path))
    rows = json.loads(get(sim, "binance", "/api/v3/aggTrades", symbol="AAAUSDT", fromId=2, limit=2).body)
    assert [row["a"] for row in rows] == [2, 900]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"a":1,"p":"1","T":1}\n{"a":1,"p":"2","T":1}', "twice"),
        ('{"a":1,"p":"1","T":1}\n{"a":', "record 2"),
        ("", "no trade of"),
        ("[]", "no trade of"),
    ],
)
def test_a_bad_recording_is_refused_by_name(tmp_path, content, complaint):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(BadRecording, match=complaint):
        load(load_mapping("binance"), "AAAUSDT", path)
