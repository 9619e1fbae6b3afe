"""A month of an exchange's archive on one core: ours beside a plain csv script and DuckDB's read_csv.

    python -m bench.archive [--rows 20000000] [--engines ours,plain,duckdb] [--json]

The month is generated with what real archives got wrong planted in it (shared peers.md §B 1-12): a halt and single ids
that the API lacks too, a stretch of missing rows, a file that breaks off in the middle of a row, ids with two contents,
a run of exact repeats, a shuffled stretch, rows of another month, milliseconds between microseconds, garbage; and the
file is late first, then not what its checksum says, then right. ``ours`` downloads, proves, sorts, reconciles and
writes raw objects; afterwards every row of them is compared with the generator's formula. The plain script unpacks with
zipfile, reads with csv and writes the same JSON lines; it sorts, checks and drops nothing. DuckDB reads an unpacked
copy, drops repeats and sorts into Parquet; it has 1 GB, because `DISTINCT` of 20 M rows fails with 300 MB. Each engine
runs in a process of its own, pinned to one core.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.memory import peak_mib

BEGIN = dt.date(2025, 3, 1)
BEGIN_US = 1_740_787_200_000_000
MONTH_US = 31 * 86_400_000_000
FIRST_ID = 3_300_000_000
BLOCK = 500_000


class World:
    """Trade ``n`` by a formula, in Python for the API and in SQL for the file, and what is wrong with the file."""

    def __init__(self, rows: int) -> None:
        self.rows, self.step = rows, MONTH_US // rows
        at = rows // 100
        self.halt = (10 * at + 17, 10 * at + 17 + min(5_000, at))
        self.singles = [20 * at + 13 * k for k in range(60)]
        self.lacking = (30 * at, 30 * at + min(50_000, at))
        self.conflicts = [40 * at + 101 * k for k in range(20)]
        self.repeats = (45 * at, 45 * at + min(200_000, at))
        self.shuffled = (50 * at, 55 * at)
        self.millis = (60 * at, 65 * at)
        self.cut = rows - min(12_000, at)

    def gone(self, n: int) -> bool:
        """Whether the API lacks it too."""
        return self.halt[0] <= n <= self.halt[1] or n in self._single

    @property
    def _single(self) -> set[int]:
        return set(self.singles)

    def time_us(self, n: int) -> int:
        return BEGIN_US + n * self.step + n * 7919 % self.step

    def text(self, n: int) -> str:
        """As the API sends it."""
        cents, size = 9_700_000 + n * 7919 % 100_003, n * 104_729 % 10**8 + 1
        maker = "true" if n * 31 % 7 < 3 else "false"
        return (
            f'{{"a":{FIRST_ID + n},"p":"{cents // 100}.{cents % 100:02d}000000","q":"0.{size % 10**8:08d}","f":{3 * n},'
            f'"l":{3 * n + 2},"T":{self.time_us(n) // 1000},"m":{maker},"M":true}}'
        )

    def sql(self, first: int, last: int) -> str:
        """The same rows as the file writes them."""
        return f"""SELECT {FIRST_ID} + n AS a,
            printf('%d.%02d000000', (9700000 + n * 7919 % 100003) // 100, (9700000 + n * 7919 % 100003) % 100) AS p,
            printf('0.%08d', (n * 104729 % 100000000 + 1) % 100000000) AS q, 3 * n AS f, 3 * n + 2 AS l,
            ({BEGIN_US} + n * {self.step} + n * 7919 % {self.step}) //
                CASE WHEN n BETWEEN {self.millis[0]} AND {self.millis[1]} THEN 1000 ELSE 1 END AS t,
            CASE WHEN n * 31 % 7 < 3 THEN 'True' ELSE 'False' END AS m, 'True' AS best
            FROM range({first}, {last}) r(n)"""


def generate(path: Path, world: World, folder: Path) -> dict[str, Any]:
    """Write the month's zip, block by block."""
    import duckdb

    member, part = path.name.removesuffix(".zip") + ".csv", folder / "part.csv"
    dice, size, written = random.Random(5), 0, 0
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
        packed.open(member, "w", force_zip64=True) as out,
        duckdb.connect(config={"threads": 1}) as db,
    ):
        for first in range(0, world.rows, BLOCK):
            last = min(first + BLOCK, world.rows)
            db.execute(f"COPY ({world.sql(first, last)}) TO '{part}' (HEADER false)")
            lines = part.read_bytes().splitlines(keepends=True)
            lines = _spoil(lines, first, last, world, dice)
            written += len(lines)
            body = b"".join(lines)
            size += len(body)
            out.write(body)
    part.unlink()
    digest = hashlib.sha256()
    with path.open("rb") as body_of:
        while block := body_of.read(1 << 20):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "plain": size, "packed": path.stat().st_size, "rows": written}


