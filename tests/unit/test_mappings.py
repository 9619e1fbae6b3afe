"""Mappings: the shipped ones load, and every mistake is named with its place."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemahub.errors import BadMapping, UnknownExchange
from schemahub.mappings import exchanges, load_mapping, mappings_dir, parse_mapping

TEXT = (mappings_dir() / "coinbase.yaml").read_text()


def changed(path: str, value: Any) -> str:
    """The shipped mapping with one value changed (None: removed)."""
    document = yaml.safe_load(TEXT)
    *parents, last = path.split("/")
    at = document
    for name in parents:
        at = at[name]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return yaml.safe_dump(document)


@pytest.mark.parametrize("exchange", exchanges())
def test_each_shipped_mapping_loads_and_is_named_like_its_file(exchange: str) -> None:
    mapping = load_mapping(exchange)
    assert mapping.exchange == exchange
    assert {*mapping.fields.side_values.values(), *mapping.fields.side_by_sign.values()} == {"BUY", "SELL"}
    assert mapping.symbol_of("BTC-USD")
    assert set(mapping.limits.cost) == {"page", "head", "products"}


def test_coinbase_and_binance_are_there() -> None:
    assert {"binance", "coinbase"} <= set(exchanges())
    assert load_mapping("binance").symbol_of("BTC-USDT") == "BTCUSDT"
    assert load_mapping("coinbase").requests.page.descending
    assert not load_mapping("binance").requests.page.descending


def test_coinbase_reports_the_makers_side() -> None:
    assert load_mapping("coinbase").fields.side_values == {"buy": "SELL", "sell": "BUY"}
    assert load_mapping("binance").fields.side_values == {"true": "SELL", "false": "BUY"}


def test_an_unknown_exchange_gets_a_hint() -> None:
    with pytest.raises(UnknownExchange, match="did you mean 'coinbase'"):
        load_mapping("coinbse")
    with pytest.raises(UnknownExchange):
        load_mapping("../coinbase")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("pages", 1, "unknown key 'pages'"),
        ("requests/page_sise", 5, "did you mean 'page_size'"),
        ("requests/page_size", 0, "requests/page_size"),
        ("requests/page_size", "1e3", "requests/page_size"),
        ("limits/amount", 0, "limits/amount"),
        ("limits/amount", -1, "limits/amount"),
        ("limits/amount", 10**9, "limits/amount"),
        ("limits/burst", 0, "limits/burst"),
        ("limits/slow_down_status", [], "limits/slow_down_status"),
        ("schema_version", 2, "schema_version"),
        ("exchange", "Coinbase", "exchange"),
        ("fields", None, "'fields' is a required property"),
        ("requests/ids", "some", "requests/ids"),
        ("requests/page/asks", "ids_above", "requests/page/asks"),
        ("requests/page/parametre", "x", "did you mean 'parameter'"),
        ("requests/rows", "data", "requests/rows"),
        ("fields/trade_ts/unit", "ms", "fields/trade_ts"),
        ("fields/side/values", {"buy": "BUY"}, "fields/side/values"),
        ("fields/side/values", {"buy": "BUY", "sell": "sell"}, "fields/side/values/sell"),
        ("contract/quarantine_max_share", 2, "contract/quarantine_max_share"),
        ("requests/settle_seconds", -1, "requests/settle_seconds"),
    ],
)
def test_a_mistake_is_named_with_its_place(path: str, value: Any, said: str) -> None:
    with pytest.raises(BadMapping) as caught:
        parse_mapping(changed(path, value), "coinbase.yaml")
    assert said in str(caught.value)
    assert "coinbase.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.exchange.coinbase.com",
        "https://user:pw@api.exchange.coinbase.com",
        "https://169.254.169.254",
        "https://127.0.0.1",
        "https://localhost",
        "https://[::1]",
        "ftp://x.com",
        "https://x.com:8080",
        "https://x.com?a=b",
        "https://x.com\n",
    ],
)
def test_an_address_that_could_reach_inside_is_refused(url: str) -> None:
    with pytest.raises(BadMapping):
        parse_mapping(changed("base_url", url))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "just words",
        "a: &x [1]\nb: *x",
        "a: 1\na: 2",
        "!!python/object/apply:os.system [ls]",
        "on: 1\n1: 2",
        "a: [",
        "\t",
        "a: !!binary x",
    ],
    ids=repr,
)
def test_yaml_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(BadMapping):
        parse_mapping(text)


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(BadMapping, match="'page_size' stands twice"):
        parse_mapping(TEXT.replace("  page_size: 1000\n", "  page_size: 1000\n  page_size: 10\n"))


def test_an_alias_bomb_is_not_unfolded() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefghijk", "bcdefghijkl", strict=True)
    )
    with pytest.raises(BadMapping, match="aliases"):
        parse_mapping(bomb)


def test_a_huge_file_is_not_even_parsed() -> None:
    with pytest.raises(BadMapping, match="larger than 64 KiB"):
        parse_mapping("#" * 70_000)


def test_file_name_and_exchange_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kraken.yaml").write_text(TEXT)
    monkeypatch.setenv("SCHEMAHUB_MAPPINGS", str(tmp_path))
    with pytest.raises(BadMapping, match="must agree"):
        load_mapping("kraken")


def test_no_limit_is_without_its_source_and_the_day_it_was_read() -> None:
    for name in exchanges():
        limits = load_mapping(name).limits
        assert limits.source.startswith("https://"), name
        assert dt.date(2026, 1, 1) <= dt.date.fromisoformat(limits.read) <= dt.datetime.now(dt.UTC).date(), name
    for key in ("source", "read"):
        document = yaml.safe_load((mappings_dir() / "coinbase.yaml").read_text())
        del document["limits"][key]
        with pytest.raises(BadMapping, match=f"limits: .*{key}"):
            parse_mapping(yaml.safe_dump(document))


def test_limits_are_those_of_the_present_documentation() -> None:
    """Bybit's ban, Kraken's address and pair, Binance.US since its upgrade, Bitstamp as published and no less."""
    of = {name: load_mapping(name).limits for name in exchanges()}
    assert of["bybit"].pause_seconds == 600
    assert 403 in of["bybit"].slow_down_status
    assert (of["kraken"].amount / of["kraken"].per_seconds, of["kraken"].per_product) == (1, True)
    assert (of["binance_us"].amount, of["binance_us"].cost) == (6000, {"page": 4, "head": 4, "products": 10})
    assert (of["bitstamp"].amount, of["bitstamp"].per_seconds) == (10_000, 600)
