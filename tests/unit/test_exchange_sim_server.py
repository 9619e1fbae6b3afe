"""The simulator over HTTP: keep-alive, wire faults, control plane, statistics, the command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from local.exchange_sim import running
from local.exchange_sim.stats import Seen, steady
from local.exchange_sim.world import BadWorld, build_world
from schemahub.mappings import exchanges

ROOT = Path(__file__).parents[2]
CONFIG = {
    "latency_ms": {"mean": 0, "jitter": 0},
    "coinbase": {"limit": "none"},
    "clock": {"frozen": True},
}


@pytest.fixture(scope="module")
def server():
    with running(CONFIG) as server:
        yield server


@pytest.fixture(autouse=True)
def clean(server):
    yield
    requests.delete(f"{server.url}/_sim/faults", timeout=5)
    requests.post(f"{server.url}/_sim/reset", timeout=5)


def trades(server, **query):
    return requests.get(f"{server.url}/coinbase/products/BTC-USD/trades", query, timeout=5)


def fault(server, **config):
    answer = requests.post(f"{server.url}/_sim/faults", json=[{"exchange": "coinbase", **config}], timeout=5)
    assert answer.status_code == 200, answer.text


def test_a_page_over_http_is_the_page_of_the_generator(server):
    answer = trades(server, limit=1000, after=580_005_000)
    assert answer.status_code == 200
    assert answer.json()[::-1] == server.simulator.trades("coinbase", "BTC-USD", 580_004_000, 580_004_999)


def test_connections_are_kept_also_through_errors(server):
    with requests.Session() as session:
        for path in ("/coinbase/products", "/coinbase/nonsense", "/_sim/nonsense", "/binance/api/v3/nonsense"):
            session.get(server.url + path, timeout=5)
        session.post(f"{server.url}/_sim/nonsense", json=[1, 2, 3], timeout=5)
        pools = session.get_adapter("http://").poolmanager.pools
        assert [pools[key].num_connections for key in pools.keys()] == [1]  # noqa: SIM118


def test_a_product_name_may_be_escaped(server):
    answer = requests.get(f"{server.url}/coinbase/products/BTC%2DUSD/trades?limit=1", timeout=5)
    assert answer.status_code == 200


def test_reset_breaks_the_connection_in_the_middle_of_the_body(server):
    for how in ("reset", "close"):
        fault(server, kind="reset", how=how, times=1)
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            trades(server, limit=1000)
        assert trades(server, limit=1000).status_code == 200


def test_reset_is_a_reset_and_close_is_not(server):
    ends = {}
    for how in ("reset", "close"):
        fault(server, kind="reset", how=how, times=1)
        with socket.create_connection(server.server_address, timeout=5) as raw:
            raw.sendall(b"GET /coinbase/products/BTC-USD/trades HTTP/1.1\r\nHost: sim\r\n\r\n")
            time.sleep(0.1)
            try:
                while raw.recv(2**20):
                    pass
                ends[how] = "end of stream"
            except ConnectionResetError:
                ends[how] = "reset"
    assert ends == {"reset": "reset", "close": "end of stream"}


def test_hang_makes_the_client_time_out(server):
    fault(server, kind="hang", seconds=1.0, times=1)
    with pytest.raises(requests.ReadTimeout):
        requests.get(f"{server.url}/coinbase/products/BTC-USD/trades", timeout=0.1)


def test_trickle_arrives_whole_but_slowly(server):
    fault(server, kind="trickle", seconds=0.2, times=1)
    start = time.monotonic()
    assert len(trades(server, limit=1000).json()) == 1000
    assert time.monotonic() - start >= 0.19


def test_redirect_is_a_real_one(server):
    fault(server, kind="redirect", times=1)
    url = f"{server.url}/coinbase/products/BTC-USD/trades"
    answer = requests.get(url, allow_redirects=False, timeout=5)
    assert answer.is_redirect


def test_gzip_bomb_inflates_at_the_client(server):
    fault(server, kind="gzip_bomb", megabytes=2, times=1)
    assert trades(server).content == bytes(2 * 2**20)


def test_latency_is_configurable():
    with running({**CONFIG, "latency_ms": {"mean": 80, "jitter": 10}}) as slow:
        start = time.monotonic()
        trades(slow, limit=1)
        assert 0.065 <= time.monotonic() - start < 1


def test_bad_control_requests_are_explained(server):
    answer = requests.post(f"{server.url}/_sim/faults", json=[{"kind": "x", "exchange": "coinbase"}], timeout=5)
    assert answer.status_code == 400
    assert "unknown kind" in answer.json()["message"]
    assert requests.post(f"{server.url}/_sim/faults", json={"kind": "hang"}, timeout=5).status_code == 400
    assert requests.post(f"{server.url}/_sim/clock", json={"offset": 1}, timeout=5).status_code == 400
    assert requests.get(f"{server.url}/_sim/oracle?exchange=coinbase", timeout=5).status_code == 400


def test_the_oracle_knows_neither_limits_nor_faults(server):
    fault(server, kind="http_status")
    base = f"{server.url}/_sim/oracle?exchange=coinbase&product=BTC-USD"
    about = requests.get(base, timeout=5).json()
    rows = requests.get(f"{base}&first={about['head'] - 4999}&last={about['head']}", timeout=5).json()
    assert [row["trade_id"] for row in rows] == list(range(about["head"] - 4999, about["head"] + 1))
    assert requests.get(f"{server.url}/_sim/stats", timeout=5).json()["coinbase"]["requests"] == 0


def test_the_clock_moves_the_head(server):
    before = trades(server, limit=1).json()[0]["trade_id"]
    requests.post(f"{server.url}/_sim/clock", json={"advance_s": 3600}, timeout=5)
    assert trades(server, limit=1).json()[0]["trade_id"] - before == pytest.approx(44_000 / 24, abs=2)
    requests.post(f"{server.url}/_sim/clock", json={"offset_s": 0}, timeout=5)
    assert trades(server, limit=1).json()[0]["trade_id"] == before


def test_stats_count_by_status_and_kind(server):
    trades(server, limit=1)
    trades(server, after=580_005_000)
    trades(server, after=580_005_000, limit=1)
    trades(server, limit="x")
    requests.get(f"{server.url}/coinbase/products", timeout=5)
    requests.get(f"{server.url}/binance/api/v3/exchangeInfo", timeout=5)
    stats = requests.get(f"{server.url}/_sim/stats?timestamps=1", timeout=5).json()
    assert stats["coinbase"]["by_status"] == {"200": 4, "400": 1}
    assert stats["coinbase"]["by_kind"] == {"discovery": 1, "head": 3, "page": 1}
    assert stats["binance"]["cost"] == 20
    assert [one[1:] for one in stats["coinbase"]["timestamps"]][1] == [1, 200, "page", "BTC-USD"]
    assert requests.get(f"{server.url}/_sim/health", timeout=5).json()["status"] == "ok"


def test_steady_leaves_out_the_burst_and_the_tail():
    burst = [Seen(100.0, 1, 200, "page", "p", False)] * 15
    paced = [Seen(100.1 + n / 10, 1, 200, "page", "p", False) for n in range(200)]
    refused = [Seen(110.0, 1, 429, "page", "p", True)]
    phase = steady(sorted(burst + paced + refused, key=lambda one: one.at_s), 10.0, 2.0)
    assert phase["seconds"] == pytest.approx(16.0)
    assert phase["share_of_limit"] == pytest.approx(1.0, abs=0.01)
    assert phase["refused"] == 1
    assert steady(burst, 10.0, 2.0) is None
    half = [Seen(100 + n / 5, 1, 200, "page", "p", False) for n in range(100)]
    assert steady(half, 10.0, 2.0)["share_of_limit"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "config",
    [
        {"colour": 1},
        {"coinbase": {"limits": "none"}},
        {"coinbase": {"limit": {"rps": 1}}},
        {"binance": {"products": [{"name": "BTCUSDT", "pace": 1}]}},
        {"binance": {"products": ["QQQ"]}},
        {"recordings": [{"exchange": "examplex", "product": "A-B", "path": "x"}]},
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(config):
    with pytest.raises(BadWorld):
        build_world(config)


def test_the_command_serves_a_configuration_file_and_stops_cleanly(tmp_path):
    config = tmp_path / "world.yaml"
    (tmp_path / "one.json").write_text(json.dumps([{"a": 5, "p": "1.5", "q": "2", "T": 1, "m": True}]))
    config.write_text("products: 3\nrecordings: [{exchange: binance, product: AAAUSDT, path: one.json}]\n")
    command = [sys.executable, "-m", "local.exchange_sim", "--port", "0", "--config", str(config)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    try:
        urls = process.stdout.readline().split()[1:]
        url = urls[0].removesuffix("/binance")
        assert urls == [f"{url}/{name}" for name in exchanges()]
        products = requests.get(f"{url}/coinbase/products", timeout=5).json()
        assert [one["id"] for one in products] == ["P0001-USD", "P0002-USD", "P0003-USD"]
        answer = requests.get(f"{url}/binance/api/v3/aggTrades?symbol=AAAUSDT", timeout=5)
        assert answer.json()[0]["a"] == 5
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_the_command_explains_a_bad_configuration(tmp_path):
    config = tmp_path / "world.yaml"
    config.write_text("colour: red\n")
    command = [sys.executable, "-m", "local.exchange_sim", "--config", str(config)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "colour" in done.stderr
