"""Worlds of the integration tests: one simulator and one deployed stack a session, IAM enforced if AUTH=true."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from local import ministack, sim_process
from local import stack as local_stack
from local.stack import Stack

HERE = Path(__file__).parent
RECORDINGS = ministack.REPOSITORY.parent / "shared" / "data"
# Fast waits: retry delays and Wait states of the state machines take a tenth of their time.
WAIT_SCALE = 0.1

# Bybit shows 60 trades a product: only many products make many trades.
WORLD: dict[str, Any] = {"bybit": {"products": 60, "trades_per_day": 43_200}}

# Back to the beginning, as the recordings are from 2019 and 2021; the cap keeps generated streams short. Exchanges that
# answer one request a second have more to do than is left to functions here.
FIRST_RUNS = {"ColdStartHours": "200000", "ColdStartTrades": "13000", "BackfillThresholdSeconds": "8"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)


@dataclass(frozen=True)
class Simulator:
    """A running exchange simulator and its control plane."""

    port: int

    @property
    def url(self) -> str:
        return sim_process.url(self.port)

    @property
    def endpoints(self) -> dict[str, str]:
        """Exchange → base URL, as the template's ExchangeEndpoints."""
        return sim_process.endpoints(self.port)

    def stats(self) -> dict[str, Any]:
        """What each exchange counted since the last reset."""
        return sim_process.stats(self.port)

    def add_faults(self, *faults: Mapping[str, Any]) -> None:
        """These faults too, from now on (local/exchange_sim/faults.py has the kinds)."""
        self.control("POST", "/_sim/faults", list(faults))

    def reset(self) -> None:
        """No faults, the true time, empty statistics. Never while a run is going on."""
        self.control("DELETE", "/_sim/faults")
        self.control("POST", "/_sim/clock", {"offset_s": 0, "frozen": False})
        sim_process.reset(self.port)

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """One call of the control plane, such as GET /_sim/oracle."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None


def recordings() -> list[dict[str, str]]:
    """What of the recorded data is here, as the simulator's configuration names it."""
    binance, coinbase = (
        RECORDINGS / "binance/XRPETH-aggTrades.jsonl.gz",
        RECORDINGS / "coinbase/websocket-matches.jsonl",
    )
    found = [{"exchange": "binance", "product": "XRPETH", "path": str(binance)}] if binance.exists() else []
    if coinbase.exists():
        products = sorted({json.loads(line)["product_id"] for line in coinbase.read_text().splitlines()})
        found += [{"exchange": "coinbase", "product": p, "path": str(coinbase)} for p in products]
    return found


@pytest.fixture(scope="session")
def simulator_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    home = tmp_path_factory.mktemp("simulator")
    port = ministack.free_port()
    world = home / "world.json"
    world.write_text(json.dumps({**WORLD, "recordings": recordings()}))
    sim_process.start(home, port, world)
    yield Simulator(port)
    sim_process.stop(home)


@pytest.fixture
def simulator(simulator_process: Simulator) -> Iterator[Simulator]:
    """The session's simulator, without faults and with empty statistics."""
    simulator_process.reset()
    yield simulator_process
    simulator_process.reset()


@pytest.fixture(scope="session")
def auth() -> bool:
    """Whether this session enforces IAM."""
    return os.environ.get("AUTH", "").lower() == "true"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, simulator_process: Simulator, auth: bool) -> Iterator[Stack]:
    """The project's template, built and deployed on an embedded AWS of this session, talking to the simulator."""
    home = tmp_path_factory.mktemp("stack")
    yield local_stack.up(
        home,
        port=ministack.free_port(),
        auth=auth,
        endpoints=simulator_process.endpoints,
        wait_scale=WAIT_SCALE,
        parameters=FIRST_RUNS,
        progress=lambda message: print(message, file=sys.stderr),
    )
    local_stack.down(home)
