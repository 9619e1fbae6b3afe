"""`schemahub exchange new`, `try` and `golden`: what they write, what they show, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from local.exchange_sim.server import running
from schemahub.mapping_file import SCHEMA
from schemahub.mappings import exchanges, load_mapping, parse_mapping
from schemahub_cli.commands import exchange as commands
from schemahub_cli.kit import golden
from schemahub_cli.kit.lint import lint
from schemahub_cli.kit.scaffold import Asks
from schemahub_cli.main import app
from tests.unit.pages import ROOT

RUNNER = CliRunner()
GOLDEN = ROOT / "tests" / "golden"
TO_FILL_IN = {
    "sources/0": "<the page that describes its public trades>",
    "products/example": "<replace this by a true answer, one product>",
    "requests/example": "<replace this by a true answer, one row>",
}
COINBASE_ROW = {"trade_id": 7, "side": "sell", "size": "0.5", "price": "1.10", "time": "2024-03-13T11:00:17.710679Z"}


def run(*arguments: str, code: int = 0) -> Any:
    """The JSON document of a command."""
    result = RUNNER.invoke(app, ["exchange", *arguments, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of mappings outside of the repository."""
    home = tmp_path / "mappings"
    home.mkdir()
    monkeypatch.setenv("SCHEMAHUB_MAPPINGS", str(home))
    return home


@pytest.fixture
def answer(tmp_path: Path) -> Path:
    """A saved answer of Coinbase: a good row and one whose side nobody knows."""
    path = tmp_path / "answer.json"
    path.write_text(json.dumps([COINBASE_ROW, {**COINBASE_ROW, "trade_id": 8, "side": "auction"}]))
    return path


# --- new --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", Asks)
def test_a_scaffold_lacks_only_what_a_person_must_say(asks: Asks, folder: Path) -> None:
    run("new", "examplex", "--asks", asks, "--base-url", "https://api.examplex.com/v1")
    path = folder / "examplex.yaml"
    assert {p.where: p.text.removeprefix("still to be filled in: ") for p in lint(path)} == TO_FILL_IN
    text = path.read_text()
    for open_end in TO_FILL_IN.values():
        text = text.replace(open_end, "documented")
    path.write_text(text)
    assert lint(path) == []
    mapping = parse_mapping(text)
    assert (mapping.requests.page.asks, mapping.base_url) == (asks, "https://api.examplex.com/v1")


def test_a_scaffold_can_be_tried_at_once(folder: Path) -> None:
    run("new", "examplex")
    shown = run("try", "examplex", "BTC-USD", "--simulator", "--rows", "3")
    assert (shown["source"], shown["refused"], len(shown["newest"])) == ("simulator", 0, 3)


def test_a_scaffold_explains_every_key_that_it_needs(folder: Path) -> None:
    run("new", "examplex")
    text = (folder / "examplex.yaml").read_text()
    schema = folder / text.splitlines()[0].partition("$schema=")[2]
    assert json.loads(schema.read_text())["title"] == "SchemaHub exchange mapping"
    for name, group in SCHEMA["properties"].items():
        if name != "archive":  # what a file of history needs is told in the docs: few exchanges have some
            for key in (name, *group.get("properties", {})):
                assert f"{key}: " in text.replace(":\n", ": \n").replace(":  ", ": "), f"{name}.{key}"


def test_what_is_there_is_not_overwritten(folder: Path) -> None:
    run("new", "examplex")
    (folder / "examplex.yaml").write_text("mine")
    refused = run("new", "examplex", code=1)
    assert (refused["error"], (folder / "examplex.yaml").read_text()) == ("BadConfig", "mine")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["Examplex"], "BadMapping", "exchange"),
        (["../examplex"], "BadMapping", "exchange"),
        (["examplex", "--base-url", "http://x.com"], "BadMapping", "base_url"),
        (["examplex", "--base-url", "https://x.com\nb: 1"], "BadMapping", "unknown key 'b'"),
    ],
)
def test_a_name_or_url_that_cannot_be_is_refused(arguments: list[str], error: str, says: str, folder: Path) -> None:
    refused = run("new", *arguments, code=1)
    assert refused["error"] == error
    assert says in refused["message"]
    assert list(folder.parent.rglob("*.yaml")) == []


