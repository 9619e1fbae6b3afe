"""``schemahub update-seed`` from the shell's point of view, over an account in this process."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from local import demo
from schemahub import ingest, instruments_table
from schemahub import seed as core_seed
from schemahub.errors import BadInput, BadMapping, ExchangeUnavailable, RateLimited, UnknownProduct
from schemahub.exchanges import Product
from schemahub.mappings import load_mapping, mappings_dir
from schemahub.pacing import PacedExchange
from schemahub.streams import Stream
from schemahub_cli import lake as cli_lake
from schemahub_cli import seed, target
from schemahub_cli.commands import seed as seed_command
from schemahub_cli.main import app
from tests.lake import DATABASE, Lake, make_glue_check_versions

RUNNER = CliRunner()
COINBASE = [
    Product("BTC-USD", "BTC-USD", "online", True),
    Product("ETH-USD", "ETH-USD", "online", True),
    Product("ETH-EUR", "ETH-EUR", "online", True),
    Product("REP-USD", "REP-USD", "delisted", False, True),
]
BINANCE = [Product("BTC-USDT", "BTCUSDT", "TRADING", True)]


class Exchanges:
    """What each exchange answers when it is asked for its products."""

    def __init__(self) -> None:
        self.answers: dict[str, Sequence[Product] | Exception] = {"coinbase": COINBASE, "binance": BINANCE}

        self.probes: dict[str, dict[str, Any] | Exception] = {}
        self.invoked: list[str] = []

    def invoke(self, FunctionName: str, Payload: bytes) -> dict[str, Any]:
        """The stack's function: reachable, unless ``probes`` says something else."""
        assert FunctionName == "schemahub-test-probe-exchange"
        name = json.loads(Payload)["exchange"]
        self.invoked.append(name)
        said = self.probes.get(name, {"outcome": "reachable", "products": 1})
        if isinstance(said, Exception):
            raise said
        body = {"exchange": name, "region": "us-east-1", "at": 1, **said}
        return {"Payload": io.BytesIO(json.dumps(body).encode()), **said.get("answer", {})}

    def of(self, deps: Any, name: str) -> SimpleNamespace:
        return SimpleNamespace(products=lambda: self.answer(name))

    def answer(self, name: str) -> Sequence[Product]:
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> Exchanges:
    found = Exchanges()
    monkeypatch.setattr(PacedExchange, "of", found.of)
    monkeypatch.setattr(seed_command, "known_exchanges", lambda: sorted(found.answers))
    return found


@pytest.fixture
def lake(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: Exchanges) -> Lake:
    make_glue_check_versions(monkeypatch)
    lake = Lake(aws, tmp_path)
    monkeypatch.setattr(target, "resolve", lambda name: stack(lake, exchanges))
    return lake


def stack(lake: Lake, functions: Any = None) -> Any:
    settings = SimpleNamespace(database=DATABASE, table="unified_trades")
    ledger = SimpleNamespace(watermark=lambda stream: None)
    deps = SimpleNamespace(objects=lake.objects, clock=lake.clock, settings=settings, ledger=ledger)
    return SimpleNamespace(
        stack="schemahub-test",
        where="schemahub-test",
        session=lake.session,
        stage="test",
        client=lambda service: functions if service == "lambda" else lake.session.client(service),
        database=DATABASE,
        deps=deps,
        local=True,
    )


def update(*arguments: str, exit_code: int = 0) -> Any:
    result = RUNNER.invoke(app, ["update-seed", "--json", *arguments])
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def products(lake: Lake) -> list[str]:
    return [e["product"] for e in core_seed.read(lake.objects).streams]


def known(lake: Lake) -> dict[str, tuple[str, int]]:
    return {i.product: (i.status, i.listing_epoch) for i in core_seed.read(lake.objects).instruments}


def snapshots(lake: Lake) -> int:
    return len(instruments_table.load(lake.catalog, lake.objects.bucket, DATABASE).snapshots())


