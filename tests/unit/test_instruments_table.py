from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from schemahub import seed
from schemahub.errors import BadQuery, CommitConflict
from schemahub.exchanges import Product
from schemahub.instruments import merge
from schemahub.instruments_table import COLUMNS, Written, load, publish
from schemahub.publish import ATTEMPTS
from schemahub.query import connect, select
from schemahub.seed import Seed
from tests.lake import BUCKET, DATABASE, Lake, S3Door, make_glue_check_versions
from tests.unit.test_query import Session

T = 1_700_000_000
BTC = Product("BTC-USD", "BTC-USD", "online", True)
REP = Product("REP-USD", "REP-USD", "online", True)


@pytest.fixture
def lake(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    make_glue_check_versions(monkeypatch)
    return Lake(aws, tmp_path)


@pytest.fixture
def door(lake: Lake) -> Iterator[S3Door]:
    door = S3Door(lake.objects)
    yield door
    door.close()


def look(lake: Lake, *listed: Product, exchange: str = "coinbase", seen_s: int = T) -> None:
    seed.update(lake.objects, lambda old: Seed(old.streams, merge(old.instruments, exchange, listed, seen_s)))


def write(lake: Lake) -> Written:
    return publish(lake.catalog, lake.objects, DATABASE, lake.clock)


def table(lake: Lake) -> Any:
    return load(lake.catalog, BUCKET, DATABASE)


def rows(lake: Lake, door: S3Door, sql: str = "FROM instruments ORDER BY ALL") -> list[list[Any]]:
    return select(connect(Session(lake.session, door.url), instruments=table(lake), threads=1), sql)[1]


def test_the_table_says_what_the_seed_says(lake: Lake, door: S3Door) -> None:
    look(lake, BTC, REP)
    look(lake, Product("BTC-USDT", "BTCUSDT", "TRADING", True), exchange="binance")
    look(lake, BTC, seen_s=T + 90_000)
    assert write(lake).rows == 3
    first, later = (dt.datetime.fromtimestamp(t, dt.UTC) for t in (T, T + 90_000))
    assert rows(lake, door) == [
        ["BINANCE", "BTCUSDT", "BTC-USDT", "BTC", "USDT", "online", "TRADING", 1, first, first, first],
        ["COINBASE", "BTC-USD", "BTC-USD", "BTC", "USD", "online", "online", 1, first, first, later],
        ["COINBASE", "REP-USD", "REP-USD", "REP", "USD", "delisted", "online", 1, first, first, first],
    ]
    assert [(f.name, f.doc) for f in table(lake).schema().fields] == [(c.name, c.doc) for c in COLUMNS]


def test_an_unchanged_seed_writes_nothing(lake: Lake) -> None:
    look(lake, BTC)
    first = write(lake)
    version = table(lake).metadata_location
    look(lake, BTC, seen_s=T + 60)
    assert write(lake) == Written("unchanged", first.snapshot_id, 1)
    assert table(lake).metadata_location == version


def test_each_change_is_one_snapshot_that_holds_everything(lake: Lake, door: S3Door) -> None:
    for number in range(1, 4):
        look(lake, BTC, *[Product(f"C{n}-USD", "C", "online", True) for n in range(number)])
        assert write(lake).status == "published"
        assert len(table(lake).snapshots()) == number
        assert len(list(table(lake).scan().plan_files())) == 1
        assert rows(lake, door, "SELECT count(*), count(DISTINCT symbol) FROM instruments") == [[number + 1] * 2]


def test_trades_join_their_instrument(lake: Lake, door: S3Door) -> None:
    look(lake, BTC, REP)
    look(lake, REP)
    write(lake)
    lake.publish(lake.transform(lake.commit(1, 20)))
    db = connect(Session(lake.session, door.url), lake.table(), instruments=table(lake), threads=1)
    sql = "SELECT base, status, count(*) FROM trades JOIN instruments USING (exchange, symbol) GROUP BY ALL"
    assert select(db, sql)[1] == [["BTC", "delisted", 20]]
    with pytest.raises(BadQuery, match="instruments"):
        select(connect(Session(lake.session, door.url), lake.table(), threads=1), sql)


def test_a_table_that_glue_lost_is_written_again(lake: Lake, door: S3Door) -> None:
    look(lake, BTC)
    write(lake)
    lake.session.client("glue").delete_table(DatabaseName=DATABASE, Name="instruments")
    assert write(lake).status == "published"
    assert len(rows(lake, door)) == 1


class OnUpdate:
    """Something that happens at the next move of Glue's pointer, before or after it."""

    def __init__(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: list[Callable[[], Any]] = []
        self.after: list[Callable[[], Any]] = []
        real = lake.catalog._update_glue_table

        def update(**arguments: Any) -> None:
            if self.before:
                self.before.pop(0)()
            real(**arguments)
            if self.after:
                self.after.pop(0)()

        monkeypatch.setattr(lake.catalog, "_update_glue_table", update)


@pytest.mark.parametrize("when", ["after reading the seed", "before moving the pointer"])
def test_a_late_writer_with_an_older_seed_does_not_win(
    lake: Lake, door: S3Door, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    look(lake, BTC)
    write(lake)
    look(lake, BTC, REP)

    def rival() -> None:
        look(lake, BTC, REP, Product("ETH-USD", "ETH-USD", "online", True))
        assert write(lake).rows == 3

    if when == "before moving the pointer":
        OnUpdate(lake, monkeypatch).before.append(rival)
    else:
        real, rivals = seed.read, [rival]

        def read(objects: Any) -> Seed:
            found = real(objects)
            if rivals:
                rivals.pop()()
            return found

        monkeypatch.setattr(seed, "read", read)
    assert write(lake).rows == 3
    assert len(rows(lake, door)) == 3
    assert len(table(lake).snapshots()) == 2


def test_a_lost_answer_is_looked_at_and_not_written_twice(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise ReadTimeoutError(endpoint_url="http://glue")

    look(lake, BTC)
    table(lake)
    OnUpdate(lake, monkeypatch).after.append(lost)
    assert write(lake).status == "published"
    assert len(table(lake).snapshots()) == 1


def test_a_table_that_keeps_moving_is_given_up_loudly(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved() -> None:
        raise ClientError({"Error": {"Code": "ConcurrentModificationException"}}, "UpdateTable")

    look(lake, BTC)
    OnUpdate(lake, monkeypatch).before += [moved] * ATTEMPTS
    with pytest.raises(CommitConflict, match="instruments"):
        write(lake)


def test_a_refusal_is_final(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied() -> None:
        answer = {"Error": {"Code": "AccessDeniedException"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
        raise ClientError(answer, "UpdateTable")  # type: ignore[arg-type]

    look(lake, BTC)
    OnUpdate(lake, monkeypatch).before.append(denied)
    with pytest.raises(ClientError, match="AccessDenied"):
        write(lake)
