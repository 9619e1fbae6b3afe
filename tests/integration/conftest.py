"""Worlds of the integration tests: one simulator and one deployed stack a session, IAM enforced if AUTH=true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from local import ministack
from local import stack as local_stack
from local.stack import Stack

HERE = Path(__file__).parent
# Fast waits: retry delays and Wait states of the state machines take a tenth of their time.
WAIT_SCALE = 0.1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)


@dataclass(frozen=True)
class Simulator:
    """A running exchange simulator and its control plane."""

    url: str

    @property
    def endpoints(self) -> dict[str, str]:
        """Exchange → base URL, as the template's ExchangeEndpoints."""
        return {exchange: f"{self.url}/{exchange}" for exchange in ("coinbase", "binance")}

    def stats(self) -> Any:
        return self._call("GET", "/_sim/stats")

    def set_faults(self, faults: list[Mapping[str, Any]]) -> None:
        self._call("POST", "/_sim/faults", faults)

    def reset(self) -> None:
        """No faults, empty statistics."""
        self._call("POST", "/_sim/reset", {})

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            content = answer.read()
        return json.loads(content) if content else None


def start_simulator(log: Path, config: Path | None = None) -> tuple[Simulator, subprocess.Popen[bytes]]:
    """The simulator as a process of its own, on a free port; `log` gets what it prints."""
    port = ministack.free_port()
    command = [sys.executable, "-m", "local.exchange_sim", "--port", str(port)]
    if config is not None:
        command += ["--config", str(config)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ministack.REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    simulator = Simulator(f"http://127.0.0.1:{port}")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{simulator.url}/_sim/health", timeout=2):
                return simulator, process
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    process.kill()
    process.wait()
    raise AssertionError(f"the simulator did not start:\n{ministack.tail(log)}")


@pytest.fixture(scope="session")
def simulator_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    log = tmp_path_factory.mktemp("simulator") / "simulator.log"
    simulator, process = start_simulator(log)
    yield simulator
    process.terminate()
    process.wait(timeout=10)


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
        progress=lambda message: print(message, file=sys.stderr),
    )
    local_stack.down(home)