def test_all_that_is_listed_is_noted_and_what_is_chosen_is_pulled(lake: Lake) -> None:
    said = update("--quote", "usd")
    assert products(lake) == ["BTC-USD", "ETH-USD"]
    assert said["added"] == ["coinbase:BTC-USD", "coinbase:ETH-USD"]
    assert known(lake) == {
        "BTC-USDT": ("online", 1),
        "BTC-USD": ("online", 1),
        "ETH-USD": ("online", 1),
        "ETH-EUR": ("online", 1),
        "REP-USD": ("delisted", 1),
    }
    assert said["instruments"] == {"known": 5, "changed": 5, "delisted": []}
    assert said["failed"] == {}


def test_the_asked_exchange_is_replaced_and_the_others_stay(lake: Lake, exchanges: Exchanges) -> None:
    update("-e", "binance")
    exchanges.answers["binance"] = []
    dry = update("-e", "coinbase", "--quote", "usd", "--dry-run")
    assert (dry["written"], products(lake)) == (False, ["BTC-USDT"])
    assert len(dry["streams"]) == 3
    update("-e", "coinbase", "--quote", "usd")
    assert products(lake) == ["BTC-USDT", "BTC-USD", "ETH-USD"]
    assert known(lake)["BTC-USDT"] == ("online", 1)


def test_a_dry_run_touches_neither_the_seed_nor_the_table(lake: Lake) -> None:
    update("--dry-run")
    assert list(lake.objects.list("")) == []
    tables = lake.session.client("glue").get_tables(DatabaseName=DATABASE)["TableList"]
    assert tables == []


def test_the_same_answers_write_nothing_twice(lake: Lake) -> None:
    update()
    before = lake.objects.get_with_etag(core_seed.SEED_KEY)
    lake.clock.advance(3600)
    assert update()["instruments"]["changed"] == 0
    assert lake.objects.get_with_etag(core_seed.SEED_KEY) == before
    assert snapshots(lake) == 1


def test_a_product_that_vanishes_leaves_the_streams_and_stays_an_instrument(lake: Lake, exchanges: Exchanges) -> None:
    update()
    exchanges.answers["coinbase"] = COINBASE[1:]
    lake.clock.advance(60)
    said = update()
    assert said["removed"] == ["coinbase:BTC-USD"]
    assert said["instruments"]["delisted"] == ["coinbase:BTC-USD"]
    assert known(lake)["BTC-USD"] == ("delisted", 1)
    exchanges.answers["coinbase"] = COINBASE
    update()
    assert known(lake)["BTC-USD"] == ("online", 2)
    assert snapshots(lake) == 3


@pytest.mark.parametrize(
    "answer", [[], ExchangeUnavailable("status 503"), RateLimited("status 429"), [*COINBASE, COINBASE[0]]]
)
def test_a_bad_answer_leaves_its_own_entries_and_hinders_no_other(
    lake: Lake, exchanges: Exchanges, answer: Any
) -> None:
    update()
    own = [i for i in core_seed.read(lake.objects).instruments if i.exchange == "coinbase"]
    exchanges.answers["coinbase"] = answer
    exchanges.answers["binance"] = [*BINANCE, Product("ETH-USDT", "ETHUSDT", "TRADING", True)]
    lake.clock.advance(3 * 86_400)
    said = update()
    assert list(said["failed"]) == ["coinbase"]
    assert (said["added"], said["removed"]) == (["binance:ETH-USDT"], [])
    assert [i for i in core_seed.read(lake.objects).instruments if i.exchange == "coinbase"] == own
    assert known(lake)["ETH-USDT"] == ("online", 1)
    assert snapshots(lake) == 2


REFUSED = {"outcome": "refused", "status": 451, "by_region": True, "message": "status 451", "remedy": "Elsewhere."}


def test_an_exchange_that_refuses_the_region_is_left_out_and_the_others_are_written(
    lake: Lake, exchanges: Exchanges
) -> None:
    update("-e", "binance")
    exchanges.probes["binance"] = REFUSED
    exchanges.answers["binance"] = []
    for options in (["--dry-run"], []):
        said = update(*options)
        assert said["failed"]["binance"]["error"] == "ExchangeRefused"
        assert "us-east-1: status 451" in said["failed"]["binance"]["message"]
        assert (said["failed"]["binance"]["remedy"], said["probes"]["binance"]["status"]) == ("Elsewhere.", 451)
        assert said["probes"]["coinbase"]["outcome"] == "reachable"
    assert products(lake) == ["BTC-USDT", "BTC-USD", "ETH-EUR", "ETH-USD"]
    assert sorted(exchanges.invoked) == ["binance", "binance", "binance", "coinbase", "coinbase"]
    assert list(update("-e", "binance", "-e", "coinbase", exit_code=1)["failed"]) == ["binance"]
    assert update("-e", "binance", exit_code=1)["error"] == "ExchangeRefused"


