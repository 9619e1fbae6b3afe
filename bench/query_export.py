"""Exporting a query's whole answer: rows a second and peak memory of each format, one process each.

    python -m bench.query_export [--rows 10000000] [--json]

`SELECT *` over the table's own files on local disk, as `schemahub query -o FILE` does it; and the same rows from the
result of Athena, a CSV that is read in pieces. Peak memory is the process's own, with all imports.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.memory import peak_mib

FORMATS = ("csv", "json", "ndjson", "parquet", "arrow")
MEMORY = "1GB"
COLUMNS = {"exchange": "varchar", "symbol": "varchar", "trade_id": "varchar", "side": "varchar", "price": "double",
           "quantity": "double", "trade_ts": "timestamp with time zone"}  # fmt: skip


class LocalS3:
    """One file as an object."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def head_object(self, **_: Any) -> dict[str, Any]:
        return {"ContentLength": self.path.stat().st_size, "ETag": "x"}

    def get_object(self, Range: str, **_: Any) -> dict[str, Any]:
        first, last = map(int, Range.removeprefix("bytes=").split("-"))
        with self.path.open("rb") as file:
            file.seek(first)
            return {"Body": io.BytesIO(file.read(last - first + 1))}


def export(source: str, files: list[str], form: str, target: Path) -> dict[str, float | str]:
    """One export in this process."""
    from schemahub_cli.export import Answer, whole_file, write
    from schemahub_cli.formats import Format

    if source == "athena":
        from schemahub_cli import athena_result

        info = [{"Name": name, "Type": kind} for name, kind in COLUMNS.items()]
        answered = {"ResultSet": {"ResultSetMetadata": {"ColumnInfo": info}}}
        client = SimpleNamespace(get_query_results=lambda **_: answered)
        schema, batches = athena_result.read(client, LocalS3(Path(files[0])), "q", "s3://bucket/q.csv")
    else:
        from schemahub import query

        schema, batches = query.stream(query.open_files(files, MEMORY), "SELECT * FROM trades", timeout_s=3600)
    answer = Answer(schema, batches)
    began, cpu = time.perf_counter(), time.process_time()
    with whole_file(target) as sink:
        write(answer, Format(form), sink)
    return {
        "source": source,
        "format": form,
        "rows": answer.rows,
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": peak_mib(),
        "file_mb": target.stat().st_size / 1e6,
    }


def measure(rows: int, formats: tuple[str, ...] = FORMATS) -> list[dict[str, float | str]]:
    """Each format by DuckDB, and Parquet from Athena's CSV; each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            [sys.executable, "-c", f"import pathlib, bench.query as q; q.generate(pathlib.Path({name!r}), {rows})"],
            check=True,
        )
        found = [run("duckdb", sorted(map(str, folder.rglob("*.parquet"))), form, folder / "out") for form in formats]
        theirs = folder / "athena.csv"
        _as_athena(folder, theirs)
        return [*found, run("athena", [str(theirs)], "parquet", folder / "out")]


def _as_athena(folder: Path, path: Path) -> None:
    """The rows as Athena writes them: every value in quotes, times with their zone."""
    import duckdb

    listed = ", ".join(
        f"strftime({c}, '%Y-%m-%d %H:%M:%S.%f') || ' UTC' AS {c}" if c == "trade_ts" else f"{c}::VARCHAR AS {c}"
        for c in COLUMNS
    )
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.execute(f"COPY (SELECT {listed} FROM '{folder}/*/*.parquet') TO '{path}' (HEADER, FORCE_QUOTE *)")


def run(source: str, files: list[str], form: str, target: Path) -> dict[str, Any]:
    """``export`` in a new process."""
    words = [sys.executable, "-m", "bench.query_export", "--one", json.dumps([source, files, form, str(target)])]
    return dict(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        source, files, form, target = json.loads(options.one)
        print(json.dumps(export(source, files, form, Path(target))))
        return
    found = measure(options.rows)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"| {options.rows:,} rows from | to | CPU s | peak MB | file MB |\n|---|---|---|---|---|")
    for r in found:
        print(f"| {r['source']} | {r['format']} | {r['cpu_s']:.1f} | {r['peak_mb']:.0f} | {r['file_mb']:.0f} |")


if __name__ == "__main__":
    main()
