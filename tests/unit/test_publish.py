from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from schemahub import catalog
from schemahub.batches import Batch
from schemahub.catalog import newest_metadata, published_intervals, quarantined_of
from schemahub.errors import CommitConflict, CorruptState, StaleBatch
from schemahub.publish import reconcile
from schemahub.streams import Interval, Stream
from tests.lake import BTC, BUCKET, DATABASE, Lake, coinbase_row, make_glue_check_versions

ETH = Stream("coinbase", "ETH-USD")


@pytest.fixture
def lake(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    make_glue_check_versions(monkeypatch)
    return Lake(aws, tmp_path)


def test_all_streams_of_a_run_appear_in_one_snapshot(lake: Lake) -> None:
    one = lake.transform(lake.commit(1, 50), lake.commit(51, 100))
    two = lake.transform(lake.commit(1, 30, stream=ETH))
    outcome = lake.publish(one, two, run="run-7")
    table = lake.table()
    assert outcome.status == "published"
    assert (outcome.rows, outcome.files, outcome.quarantined) == (130, 2, 0)
    assert len(table.snapshots()) == 1
    summary = table.current_snapshot().summary.additional_properties
    assert summary["schemahub.run"] == "run-7"
    assert summary["schemahub.segments"] == "3"
    assert summary["added-records"] == "130"
    assert published_intervals(table) == {BTC: [Interval(1, 100)], ETH: [Interval(1, 30)]}
    assert lake.ids() == list(range(1, 101))
    assert lake.ids(ETH) == list(range(1, 31))
    assert lake.marked.keys() == {(BTC, 1), (BTC, 51), (ETH, 1)}
    assert set(lake.marked.values()) == {str(outcome.snapshot_id)}


def test_publishing_again_adds_nothing_and_marks_what_a_crash_left(lake: Lake) -> None:
    manifest = lake.transform(lake.commit(1, 50))
    first = lake.publish(manifest)
    lake.marked.clear()
    again = lake.publish(manifest, run="run-2")
    assert (again.status, again.snapshot_id) == ("already", first.snapshot_id)
    assert lake.ids() == list(range(1, 51))
    assert lake.marked == {(BTC, 1): str(first.snapshot_id)}


def test_the_proof_outlives_the_snapshot(lake: Lake) -> None:
    manifest = lake.transform(lake.commit(1, 50))
    old = lake.publish(manifest).snapshot_id
    lake.publish(lake.transform(lake.commit(51, 60)))
    lake.table().maintenance.expire_snapshots().by_id(old).commit()
    assert old not in {s.snapshot_id for s in lake.table().snapshots()}
    assert lake.publish(manifest, run="run-3").status == "already"
    assert lake.ids() == list(range(1, 61))


def test_a_batch_that_is_partly_published_is_refused(lake: Lake) -> None:
    one, two = lake.commit(1, 50), lake.commit(51, 100)
    lake.publish(lake.transform(one))
    with pytest.raises(StaleBatch, match="coinbase#BTC-USD"):
        lake.publish(lake.transform(one, two))
    assert lake.ids() == list(range(1, 51))


def test_two_batches_with_the_same_segment_are_refused(lake: Lake) -> None:
    one, two = lake.commit(1, 50), lake.commit(51, 100)
    with pytest.raises(StaleBatch):
        lake.publish(lake.transform(one, two), lake.transform(two))
    assert lake.rows() == []


def test_a_data_file_that_is_gone_or_other_is_never_named(lake: Lake) -> None:
    manifest = lake.transform(lake.commit(1, 50))
    with pytest.raises(StaleBatch, match="gone"):
        lake.publish(replace(manifest, files=(replace(manifest.files[0], key="schemahub/unified_trades/data/x"),)))
    with pytest.raises(StaleBatch, match="not the file"):
        lake.publish(replace(manifest, files=(replace(manifest.files[0], file_size=1),)))
    assert lake.table().current_snapshot() is None


def test_islands_are_proved_as_islands(lake: Lake) -> None:
    lake.publish(lake.transform(lake.commit(1, 10)), lake.transform(lake.commit(21, 30)))
    between, after = lake.commit(11, 20), lake.commit(31, 40)
    assert published_intervals(lake.table())[BTC] == [Interval(1, 10), Interval(21, 30)]
    already, todo = reconcile([lake.commit(21, 30), between, after], published_intervals(lake.table()))
    assert ([s.first for s in already], [s.first for s in todo]) == ([21], [11, 31])
    lake.publish(lake.transform(between))
    assert published_intervals(lake.table())[BTC] == [Interval(1, 30)]


def test_a_segment_that_is_in_the_table_in_part_halts(lake: Lake) -> None:
    lake.publish(lake.transform(lake.commit(1, 10)))
    with pytest.raises(CorruptState, match="part"):
        reconcile([lake.commit(5, 15)], published_intervals(lake.table()))


def test_quarantined_rows_are_counted_in_the_table(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = replace(lake.mapping("coinbase"), quarantine_max_share=0.5)
    lake.mapping = lambda _: mapping
    for first in (1, 11):
        rows = [coinbase_row(i, **({"price": "0"} if i % 10 == 1 else {})) for i in range(first, first + 10)]
        assert lake.publish(lake.transform(lake.commit(first, first + 9, rows=rows))).quarantined == 1
    assert quarantined_of(lake.table().metadata.properties) == {BTC: 2}
    assert len(lake.rows()) == 18


def test_a_batch_of_nothing_but_quarantine_is_published_as_such(lake: Lake) -> None:
    mapping = replace(lake.mapping("coinbase"), quarantine_max_share=1.0)
    lake.mapping = lambda _: mapping
    manifest = lake.transform(lake.commit(1, 2, rows=[coinbase_row(i, side="x") for i in (1, 2)]))
    assert lake.publish(manifest).rows == 0
    assert published_intervals(lake.table()) == {BTC: [Interval(1, 2)]}


# --- conflicts and unknown outcomes -------------------------------------------------------------------------------


class Saboteur:
    """Stands between the publisher and Glue's UpdateTable."""

    def __init__(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.plans: list[Callable[[Callable[[], None]], None]] = []
        original = catalog.LakeCatalog._update_glue_table

        def update(this: Any, *args: Any, **kwargs: Any) -> None:
            self.calls += 1
            go = lambda: original(this, *args, **kwargs)  # noqa: E731
            self.plans.pop(0)(go) if self.plans else go()

        monkeypatch.setattr(catalog.LakeCatalog, "_update_glue_table", update)


def timeout(*_: Any) -> None:
    raise ReadTimeoutError(endpoint_url="glue")


def refusal(code: str, status: int) -> Callable[[Any], None]:
    def refuse(_: Any) -> None:
        raise ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "UpdateTable")  # type: ignore[typeddict-item]

    return refuse


@pytest.fixture
def saboteur(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Saboteur:
    lake.table()
    return Saboteur(lake, monkeypatch)


def test_a_lost_answer_is_looked_up_and_not_repeated(lake: Lake, saboteur: Saboteur) -> None:
    manifest = lake.transform(lake.commit(1, 50))
    saboteur.plans = [lambda go: (go(), timeout())]
    assert lake.publish(manifest).status == "published"
    assert saboteur.calls == 1
    assert lake.ids() == list(range(1, 51))


def test_a_call_that_never_arrived_is_made_again(lake: Lake, saboteur: Saboteur) -> None:
    manifest = lake.transform(lake.commit(1, 50))
    saboteur.plans = [timeout, refusal("InternalServiceException", 500)]
    assert lake.publish(manifest).status == "published"
    assert saboteur.calls == 3
    assert lake.ids() == list(range(1, 51))
    assert len(lake.table().snapshots()) == 1


def test_a_rival_with_the_same_batch_wins_and_the_loser_sees_it(lake: Lake, saboteur: Saboteur) -> None:
    manifest = lake.transform(lake.commit(1, 50))
    saboteur.plans = [lambda go: (lake.publish(manifest, run="rival"), go())]
    lake.publish(manifest)
    assert lake.ids() == list(range(1, 51))
    assert len(lake.table().snapshots()) == 1


def test_a_rival_with_another_batch_only_delays(lake: Lake, saboteur: Saboteur) -> None:
    mine, other = lake.transform(lake.commit(1, 50)), lake.transform(lake.commit(51, 60))
    saboteur.plans = [lambda go: (lake.publish(other, run="rival"), go())]
    lake.publish(mine)
    assert lake.ids() == list(range(1, 61))
    assert len(lake.table().snapshots()) == 2


def test_a_late_arrival_of_the_lost_call_cannot_land_twice(lake: Lake, saboteur: Saboteur) -> None:
    manifest = lake.transform(lake.commit(1, 50))
    late: list[Callable[[], None]] = []
    saboteur.plans = [lambda go: (late.append(go), timeout())]
    lake.publish(manifest)
    with pytest.raises(Exception, match="concurrent update"):
        late[0]()
    assert lake.ids() == list(range(1, 51))


def test_the_number_of_attempts_is_bounded(lake: Lake, saboteur: Saboteur) -> None:
    manifest = lake.transform(lake.commit(1, 50))
    saboteur.plans = [timeout] * 50
    with pytest.raises(CommitConflict):
        lake.publish(manifest)
    assert saboteur.calls == 4
    assert not lake.marked


def test_a_refusal_of_us_is_final(lake: Lake, saboteur: Saboteur) -> None:
    manifest = lake.transform(lake.commit(1, 50))
    saboteur.plans = [refusal("AccessDeniedException", 400)]
    with pytest.raises(ClientError, match="AccessDenied"):
        lake.publish(manifest)
    assert saboteur.calls == 1


def test_the_pointer_is_moved_by_a_client_that_never_repeats(lake: Lake) -> None:
    called: list[str] = []
    for name, client in (("once", lake.catalog._once), ("often", lake.catalog.glue)):
        client.meta.events.register("before-call.glue.UpdateTable", lambda name=name, **_: called.append(name))
    lake.publish(lake.transform(lake.commit(1, 10)))
    assert called == ["once"]
    assert lake.catalog._once.meta.config.retries["total_max_attempts"] == 1
    assert lake.table().properties["commit.retry.num-retries"] == "0"


# --- a catalog that lost the table --------------------------------------------------------------------------------


def forget(lake: Lake) -> None:
    lake.session.client("glue").delete_table(DatabaseName=DATABASE, Name="unified_trades")


def test_a_lost_table_comes_back_from_its_newest_metadata(lake: Lake) -> None:
    for first in range(1, 120, 10):  # more than ten versions, so that 9 and 10 are compared as numbers
        lake.publish(lake.transform(lake.commit(first, first + 9)))
    before = lake.table().metadata
    forget(lake)
    assert lake.table().metadata == before
    lake.publish(lake.transform(lake.commit(121, 130)))
    assert lake.ids() == list(range(1, 131))


def test_a_refused_version_is_not_taken_for_the_newest(lake: Lake, saboteur: Saboteur) -> None:
    lake.publish(lake.transform(lake.commit(1, 10)))
    mine, other = lake.transform(lake.commit(11, 20)), lake.transform(lake.commit(21, 30))
    before = set(lake.objects.list("schemahub/unified_trades/metadata/"))
    saboteur.plans = [lambda go: (lake.publish(other, run="rival"), go())]
    with pytest.raises(CommitConflict):
        catalog_publish(lake, mine, attempts=1)
    versions = [k for k in set(lake.objects.list("schemahub/unified_trades/metadata/")) - before if "/00002-" in k]
    assert len(versions) == 2
    right = lake.table().metadata_location
    forget(lake)
    assert newest_metadata(lake.objects) == right


def catalog_publish(lake: Lake, manifest: Any, attempts: int) -> None:
    from schemahub.publish import publish

    publish(lake.table, lake.objects, [manifest], "run", lake.mark, lake.clock, attempts=attempts)


def test_of_two_whole_versions_the_one_that_published_more_is_right(lake: Lake, saboteur: Saboteur) -> None:
    one, two = lake.transform(lake.commit(1, 10)), lake.transform(lake.commit(11, 20))
    saboteur.plans = [timeout]
    with pytest.raises(CommitConflict):
        catalog_publish(lake, one, attempts=1)  # version 1 with 1..10 stays in S3, unknown to Glue
    lake.publish(one, two)  # version 1 with 1..20
    forget(lake)
    assert published_intervals(lake.table()) == {BTC: [Interval(1, 20)]}


def test_versions_that_contradict_each_other_halt(lake: Lake, saboteur: Saboteur) -> None:
    one, two = lake.transform(lake.commit(1, 10)), lake.transform(lake.commit(11, 20))
    saboteur.plans = [timeout]
    with pytest.raises(CommitConflict):
        catalog_publish(lake, one, attempts=1)
    lake.publish(two)
    forget(lake)
    with pytest.raises(CorruptState, match="each publish"):
        lake.table()


def test_a_missing_manifest_halts_instead_of_going_back_a_version(lake: Lake) -> None:
    for first in (1, 11):
        lake.publish(lake.transform(lake.commit(first, first + 9)))
    manifest = lake.table().current_snapshot().manifests(lake.table().io)[0].manifest_path
    lake.objects.client.delete_object(Bucket=BUCKET, Key=manifest.removeprefix(f"s3://{BUCKET}/"))
    forget(lake)
    with pytest.raises(CorruptState, match="is gone too"):
        lake.table()


def test_a_first_table_is_partitioned_by_day_and_sorted(lake: Lake) -> None:
    table = lake.table()
    assert [f.name for f in table.spec().fields] == ["trade_day"]
    assert [table.schema().find_column_name(f.source_id) for f in table.sort_order().fields] == [
        "exchange", "symbol", "trade_ts"]  # fmt: skip
    assert table.format_version == 2
    assert table.location() == f"s3://{BUCKET}/schemahub/unified_trades"


@pytest.mark.parametrize("value", ["", "5", "5-4", "1-5,3-9", "a-b", "1-2-3", "7-9,1-2"])
def test_an_unreadable_property_halts(value: str) -> None:
    with pytest.raises(CorruptState):
        catalog.published_of({"schemahub.published.coinbase.BTC-USD.trades": value})


def test_the_metadata_tells_readers_what_to_skip(lake: Lake) -> None:
    lake.publish(lake.transform(lake.commit(1, 3000)))
    table = lake.table()
    day = lambda where: [t.file.file_path for t in table.scan(row_filter=where).plan_files()]  # noqa: E731
    assert len(day("exchange == 'COINBASE'")) == 4
    assert len(day("trade_ts < '2024-03-01T12:00:00+00:00'")) == 1
    assert day("symbol == 'ETH-USD'") == []
    assert day("price > 70000") == []
    assert day("quantity < 0") == []


def test_batches_of_other_segments_have_other_names(lake: Lake) -> None:
    one, two = lake.commit(1, 10), lake.commit(11, 20)
    assert Batch.of([one]).batch_id == Batch.of([one]).batch_id
    assert len({Batch.of(g).batch_id for g in ([one], [two], [one, two], [replace(one, commit_id="x")])}) == 4


def test_a_newer_version_whose_writer_cleaned_up_is_passed_over(lake: Lake) -> None:
    lake.publish(lake.transform(lake.commit(1, 10)))
    right = lake.table().metadata_location
    body = lake.objects.get(right.removeprefix(f"s3://{BUCKET}/")) or b""
    refused = body.replace(b"/snap-", b"/gone-")
    assert refused != body
    lake.objects.put("schemahub/unified_trades/metadata/00009-refused.metadata.json", refused)
    forget(lake)
    assert lake.table().metadata_location == right


def test_what_is_published_is_known_without_making_or_restoring_a_table(lake: Lake) -> None:
    known = lambda: catalog.published_so_far(lake.catalog, lake.objects, DATABASE, "unified_trades")  # noqa: E731
    assert known() == {}
    assert not lake.session.client("glue").get_tables(DatabaseName=DATABASE)["TableList"]
    lake.publish(lake.transform(lake.commit(1, 10)))
    assert known() == {BTC: [Interval(1, 10)]}
    forget(lake)
    assert known() == {BTC: [Interval(1, 10)]}
    assert not lake.session.client("glue").get_tables(DatabaseName=DATABASE)["TableList"]
