"""Re-derivation: a corrected mapping replaces what the table has of a stream, in one snapshot, exactly once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ReadTimeoutError

from schemahub import catalog
from schemahub.batches import Manifest, make_batches, quarantine_key
from schemahub.catalog import newest_metadata, published_intervals, quarantined_of
from schemahub.errors import BadStateInput, CommitConflict, CorruptState, QuarantineExceeded, StaleBatch
from schemahub.mappings import load_mapping
from schemahub.query import connect, select
from schemahub.rederive import StreamPlan, entry, moment, parse, plan, property_of
from schemahub.replace import Replaced, replace
from schemahub.streams import Absent, Interval, Segment, Stream
from tests.lake import BTC, Lake, S3Door, coinbase_row, make_glue_check_versions
from tests.unit.test_query import Session

ETH = Stream("coinbase", "ETH-USD")
SPANS = ((1, 900), (901, 1000), (1001, 1800))
"""Of BTC, of which the first two are one batch; 864 trades make a day."""


@pytest.fixture
def lake(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    make_glue_check_versions(monkeypatch)
    return Lake(aws, tmp_path)


@pytest.fixture
def btc(lake: Lake) -> list[Segment]:
    """Three segments of BTC and one of ETH in the table, as a mapping with the sides the wrong way round made them."""
    segments = [lake.commit(*span) for span in SPANS]
    wrong = load_mapping("coinbase")
    wrong = changed(wrong, fields=changed(wrong.fields, side_values={"buy": "BUY", "sell": "SELL"}))
    lake.mapping = lambda _: wrong
    eth = lake.transform(lake.commit(1, 30, stream=ETH))
    lake.publish(lake.transform(*segments[:2]), lake.transform(segments[2]), eth, run="first")
    lake.mapping = load_mapping
    return segments


def planned(lake: Lake, segments: Sequence[Segment], since: int | str | None = None) -> StreamPlan:
    when = moment(since) if isinstance(since, str) else since
    found = plan(lake.table(), segments, BTC, when)
    assert found is not None
    return found


def made(lake: Lake, chosen: StreamPlan, run: str) -> list[Manifest]:
    return [lake.transform(*b.segments, run=run, rederive=True) for b in make_batches(chosen.segments)]


def put(lake: Lake, chosen: StreamPlan, run: str = "again", load: Callable[[], Any] | None = None,
        manifests: list[Manifest] | None = None, **options: Any) -> Replaced:  # fmt: skip
    manifests = made(lake, chosen, run) if manifests is None else manifests
    return replace(
        load or lake.table, lake.objects, manifests, {chosen.stream: chosen.base}, run, lake.clock, **options
    )


def right(row: dict[str, Any]) -> bool:
    """Coinbase says the maker's side; each third trade is a buy."""
    return bool(row["side"] == ("BUY" if int(row["trade_id"]) % 3 else "SELL"))


def sides(lake: Lake, stream: Stream = BTC) -> set[bool]:
    return {right(r) for r in lake.rows() if r["symbol"] == stream.product}


# --- what is replaced ---------------------------------------------------------------------------------------------


def test_a_corrected_mapping_replaces_the_stream_in_one_snapshot(lake: Lake, btc: list[Segment]) -> None:
    before = lake.table()
    assert sides(lake) == {False}
    outcome = put(lake, planned(lake, btc))
    table = lake.table()
    assert (outcome.status, outcome.rows, outcome.rows_before) == ("replaced", 1800, 1800)
    assert (outcome.snapshot_id, outcome.previous_snapshot_id) == (
        table.current_snapshot().snapshot_id, before.current_snapshot().snapshot_id)  # fmt: skip
    assert len(table.snapshots()) == len(before.snapshots()) + 1
    assert lake.ids() == list(range(1, 1801))
    assert sides(lake) == {True}
    assert sides(lake, ETH) == {False}
    assert lake.ids(ETH) == list(range(1, 31))
    assert published_intervals(table) == published_intervals(before)
    summary = table.current_snapshot().summary.additional_properties
    assert (summary["schemahub.run"], summary["total-records"]) == ("again", "1830")
    assert summary["deleted-records"] == summary["added-records"] == "1800"


