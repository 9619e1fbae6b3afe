"""Memory does not grow with a file: the same steps over ten times the rows, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from schemahub.archives import file_of
from tests.unit.archive_worlds import MAPPING, OLD
from tests.unit.pages import ROOT
from tests.unit.pipelines import BINANCE

FILE = file_of(MAPPING, BINANCE, "daily", OLD)
BEGIN_MS = FILE.period_us[0] // 1000
CHILD = """
import json, sys, tempfile
from pathlib import Path
import pyarrow as pa
from bench.memory import peak_mib
from schemahub.archive_layout import layout_of
from schemahub.archive_read import Read, member_of, read_rows
from schemahub.archive_sort import Spill, bucket_width
from schemahub.archives import ArchiveFile
from schemahub.mappings import load_mapping
pa.set_memory_pool(pa.system_memory_pool())
mapping, path = load_mapping("binance"), Path(sys.argv[1])
file, read = ArchiveFile.from_json(json.loads(sys.argv[2]), mapping), Read()
before = peak_mib()
with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    spill = Spill(Path(folder) / "rows", bucket_width(10_000))
    with member_of(path, file) as plain:
        for batch in read_rows(plain, file, layout_of(mapping, file), read):
            spill.add(batch)
    rows = sum(len(spill.bucket(number)) for number in spill.numbers())
print(json.dumps({"rows": rows, "grown": peak_mib() - before, "disordered": spill.disordered}))
"""


def line(n: int, ms: int) -> str:
    return f"{n + 1},{97_000 + n % 1_009}.{n % 97:02d},0.{1 + n % 99_991:08d},{n},{n},{ms},True,True\n"


def measured(folder: Path, rows: int) -> dict[str, int]:
    """A file of that many rows in seven interleaved runs, read, spilled and read back."""
    path = folder / FILE.name
    step = 86_400_000 // rows if rows < 86_400_000 else 1
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
        packed.open(FILE.member, "w") as out,
    ):
        for way in range(7):
            for first in range(way, rows, 70_000):
                last = min(first + 70_000, rows)
                out.write("".join(line(n, BEGIN_MS + n * step) for n in range(first, last, 7)).encode())
    answer = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), json.dumps(FILE.to_json())],
        check=True, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": f"{ROOT / 'layers/core'}:{ROOT}"},
    )  # fmt: skip
    found: dict[str, int] = json.loads(answer.stdout)
    return found


@pytest.mark.long
def test_ten_times_the_rows_need_no_more_memory(tmp_path: Path) -> None:
    """freqtrade#5578, PR#11289: a month's trades took 30 GB, or killed a host of 64 GB."""
    small, large = measured(tmp_path, 150_000), measured(tmp_path, 1_500_000)
    assert (small["rows"], large["rows"]) == (150_000, 1_500_000)
    assert large["disordered"] >= 6
    # 1.5 M rows are 190 MB as lines.
    assert large["grown"] < 120
    assert large["grown"] - small["grown"] < 45
