"""Ways to store the table's columns: bytes a trade and CPU, beside what DuckDB and Polars write by themselves.

    python -m bench.encodings [--rows 1000000] [--repeat 5] [--recordings ../shared/data] [--json]

The rows are made by the project's own transform from generated trades, from the simulator's, and from recordings of
real exchanges where their folder is there. Each way writes the same sorted rows, a file a day, on one core. Bytes are
those of whole files: a footer has about 2.5 kB, which is much of a file of a few hundred trades. CPU is that of the
generated trades: to write them, to read all columns by pyarrow, and to hash all of them by DuckDB.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from bench.transform import lines
from local.exchange_sim.world import build_world
from schemahub.datafiles import DayFiles
from schemahub.mappings import load_mapping
from schemahub.streams import Segment, Stream
from schemahub.table import COLUMNS, DICTIONARY, arrow_schema
from schemahub.transform import BATCH_ROWS, transform_files

RECORDINGS = Path(__file__).resolve().parents[2] / "shared" / "data"
COMMITTED_MS = 1_790_000_000_000
GENERATED = "generated"
DELTA, DELTA_TEXT, SPLIT = "DELTA_BINARY_PACKED", "DELTA_BYTE_ARRAY", "BYTE_STREAM_SPLIT"
WAYS: dict[str, dict[str, str]] = {
    "ours": {},
    "ours, price dictionary": {"price": DICTIONARY},
    "ours, quantity dictionary": {"quantity": DICTIONARY},
    "ours, quantity split": {"quantity": SPLIT},
    "ours, trade_ts delta": {"trade_ts": DELTA},
    "ours, trade_id delta": {"trade_id": DELTA_TEXT},
    "ours, encodings until 0007": {"trade_id": DELTA_TEXT, "price": DICTIONARY, "quantity": SPLIT, "trade_ts": DELTA},
}
"""What differs from the encodings of ``schemahub.table``; the last are those that decision 7 replaced."""
Writer = Callable[[pa.Table, Path], None]


# --- rows: as an exchange sent them, through the transform -------------------------------------------------------


def inputs(rows: int, recordings: Path) -> dict[str, pa.Table]:
    """Sorted rows of the unified table by the name of where they come from."""
    raw: dict[str, tuple[str, str, Iterable[bytes]]] = {GENERATED: ("coinbase", "BTC-USD", lines(rows))}
    source = build_world().exchanges["coinbase"].listings["BTC-USD"].source
    simulated = source.oldest(source.first_id, source.first_id + rows, min(rows, 100_000))
    raw["simulator"] = ("coinbase", "BTC-USD", (text.encode() + b"\n" for _, text in simulated))
    if recordings.exists():
        raw |= recorded(recordings)
    return {name: mapped(*what) for name, what in raw.items()}


def recorded(folder: Path) -> dict[str, tuple[str, str, Iterable[bytes]]]:
    """Real trades. The Kraken file has neither sides nor ids: those are made up (one side, ids from 1)."""
    matches = [json.loads(line) for line in (folder / "coinbase" / "websocket-matches.jsonl").open()]
    trades = {m["trade_id"]: {k: m[k] for k in ("trade_id", "side", "size", "price", "time")} for m in matches}
    with (folder / "kraken" / "BCHEUR-trades.csv").open() as file:
        kraken = [[price, size, float(at), "b", "l", "", n] for n, (at, price, size) in enumerate(csv.reader(file), 1)]
    page = folder / "binance" / "BTCUSDT-aggTrades-page-fromId-202790190.json"
    hour = folder / "bitstamp" / "btcusd-transactions-hour.json"
    return {
        "binance XRPETH": ("binance", "XRP-ETH", gzip.open(folder / "binance" / "XRPETH-aggTrades.jsonl.gz")),
        "binance BTCUSDT": ("binance", "BTC-USDT", packed(json.loads(page.read_text()))),
        "kraken BCHEUR": ("kraken", "BCH-EUR", packed(kraken)),
        "bitstamp BTCUSD": ("bitstamp", "BTC-USD", packed(reversed(json.loads(hour.read_text())))),
        "coinbase, 10 products": ("coinbase", "BTC-USD", packed(trades.values())),
    }


def packed(rows: Iterable[Any]) -> Iterable[bytes]:
    return (json.dumps(row).encode() + b"\n" for row in rows)


def mapped(exchange: str, product: str, rows: Iterable[bytes]) -> pa.Table:
    content = b"".join(rows)
    with tempfile.TemporaryDirectory() as name:
        raw = Path(name) / "raw.jsonl.zst"
        raw.write_bytes(zstandard.ZstdCompressor(level=3).compress(content))
        count, sha256 = content.count(b"\n"), hashlib.sha256(content).hexdigest()
        segment = Segment(Stream(exchange, product), 1, 2**62, count, (), str(raw), sha256, "b", "r", "c", COMMITTED_MS)
        done = transform_files(load_mapping(exchange), [(segment, raw)], Path(name) / "out", threads=1)
        assert done.rows == count, f"{exchange}: {done.quarantined} rows do not map"
        codes = [c.name for c in COLUMNS if c.kind == "string" and c.encoding == DICTIONARY]
        days = [pq.read_table(f.path, read_dictionary=codes, partitioning=None) for f in done.files]
        return pa.concat_tables(days).cast(arrow_schema()).combine_chunks()


# --- writers: a table and an empty folder in, Parquet files out ---------------------------------------------------


def own(changes: dict[str, str]) -> Writer:
    columns = tuple(replace(c, encoding=changes.get(c.name, c.encoding)) for c in COLUMNS)

    def write(table: pa.Table, folder: Path) -> None:
        files = DayFiles(folder, columns)
        for batch in table.to_batches(BATCH_ROWS):
            files.write(batch)
        files.close()

    return write


def by_duckdb(options: str) -> Writer:
    def write(table: pa.Table, folder: Path) -> None:
        with duckdb.connect(config={"threads": 1}) as db:
            for number, day in enumerate(days(table)):
                db.register("day", day)
                db.execute(f"COPY day TO '{folder}/{number}.parquet' (FORMAT parquet{options})")

    return write


def by_polars(table: pa.Table, folder: Path) -> None:
    import polars as pl

    for number, day in enumerate(days(table)):
        pl.DataFrame(day).write_parquet(folder / f"{number}.parquet")


def by_pyarrow(table: pa.Table, folder: Path) -> None:
    for number, day in enumerate(days(table)):
        pq.write_table(day, folder / f"{number}.parquet")


def days(table: pa.Table) -> Iterable[pa.Table]:
    day = pc.floor_temporal(table["trade_ts"], unit="day")
    return [table.filter(pc.equal(day, value)) for value in pc.unique(day)]


WRITERS: dict[str, Writer] = {
    **{name: own(changes) for name, changes in WAYS.items()},
    "DuckDB, defaults": by_duckdb(""),
    "DuckDB, zstd 3": by_duckdb(", COMPRESSION zstd, COMPRESSION_LEVEL 3"),
    "Polars, defaults": by_polars,
    "pyarrow, defaults": by_pyarrow,
}


# --- what they cost ----------------------------------------------------------------------------------------------


def measure(rows: int, repeat: int, recordings: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """For each writer the bytes a trade of each input and the CPU of the generated rows; and the inputs' counts."""
    tables = inputs(rows, recordings)
    results = []
    for writer, write in WRITERS.items():
        one: dict[str, Any] = {"writer": writer, "bytes_per_trade": {}, "encodings": []}
        for name, table in tables.items():
            taken = [costs(write, table) for _ in range(repeat if name == GENERATED else 1)]
            one["bytes_per_trade"][name] = taken[0]["bytes"] / len(table)
            one["encodings"] = sorted({*one["encodings"], *taken[0]["encodings"]})
            if name == GENERATED:
                for kind in ("write", "pyarrow", "duckdb"):
                    one[f"{kind}_s_per_million"] = statistics.median(t[kind] for t in taken) * 1e6 / len(table)
        results.append(one)
    return results, {name: len(table) for name, table in tables.items()}