@pytest.mark.parametrize(
    "said",
    [
        {"outcome": "unavailable", "error": "CircuitOpen", "message": "open", "remedy": "Wait."},
        {"outcome": "nonsense"},
        {"outcome": "reachable", "products": 1, "answer": {"FunctionError": "Unhandled"}},
        ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "Invoke"),
    ],
)
def test_a_probe_without_a_good_outcome_leaves_its_exchange_out(lake: Lake, exchanges: Exchanges, said: Any) -> None:
    exchanges.probes["binance"] = said
    assert list(update()["failed"]) == ["binance"]
    assert products(lake) == ["BTC-USD", "ETH-EUR", "ETH-USD"]


def test_a_stack_of_an_older_release_is_named_and_written_without_a_probe(lake: Lake, exchanges: Exchanges) -> None:
    gone = ClientError({"Error": {"Code": "ResourceNotFoundException", "Message": "no function"}}, "Invoke")
    exchanges.probes = {"binance": gone, "coinbase": gone}
    assert "older release" in RUNNER.invoke(app, ["update-seed"]).output
    assert update()["probes"] is None
    assert len(products(lake)) == 4


def test_people_are_told_which_exchange_gave_no_usable_answer(lake: Lake, exchanges: Exchanges) -> None:
    exchanges.answers["coinbase"] = ExchangeUnavailable("status 503 [bad]", stream="coinbase")
    result = RUNNER.invoke(app, ["update-seed"])
    assert result.exit_code == 0
    assert "ExchangeUnavailable" in result.output
    assert "coinbase: status 503 [bad]" in result.output
    assert products(lake) == ["BTC-USDT"]


