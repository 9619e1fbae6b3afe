"""Queries over the unified table's files on local disk: bars, one day of one symbol, counts.

    python -m bench.query [--rows 10000000] [--json]

Five symbols over ten days in the table's own layout: a file a symbol and day, sorted, with the encodings of the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import duckdb
import pyarrow as pa

from schemahub.datafiles import DayFiles
from schemahub.query import ohlcv_sql, select

SYMBOLS = ("BTC-USD", "ETH-USD", "SOL-USD", "XRP-USD", "LTC-USD")
DAYS = 10
BEGIN_US = 1_717_200_000_000_000

QUERIES = {
    "count(*)": "SELECT count(*) FROM trades",
    "1-minute bars of a symbol, all days": ohlcv_sql("BTC-USD", "1m"),
    "hourly VWAP of a symbol, one day": """SELECT time_bucket(INTERVAL 1 hour, trade_ts) AS hour,
        sum(price * quantity) / sum(quantity) AS vwap FROM trades WHERE symbol = 'BTC-USD'
        AND trade_ts >= '2024-06-05' AND trade_ts < '2024-06-06' GROUP BY ALL ORDER BY hour""",
    "trades by symbol and day": "SELECT symbol, trade_ts::DATE AS day, count(*) FROM trades GROUP BY ALL ORDER BY ALL",
    "last trade of each symbol": "SELECT symbol, arg_max(price, trade_ts) FROM trades GROUP BY symbol ORDER BY symbol",
}


def generate(folder: Path, rows: int) -> int:
    """Write the table's files; returns their size in bytes."""
    share = rows // len(SYMBOLS)
    step = DAYS * 86_400_000_000 // share
    for number, symbol in enumerate(SYMBOLS):
        files = DayFiles(folder / symbol)
        files.folder.mkdir(parents=True)
        with duckdb.connect() as db:
            db.execute(f"SELECT setseed({0.1 * number})")
            reader = db.execute(
                f"""SELECT i, {BEGIN_US} + i * {step} + (random() * {step})::BIGINT % {max(step, 1)} AS us,
                    round(60000 + 500 * sin(i / 100000.0) + random(), 2) AS price, (random() * 1e6)::BIGINT / 1e8 + 1e-8
                    AS quantity, (random() < 0.5)::TINYINT AS side FROM range({share}) AS t(i) ORDER BY us, i"""
            ).to_arrow_reader(125_000)
            for batch in reader:
                files.write(_rows(batch, symbol, files.schema))
        files.close()
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def _rows(batch: pa.RecordBatch, symbol: str, schema: pa.Schema) -> pa.RecordBatch:
    def coded(values: list[str], codes: pa.Array | None = None) -> pa.Array:
        zero = pa.repeat(pa.scalar(0, pa.int8()), len(batch))
        return pa.DictionaryArray.from_arrays(zero if codes is None else codes.cast(pa.int8()), pa.array(values))

    times = batch.column("us").cast(pa.timestamp("us", "UTC"))
    return pa.RecordBatch.from_arrays(
        [coded(["COINBASE"]), coded([symbol]), batch.column("i").cast(pa.string()),
         coded(["BUY", "SELL"], batch.column("side")), batch.column("price"), batch.column("quantity"), times,
         pa.repeat(pa.scalar(BEGIN_US, pa.timestamp("us", "UTC")), len(batch))], schema=schema)  # fmt: skip


def measure(rows: int, repeat: int) -> list[dict[str, float | str]]:
    with tempfile.TemporaryDirectory() as name, duckdb.connect() as db:
        folder = Path(name)
        size = generate(folder, rows)
        db.execute("SET TimeZone = 'UTC'")
        db.execute(f"CREATE VIEW trades AS SELECT * FROM read_parquet('{folder}/*/*.parquet')")
        results: list[dict[str, float | str]] = []
        for query, sql in QUERIES.items():
            taken = []
            for _ in range(repeat):
                began = time.perf_counter()
                select(db, sql)
                taken.append(time.perf_counter() - began)
            results.append({"query": query, "ms": 1000 * statistics.median(taken), "bytes_per_trade": size / rows})
    return results


def markdown(results: list[dict[str, float | str]]) -> str:
    return "\n".join(("| query | ms |", "|---|---|", *(f"| {r['query']} | {float(r['ms']):.0f} |" for r in results)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args.rows, args.repeat)
    print(json.dumps(results) if args.json else markdown(results))


if __name__ == "__main__":
    main()