def test_the_snapshot_before_still_has_the_old_rows(lake: Lake, btc: list[Segment]) -> None:
    outcome = put(lake, planned(lake, btc))
    door = S3Door(lake.objects)
    session = Session(lake.session, door.url)
    sql = """SELECT count(*), count(*) FILTER ((side = 'BUY') = (trade_id::BIGINT % 3 > 0))
        FROM trades WHERE symbol = 'BTC-USD'"""
    try:
        now = connect(session, lake.table(), threads=1)
        then = connect(session, lake.table(), snapshot=outcome.previous_snapshot_id, threads=1)
        assert select(now, sql)[1] == [[1800, 1800]]
        assert select(then, sql)[1] == [[1800, 0]]
    finally:
        door.close()


def test_it_begins_where_the_file_that_holds_since_begins(lake: Lake, btc: list[Segment]) -> None:
    """Trade 1001 is of 2024-03-02 03:48:20.001001, and 901 to 1000 share their files with 1 to 900."""
    day = "2024-03-02T"
    for since, first in {
        None: 1, 1: 1, 1000: 1, 1001: 1001, 1500: 1001, 1800: 1001, "2024-03-01": 1, f"{day}03:46:40Z": 1,
        f"{day}03:46:40.001000Z": 1, f"{day}03:46:40.001001Z": 1001, f"{day}06:00:00+02:00": 1001, "2024-03-03": 1001,
    }.items():  # fmt: skip
        chosen = planned(lake, btc, since)
        assert (chosen.first, chosen.segments[0].first) == (first, first), since


def test_what_is_before_since_stays_as_it_was(lake: Lake, btc: list[Segment]) -> None:
    outcome = put(lake, planned(lake, btc, since=1500))
    assert outcome.rows == outcome.rows_before == 800
    rows = [r for r in lake.rows() if r["symbol"] == "BTC-USD"]
    assert [int(r["trade_id"]) for r in rows] == list(range(1, 1801))
    assert [right(r) for r in rows] == [int(r["trade_id"]) > 1000 for r in rows]


def test_nothing_after_since_is_nothing_to_do(lake: Lake, btc: list[Segment]) -> None:
    assert plan(lake.table(), btc, BTC, 1801) is None
    assert plan(lake.table(), btc, BTC, dt.datetime(2024, 4, 1, tzinfo=dt.UTC)) is None


def test_a_stream_of_which_nothing_is_there_is_refused(lake: Lake, btc: list[Segment]) -> None:
    with pytest.raises(BadStateInput, match="coinbase#SOL-USD"):
        plan(lake.table(), [], Stream("coinbase", "SOL-USD"), None)


def test_what_is_not_published_yet_is_left_to_the_publisher(lake: Lake, btc: list[Segment]) -> None:
    pending = lake.commit(1801, 1900)
    assert [s.first for s in planned(lake, [*btc, pending]).segments] == [1, 901, 1001]


def test_rows_move_between_table_and_quarantine_and_are_counted(lake: Lake) -> None:
    rows = [coinbase_row(i, **({"side": "?"} if i % 5 == 0 else {})) for i in range(1, 101)]
    tolerant = changed(load_mapping("coinbase"), quarantine_max_share=0.5)
    lake.mapping = lambda _: tolerant
    segments = [lake.commit(1, 100, rows=rows), lake.commit(101, 110, rows=[coinbase_row(101, side="?")] + [
        coinbase_row(i) for i in range(102, 111)])]  # fmt: skip
    old = lake.transform(segments[0])
    lake.publish(old, lake.transform(segments[1]))
    assert quarantined_of(lake.table().metadata.properties) == {BTC: 21}
    evidence = lake.objects.get(old.quarantine_key or "")

    better = changed(tolerant, fields=changed(tolerant.fields, side_values={"buy": "SELL", "sell": "BUY", "?": "BUY"}))
    lake.mapping = lambda _: better
    outcome = put(lake, planned(lake, segments, since=50))
    assert (outcome.rows_before, outcome.rows, outcome.quarantined) == (89, 110, 0)
    assert quarantined_of(lake.table().metadata.properties) == {BTC: 0}

    worse = changed(tolerant, fields=changed(tolerant.fields, side_values={"buy": "SELL", "?": "BUY"}))
    lake.mapping = lambda _: changed(worse, quarantine_max_share=1.0)
    outcome = put(lake, planned(lake, segments, since=101), run="worse")
    assert outcome.rows + outcome.quarantined == 110  # the first re-derivation made one batch of both
    assert quarantined_of(lake.table().metadata.properties) == {BTC: outcome.quarantined}
    assert lake.objects.get(old.quarantine_key or "") == evidence
    assert lake.objects.head(quarantine_key(make_batches(segments)[0], "worse")) is not None