def _spoil(lines: list[bytes], first: int, last: int, world: World, dice: random.Random) -> list[bytes]:
    def inside(n: int) -> bool:
        return first <= n < last

    numbers = range(first, last)
    drop = {n for n in world.singles if inside(n)}
    for begin, end in (world.halt, world.lacking):
        drop |= set(range(max(begin, first), min(end + 1, last)))
    drop |= set(range(max(world.cut, first), last))
    extra: list[bytes] = []
    for n in world.conflicts:
        if inside(n):
            cells = lines[n - first].split(b",")
            extra.append(b",".join([*cells[:2], b"9.99999999", *cells[3:]]))
    repeated = range(max(world.repeats[0], first), min(world.repeats[1] + 1, last))
    extra += [lines[n - first] for n in repeated]
    if inside(world.shuffled[1]):
        # Rows of the month before, between those of this one; and a few that are no rows.
        extra += [b"%d,1.0,1.0,1,2,%d,True,True\n" % (FIRST_ID - 5_000 + k, BEGIN_US - 10**9 + k) for k in range(1_000)]
        extra += [b"maintenance\n", b"1,2,3\n", b"x,y,z,,,,,\n"]
    broken = lines[world.cut - first][:40] if inside(world.cut) else b""
    kept = [line for n, line in zip(numbers, lines, strict=True) if n not in drop] if drop else lines
    kept += extra
    if first < world.shuffled[1] and last > world.shuffled[0]:
        dice.shuffle(kept)
    return [*kept, broken] if broken else kept


# --- engines ------------------------------------------------------------------------------------------------------


class Disk:
    """Objects as files: what ``raw`` needs of S3, without keeping them in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.meta = folder, dict[str, dict[str, Any]]()

    def put_new(self, key: str, body: bytes, metadata: dict[str, str]) -> bool:
        (self.folder / key.rsplit("/", 1)[-1]).write_bytes(body)
        return True

    def put(self, key: str, body: bytes, metadata: Any = None) -> None:
        (self.folder / "state.json").write_bytes(body)

    def get(self, key: str) -> bytes | None:
        return None

    def list(self, prefix: str) -> list[str]:
        return []


class Served:
    """The archive's server: late, then wrong, then right."""

    def __init__(self, path: Path, sha256: str) -> None:
        self.path, self.sha256, self.looks = path, sha256, 0

    @contextlib.contextmanager
    def open(self, url: str, headers: dict[str, str]) -> Iterator[Any]:
        from schemahub.archive_download import Opened

        if url.endswith(".CHECKSUM"):
            self.looks += 1
            said = self.sha256[::-1] if self.looks in (2, 3) else self.sha256
            yield Opened(200, {}, iter([f"{said}  {self.path.name}\n".encode()]))
        elif self.looks == 1:
            yield Opened(404, {}, iter(()))
        else:
            with self.path.open("rb") as body:
                length = {"content-length": str(self.path.stat().st_size)}
                yield Opened(200, length, iter(lambda: body.read(1 << 16), b""))


