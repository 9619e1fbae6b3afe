"""CPU seconds that commands take before they do anything: what a person waits for each time.

    python -m bench.startup [--repeat 7] [--json]

`status` and `query` need a local stack (`schemahub local up`) and are left out without one. Peers are measured in the
same run where they are installed. Each command runs once unmeasured, so that no run pays for compiling modules.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
SCHEMAHUB = str(BIN / "schemahub")
OWN = (
    ("schemahub --version", (SCHEMAHUB, "--version"), 0.35),
    ("schemahub --help", (SCHEMAHUB, "--help"), 0.35),
    ("schemahub status", (SCHEMAHUB, "status"), 1.2),
    ('schemahub query "SELECT 1"', (SCHEMAHUB, "query", "SELECT 1"), 1.5),
)
PEERS = ("sam", "aws", "dbt", "dagster", "meltano", "duckdb")


def measure(command: tuple[str, ...], repeat: int) -> dict[str, float] | None:
    """Median CPU and wall seconds; None when the command fails."""
    # Compiled modules are part of an installation; some machines switch them off for tests.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    cpu, wall = [], []
    for number in range(repeat + 1):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        if subprocess.run(command, check=False, capture_output=True, env=environment).returncode:
            return None
        after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        if number:
            cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            wall.append(ended - began)
    return {"cpu_s": statistics.median(cpu), "wall_s": statistics.median(wall)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    here = os.pathsep.join((str(BIN), os.environ.get("PATH", os.defpath)))
    peers = [
        (f"{name} --version", (found, "--version"), None) for name in PEERS if (found := shutil.which(name, path=here))
    ]
    results = []
    for title, command, limit in (*OWN, *peers):
        taken = measure(command, args.repeat)
        results.append({"command": title, **(taken or {"cpu_s": None, "wall_s": None}), "limit_s": limit})
    if args.json:
        print(json.dumps(results))
        return
    print("| command | CPU s | wall s | at most, CPU s |\n|---|---|---|---|")
    for r in results:
        figures = "no local stack |" if r["cpu_s"] is None else f"{r['cpu_s']:.2f} | {r['wall_s']:.2f}"
        print(f"| `{r['command']}` | {figures} | {r['limit_s'] or ''} |")


if __name__ == "__main__":
    main()
