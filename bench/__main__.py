"""All measurements, one after the other; the result is docs/benchmarks.md.

python -m bench [--quick]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "benchmarks.md"
PEERS = ("duckdb", "polars", "pyarrow")
SECTIONS = (
    ("Transform, one core, zstd JSON lines to Parquet on disk", "transform", ("--rows", "200000", "--repeat", "1")),
    ("Encodings of the table's columns, one core", "encodings", ("--rows", "20000", "--repeat", "1")),
    ("Query, DuckDB over the table's files on local disk", "query", ("--rows", "500000", "--repeat", "1")),
    ("Query, exporting a whole answer", "query_export", ("--rows", "50000")),
    ("Verify, one core, one stream on local disk", "verify", ("--rows", "200000")),
    ("Filling back history beside plain scripts", "backfill", ("--trades", "20000", "--latency-ms", "0")),
    ("Archive, one core, a month's zip to raw objects", "archive", ("--rows", "200000")),
    ("Start-up of commands", "startup", ("--repeat", "1")),
    ("Shared token bucket under 16 threads", "throttle", ("--requests", "5")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, nothing is written: a test that all of it runs"
    )
    quick = parser.parse_args().quick
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    machine += "".join(f", {name} {importlib.metadata.version(name)}" for name in PEERS)
    machine += f", load {os.getloadavg()[0]:.1f} before it began"
    report = [f"# Benchmarks\n\n`make bench` writes this file; this run: {machine}."]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "layers" / "core"), str(ROOT)))}
    for title, module, small in SECTIONS:
        command = [sys.executable, "-m", f"bench.{module}", *(small if quick else ())]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)
        body = answer.stdout.strip()
        text = body if body.startswith("|") else f"```\n{body}\n```"
        report.append(f"## {title}\n`python -m bench.{module}`\n\n{text}")
        print(report[-1], flush=True)
    if not quick:
        REPORT.write_text("\n\n".join(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