def test_a_draft_mapping_stops_no_other_exchange(
    lake: Lake, exchanges: Exchanges, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "mappings"
    shutil.copytree(mappings_dir(), folder)
    (folder / "examplex.yaml").write_text("exchange: examplex\nname: <as people write it>\n")
    monkeypatch.setenv("SCHEMAHUB_MAPPINGS", str(folder))
    exchanges.answers["examplex"] = BadMapping("examplex.yaml: requests is missing")
    look = seed.look
    monkeypatch.setattr(seed, "look", lambda where, name: load_mapping(name) and look(where, name))
    said = update()
    assert said["failed"]["examplex"]["error"] == "BadMapping"
    assert products(lake) == ["BTC-USDT", "BTC-USD", "ETH-EUR", "ETH-USD"]
    assert update("-e", "examplx", exit_code=1)["error"] == "UnknownExchange"


def test_a_dry_run_names_what_it_would_remove(lake: Lake) -> None:
    update("-e", "coinbase")
    result = RUNNER.invoke(app, ["update-seed", "-e", "coinbase", "-p", "BTC-USD", "--dry-run"])
    shown = [line.split() for line in result.output.splitlines() if line.startswith("- ")]
    assert shown == [["-", "coinbase", "ETH-EUR", "removed"], ["-", "coinbase", "ETH-USD", "removed"]]
    assert products(lake) == ["BTC-USD", "ETH-EUR", "ETH-USD"]


def test_no_usable_answer_at_all_is_that_error_and_writes_nothing(lake: Lake, exchanges: Exchanges) -> None:
    exchanges.answers["coinbase"] = ExchangeUnavailable("status 503")
    assert update("-e", "coinbase", exit_code=1)["error"] == "ExchangeUnavailable"
    assert list(lake.objects.list("")) == []


def test_a_list_without_most_of_the_known_products_must_be_accepted(lake: Lake, exchanges: Exchanges) -> None:
    many = [Product(f"C{n}-USD", f"C{n}-USD", "online", True) for n in range(12)]
    exchanges.answers["coinbase"] = many
    update("-e", "coinbase")
    exchanges.answers["coinbase"] = many[:2]
    assert "--accept-delisted" in update("-e", "coinbase", exit_code=1)["remedy"]
    assert len(products(lake)) == 12
    assert len(update("-e", "coinbase", "--accept-delisted")["instruments"]["delisted"]) == 10
    assert len(products(lake)) == 2
    assert len(known(lake)) == 12


def test_a_seed_that_is_none_is_a_named_error_and_stays(lake: Lake) -> None:
    lake.objects.put(core_seed.SEED_KEY, b"{}")
    assert update(exit_code=1)["error"] == "BadConfig"
    assert lake.objects.get(core_seed.SEED_KEY) == b"{}"


def test_the_seed_list_is_where_ingest_reads_it(lake: Lake) -> None:
    update("--limit", "1", "-e", "coinbase")
    assert ingest.read_seed(SimpleNamespace(objects=lake.objects)) == [Stream("coinbase", "BTC-USD")]  # type: ignore[arg-type]


def test_a_table_that_an_update_left_behind_is_written_by_the_next(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(instruments_table, "publish", killed)
        assert RUNNER.invoke(app, ["update-seed"]).exit_code == 130
    assert update()["instruments"]["changed"] == 0
    assert snapshots(lake) == 1


@pytest.mark.parametrize(("name", "why"), [("REP-USD", "delisted"), ("NOPE-USD", "not listed")])
def test_a_named_product_that_does_not_trade_is_an_error_and_writes_nothing(lake: Lake, name: str, why: str) -> None:
    with pytest.raises(UnknownProduct, match=why):
        seed.choose("coinbase", COINBASE, seed.Choice(products=(name,)))
    assert update("-e", "coinbase", "-p", name, exit_code=1)["error"] == "UnknownProduct"
    assert list(lake.objects.list("")) == []


def test_products_are_chosen_by_regex_quote_and_limit() -> None:
    def names(**choice: Any) -> list[str]:
        return [e["product"] for e in seed.choose("coinbase", COINBASE, seed.Choice(**choice))]

    assert names() == ["BTC-USD", "ETH-EUR", "ETH-USD"]
    assert names(regex="^ETH-") == ["ETH-EUR", "ETH-USD"]
    assert names(quotes=("eur",)) == ["ETH-EUR"]
    assert names(products=("ETH-USD", "BTC-USD"), limit=1) == ["ETH-USD"]
    with pytest.raises(BadInput, match="--regex"):
        names(regex="(")


def test_a_choice_that_takes_nothing_anywhere_empties_no_list(lake: Lake) -> None:
    update()
    assert update("--quote", "NONE", exit_code=1)["error"] == "BadInput"
    assert len(products(lake)) == 4
    update("--quote", "USD")
    assert products(lake) == ["BTC-USD", "ETH-USD"]


def demo_streams(*names: str) -> list[Stream]:
    return [Stream.parse(name) for name in names]


def test_the_demo_writes_seed_and_table_once(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    step: Callable[[str], None] = said.append
    wanted = demo_streams("coinbase:BTC-USD", "binance:BTC-USDT")
    for _ in range(2):
        assert demo.choose_products(stack(lake), wanted, step)  # type: ignore[arg-type]
    assert said == ["seed list written: 2 products (1 of binance, 1 of coinbase), 5 instruments"]
    assert snapshots(lake) == 1
    demo.choose_products(stack(lake), demo_streams("coinbase:ETH-USD"), step)  # type: ignore[arg-type]
    assert products(lake) == ["ETH-USD"]
    assert len(known(lake)) == 5


def test_a_query_needs_only_the_tables_that_it_names(lake: Lake) -> None:
    assert cli_lake.views_in("SELECT * FROM Instruments") == ("instruments",)
    assert cli_lake.views_in("FROM trades JOIN instruments USING (symbol)") == ("trades", "instruments")
    assert cli_lake.views_in("SELECT 1") == ()
    for sql, missing in [("FROM instruments", "instruments"), ("FROM trades", "unified_trades")]:
        result = RUNNER.invoke(app, ["query", sql, "--json"])
        assert result.exit_code == 1
        assert json.loads(result.stdout)["error"] == "NoTable"
        assert f".{missing} does not exist" in json.loads(result.stdout)["message"]
    update()
    with pytest.raises(cli_lake.NoTable):
        cli_lake.connect(stack(lake))
