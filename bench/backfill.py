"""Filling back history: the task's core beside a plain script that pages with `requests`, and beside ccxt.

    python -m bench.backfill [--trades 300000] [--latency-ms 0 50] [--json]

All of them ask the same simulator (a process of its own, without a rate limit) for the same trades of one product, one
after the other, each in a process of its own. ``requests`` and ``ccxt`` do what people write first: one page after the
other, appended to a file. ``task`` is what an ECS task does: the plan's chunks by workers times chunks in hand, every
page within the shared token bucket (set so that it never waits), each id checked, chunks compressed and hashed, stored
once in S3 and committed to the state tables, with S3 and DynamoDB in the embedded AWS, a process too. So its figure
includes what the others leave out: no gap, no double, a restart that begins where it stopped.

The machine's cores are shared by all of these processes; trades a second of CPU are those of the measured one alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from bench.memory import peak_mib

ROOT = Path(__file__).resolve().parents[1]
EXCHANGE, PRODUCT = "coinbase", "BTC-USD"
PAGE = 1_000
PRESETS = {"task 1x1": (1, 1), "task small (3x5)": (3, 5), "task medium (5x9)": (5, 9)}
Way = Callable[[str, int, int, Path, dict[str, str]], Callable[[], int]]
WAYS = ("requests", "ccxt", *PRESETS)


# --- ways: the simulator's URL, the first and the last id, a folder. What they return does the work, and is measured -


def with_requests(url: str, first: int, last: int, folder: Path, _: dict[str, str]) -> Callable[[], int]:
    """The script that people write: ask for what is older than the oldest that has come, until there is enough."""

    def run() -> int:
        session, at, trades = requests.Session(), last + 1, 0
        with (folder / "trades.jsonl").open("w") as out:
            while at > first:
                answer = session.get(
                    f"{url}/products/{PRODUCT}/trades", params={"limit": str(PAGE), "after": str(at)}, timeout=30
                )
                answer.raise_for_status()
                rows = [row for row in answer.json() if row["trade_id"] >= first]
                out.writelines(json.dumps(row) + "\n" for row in rows)
                trades, at = trades + len(rows), min(row["trade_id"] for row in rows)
        return trades

    return run


def with_ccxt(url: str, first: int, last: int, folder: Path, _: dict[str, str]) -> Callable[[], int]:
    """The same with ccxt's client of the exchange, its throttle off, its rows kept."""
    from tests.unit.oracle import class_of

    client = class_of(EXCHANGE)({"enableRateLimit": False})
    client.urls["api"] = dict.fromkeys(client.urls["api"], url)
    base, quote = PRODUCT.split("-")
    market = {"id": PRODUCT, "symbol": f"{base}/{quote}", "base": base, "quote": quote, "spot": True, "type": "spot"}
    client.set_markets([client.safe_market_structure(market)])

    def run() -> int:
        at, trades = last + 1, 0
        with (folder / "trades.jsonl").open("w") as out:
            while at > first:
                rows = client.fetch_trades(f"{base}/{quote}", limit=PAGE, params={"after": str(at)})
                rows = [row for row in rows if int(row["id"]) >= first]
                out.writelines(json.dumps(row) + "\n" for row in rows)
                trades, at = trades + len(rows), min(int(row["id"]) for row in rows)
        return trades

    return run


def with_task(workers: int, concurrency: int) -> Way:
    """The core of the ECS task over one plan that holds everything, as `PlanBackfill` writes it."""

    def prepare(url: str, first: int, last: int, folder: Path, given: dict[str, str]) -> Callable[[], int]:
        from schemahub import backfill, coverage
        from schemahub.backfill_plan import TaskSpec
        from schemahub.backfill_task import run_task
        from schemahub.streams import Interval, Stream

        deps, stream, within = _deps(url, given), Stream(EXCHANGE, PRODUCT), Interval(first, last)
        lease = _watermark(deps, stream, last + 1)
        chunks, _ = backfill.cut_missing(deps, stream, [within])
        spec = TaskSpec("bench", stream, lease, "rest", within, workers, concurrency, tuple(reversed(chunks)))

        def run() -> int:
            result = run_task(deps, spec, threading.Event(), folder)
            assert result.status == "done", result
            return sum(s.count for s in coverage.touching(deps.ledger, stream, within))

        return run

    return prepare