def test_a_folder_that_is_not_there_is_named(folder: Path) -> None:
    folder.rmdir()
    assert "SCHEMAHUB_MAPPINGS" in run("new", "examplex", code=1)["remedy"]


def test_a_kind_of_paging_that_is_none_is_wrong_usage(folder: Path) -> None:
    assert RUNNER.invoke(app, ["exchange", "new", "examplex", "--asks", "pages"]).exit_code == 2


# --- try --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", exchanges())
def test_a_simulated_page_is_shown_as_sent_and_as_the_table_will_hold_it(exchange: str) -> None:
    shown = run("try", exchange, "BTC-USDT", "--simulator", "--rows", "2")
    assert (shown["source"], shown["refused"]) == ("simulator", 0)
    for row in shown["newest"]:
        json.loads(row["sent"])
        assert list(row["unified"])[:7] == ["exchange", "symbol", "trade_id", "side", "price", "quantity", "trade_ts"]
        assert (row["unified"]["exchange"], row["unified"]["symbol"]) == (exchange.upper(), "BTC-USDT")
        assert row["unified"]["trade_id"] in row["sent"]


def test_a_simulated_page_is_the_same_each_time() -> None:
    first = run("try", "okx", "BTC-USDT", "--simulator")
    assert first == run("try", "okx", "BTC-USDT", "--simulator")
    assert "2026-01-02T02" < first["newest"][-1]["unified"]["trade_ts"] < "2026-01-02T03:04:05"


def test_a_saved_answer_is_read_and_a_bad_row_shown_with_its_reason(answer: Path) -> None:
    shown = run("try", "coinbase", "BTC-USD", "--file", str(answer))
    assert (shown["source"], shown["rows"], shown["refused"]) == ("file answer.json", 2, 1)
    good, bad = shown["newest"]
    assert json.loads(good["sent"]) == COINBASE_ROW
    assert good["unified"] == {
        "exchange": "COINBASE",
        "symbol": "BTC-USD",
        "trade_id": "7",
        "side": "BUY",
        "price": 1.1,
        "quantity": 0.5,
        "trade_ts": "2024-03-13T11:00:17.710679Z",
    }
    assert (bad["refused"], bad["position"]) == ("side is not one of the mapping's", 8)


@pytest.mark.parametrize(
    ("exact", "columns"),
    [
        ("text", {"price_text": "64000.10", "quantity_text": "0.5"}),
        ("decimal", {"price_decimal": "64000.100000000000000000", "quantity_decimal": "0.500000000000000000"}),
    ],
)
def test_exact_columns_are_shown_and_kept(exact: str, columns: dict[str, str], folder: Path) -> None:
    run("new", "examplex")
    path = folder / "examplex.yaml"
    text = path.read_text().replace("# exact: text ", f"exact: {exact} ")
    path.write_text(text)
    saved = folder / "answer.json"
    saved.write_text(parse_mapping(text).requests.example)
    (row,) = run("try", "examplex", "BTC-USD", "--file", str(saved))["newest"]
    assert {name: row["unified"][name] for name in columns} == columns
    run("golden", "examplex", "BTC-USD", "--file", str(saved))
    assert [one["differences"] for one in run("golden", "--check")] == [[]]


def test_people_see_both_beside_each_other(answer: Path) -> None:
    result = RUNNER.invoke(app, ["exchange", "try", "coinbase", "BTC-USD", "--file", str(answer)])
    assert result.exit_code == 0
    for text in ("as sent", "in the table", '"trade_id"', "side: BUY", "quarantine: side is not one of", "1 refused"):
        assert text in result.output