def test_a_day_that_comes_out_as_it_was_keeps_its_file(lake: Lake, btc: list[Segment]) -> None:
    put(lake, planned(lake, btc))
    files = lake.files()
    outcome = put(lake, planned(lake, btc), run="same")
    assert outcome.status == "replaced"
    assert lake.files() == files
    assert lake.ids() == list(range(1, 1801))


def test_exact_columns_are_added_when_a_mapping_asks(lake: Lake, btc: list[Segment]) -> None:
    exact = changed(load_mapping("coinbase"), exact="decimal")
    lake.mapping = lambda _: exact
    put(lake, planned(lake, btc, since=1001))
    schema = lake.table().schema()
    assert [(f.field_id, f.name, f.required) for f in schema.fields][8:] == [
        (11, "price_decimal", False), (12, "quantity_decimal", False)]  # fmt: skip
    text = changed(exact, exact="text")
    lake.mapping = lambda _: text
    lake.publish(lake.transform(lake.commit(1, 10, stream=Stream("coinbase", "SOL-USD"))))
    assert [f.field_id for f in lake.table().schema().fields][8:] == [11, 12, 9, 10]
    door = S3Door(lake.objects)
    try:
        db = connect(Session(lake.session, door.url), lake.table(), threads=1)
        sql = """SELECT symbol, count(*), count(price_decimal), count(price_text),
            bool_and(price_decimal::DOUBLE = price), bool_and(price_text::DOUBLE = price)
            FROM trades GROUP BY 1 ORDER BY 1"""
        assert select(db, sql)[1] == [
            ["BTC-USD", 1800, 800, 0, True, None], ["ETH-USD", 30, 0, 0, None, None], ["SOL-USD", 10, 0, 10, None, True]
        ]  # fmt: skip
    finally:
        door.close()


def test_a_column_of_somebody_else_is_not_taken_for_ours(lake: Lake, btc: list[Segment]) -> None:
    from pyiceberg.types import StringType

    with lake.table().update_schema() as update:
        update.add_column("note", StringType())  # takes the id 9
    exact = changed(load_mapping("coinbase"), exact="text")
    lake.mapping = lambda _: exact
    with pytest.raises(CorruptState, match="note"):
        put(lake, planned(lake, btc))


# --- exactly once -------------------------------------------------------------------------------------------------


