"""The transform on one core: ours beside DuckDB alone, Polars and pyarrow, from zstd JSON lines to Parquet on disk.

    python -m bench.transform [--rows 2000000] [--repeat 3] [--json]

Every engine runs in a child process of its own that is pinned to one core; imports are not counted, reading, checking,
sorting and writing are. ``ours`` also proves the raw object's SHA-256, checks every row, splits by day and collects the
statistics for Iceberg; the others only map, sort and write one file. CPU time is what the core worked, wall time also
what it waited for others.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import zstandard

from bench.memory import peak_mib

FIRST_ID = 650_000_000
BEGIN_US = 1_718_000_000_000_000


def lines(rows: int, seed: int = 1) -> Iterator[bytes]:
    """Coinbase-like trades: 25 a second on average, a random walk of the price, sizes with a long tail."""
    dice = random.Random(seed)
    time_us, cents = BEGIN_US, 6_500_000
    for number in range(rows):
        time_us += int(dice.expovariate(1 / 40_000))
        cents += dice.choice((-1, 0, 0, 0, 1)) * dice.randint(1, 300)
        second = dt.datetime.fromtimestamp(time_us // 1_000_000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
        side = dice.choice(("buy", "sell"))
        size = dice.paretovariate(0.7) * 1e-4
        yield (
            f'{{"trade_id":{FIRST_ID + number},"side":"{side}","size":"{size:.8f}","price":"{cents // 100}.'
            f'{cents % 100:02d}000000","time":"{second}.{time_us % 1_000_000:06d}Z"}}\n'
        ).encode()


def generate(path: Path, rows: int) -> dict[str, int | str]:
    """Write the raw object; returns its SHA-256 and the size of its content in bytes."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as out, zstandard.ZstdCompressor(level=3).stream_writer(out) as packed:
        for line in lines(rows):
            digest.update(line)
            size += len(line)
            packed.write(line)
    return {"sha256": digest.hexdigest(), "plain_bytes": size, "rows": rows, "packed_bytes": path.stat().st_size}


# --- engines: raw object and folder in, bytes of Parquet out ------------------------------------------------------


def ours() -> Callable[[Path, Path, int, str], int]:
    from schemahub.mappings import load_mapping
    from schemahub.streams import Segment, Stream
    from schemahub.transform import transform_files, verify_raw

    def run(raw: Path, folder: Path, rows: int, sha256: str) -> int:
        stream = Stream("coinbase", "BTC-USD")
        committed = BEGIN_US // 1000 + rows * 45
        segment = Segment(
            stream, FIRST_ID, FIRST_ID + rows - 1, rows, (), str(raw), sha256, "bench", "run", "commit", committed
        )
        verify_raw(segment, raw)
        result = transform_files(load_mapping("coinbase"), [(segment, raw)], folder, threads=1)
        assert (result.rows, result.quarantined) == (rows, 0)
        return sum(file.path.stat().st_size for file in result.files)

    return run


def duckdb_copy() -> Callable[[Path, Path, int, str], int]:
    import duckdb

    def run(raw: Path, folder: Path, rows: int, sha256: str) -> int:
        out = folder / "out.parquet"
        with duckdb.connect(config={"threads": 1, "memory_limit": "320MB", "temp_directory": str(folder)}) as db:
            db.execute(
                f"""COPY (SELECT 'COINBASE' AS exchange, 'BTC-USD' AS symbol, trade_id::VARCHAR AS trade_id,
                    CASE side WHEN 'buy' THEN 'SELL' WHEN 'sell' THEN 'BUY' END AS side, price, size AS quantity,
                    time AS trade_ts, now() AS ingest_ts
                FROM read_json('{raw}', format = 'newline_delimited', compression = 'zstd', columns = {{
                    trade_id: 'BIGINT', side: 'VARCHAR', size: 'DOUBLE', price: 'DOUBLE', time: 'TIMESTAMPTZ'}})
                ORDER BY exchange, symbol, time, read_json.trade_id)
                TO '{out}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 3, ROW_GROUP_SIZE 250000)"""
            )
        return out.stat().st_size

    return run


def polars_frame() -> Callable[[Path, Path, int, str], int]:
    import polars as pl

    def run(raw: Path, folder: Path, rows: int, sha256: str) -> int:
        plain, out = folder / "plain.jsonl", folder / "out.parquet"
        with raw.open("rb") as packed, plain.open("wb") as unpacked:
            zstandard.ZstdDecompressor().copy_stream(packed, unpacked)
        text = dict.fromkeys(("side", "size", "price", "time"), pl.String)
        frame = pl.scan_ndjson(plain, schema={"trade_id": pl.Int64, **text})
        frame = frame.sort("time", "trade_id").select(
            exchange=pl.lit("COINBASE"), symbol=pl.lit("BTC-USD"), trade_id=pl.col("trade_id").cast(pl.String),
            side=pl.when(pl.col("side") == "buy").then(pl.lit("SELL")).otherwise(pl.lit("BUY")),
            price=pl.col("price").cast(pl.Float64), quantity=pl.col("size").cast(pl.Float64),
            trade_ts=pl.col("time").str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us", time_zone="UTC"),
            ingest_ts=pl.lit(dt.datetime.fromtimestamp(BEGIN_US / 1e6, dt.UTC)),
        )  # fmt: skip
        frame.sink_parquet(out, compression="zstd", compression_level=3, row_group_size=250_000)
        return out.stat().st_size

    return run


