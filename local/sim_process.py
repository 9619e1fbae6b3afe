"""The exchange simulator as a background process of its own: started once, found again, stopped by its pid file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from schemahub.mappings import exchanges

REPOSITORY = Path(__file__).resolve().parent.parent
START_SECONDS = 20.0


class SimulatorError(RuntimeError):
    """The simulator does not run; the message says why and what to do."""


def default_port() -> int:
    """SCHEMAHUB_SIM_PORT, or 4570."""
    return int(os.environ.get("SCHEMAHUB_SIM_PORT", "4570"))


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def endpoints(port: int) -> dict[str, str]:
    """Base URL of each exchange, for the template's ExchangeEndpoints."""
    return {name: f"{url(port)}/{name}" for name in exchanges()}


def log_path(home: Path) -> Path:
    return home / "exchange-sim.log"


def _record(home: Path) -> Path:
    return home / "exchange-sim.json"


def running(home: Path) -> int | None:
    """Port of this home's simulator, if it runs. The creation time tells it from another process with its old pid."""
    try:
        record = json.loads(_record(home).read_text())
        process = psutil.Process(record["pid"])
        if process.create_time() == record["created"] and process.status() != psutil.STATUS_ZOMBIE:
            return int(record["port"])
    except (OSError, ValueError, KeyError, psutil.Error):
        pass
    return None


def start(home: Path, port: int, config: Path | None = None) -> bool:
    """Make the simulator run on ``port``, in the world of ``config``; False if it did already.

    Raises:
        SimulatorError: another program has the port, or the simulator ended.
    """
    home.mkdir(parents=True, exist_ok=True)
    if (there := running(home)) is not None:
        if there == port and healthy(port):
            return False
        stop(home)
    if healthy(port):
        raise SimulatorError(f"another simulator answers on port {port}: stop it, or set SCHEMAHUB_SIM_PORT")
    with log_path(home).open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "local.exchange_sim",
                "--port",
                str(port),
                *(["--config", str(config)] if config else []),
            ],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    created = psutil.Process(process.pid).create_time()
    _record(home).write_text(json.dumps({"pid": process.pid, "created": created, "port": port}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SimulatorError(
                f"the simulator ended with {process.returncode}; see {log_path(home)} "
                f"(is port {port} in use? set SCHEMAHUB_SIM_PORT)"
            )
        if healthy(port):
            return True
        time.sleep(0.05)
    raise SimulatorError(f"the simulator does not answer on port {port}; see {log_path(home)}")


def stop(home: Path) -> bool:
    """End this home's simulator; False if none ran."""
    found = running(home) is not None
    if found:
        pid = json.loads(_record(home).read_text())["pid"]
        process = psutil.Process(pid)
        os.kill(pid, signal.SIGTERM)
        try:
            process.wait(5)
        except psutil.TimeoutExpired:
            process.kill()
    _record(home).unlink(missing_ok=True)
    return found


def healthy(port: int) -> bool:
    """Whether a simulator answers there."""
    try:
        with urllib.request.urlopen(f"{url(port)}/_sim/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def stats(port: int) -> dict[str, Any]:
    """What each exchange of the simulator has counted since the last reset."""
    with urllib.request.urlopen(f"{url(port)}/_sim/stats", timeout=30) as answer:
        return dict(json.load(answer))


def reset(port: int) -> None:
    """Forget all requests and fill the buckets. Never while a run is going on: it would give it a second burst."""
    request = urllib.request.Request(f"{url(port)}/_sim/reset", data=b"", method="POST")
    with urllib.request.urlopen(request, timeout=10):
        pass
