"""`schemahub query` as a shell sees it: the screen, files and stdout get whole and exact answers, or a named error."""

from __future__ import annotations

import csv
import decimal
import io
import json
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from bench import query_export
from schemahub import query
from schemahub_cli import cells, export, lake, target
from schemahub_cli.formats import Format
from schemahub_cli.main import app

RUNNER = CliRunner()
MANY = "SELECT range AS n FROM range(50000)"
BREAKS = "SELECT CASE WHEN range < 90000 THEN range ELSE error('it broke') END AS n FROM range(100000)"
EVERYTHING = """SELECT 0.1::DOUBLE + 0.2::DOUBLE AS d, 1e-8::DOUBLE AS small, 12345678.12345679::DOUBLE AS large,
    'NaN'::DOUBLE AS nan, '-inf'::DOUBLE AS inf, 0.00000001::DECIMAL(18, 8) AS exact, sum(1)::HUGEINT AS whole,
    ':smile: [red]x[/] 100%' AS emoji, 'a "b", c' AS quoted, '' AS empty, NULL AS nothing,
    TIMESTAMPTZ '2024-03-01 01:00:00.000001+01' AS at, TIMESTAMP '2024-03-01' AS local, DATE '2024-03-01' AS day,
    '\\x00\\xFF'::BLOB AS bytes, [1.5, NULL, 'nan'::DOUBLE] AS list, {'a': 1, 'b': ['x"']} AS struct,
    MAP {'k': DATE '2024-03-01'} AS map, INTERVAL '1 month 2 days 3.5 seconds' AS span, true AS yes,
    'infinity'::TIMESTAMPTZ AS never, 'ö'::ENUM ('ö') AS enum"""
AS_TEXT = {
    "d": "0.30000000000000004", "small": "1e-08", "large": "12345678.12345679", "nan": "nan", "inf": "-inf",
    "exact": "0.00000001", "whole": "1", "emoji": ":smile: [red]x[/] 100%", "quoted": 'a "b", c', "empty": "",
    "nothing": "", "at": "2024-03-01T00:00:00.000001Z", "local": "2024-03-01T00:00:00.000000", "day": "2024-03-01",
    "bytes": "0x00ff", "list": "[1.5, null, null]", "struct": '{"a": 1, "b": ["x\\""]}', "map": '{"k": "2024-03-01"}',
    "span": "P1M2DT3.5S", "yes": "true", "never": "infinity", "enum": "ö",
}  # fmt: skip