class Saboteur:
    """Stands between the committer and Glue's UpdateTable."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans: list[Callable[[Callable[[], None]], object]] = []
        self.calls = 0
        original = catalog.LakeCatalog._update_glue_table

        def update(this: Any, *args: Any, **kwargs: Any) -> None:
            self.calls += 1
            go = lambda: original(this, *args, **kwargs)  # noqa: E731
            self.plans.pop(0)(go) if self.plans else go()

        monkeypatch.setattr(catalog.LakeCatalog, "_update_glue_table", update)


def timeout(*_: Any) -> None:
    raise ReadTimeoutError(endpoint_url="glue")


@pytest.fixture
def saboteur(btc: list[Segment], monkeypatch: pytest.MonkeyPatch) -> Saboteur:
    return Saboteur(monkeypatch)


def test_a_lost_answer_is_looked_up_and_not_repeated(lake: Lake, btc: list[Segment], saboteur: Saboteur) -> None:
    saboteur.plans = [lambda go: (go(), timeout())]
    outcome = put(lake, planned(lake, btc))
    assert (saboteur.calls, outcome.status, outcome.rows_before) == (1, "replaced", 1800)
    assert lake.ids() == list(range(1, 1801))


def test_doing_it_again_changes_nothing(lake: Lake, btc: list[Segment], saboteur: Saboteur) -> None:
    chosen = planned(lake, btc)
    first = put(lake, chosen)
    lake.publish(lake.transform(lake.commit(1801, 1810)))
    again = put(lake, chosen)
    assert again.status == "already"
    assert (again.snapshot_id, again.rows_before) == (first.snapshot_id, first.rows_before)
    assert lake.ids() == list(range(1, 1811))


def test_a_call_that_never_arrived_is_made_again(lake: Lake, btc: list[Segment], saboteur: Saboteur) -> None:
    saboteur.plans = [timeout]
    assert put(lake, planned(lake, btc)).status == "replaced"
    assert saboteur.calls == 2
    assert sides(lake) == {True}


def test_a_publish_that_comes_in_between_is_not_lost(lake: Lake, btc: list[Segment], saboteur: Saboteur) -> None:
    new = lake.transform(lake.commit(1801, 1900))
    saboteur.plans = [lambda go: (lake.publish(new, run="rival"), go())]
    put(lake, planned(lake, btc))
    assert lake.ids() == list(range(1, 1901))
    assert sides(lake) == {True}
    assert published_intervals(lake.table())[BTC] == [Interval(1, 1900)]


def test_a_publish_that_loses_the_race_finds_its_place(lake: Lake, btc: list[Segment], saboteur: Saboteur) -> None:
    new, chosen = lake.transform(lake.commit(1801, 1900)), planned(lake, btc)
    manifests = made(lake, chosen, "again")
    saboteur.plans = [lambda go: (put(lake, chosen, manifests=manifests), go())]
    lake.publish(new)
    assert lake.ids() == list(range(1, 1901))
    assert sides(lake) == {True}


def test_of_two_rederivations_of_the_same_plan_one_is_refused(lake: Lake, btc: list[Segment]) -> None:
    mine, other = planned(lake, btc), planned(lake, btc, since=1500)
    put(lake, other, run="other")
    with pytest.raises(StaleBatch, match="came in between"):
        put(lake, mine, run="mine")
    assert {r["side"] for r in lake.rows() if int(r["trade_id"]) == 1 and r["symbol"] == "BTC-USD"} == {"SELL"}


def test_an_older_run_that_wakes_late_changes_nothing(lake: Lake, btc: list[Segment]) -> None:
    old, manifests = planned(lake, btc), made(lake, planned(lake, btc), "old")
    put(lake, old, run="old", manifests=manifests)
    put(lake, planned(lake, btc), run="new")
    with pytest.raises(StaleBatch):
        put(lake, old, run="old", manifests=manifests)


def test_rows_of_a_hole_that_is_filled_meanwhile_stay(lake: Lake) -> None:
    ends = [lake.commit(1, 10), lake.commit(21, 30)]
    lake.publish(*(lake.transform(s) for s in ends))
    chosen = planned(lake, ends)
    lake.publish(lake.transform(lake.commit(11, 20)))
    put(lake, chosen)
    assert lake.ids() == list(range(1, 31))


def test_what_filled_a_hole_is_a_line_of_its_own(lake: Lake) -> None:
    """Its ids lie inside the range of the stream's files, which make way; its own files stay until it is named too."""
    stream = lake.commit(1, 30, absent=(Absent(11, 20, "exchange_skipped"),))
    fill = lake.commit(11, 20, stream=BTC.fills)
    lake.publish(lake.transform(stream), lake.transform(fill))
    put(lake, planned(lake, [stream]))
    assert lake.ids() == list(range(1, 31))
    again = plan(lake.table(), [fill], BTC.fills, 15)
    assert again is not None
    assert put(lake, again, run="fills").rows_before == 10
    assert lake.ids() == list(range(1, 31))


