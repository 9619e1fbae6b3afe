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
GONE = object()


def changed(exchange: str, folder: Path, *changes: tuple[str, Any]) -> Path:
    """A shipped mapping with some values changed by their dotted paths (GONE: removed)."""
    document = yaml.safe_load((mappings_dir() / f"{exchange}.yaml").read_text())
    for dotted, value in changes:
        *parents, last = dotted.split(".")
        at = document
        for name in parents:
            at = at[name]
        if value is GONE:
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
    path.write_text(text.replace(old, new))
    return path


def told(path: Path) -> list[str]:
    return [f"{problem.where}: {problem.text}" for problem in lint(path)]


@pytest.mark.parametrize("exchange", exchanges())
def test_each_shipped_mapping_is_clean(exchange: str) -> None:
    assert lint(mappings_dir() / f"{exchange}.yaml") == []


SLIPS: list[tuple[str, list[tuple[str, Any]], str]] = [
    # fields, by the example row
    ("coinbase", [("fields.price.from", "prise")], "fields/price/from: the example's row has no 'prise' (did you mean 'price'?)"),
    ("coinbase", [("fields.price.from", "zzz")], "has no 'zzz' (it has trade_id, side, size, price, time)"),
    ("kraken", [("fields.trade_id.from", 7)], "fields/trade_id/from: the example's row has no place 7 (it has 7, counted from 0)"),
    ("coinbase", [("fields.price.from", "time"), ("fields.trade_ts.from", "price")], "fields/price: '2024-03-13T11:00:17.710679Z' is no number"),
    ("coinbase", [("fields.trade_id.from", "side"), ("fields.side.from", "trade_id")], "fields/trade_id: 'sell' is no integer above 0"),
    ("coinbase", [("fields.side.values", {"Buy": "SELL", "Sell": "BUY"})], "fields/side/values: 'sell' of the example is none of them (did you mean it by 'Sell'?)"),
    ("coinbase", [("fields.side.values", {"b": "SELL", "s": "BUY"})], "there are 'b', 's'"),
    ("binance", [("fields.side.values", {"True": "SELL", "False": "BUY"})], "fields/side/values: 'true' of the example is none of them"),
    ("binance", [("fields.trade_ts.unit", "s")], "fields/trade_ts/unit: 1498793709153 s is no time since 2009 (read as ms it would)"),
    ("binance", [("fields.trade_ts.unit", "ns")], "1498793709153 ns is no time since 2009 (read as ms it would)"),
    ("kraken", [("fields.trade_ts.precision", GONE)], "fields/trade_ts/precision: 1688669597.8277369 is written finer than s"),
    ("coinbase", [("fields.trade_ts", {"from": "time", "type": "epoch", "unit": "s"})], "is no number of an epoch; `type: iso8601`"),
    ("binance", [("fields.trade_ts", {"from": "T", "type": "iso8601"})], "fields/trade_ts: '1498793709153' is no ISO 8601 time (`type: epoch`"),
    ("coinbase", [("fields.trade_ts.precision", "ms")], "fields/trade_ts/precision: '2024-03-13T11:00:17.710679Z' is written finer"),
    ("coinbase", [("contract.on_new_field", "fail"), ("requests.example", '[{"trade_id":1,"side":"sell","size":"1","price":"2","time":"2024-03-13T11:00:17Z","new":1}]')], "UnmappedField"),
    # where the rows are
    ("okx", [("requests.rows", "/dta")], "requests/rows: the answer has no '/dta' (read in the example)"),
    ("okx", [("requests.rows", "/msg")], "requests/rows: there is no list of trades at '/msg'"),
    ("okx", [("requests.example", '{"code":"0","data":[]}')], "requests/rows: there is no list of trades"),
    ("okx", [("requests.example", "{code: 0}")], "requests/example: is not JSON"),
    ("okx", [("requests.example", '{"code":"0","data":[["1"]]}')], "fields: the example's row is an array, so `from` must be places"),
    # products and symbols
    ("coinbase", [("symbol", "{base}_{quote}")], "symbol: BTC-USD would be asked for as 'BTC_USD', but the exchange calls it 'BTC-USD'"),
    ("bitstamp", [("symbol_case", "upper")], "symbol: BTC-USD would be asked for as 'BTCUSD', but the exchange calls it 'btcusd'"),
    ("coinbase", [("products.base", "base")], "products/base: the example's row has no 'base' (did you mean 'base_currency'?)"),
    ("coinbase", [("products.symbol", "name")], "products/symbol: the example's row has no 'name'"),
    ("coinbase", [("products.online", ["trading"])], "products/online: the example's product is 'online'"),
    ("coinbase", [("products.delisted", ["online"])], "products/delisted: 'online' means online too"),
    ("coinbase", [("products.disabled", "id")], "products/online: the example's product is switched off by `disabled`"),
    ("bitstamp", [("products.only", {"market_type": ["FUTURE"]})], "products/only/market_type: the example's product has 'SPOT'"),
    ("gemini", [("products.pair.quotes", ["EUR"])], "products/pair: 'btcusd' cannot be cut"),
    ("kraken", [("products.pair.from", "wsnam")], "products/pair/from: the example's row has no 'wsnam' (did you mean 'wsname'?)"),
    ("okx", [("products.example", '{"code":"0","data":[]}')], "products/example: holds no product"),
    ("okx", [("products.rows", "/list")], "products/example: products: the answer has no '/list'"),
    # errors
    ("okx", [("errors.at", "/status")], "errors/at: the example answer has no code at '/status', but `ok` names codes"),
    ("okx", [("errors.ok", ["1"])], "requests/example: as an answer it means ExchangeRefused"),
    ("okx", [("errors.slow_down", ["50011", "51001"])], "errors/slow_down: '51001' stands in `unknown_product` too"),
    ("binance_us", [("errors.unknown_product", GONE), ("requests.unknown_product_status", [])], "requests: nothing tells an unknown product"),
    ("bybit", [("errors.unknown_product", ["10001*"]), ("errors.slow_down", ["1000*"])], "errors/unknown_product: the refusal of an unknown product is read as RateLimited"),
    ("coinbase", [("limits.slow_down_status", [429, 404])], "limits/slow_down_status: 404 means an unknown product too"),
    # questions
    ("binance", [("requests.query", GONE)], "requests: nothing names the product"),
    ("coinbase", [("requests.size_parameter", "after")], "requests: the parameter 'after' would be sent twice"),
    ("bitstamp", [("requests.page.windows", [{"seconds": 86400, "query": {"time": "day"}}, {"seconds": 3600, "query": {"time": "hour"}}])], "requests/page/windows: the shortest must come first"),
    # limits, archive, name
    ("coinbase", [("limits.cost.products", 16)], "limits/cost/products: 16 is more than `burst` (15)"),
    ("binance", [("limits.cost.products", 200), ("limits.amount", 100)], "limits/cost/products: 200 is more than `amount` (100)"),
    ("bybit", [("archive.columns", {"id": "execId"})], "archive/columns: no column becomes 'price', which fields/price is read from"),
    ("coinbase", [("exchange", "coinbas")], "exchange: is 'coinbas', but the file is coinbase.yaml"),
]  # fmt: skip