@pytest.fixture(autouse=True)
def stack(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A local stack whose table is empty."""
    made = SimpleNamespace(local=True, database="db", outputs={"AthenaWorkgroupName": "wg"})
    monkeypatch.setattr(target, "resolve", lambda name: made)
    monkeypatch.setattr(lake, "connect", lambda *_, memory_limit=None, **__: query.open_files([], memory_limit))
    return made


def ask(*words: str, exit_code: int = 0) -> Result:
    result = RUNNER.invoke(app, ["query", *words])
    assert result.exit_code == exit_code, result.output
    return result


# --- whole, or said -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--csv"], ["--format", "csv"], ["-f", "ndjson"]])
def test_lines_on_stdout_are_all_of_the_rows(words: list[str]) -> None:
    said = ask(*words, MANY)
    assert len(said.stdout.splitlines()) == 50_000 + ("ndjson" not in words)
    assert said.stderr == ""


@pytest.mark.parametrize("words", [["--json"], ["--format", "json"], ["--json", "--format", "json"]])
def test_json_has_all_of_the_rows_and_says_so(words: list[str]) -> None:
    document = json.loads(ask(*words, MANY).stdout)
    assert document["rows"] == [[n] for n in range(50_000)]
    assert (document["columns"], document["row_count"], document["truncated"]) == (["n"], 50_000, False)


def test_the_screen_shows_a_thousand_rows_and_warns_of_the_rest() -> None:
    said = ask(MANY)
    assert "999" in said.stdout
    assert "1000" not in said.stdout
    assert "1,000 rows" in said.stdout
    assert "only the first 1,000 rows" in said.stderr
    assert "--max-rows" in said.stderr


@pytest.mark.parametrize(("rows", "cut"), [("6", True), ("7", False), ("8", False)])
@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_rows_that_are_cut_are_warned_of_in_every_format(form: str, rows: str, cut: bool) -> None:
    said = ask("-f", form, "--max-rows", rows, "SELECT range AS n FROM range(7)")
    assert ("only the first" in said.stderr) == cut
    if form == "json":
        assert json.loads(said.stdout)["truncated"] is cut


def test_json_that_breaks_in_the_midst_is_one_error_document_and_no_half_answer() -> None:
    said = ask("--json", BREAKS, exit_code=1)
    assert json.loads(said.stdout)["error"] == "BadQuery"


def test_csv_that_breaks_in_the_midst_says_so_on_stderr_with_its_exit_code() -> None:
    said = ask("--csv", BREAKS, exit_code=1)
    assert "it broke" in said.stderr
    assert "it broke" not in said.stdout


@pytest.mark.parametrize("form", ["csv", "json", "ndjson", "parquet", "arrow"])
def test_a_file_is_whole_under_its_name_or_what_was_there_stays(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{form}"
    path.write_text("before")
    ask("-o", str(path), BREAKS, exit_code=1)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no part is left"
    said = ask("-o", str(path), MANY)
    assert "50,000 rows" in said.stderr
    assert said.stdout == ""
    assert numbers(path, form) == list(range(50_000))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def numbers(path: Path, form: str) -> list[int]:
    """Column n of a file, by a reader that is not ours."""
    if form == "parquet":
        return list(pq.read_table(path)["n"].to_pylist())
    if form == "arrow":
        with pa.ipc.open_file(path) as file:
            return list(file.read_all()["n"].to_pylist())
    text = path.read_text()
    if form == "csv":
        return [int(row["n"]) for row in csv.DictReader(io.StringIO(text))]
    if form == "json":
        return [row[0] for row in json.loads(text)["rows"]]
    return [json.loads(line)["n"] for line in text.splitlines()]


@pytest.mark.parametrize(("name", "form"), [("x.jsonl", "ndjson"), ("x.FEATHER", "arrow"), ("x.CSV", "csv")])
def test_a_file_s_extension_says_its_format(name: str, form: str) -> None:
    assert Format.of(Path(name)) == form


def test_a_named_format_counts_for_more_than_the_extension(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    ask("-f", "csv", "-o", str(path), "SELECT 1 AS a")
    assert path.read_text() == "a\n1\n"


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        (["-o", "x.xlsx", "SELECT 1"], 1, ".parquet"),
        (["-o", "rows", "SELECT 1"], 1, "--format"),
        (["-o", "/nowhere/at/all.csv", "SELECT 1"], 1, "cannot be written"),
        (["-f", "csv", "-o", "/dev/null", "SELECT 1"], 1, "is not a file"),
        (["-f", "csv", "-o", ".", "SELECT 1"], 1, "is not a file"),
        (["-f", "table", "-o", "x.csv", "SELECT 1"], 1, "for the screen"),
        (["--csv", "--json", "SELECT 1"], 2, "say one format"),
        (["--csv", "-f", "parquet", "SELECT 1"], 2, "say one format"),
        (["-f", "xml", "SELECT 1"], 2, "xml"),
        (["--memory", "lots", "SELECT 1"], 2, "512MB"),
        (["--timeout", "0", "SELECT 1"], 2, "--timeout"),
        (["-f", "parquet", "SELECT 1 AS a, 2 AS a"], 1, "two columns are called 'a'"),
        (["-f", "ndjson", "SELECT 1 AS a, 2 AS a"], 1, "AS"),
        (["-f", "parquet", "SELECT INTERVAL 1 month AS i"], 1, "parquet cannot hold"),
        (["--timeout", "0.2", "SELECT sum(a.range * b.range) FROM range(9999999) a, range(9999999) b"], 1, "--timeout"),
        (["--memory", "60MB", "SELECT list(range) FROM range(100000000)"], 1, "--memory"),
    ],
)
def test_what_cannot_be_written_has_a_name_a_remedy_and_a_code(
    words: list[str], exit_code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = ask(*words, exit_code=exit_code)
    assert says in " ".join(said.stderr.split())
    assert exit_code == 2 or "→" in said.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_bytes_are_not_for_a_terminal(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    system = SimpleNamespace(stdout=Terminal(io.BytesIO()), stdin=sys.stdin)
    monkeypatch.setattr("schemahub_cli.commands.query.sys", system)
    said = ask("-f", form, "SELECT 1 AS a", exit_code=1)
    assert f"-o FILE.{form}" in said.stderr


def test_bytes_go_through_a_pipe() -> None:
    with pa.ipc.open_file(io.BytesIO(ask("-f", "arrow", MANY).stdout_bytes)) as file:
        assert file.read_all().num_rows == 50_000
    assert pq.read_table(io.BytesIO(ask("-f", "parquet", MANY).stdout_bytes)).num_rows == 50_000


# --- values as they are -------------------------------------------------------------------------------------------


def test_csv_has_every_value_exactly_as_it_is() -> None:
    (row,) = csv.DictReader(io.StringIO(ask("--csv", EVERYTHING).stdout))
    assert row == AS_TEXT
    assert ',"",,' in ask("--csv", "SELECT 1 AS a, '' AS b, NULL AS c, 2 AS d").stdout, "an empty text is no null"


def test_the_screen_has_every_value_exactly_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "900")
    shown = ask(EVERYTHING).stdout
    for name, text in AS_TEXT.items():
        assert text in shown, name


def test_a_column_s_name_is_no_markup_either() -> None:
    assert "[red]:x:" in ask('SELECT 1 AS "[red]:x:"').stdout


def test_a_cell_cannot_move_the_cursor() -> None:
    shown = ask("SELECT chr(27) || '[31mred' || chr(7) AS x").stdout
    assert "\x1b[31m" not in shown
    assert r"\x1b[31mred\x07" in shown


@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_json_is_valid_and_exact(form: str) -> None:
    def no_constant(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    document = json.loads(ask("-f", form, EVERYTHING).stdout, parse_constant=no_constant)
    row = document if form == "ndjson" else dict(zip(document["columns"], document["rows"][0], strict=True))
    assert row["d"] == 0.1 + 0.2
    assert row["nan"] is row["inf"] is row["nothing"] is None
    assert (row["exact"], row["whole"], row["yes"]) == ("0.00000001", 1, True)
    assert (row["list"], row["struct"], row["map"]) == ([1.5, None, None], {"a": 1, "b": ['x"']}, {"k": "2024-03-01"})
    for name in ("emoji", "quoted", "empty", "at", "local", "day", "bytes", "span", "never", "enum"):
        assert row[name] == AS_TEXT[name]


@given(st.lists(st.floats(width=64), min_size=1))
def test_a_double_is_its_shortest_exact_form(values: list[float]) -> None:
    assert cells.text(pa.array(values, pa.float64())).to_pylist() == [repr(value) for value in values]


@given(st.floats(width=32, allow_nan=False))
def test_a_single_reads_back_as_the_same_single(value: float) -> None:
    (text,) = cells.text(pa.array([value], pa.float32())).to_pylist()
    assert struct.pack("f", float(text)) == struct.pack("f", value)
    assert len(text) <= len(repr(value))


@given(st.lists(st.none() | st.text(st.characters(codec="utf-8")), min_size=1))
@settings(deadline=None)
def test_any_text_survives_csv_and_json(values: list[str | None]) -> None:
    column = pa.array(values, pa.string())
    assert [json.loads(text) for text in cells.json_text(column).to_pylist()] == values
    fields = cells.csv_text(column).to_pylist()
    read = next(csv.reader(io.StringIO(",".join([*fields, "end"]), newline=""), strict=True))
    assert read == [value or "" for value in values] + ["end"]


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20, places=12))
def test_a_decimal_has_all_its_digits(value: decimal.Decimal) -> None:
    (text,) = cells.text(pa.array([value], pa.decimal128(38, 12))).to_pylist()
    assert decimal.Decimal(text) == value
    assert "E" not in text


def test_rows_come_in_order_whatever_the_batches_are() -> None:
    batches = iter([pa.record_batch({"n": list(range(i, i + 3))}) for i in (0, 3, 6)])
    answer = export.Answer(pa.schema([("n", pa.int64())]), batches, max_rows=7)
    sink = io.BytesIO()
    export.write(answer, Format.NDJSON, sink)
    assert [json.loads(line)["n"] for line in sink.getvalue().splitlines()] == list(range(7))
    assert (answer.rows, answer.truncated) == (7, True)


@pytest.mark.long
@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_memory_does_not_grow_with_the_answer(form: str) -> None:
    for found in query_export.measure(3_000_000, (form,)):
        assert found["rows"] == 3_000_000
        assert float(found["peak_mb"]) < 300, found


# --- SHOW, DESCRIBE, EXPLAIN, refusals ----------------------------------------------------------------------------


def test_the_tables_their_columns_and_plans_can_be_asked_for() -> None:
    assert json.loads(ask("--json", "SHOW TABLES").stdout)["rows"] == [["trades"], ["unified_trades"]]
    assert "trade_ts" in ask("DESCRIBE unified_trades").stdout
    plan = ask("EXPLAIN SELECT count(*) FROM trades").stdout
    assert "┌" in plan
    assert "explain_key" not in plan
    assert ask("EXPLAIN ANALYZE SELECT count(*) FROM trades").exit_code == 0


def test_what_reaches_out_of_the_lake_is_refused_before_any_table_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lake, "connect", lambda *_, **__: pytest.fail("a table was asked for"))
    said = ask("--json", "SELECT * FROM read_csv('/etc/passwd')", exit_code=1)
    document = json.loads(said.stdout)
    assert (document["error"], document["exit_code"]) == ("QueryRefused", 1)
    assert "read_csv" in document["message"]
    ask("-o", str(tmp_path / "x.csv"), "FROM '/etc/passwd'", exit_code=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sql", "views", "lists"), [
    ("FROM unified_trades", ("trades",), False), ("SHOW TABLES", (), True), ("show trades", ("trades",), True),
    ("FROM information_schema.tables", (), True), ("SELECT 1", (), False),
])  # fmt: skip
def test_a_query_opens_the_tables_that_it_may_mean(sql: str, views: tuple[str, ...], lists: bool) -> None:
    assert (lake.views_in(sql), lake.lists_views(sql)) == (views, lists)
