"""`schemahub exchange lint`: each slip that a schema cannot see is named with its line, its key and what would do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from schemahub.mappings import exchanges, mappings_dir
from schemahub_cli.kit.lint import Problem, lint
from schemahub_cli.main import app

RUNNER = CliRunner()
GONE = "(gone)"


def changed(exchange: str, folder: Path, *changes: tuple[str, Any]) -> Path:
    """A shipped mapping with some values changed by their dotted paths (GONE: removed)."""
    document = yaml.safe_load((mappings_dir() / f"{exchange}.yaml").read_text())
    for dotted, value in changes:
        *parents, last = dotted.split(".")
        at = document
        for name in parents:
            at = at[name]
        if value == GONE:
            del at[last]
        else:
            at[last] = value
    path = folder / f"{exchange}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False, width=5000))
    return path


def swapped(exchange: str, folder: Path, old: str, new: str) -> Path:
    """A shipped mapping with a text in it replaced."""
    text = (mappings_dir() / f"{exchange}.yaml").read_text()
    assert old in text
    path = folder / f"{exchange}.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


def told(path: Path) -> list[str]:
    return [f"{problem.where}: {problem.text}" for problem in lint(path)]


@pytest.mark.parametrize("exchange", exchanges())
def test_each_shipped_mapping_is_clean(exchange: str) -> None:
    assert lint(mappings_dir() / f"{exchange}.yaml") == []


SLIPS = yaml.safe_load(Path(__file__).with_name("mapping_slips.yaml").read_text())


@pytest.mark.parametrize("slip", SLIPS, ids=[f"{s['of']}-{'-'.join(s['set'])}" for s in SLIPS])
def test_a_slip_is_named_with_its_key(slip: dict[str, Any], tmp_path: Path) -> None:
    found = told(changed(slip["of"], tmp_path, *slip["set"].items()))
    assert any(slip["says"] in problem for problem in found), found


@pytest.mark.parametrize(
    ("old", "new", "where", "line", "said"),
    [
        ("page_size:", "page_sise:", "requests", "  page_sise:", "unknown key 'page_sise' (did you mean 'page_size'?)"),
        ("ids_below", "id_below", "requests/page/asks", "  page:", "'id_below' is not one of"),
        ("after}", "after, unit: ms}", "requests/page/unit", "  page:", "does not go with the other keys"),
        ("  base: base_currency\n", "", "products", "products:", "one of base and quote, pair is needed"),
        ("base_url: https:", "base_url: http:", "base_url", "base_url:", "https, a host name"),
        ("sell: BUY}", "sell: HOLD}", "fields/side/values/sell", "  side:", "'HOLD'"),
        ("amount: 10", "amount: 100000", "limits", "limits:", "200 pages a second"),
        ("iso8601", "iso8601, unit: ms", "fields/trade_ts", "  trade_ts:", "'unit' does not go with the other keys"),
        ("- https://docs.cdp", "- x\n  - https://docs.cdp", "sources/0", "  - x", "is too short"),
    ],
)
def test_a_slip_in_the_form_is_named_with_its_line(
    old: str, new: str, where: str, line: str, said: str, tmp_path: Path
) -> None:
    path = swapped("coinbase", tmp_path, old, new)
    (problem,) = (p for p in lint(path) if said in p.text)
    assert problem.where == where
    assert path.read_text().splitlines()[problem.line - 1].startswith(line)


def test_all_problems_come_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    slips = [("fields.trade_ts.precision", "s"), ("symbol", "{base}{quote}"), ("exchange", "coinbas")]
    found = lint(changed("coinbase", tmp_path, *slips))
    assert [problem.where for problem in found] == ["exchange", "symbol", "fields/trade_ts/precision"]


@pytest.mark.parametrize(
    ("spoil", "line", "said"),
    [
        (lambda path: path.write_text("a: [1\nb: 2\n"), 2, "not valid YAML"),
        (lambda path: path.write_bytes(b"\xff\xfe"), 1, "cannot be read"),
        (lambda path: path.unlink(), 1, "cannot be read"),
        (lambda path: path.write_text("just words"), 1, "is not of type 'object'"),
    ],
)
def test_a_file_that_is_no_mapping_is_a_problem(
    spoil: Callable[[Path], Any], line: int, said: str, tmp_path: Path
) -> None:
    path = changed("coinbase", tmp_path)
    spoil(path)
    (problem,) = lint(path)
    assert problem.line == line
    assert said in problem.text


def test_a_problem_is_one_line_of_place_and_words() -> None:
    assert str(Problem(7, "requests/rows", "wrong")) == "7: requests/rows: wrong"
    assert str(Problem(1, "", "wrong")) == "1: wrong"


# --- the command ------------------------------------------------------------------------------------------------


def test_a_wrong_mapping_is_exit_code_2(tmp_path: Path) -> None:
    path = changed("coinbase", tmp_path, ("symbol", "{base}{quote}"))
    result = RUNNER.invoke(app, ["exchange", "lint", str(path), "binance"])
    assert result.exit_code == 2
    assert "symbol: BTC-USD would be asked for as 'BTCUSD'" in result.output
    assert "good  binance.yaml" in result.output


def test_problems_are_one_json_document(tmp_path: Path) -> None:
    path = changed("coinbase", tmp_path, ("symbol", "{base}{quote}"))
    result = RUNNER.invoke(app, ["exchange", "lint", str(path), "binance", "--json"])
    assert result.exit_code == 2
    first, second = json.loads(result.stdout)
    assert (first["file"], [p["where"] for p in first["problems"]]) == (str(path), ["symbol"])
    assert second["problems"] == []


def test_without_names_all_mappings_are_linted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed("coinbase", tmp_path)
    changed("okx", tmp_path, ("requests.rows", "/dta"))
    monkeypatch.setenv("SCHEMAHUB_MAPPINGS", str(tmp_path))
    result = RUNNER.invoke(app, ["exchange", "lint"])
    assert result.exit_code == 2
    assert "good  coinbase.yaml" in result.output
    assert "/dta" in result.output


def test_an_unknown_name_gets_the_nearest_one() -> None:
    result = RUNNER.invoke(app, ["exchange", "lint", "coinbse", "--json"])
    assert result.exit_code == 1
    assert "did you mean 'coinbase'" in json.loads(result.stdout)["message"]