def costs(write: Writer, table: pa.Table) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, duckdb.connect(config={"threads": 1}) as db:
        spent = {"write": cpu(lambda: write(table, Path(name)))}
        paths = sorted(Path(name).glob("*.parquet"))
        spent["pyarrow"] = cpu(lambda: [pq.read_table(p, use_threads=False, partitioning=None) for p in paths])
        sums = ", ".join(f"sum(hash({column.name}))" for column in COLUMNS)
        spent["duckdb"] = cpu(lambda: db.execute(f"SELECT {sums} FROM read_parquet('{name}/*.parquet')").fetchall())
        used = {e for p in paths for e in encodings_of(p)}
        return {**spent, "bytes": sum(p.stat().st_size for p in paths), "encodings": used}


def cpu(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def encodings_of(path: Path) -> set[str]:
    footer = pq.read_metadata(path)
    groups = [footer.row_group(g) for g in range(footer.num_row_groups)]
    return {e for group in groups for c in range(group.num_columns) for e in group.column(c).encodings}


def markdown(results: list[dict[str, Any]], counts: dict[str, int]) -> str:
    head = ["writer", *(f"{name} ({count:,})" for name, count in counts.items()), "write", "pyarrow", "DuckDB"]
    body = []
    for result in results:
        sizes = [f"{result['bytes_per_trade'][name]:.2f}" for name in counts]
        spent = [f"{result[f'{kind}_s_per_million']:.2f}" for kind in ("write", "pyarrow", "duckdb")]
        body.append(f"| {' | '.join([result['writer'], *sizes, *spent])} |")
    note = "Bytes a trade by input (its trades). CPU seconds a million trades: to write, to read by pyarrow, by DuckDB."
    return "\n".join((f"| {' | '.join(head)} |", "|---" * len(head) + "|", *body, "", note))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--recordings", type=Path, default=RECORDINGS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ["POLARS_MAX_THREADS"] = "1"
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    import polars  # noqa: F401  after its threads are set, and before anything is measured

    results, counts = measure(args.rows, args.repeat, args.recordings)
    print(json.dumps(results) if args.json else markdown(results, counts))


if __name__ == "__main__":
    main()
