"""``make run`` killed with the embedded AWS under it, twice, and started again: every id is there once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from local import ministack, sim_process, stack

ARGUMENTS = ["--products", "3", "--binance", "1", "--hours", "12"]
DEADLINE_S = 240


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "home"
    yield path
    sim_process.stop(path)
    stack.down(path)


def begin(home: Path, ports: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **ports, "SCHEMAHUB_HOME": str(home)}
    environment.pop("AUTH", None)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "local.demo", *ARGUMENTS],
            cwd=ministack.REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def wait_for(what: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if what():
            return
        assert process.poll() is None, f"it ended before it could be killed:\n{log.read_text()[-3000:]}"
        time.sleep(0.1)
    raise AssertionError(f"it never came so far:\n{log.read_text()[-3000:]}")


def kill_everything(home: Path, process: subprocess.Popen[bytes]) -> None:
    """The command, MiniStack and its Lambda workers, with a signal that no ``finally`` survives; not the exchange."""
    process.kill()
    process.wait()
    daemon = ministack.running(home)
    assert daemon is not None
    victims = [psutil.Process(daemon.pid), *psutil.Process(daemon.pid).children(recursive=True)]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGKILL)
    psutil.wait_procs(victims, timeout=10)


def pages(port: int) -> int:
    try:
        return int(sim_process.stats(port)["coinbase"]["by_kind"].get("page", 0))
    except OSError:
        return 0


def test_killed_at_any_moment_it_ends_with_every_id_once(home: Path, tmp_path: Path) -> None:
    sim_port = ministack.free_port()
    ports = {"SCHEMAHUB_AWS_PORT": str(ministack.free_port()), "SCHEMAHUB_SIM_PORT": str(sim_port)}
    log = tmp_path / "demo.log"
    process = begin(home, ports, log)
    wait_for(lambda: pages(sim_port) >= 25, process, log)
    kill_everything(home, process)
    process = begin(home, ports, log)
    wait_for(lambda: "publishing" in log.read_text(), process, log)
    kill_everything(home, process)
    process = begin(home, ports, log)
    assert process.wait(DEADLINE_S) == 0, log.read_text()[-4000:]
    summary = json.loads((home / "last-run.json").read_text())
    assert len(summary["products"]) == 4, summary
    for proof in summary["products"]:
        assert (proof["missing"], proof["duplicates"]) == (0, 0), proof
        assert proof["trades"] > 15_000, proof
