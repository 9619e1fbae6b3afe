"""`python -m local.exchange_sim --port 4570 [--config world.yaml] [--host 127.0.0.1]`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from .faults import BadFault
from .recordings import BadRecording
from .server import Server
from .simulator import Simulator
from .world import BadWorld, build_world


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM. Exit codes: 0 stopped, 2 bad configuration or port in use."""
    parser = argparse.ArgumentParser(prog="python -m local.exchange_sim", description=__doc__)
    parser.add_argument("--port", type=int, default=4570)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--config", type=Path, help="YAML or JSON; see local/exchange_sim/world.py")
    options = parser.parse_args(arguments)
    try:
        server = Server(Simulator(build_world(_read(options.config))), options.host, options.port)
    except (BadWorld, BadRecording, BadFault, OSError) as error:
        print(f"exchange_sim: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)
    print("exchange_sim:", *(f"{server.url}/{name}" for name in server.simulator.world.exchanges), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
    return 0


def _read(path: Path | None) -> dict[str, Any]:
    """The configuration file; JSON is YAML too."""
    if path is None:
        return {}
    config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(config, dict):
        raise BadWorld(f"{path}: a mapping is expected")
    for recording in config.get("recordings") or []:  # relative to the file that names them
        recording["path"] = str(path.parent / recording["path"])
    return config


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