def test_a_data_file_that_is_gone_is_never_named(lake: Lake, btc: list[Segment]) -> None:
    chosen = planned(lake, btc)
    manifests = made(lake, chosen, "again")
    broken = changed(manifests[0], files=(changed(manifests[0].files[0], file_size=1), *manifests[0].files[1:]))
    with pytest.raises(StaleBatch, match="not the file"):
        put(lake, chosen, manifests=[broken, *manifests[1:]])
    assert sides(lake) == {False}


def test_a_file_with_a_part_of_the_range_is_refused(lake: Lake, btc: list[Segment]) -> None:
    chosen = planned(lake, btc)
    with pytest.raises(StaleBatch, match="part of the range"):
        put(lake, chosen, manifests=[lake.transform(btc[1], run="again")])


def test_a_compacted_table_is_refused(lake: Lake, btc: list[Segment], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schemahub.transform.DATA_PREFIX", "schemahub/unified_trades/data/compacted-")
    monkeypatch.setattr("schemahub.transform.PARTITION", "x")
    manifest = lake.transform(lake.commit(1801, 1810))
    foreign = tuple(changed(f, key=f.key.replace("COINBASE_BTC", "part_BTC")) for f in manifest.files)
    for before, after in zip(manifest.files, foreign, strict=True):
        lake.objects.put(after.key, lake.objects.get(before.key) or b"")
    lake.publish(changed(manifest, files=foreign))
    with pytest.raises(CorruptState, match="not written by the transform"):
        planned(lake, btc)
    assert plan(lake.table(), [lake.commit(1, 30, stream=ETH)], ETH, None) is not None


def test_too_much_quarantine_replaces_nothing(lake: Lake, btc: list[Segment]) -> None:
    bad = load_mapping("coinbase")
    bad = changed(bad, fields=changed(bad.fields, side_values={"x": "BUY", "y": "SELL"}))
    lake.mapping = lambda _: bad
    with pytest.raises(QuarantineExceeded, match=r"\.again\.jsonl"):
        put(lake, planned(lake, btc))
    assert lake.ids() == list(range(1, 1801))


def test_a_table_that_glue_lost_comes_back_with_the_rederivation(
    lake: Lake, btc: list[Segment], saboteur: Saboteur
) -> None:
    saboteur.plans = [timeout]
    with pytest.raises(CommitConflict):
        put(lake, planned(lake, btc), attempts=1)  # a whole version in S3 that Glue never saw
    put(lake, planned(lake, btc, since=1001), run="landed")
    lake.publish(lake.transform(lake.commit(1801, 1810)))
    right_one = lake.table().metadata_location
    lake.session.client("glue").delete_table(DatabaseName="schemahub_test", Name="unified_trades")
    assert newest_metadata(lake.objects) == right_one


def test_two_rederivations_of_the_same_version_contradict_each_other(
    lake: Lake, btc: list[Segment], saboteur: Saboteur
) -> None:
    saboteur.plans = [timeout]
    with pytest.raises(CommitConflict):
        put(lake, planned(lake, btc), attempts=1)
    put(lake, planned(lake, btc, since=1001), run="landed")
    with pytest.raises(CorruptState, match="each publish"):
        newest_metadata(lake.objects)


# --- the property -------------------------------------------------------------------------------------------------


def test_the_property_says_which_run_made_which_range() -> None:
    one = entry("", "one", [(1, 100)])
    assert one == "1;one@1-100"
    two = entry(one, "two", [(51, 100), (110, 120)])
    assert two == "2;one@1-50,two@51-100,two@110-120"
    assert parse(two) == (2, [("one", Interval(1, 50)), ("two", Interval(51, 100)), ("two", Interval(110, 120))])
    assert entry(two, "three", [(1, 120)]) == "3;three@1-120"
    assert property_of(BTC) == "schemahub.rederived.coinbase.BTC-USD.trades"


@pytest.mark.parametrize("value", ["x", "1", "1;", "1;a", "1;a@1", "x;a@1-2", "1;a@1-x"])
def test_a_property_that_is_something_else_is_corrupt(value: str) -> None:
    with pytest.raises(CorruptState):
        parse(value)