def _deps(url: str, given: dict[str, str]) -> Any:
    """Real adapters over empty tables and an empty bucket in the embedded AWS."""
    import boto3

    from schemahub.deps import Settings, build
    from tests.conftest import create_tables

    os.environ |= {"AWS_ENDPOINT_URL": given["aws"], "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    session = boto3.Session(region_name="us-east-1")
    stage = f"bench{os.getpid()}"
    tables, bucket = create_tables(session, stage), f"schemahub-{stage}"
    session.client("s3").create_bucket(Bucket=bucket)
    names: dict[str, Any] = {f"{name}_table": table for name, table in tables.items()}
    return build(Settings(bucket=bucket, database="bench", endpoints={EXCHANGE: url}, **names), session)


def _watermark(deps: Any, stream: Any, position: int) -> Any:
    """As if an ingest had begun at ``position``; returns the lease on what lies below."""
    deps.ledger.restore(stream, position, position, [], deps.clock.now_ms())
    return deps.locks.acquire(stream.backfill_lock_id, "bench", "bench")


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(way: str, url: str, first: int, last: int, given: dict[str, str]) -> dict[str, Any]:
    """One way, in this process. Imports, clients and empty tables are made before the clock starts."""
    ways: dict[str, Way] = {"requests": with_requests, "ccxt": with_ccxt} | {
        name: with_task(*size) for name, size in PRESETS.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        run = ways[way](url, first, last, Path(folder), given)
        wall, cpu = time.perf_counter(), time.process_time()
        trades = run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert trades == last - first + 1, f"{way} stored {trades} of {last - first + 1} trades"
    return {"way": way, "trades": trades, "wall_s": wall, "cpu_s": cpu, "peak_mib": peak_mib()}


def in_a_child(way: str, url: str, first: int, last: int, given: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.backfill", "--way", way, "--url", url, "--ids", str(first), str(last)]
    command += ["--given", json.dumps(given)]
    environment = {**os.environ, "SCHEMAHUB_MAPPINGS": given["mappings"]}
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    return dict(json.loads(answer.stdout.splitlines()[-1]))


@contextlib.contextmanager
def simulator(folder: Path, latency_ms: float) -> Iterator[str]:
    """The exchange's URL; a process of its own, without a rate limit."""
    from local.ministack import free_port

    config = {"latency_ms": {"mean": latency_ms, "jitter": 0}, EXCHANGE: {"limit": "none"}}
    file, port = folder / "world.json", free_port()
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "local.exchange_sim", "--port", str(port), "--config", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), "the simulator did not start"
        yield f"http://127.0.0.1:{port}/{EXCHANGE}"
    finally:
        process.terminate()
        process.wait(30)


def unlimited(folder: Path) -> str:
    """A folder with the exchange's mapping, its burst so high that the token bucket never waits."""
    import yaml

    source = ROOT / "mappings" / f"{EXCHANGE}.yaml"
    mapping = yaml.safe_load(source.read_text(encoding="utf-8"))
    mapping["limits"] |= {"amount": 200, "burst": 10_000}
    (folder / source.name).write_text(yaml.safe_dump(mapping, sort_keys=False), encoding="utf-8")
    return str(folder)


def table(results: list[dict[str, Any]]) -> str:
    head = "| way | answer after | trades/s | trades/s of CPU | peak RSS |"
    lines = [head, "|---|---:|---:|---:|---:|"]
    for r in results:
        rate, of_cpu = r["trades"] / r["wall_s"], r["trades"] / r["cpu_s"]
        lines.append(f"| {r['way']} | {r['latency_ms']:g} ms | {rate:,.0f} | {of_cpu:,.0f} | {r['peak_mib']:.0f} MiB |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trades", type=int, default=300_000)
    parser.add_argument(
        "--latency-ms", type=float, nargs="+", default=[0.0, 50.0], help="what the exchange takes a page"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", action="store_true")
    for name in ("--way", "--url", "--given"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--ids", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        first, last = args.ids
        print(json.dumps(measure(args.way, args.url, first, last, json.loads(args.given))))
        return
    from local import ministack

    results = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "mappings").mkdir()
        daemon = ministack.start(folder / "aws", port=ministack.free_port())
        try:
            given = {"aws": daemon.endpoint, "mappings": unlimited(folder / "mappings")}
            for latency_ms in args.latency_ms:
                with simulator(folder, latency_ms) as url:
                    head = requests.get(f"{url}/products/{PRODUCT}/trades", timeout=30).json()[0]["trade_id"]
                    # Whole chunks, as a plan cuts them, far below what is being traded meanwhile.
                    last = head // 10_000 * 10_000 - 10_001
                    for way in args.ways:
                        seen = in_a_child(way, url, last - args.trades + 1, last, given)
                        results.append(seen | {"latency_ms": latency_ms})
        finally:
            ministack.stop(folder / "aws")
    print(json.dumps(results) if args.json else table(results))


if __name__ == "__main__":
    main()