def test_a_running_simulator_is_asked_over_http() -> None:
    with running({"latency_ms": {"mean": 0, "jitter": 0}}) as server:
        shown = run("try", "kraken", "BTC-USD", "--base-url", f"{server.url}/kraken")
        assert shown["source"] == f"{server.url}/kraken"
        assert (shown["rows"], shown["refused"]) == (1000, 0)
        refused = run("try", "kraken", "NOSUCH-USD", "--base-url", f"{server.url}/kraken", code=1)
        assert refused["error"] == "UnknownProduct"


def test_the_exchange_itself_is_asked_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, answer: Path) -> None:
    asked: list[str] = []

    class Recorded(commands.SavedAnswer):
        def get(self, url: str, params: dict[str, str]) -> Any:
            asked.append(url)
            return super().get(url, params)

    monkeypatch.setattr(commands, "RequestsHttp", lambda: Recorded(answer.read_bytes()))
    assert run("try", "coinbase", "BTC-USD")["source"] == "https://api.exchange.coinbase.com"
    assert asked == ["https://api.exchange.coinbase.com/products/BTC-USD/trades"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('{"message":"NotFound"}', "UnknownProduct"),
        ("<html>", "MalformedResponse"),
        (json.dumps([COINBASE_ROW, COINBASE_ROW]), "CorruptState"),
    ],
)
def test_a_saved_answer_that_is_no_page_has_a_name(body: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text(body)
    assert run("try", "coinbase", "BTC-USD", "--file", str(tmp_path / "answer.json"), code=1)["error"] == error


def test_an_answer_without_trades_is_shown_empty(tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text("[]")
    assert run("try", "coinbase", "BTC-USD", "--file", str(tmp_path / "answer.json"))["rows"] == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["try", "coinbase", "BTC-USD", "--simulator", "--base-url", "http://127.0.0.1:1"], 2),
        (["try", "coinbase", "BTC-USD", "--file", "no-such-file.json"], 2),
        (["try", "coinbse", "BTC-USD", "--simulator"], 1),
        (["try", "coinbase", "btc/usd", "--simulator"], 1),
        (["try", "coinbase"], 2),
    ],
)
def test_wrong_usage_is_told_from_a_named_error(arguments: list[str], code: int) -> None:
    assert RUNNER.invoke(app, ["exchange", *arguments]).exit_code == code


# --- golden -----------------------------------------------------------------------------------------------------


def test_each_exchange_has_a_golden_fixture_and_reads_it_as_ever() -> None:
    compared = list(golden.compare(GOLDEN))
    assert {one.name.split("/")[0] for one in compared} == set(exchanges())
    assert all(one.rows >= 20 for one in compared)
    assert [difference for one in compared for difference in one.differences] == []


def test_an_answer_is_kept_with_its_exact_bytes_and_its_rows(answer: Path, tmp_path: Path) -> None:
    kept = run("golden", "coinbase", "BTC-USD", "--file", str(answer), "--folder", str(tmp_path / "golden"))
    assert (kept["rows"], kept["refused"]) == (2, 1)
    home = tmp_path / "golden" / "coinbase"
    assert (home / "BTC-USD.answer.json").read_bytes() == answer.read_bytes()
    rows = json.loads((home / "BTC-USD.rows.json").read_text())["rows"]
    assert [row.get("refused", row.get("unified", {}).get("side")) for row in rows] == [
        "BUY",
        "side is not one of the mapping's",
    ]
    (same,) = run("golden", "--check", "--folder", str(tmp_path / "golden"))
    assert same == {"name": "coinbase/BTC-USD", "rows": 2, "differences": []}


def test_a_fixture_lies_beside_the_mappings_unless_told_otherwise(folder: Path) -> None:
    run("new", "examplex")
    kept = run("golden", "examplex", "BTC-USD", "--simulator")
    assert Path(kept["path"]) == folder.parent / "tests" / "golden" / "examplex" / "BTC-USD.rows.json"
    assert [one["differences"] for one in run("golden", "--check", "examplex")] == [[]]