def pyarrow_compute() -> Callable[[Path, Path, int, str], int]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    pa.set_cpu_count(1)

    def run(raw: Path, folder: Path, rows: int, sha256: str) -> int:
        text = [(name, pa.string()) for name in ("side", "size", "price", "time")]
        shape = pj.ParseOptions(explicit_schema=pa.schema([("trade_id", pa.int64()), *text]))
        read = pj.ReadOptions(use_threads=False, block_size=8 << 20)
        table = pj.read_json(pa.input_stream(str(raw), compression="zstd"), read, shape)
        trade_ts = pc.assume_timezone(pc.cast(pc.replace_substring(table["time"], "Z", ""), pa.timestamp("us")), "UTC")
        mapped = pa.table({
            "exchange": pa.repeat("COINBASE", rows), "symbol": pa.repeat("BTC-USD", rows),
            "trade_id": table["trade_id"], "side": pc.if_else(pc.equal(table["side"], "buy"), "SELL", "BUY"),
            "price": pc.cast(table["price"], pa.float64()), "quantity": pc.cast(table["size"], pa.float64()),
            "trade_ts": trade_ts, "ingest_ts": pa.repeat(pa.scalar(BEGIN_US, pa.timestamp("us", "UTC")), rows),
        })  # fmt: skip
        mapped = mapped.sort_by([("trade_ts", "ascending"), ("trade_id", "ascending")])
        mapped = mapped.set_column(2, "trade_id", pc.cast(mapped["trade_id"], pa.string()))
        out = folder / "out.parquet"
        pq.write_table(mapped, out, compression="zstd", compression_level=3, row_group_size=250_000)
        return out.stat().st_size

    return run


ENGINES = {"ours": ours, "DuckDB COPY": duckdb_copy, "Polars": polars_frame, "pyarrow": pyarrow_compute}


def child(name: str, raw: Path, rows: int, sha256: str) -> None:
    """Run one engine on one core and print what it took."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    run = ENGINES[name]()
    with tempfile.TemporaryDirectory(dir=raw.parent) as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        size = run(raw, Path(folder), rows, sha256)
        took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    print(json.dumps({**took, "peak_mb": peak_mib(), "bytes": size}))


def measure(rows: int, repeat: int) -> list[dict[str, float | str]]:
    """Medians of ``repeat`` runs of each engine, taken in turns so that a busy minute does not hit only one."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.jsonl.zst"
        made = generate(raw, rows)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in ENGINES}
        environment = {**os.environ, "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
        for name in list(ENGINES) * repeat:
            command = [
                sys.executable,
                "-m",
                "bench.transform",
                "--child",
                name,
                str(raw),
                str(rows),
                str(made["sha256"]),
            ]
            answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            runs[name].append(json.loads(answer.stdout))
    results: list[dict[str, float | str]] = []
    for name, taken in runs.items():
        middle = {key: statistics.median(r[key] for r in taken) for key in taken[0]}
        results.append({
            "engine": name, "rows_per_s": rows / middle["wall_s"], "rows_per_cpu_s": rows / middle["cpu_s"],
            "peak_mb": max(r["peak_mb"] for r in taken), "bytes_per_trade": middle["bytes"] / rows,
            "raw_to_parquet": float(made["plain_bytes"]) / middle["bytes"],
        })  # fmt: skip
    return results


def markdown(results: list[dict[str, float | str]]) -> str:
    head = ("engine", "M rows/s (wall)", "M rows/s (CPU)", "peak RSS MB", "B/trade", "JSON : Parquet")
    rows = [
        f"| {r['engine']} | {float(r['rows_per_s']) / 1e6:.2f} | {float(r['rows_per_cpu_s']) / 1e6:.2f} | "
        f"{float(r['peak_mb']):.0f} | {float(r['bytes_per_trade']):.1f} | {float(r['raw_to_parquet']):.1f} |"
        for r in results
    ]
    return "\n".join((f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, raw, rows, sha256 = args.child
        child(name, Path(raw), int(rows), sha256)
        return
    results = measure(args.rows, args.repeat)
    print(json.dumps(results) if args.json else markdown(results))


if __name__ == "__main__":
    main()