def ours(path: Path, made: dict[str, Any], folder: Path) -> dict[str, Any]:
    import schemahub.archive_ingest as module
    from schemahub import archives, raw
    from schemahub.answers import Row
    from schemahub.clock import FakeClock
    from schemahub.mappings import load_mapping
    from schemahub.streams import Interval, Stream

    world, stream, mapping = World(made["world"]), Stream("binance", "BTC-USDT"), load_mapping("binance")

    class Api:
        requests = 0

        def page(self, _: Any, first: int, last: int, *, pages_left: int = 1) -> list[Row]:
            self.requests += 1
            shown, n = [], max(0, first - FIRST_ID)
            while len(shown) < min(1_000, last - first + 1) and n < world.rows:
                if not world.gone(n):
                    shown.append(Row(FIRST_ID + n, world.time_us(n), world.text(n), str(FIRST_ID + n)))
                n += 1
            return shown

    api = Api()
    ledger = SimpleNamespace(watermark=lambda _: SimpleNamespace(low=2**62), newest_segments=lambda *_: iter(()))
    clock = FakeClock(BEGIN_US // 1000 + 90 * 86_400_000)
    deps: Any = SimpleNamespace(
        objects=Disk(folder), ledger=ledger, clock=clock, paced={"binance": api},
        settings=SimpleNamespace(endpoints={}, chunk_pages=10),
    )  # fmt: skip
    file = archives.file_of(mapping, stream, "monthly", BEGIN)
    within, served = Interval(FIRST_ID, FIRST_ID + world.rows - 1), Served(path, made["sha256"])

    def commit(fetched: Any) -> None:
        for one in fetched:
            raw.store(deps.objects, stream, one)

    seen = []
    for _ in range(3):
        report = module.ingest_file(
            deps, stream, file, within, commit, folder / "work", threading.Event(), lambda: None, files=served
        )
        seen.append(report.error or report.status)
    said = report.to_json()
    keys = ("rows", "units", "rows_refused", "ids_filled_from_api", "ids_absent", "requests", "committed_rows", "left")
    return {"attempts": seen, "pathologies": report.pathologies(), **{k: said[k] for k in keys}}


def plain(path: Path, made: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What one writes in ten minutes."""
    import csv
    import io

    import zstandard

    rows = 0
    with (
        zipfile.ZipFile(path) as packed,
        packed.open(packed.namelist()[0]) as member,
        (folder / "plain.jsonl.zst").open("wb") as out,
        zstandard.ZstdCompressor(level=3).stream_writer(out) as packed_out,
    ):
        for row in csv.reader(io.TextIOWrapper(member)):
            if len(row) != 8:
                continue
            a, p, q, f, last, t, m, best = row
            line = {"a": a, "p": p, "q": q, "f": f, "l": last, "T": t, "m": m == "True", "M": best == "True"}
            packed_out.write(json.dumps(line).encode() + b"\n")
            rows += 1
    return {"rows": rows}


def duckdb_csv(path: Path, made: dict[str, Any], folder: Path) -> dict[str, Any]:
    import duckdb

    with zipfile.ZipFile(path) as packed:
        plain_csv = packed.extract(packed.namelist()[0], folder)
    names = ["a", "p", "q", "f", "l", "T", "m", "M"]
    columns = "{" + ", ".join(f"'{n}{'_' if n in 'MT' else ''}': 'VARCHAR'" for n in names) + "}"
    with duckdb.connect(
        config={"threads": 1, "memory_limit": "1GB", "temp_directory": str(folder / "spill"),
                "preserve_insertion_order": False}
    ) as db:  # fmt: skip
        db.execute(
            f"COPY (SELECT DISTINCT * FROM read_csv('{plain_csv}', header = false, auto_detect = false, delim = ',', "
            f"columns = {columns}, ignore_errors = true) ORDER BY TRY_CAST(a AS BIGINT)) TO '{folder}/out.parquet' "
            "(FORMAT parquet, COMPRESSION zstd)"
        )
        rows = db.execute(f"SELECT count(*) FROM '{folder}/out.parquet'").fetchone()
    return {"rows": rows[0] if rows else 0}


ENGINES: dict[str, Callable[[Path, dict[str, Any], Path], dict[str, Any]]] = {
    "ours": ours,
    "plain": plain,
    "duckdb": duckdb_csv,
}
TITLES = {"ours": "ours", "plain": "csv + json, plain script", "duckdb": "DuckDB read_csv"}


def compare(folder: Path, world: World) -> dict[str, int]:
    """Every row of the raw objects against the formula; returns what does not agree."""
    import duckdb

    with duckdb.connect(config={"threads": 1, "memory_limit": "1GB", "temp_directory": str(folder / "spill")}) as db:
        shape = "{a: 'BIGINT', p: 'VARCHAR', q: 'VARCHAR', f: 'BIGINT', l: 'BIGINT', T: 'VARCHAR', m: 'BOOLEAN'}"
        answer = db.execute(
            f"""SELECT count(*), count(DISTINCT a), count(*) FILTER (WHERE NOT (
                    p = printf('%d.%02d000000', cents // 100, cents % 100)
                    AND q = printf('0.%08d', (n * 104729 % 100000000 + 1) % 100000000) AND f = 3 * n AND l = 3 * n + 2
                    AND t.T::DECIMAL(18, 3) IN (us / 1000::DECIMAL(18, 3), us // 1000) AND m = (n * 31 % 7 < 3)))
                FROM (SELECT *, a - {FIRST_ID} AS n, {BEGIN_US} + (a - {FIRST_ID}) * {world.step}
                          + (a - {FIRST_ID}) * 7919 % {world.step} AS us,
                          9700000 + (a - {FIRST_ID}) * 7919 % 100003 AS cents
                      FROM read_json('{folder}/*.jsonl.zst', format = 'newline_delimited', columns = {shape},
                                     compression = 'zstd')) t"""
        ).fetchone()
    assert answer is not None
    absent = sum(world.gone(n) for n in {*range(world.halt[0], world.halt[1] + 1), *world.singles})
    return {"rows": answer[0], "distinct": answer[1], "wrong": answer[2], "expected": world.rows - absent}


def child(name: str, path: Path, made: dict[str, Any], folder: Path) -> None:
    """Run one engine on one core and print what it took."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    wall, cpu = time.perf_counter(), time.process_time()
    said = ENGINES[name](path, made, folder)
    took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    print(json.dumps({**took, "peak_mb": peak_mib(), **said}))


def measure(rows: int, engines: list[str]) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    world = World(rows)
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "BTCUSDT-aggTrades-2025-03.zip"
        made = {**generate(path, world, Path(home)), "world": rows}
        results["file"] = made
        for name in engines:
            with tempfile.TemporaryDirectory(dir=home) as folder:
                command = [sys.executable, "-m", "bench.archive", "--child", name, str(path), json.dumps(made), folder]
                answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                results[name] = json.loads(answer.stdout)
                if name == "ours":
                    results[name]["compared"] = compare(Path(folder), world)
                print(json.dumps({name: results[name]}), file=sys.stderr, flush=True)
    return results


def markdown(results: dict[str, dict[str, Any]]) -> str:
    file = results.pop("file")
    lines = ["| engine | M rows/s (wall) | M rows/s (CPU) | peak RSS MB |", "|---|---|---|---|"]
    for name, r in results.items():
        rate = [file["rows"] / r[key] / 1e6 for key in ("wall_s", "cpu_s")]
        lines.append(f"| {TITLES[name]} | {rate[0]:.3f} | {rate[1]:.3f} | {r['peak_mb']} |")
    lines.append(
        f"\n{file['rows']:,} rows, {file['packed'] / 2**20:,.0f} MiB packed, {file['plain'] / 2**20:,.0f} plain."
    )
    if "ours" in results:
        mine = results["ours"]
        found = ", ".join(f"{p['kind']} {p['count']:,}" for p in mine["pathologies"])
        lines.append(f"Attempts: {', '.join(mine['attempts'])}. Found: {found}.")
        lines.append(
            f"Against the formula: {mine['compared']['rows']:,} rows, {mine['compared']['wrong']} wrong, "
            f"{mine['compared']['expected'] - mine['compared']['distinct']} missing; {mine['requests']} requests."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--engines", default="ours,plain,duckdb")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, path, made, folder = args.child
        child(name, Path(path), json.loads(made), Path(folder))
        return
    results = measure(args.rows, args.engines.split(","))
    print(json.dumps(results) if args.json else markdown(results))


if __name__ == "__main__":
    main()