def test_a_mapping_that_reads_an_old_answer_differently_fails_the_check(folder: Path) -> None:
    run("new", "examplex")
    run("golden", "examplex", "BTC-USD", "--simulator")
    path = folder / "examplex.yaml"
    path.write_text(path.read_text().replace("{buy: BUY, sell: SELL}", "{buy: SELL, sell: BUY}"))
    forget_mappings()
    (differs,) = run("golden", "--check", code=1)
    assert {text.split(": ")[1] for text in differs["differences"]} == {
        "side is 'SELL', 'BUY' in the fixture",
        "side is 'BUY', 'SELL' in the fixture",
    }
    assert len(differs["differences"]) == 20
    path.write_text(path.read_text().replace("{buy: SELL, sell: BUY}", "{b: SELL, s: BUY}"))
    forget_mappings()
    (differs,) = run("golden", "--check", code=1)
    assert "row 1: refused now: side is not one of the mapping's" in differs["differences"]


def forget_mappings() -> None:
    from schemahub import mappings

    mappings._load.cache_clear()


def test_a_row_more_or_less_fails_the_check(answer: Path, tmp_path: Path) -> None:
    home = tmp_path / "golden"
    run("golden", "coinbase", "BTC-USD", "--file", str(answer), "--folder", str(home))
    (home / "coinbase" / "BTC-USD.answer.json").write_text(json.dumps([COINBASE_ROW]))
    (differs,) = run("golden", "--check", "--folder", str(home), code=1)
    assert differs["differences"] == ["1 rows, 2 in the fixture"]


def test_a_column_that_is_new_is_no_difference(answer: Path, tmp_path: Path) -> None:
    home = tmp_path / "golden"
    run("golden", "coinbase", "BTC-USD", "--file", str(answer), "--folder", str(home))
    rows = home / "coinbase" / "BTC-USD.rows.json"
    document = json.loads(rows.read_text())
    del document["rows"][0]["unified"]["quantity"]
    rows.write_text(json.dumps(document))
    assert [one["differences"] for one in run("golden", "--check", "--folder", str(home))] == [[]]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda home: (home / "BTC-USD.rows.json").write_text("{"), "JSONDecodeError"),
        (lambda home: (home / "BTC-USD.rows.json").write_text('{"rows": []}'), "KeyError"),
        (lambda home: (home / "BTC-USD.answer.json").unlink(), "FileNotFoundError"),
        (lambda home: (home / "BTC-USD.answer.json").write_text("<html>"), "MalformedResponse"),
    ],
)
def test_a_spoiled_fixture_fails_the_check_by_name(spoil: Any, says: str, answer: Path, tmp_path: Path) -> None:
    home = tmp_path / "golden"
    run("golden", "coinbase", "BTC-USD", "--file", str(answer), "--folder", str(home))
    spoil(home / "coinbase")
    (differs,) = run("golden", "--check", "--folder", str(home), code=1)
    assert says in differs["differences"][0]


def test_a_check_of_nothing_is_no_success(tmp_path: Path) -> None:
    assert run("golden", "--check", "--folder", str(tmp_path), code=1)["error"] == "NoGolden"
    assert run("golden", "--check", "nobody", code=1)["error"] == "NoGolden"


@pytest.mark.parametrize(
    "arguments", [[], ["okx"], ["--check", "okx", "BTC-USDT"], ["--check", "--simulator"], ["--check", "--rows", "0"]]
)
def test_what_golden_shall_do_must_be_clear(arguments: list[str]) -> None:
    assert RUNNER.invoke(app, ["exchange", "golden", *arguments]).exit_code == 2


def test_a_mapping_outside_of_the_repository_is_one_like_all_others(folder: Path) -> None:
    run("new", "examplex")
    assert [one["exchange"] for one in run("list")] == ["examplex"]
    assert load_mapping("examplex").name == "examplex"
