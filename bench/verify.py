"""``schemahub verify`` on one core: rows a second and peak memory, which must not grow with the lake.

    python -m bench.verify [--rows 1000000 4000000] [--json]

A stream's raw objects of 100,000 trades and its Parquet files on local disk, made by the transform itself. Each check
runs in a child process pinned to one core; imports are part of the peak, not of the time.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zstandard

from bench.memory import peak_mib
from bench.transform import BEGIN_US, FIRST_ID, lines
from schemahub import query
from schemahub.evidence import MEMORY, Content, place_of, read_raw, sum_rows
from schemahub.folder import open_folder
from schemahub.mappings import load_mapping
from schemahub.raw import content_of, raw_key
from schemahub.streams import Interval, Segment, Stream
from schemahub.transform import transform_files
from schemahub.verify import differing

STREAM = Stream("coinbase", "BTC-USD")
SEGMENT_ROWS = 100_000
CHECKS = {
    "ids of the table": "aggregate checks",
    "rows of the table": "--deep, every column",
    "raw objects": "--deep, hash, ids and values",
}


def generate(root: Path, rows: int) -> None:
    """Raw objects, ``segments.json`` and Parquet files of a stream."""
    committed = BEGIN_US // 1000 + rows * 45
    segments: list[Segment] = []
    texts = (line.decode().rstrip("\n") for line in lines(rows))
    for at in range(FIRST_ID, FIRST_ID + rows, SEGMENT_ROWS):
        chunk = list(itertools.islice(texts, SEGMENT_ROWS))
        last, content = at + len(chunk) - 1, content_of(chunk)
        key, sha256 = raw_key(STREAM, at, last, len(chunk)), hashlib.sha256(content).hexdigest()
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstandard.ZstdCompressor(level=3).compress(content))
        segments.append(Segment(STREAM, at, last, len(chunk), (), key, sha256, "bench", "run", "c", committed))
    for at in range(0, len(segments), 10):
        inputs = [(s, root / s.raw_key) for s in segments[at : at + 10]]
        transform_files(load_mapping("coinbase"), inputs, root / "table" / str(at), threads=1)
    (root / "segments.json").write_text(json.dumps([s.to_json() for s in segments]))


def child(check: str, root: Path) -> None:
    """Run one check on one core and print what it took."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    segments = [Segment.from_json(s) for s in json.loads((root / "segments.json").read_text())]
    span = Interval(segments[0].first, segments[-1].last)
    began = time.perf_counter()
    if check == "raw objects":
        content: Content = read_raw(open_folder(root), load_mapping("coinbase"), segments, set(segments))
        assert not content.findings
        sums = content.rows.sums
    else:
        paths = sorted(str(path) for path in (root / "table").rglob("*.parquet"))
        sums = sum_rows(query.open_files(paths, MEMORY), check != "ids of the table")[place_of(STREAM)].sums
    assert differing(sums, [span]) == []
    took = time.perf_counter() - began
    print(json.dumps({"rows": span.size, "wall_s": took, "peak_mb": peak_mib()}))


def measure(sizes: list[int]) -> list[dict[str, float | str]]:
    results: list[dict[str, float | str]] = []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            generate(Path(name), rows)
            for check in CHECKS:
                command = [sys.executable, "-m", "bench.verify", "--child", check, name]
                answer = subprocess.run(command, check=True, capture_output=True, text=True)
                results.append({"check": check, **json.loads(answer.stdout)})
    return results


def markdown(results: list[dict[str, float | str]]) -> str:
    head = ("check", "part of", "rows", "M rows/s", "peak RSS MB")
    rows = [
        f"| {r['check']} | {CHECKS[str(r['check'])]} | {int(r['rows']):,} | "
        f"{float(r['rows']) / float(r['wall_s']) / 1e6:.2f} | {float(r['peak_mb']):.0f} |"
        for r in results
    ]
    return "\n".join((f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]))
        return
    results = measure(args.rows)
    print(json.dumps(results) if args.json else markdown(results))


if __name__ == "__main__":
    main()