@pytest.mark.parametrize(("exchange", "changes", "said"), SLIPS, ids=[f"{e}-{c[0][0]}-{n}" for n, (e, c, _) in enumerate(SLIPS)])  # fmt: skip
def test_a_slip_is_named_with_its_key(exchange: str, changes: list[tuple[str, Any]], said: str, tmp_path: Path) -> None:
    found = told(changed(exchange, tmp_path, *changes))
    assert any(said in problem for problem in found), found


@pytest.mark.parametrize(
    ("old", "new", "where", "said"),
    [
        ("  page_size: 1000", "  page_sise: 1000", "requests", "unknown key 'page_sise' (did you mean 'page_size'?)"),
        ("asks: ids_below", "asks: id_below", "requests/page/asks", "'id_below' is not one of"),
        ("parameter: after}", "parameter: after, unit: ms}", "requests/page/unit", "does not go with the other keys"),
        ("  base: base_currency\n", "", "products", "one of base and quote, pair is needed"),
        ("base_url: https://api", "base_url: http://api", "base_url", "https, a host name"),
        ("values: {buy: SELL, sell: BUY}", "values: {buy: SELL, sell: HOLD}", "fields/side/values/sell", "'HOLD'"),
        ("amount: 10", "amount: 100000", "limits", "200 pages a second"),
        ("type: iso8601", "type: iso8601, unit: ms", "fields/trade_ts", "'unit' does not go with the other keys"),
    ],
)
def test_a_slip_in_the_form_is_named_with_its_line(old: str, new: str, where: str, said: str, tmp_path: Path) -> None:
    path = swapped("coinbase", tmp_path, old, new)
    (problem,) = (p for p in lint(path) if said in p.text)
    assert problem.where == where
    marked = new.split("\n")[0].strip() or "products:"
    line = path.read_text().splitlines()[problem.line - 1]
    assert marked in line or line.startswith(f"{where}:")


def test_all_problems_come_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    slips = [("fields.price.from", "prise"), ("symbol", "{base}{quote}"), ("limits.cost.products", 99)]
    found = lint(changed("coinbase", tmp_path, *slips))
    assert [problem.where for problem in found] == ["symbol", "limits/cost/products", "fields/price/from"]


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
