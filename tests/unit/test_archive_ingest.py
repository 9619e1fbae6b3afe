"""Files of an archive into the lake. Each pathology names the issue in which users met it (shared peers.md §B)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub.streams import Interval
from tests.unit.archive_worlds import NEW, OLD, WORLD, ArchiveWorld, kinds
from tests.unit.pipelines import BINANCE, make_pipeline


@pytest.fixture
def world(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveWorld]:
    monkeypatch.setattr("schemahub.backfill.CHUNK_ROWS", 1_000)  # a day is some chunks
    with running(WORLD) as server:
        pipeline = make_pipeline(aws, server, tmp_path, cold_start_trades=50)
        pipeline.ingest(BINANCE)
        yield ArchiveWorld(pipeline, tmp_path)


def test_a_day_of_milliseconds_is_the_exchange_row_by_row(world: ArchiveWorld) -> None:
    report, ids = world.ingest(OLD), world.ids(OLD)
    assert (report.status, report.left, kinds(report)) == ("ingested", [], {})
    assert report.committed_rows == ids.size > 2_000
    assert world.table(ids) == world.truth(ids)
    state = world.state(OLD)
    assert state is not None
    assert (state.status, state.checksum, state.sha256) == ("ingested", "verified", state.upstream_sha256)
    assert {s.source for s in world.deps.ledger.segments(BINANCE, ids.first) if s.last <= ids.last} == {"archive"}


def test_a_day_of_microseconds_keeps_every_digit(world: ArchiveWorld) -> None:
    report, ids = world.ingest(NEW), world.ids(NEW)
    assert report.read.units == {"us": ids.size}
    assert world.table(ids) == world.truth(ids, micros=True)


# --- the pathologies of real archives ---------------------------------------------------------------------------


def test_hours_without_trades_are_classed_where_the_api_lacks_them_too(world: ArchiveWorld) -> None:
    """binance-public-data#28: trades missing for hours on all coins (maintenance), ids jumped anyway.

    Right: both sources lack them, so they are holes with a class, and everything around them is there.
    """
    ids = world.ids()
    hole = (ids.first + 500, ids.first + 899)
    world.plant("skip", ids=hole)
    world.pipeline.fault("missing_forever", "binance", "BTC-USDT", match={"ids": list(hole)})
    report = world.ingest()
    assert kinds(report) == {"ids_absent": 400}
    assert report.left == []
    holes = [a for s in world.deps.ledger.segments(BINANCE, ids.first) if s.last <= ids.last for a in s.absent]
    assert sum(h.last - h.first + 1 for h in holes) == 400
    assert {h.kind for h in holes} == {"exchange_skipped"}
    assert world.table(ids) == world.truth(ids, without=range(hole[0], hole[1] + 1))


def test_a_day_that_a_month_lacks_comes_from_the_api(world: ArchiveWorld) -> None:
    """binance-public-data#161: days missing in monthly aggTrades."""
    day, month = world.ids(dt.date(2024, 6, 12)), world.ids(dt.date(2024, 6, 1), "monthly")
    world.plant("skip", ids=tuple(day))
    within = Interval(day.first - 3_000, day.last + 3_000)
    report = world.ingest(dt.date(2024, 6, 1), "monthly", within=within)
    assert kinds(report) == {"ids_missing": day.size}
    assert report.elsewhere == month.size - day.size - 6_000
    assert world.table(within) == world.truth(within)


def test_what_is_too_much_for_one_worker_is_left_to_rest_tasks(world: ArchiveWorld) -> None:
    """binance-public-data#190: 12 million ids missing in monthly files. Right: the range is named, not waited for."""
    ids = world.ids()
    world.plant("skip", ids=(ids.first, ids.last - 700))
    report = world.ingest(empty_chunks=0)
    assert sum(part.size for part in report.left) >= 1_000
    assert report.committed_rows + sum(part.size for part in report.left) == ids.size
    again = world.ingest(empty_chunks=100)
    assert (again.left, again.committed_rows) == ([], sum(part.size for part in report.left))
    assert world.table(ids) == world.truth(ids)


def test_a_day_that_breaks_off_is_completed_by_the_api(world: ArchiveWorld) -> None:
    """binance-public-data#354: the daily file ends at 09:29, in the middle of a row; REST still has the rest."""
    ids = world.ids()
    world.plant("truncate", share=9.5 / 24)
    report = world.ingest()
    assert report.truncated
    assert kinds(report)["ids_missing"] > ids.size // 2
    assert kinds(report)["rows_unreadable"] == 1
    assert world.table(ids) == world.truth(ids)


def test_an_id_in_two_days_belongs_to_the_day_that_the_api_says(world: ArchiveWorld) -> None:
    """binance-public-data#353: the same aggTrade id in two consecutive days, different trades."""
    today, tomorrow = dt.date(2024, 6, 1), dt.date(2024, 6, 2)
    first, second = world.ids(today), world.ids(tomorrow)
    world.plant("another_day", today, rows=6)
    world.plant("other_quantity", today, ids=(second.first, second.first + 5))
    for day in (today, tomorrow):
        report = world.ingest(day)
        assert kinds(report).get("rows_of_another_day", 0) == (6 if day == today else 0)
    both = Interval(first.first, second.last)
    assert world.table(both) == world.truth(both)


def test_ids_of_other_trades_are_found_by_looking_at_the_first_and_the_last(world: ArchiveWorld) -> None:
    """binance-public-data#353 for a whole range: complete by count, and every trade is another one."""
    ids = world.ids()
    world.plant("other_trades", ids=(ids.last - 900, ids.last))
    report = world.ingest()
    assert report.suspect_chunks >= 1
    assert kinds(report)["ids_in_conflict"] >= 900 - 100
    assert world.table(ids) == world.truth(ids)


def test_a_run_of_exact_repeats_is_dropped_and_counted(world: ArchiveWorld) -> None:
    """binance-public-data#203: a long run of exact duplicates inside one monthly file."""
    ids = world.ids()
    world.plant("repeat", ids=(ids.first + 100, ids.first + 699), times=3)
    report = world.ingest()
    assert kinds(report)["rows_repeated"] == 1_800
    assert report.requests < 20
    assert world.table(ids) == world.truth(ids)


@pytest.mark.parametrize("planted", [{"kind": "reverse"}, {"kind": "interleave", "ways": 11}])
def test_the_order_of_a_file_is_never_trusted(world: ArchiveWorld, planted: dict[str, object]) -> None:
    """binance-public-data#293: rows are not sorted."""
    ids = world.ids()
    world.plant(**planted)  # type: ignore[arg-type]
    report = world.ingest()
    assert kinds(report).keys() == {"rows_disordered"}
    assert world.table(ids) == world.truth(ids)


def test_rows_of_two_dates_in_one_file_stay_apart(world: ArchiveWorld) -> None:
    """binance-public-data#339: rows of two dates interleaved."""
    ids = world.ids()
    world.plant("another_day", rows=40)
    report = world.ingest()
    assert kinds(report)["rows_of_another_day"] == 40
    assert report.elsewhere == 40
    assert world.table(Interval(ids.first, ids.last + 40)) == world.truth(ids)


def test_many_single_holes_are_a_class_not_an_alarm(world: ArchiveWorld) -> None:
    """binance-public-data#363, #378: many single-id holes. More of them in a chunk than a raw object can name."""
    ids = world.ids()
    gone = [ids.first + 300 + 11 * n for n in range(50)]
    for number in gone:
        world.plant("skip", ids=(number, number))
        world.pipeline.fault("missing_forever", "binance", "BTC-USDT", match={"ids": [number, number]})
    report = world.ingest()
    assert report.left == []
    assert kinds(report) == {"ids_absent": 50}
    assert max(len(s.absent) for s in world.deps.ledger.segments(BINANCE, ids.first)) <= 20
    assert world.table(ids) == world.truth(ids, without=gone)


def test_units_are_judged_row_by_row(world: ArchiveWorld) -> None:
    """binance-public-data#386, #387, #474: ms became µs; a user saw 2,750 times less volume."""
    ids = world.ids()
    some = (ids.first + 1_000, ids.first + 1_499)
    world.plant("unit", unit="us", ids=some)
    report = world.ingest()
    assert report.read.units == {"ms": ids.size - 500, "us": 500}
    assert kinds(report) == {"units_mixed": 500}
    fine = {t[0]: t for t in world.truth(Interval(*some), micros=True)}
    assert world.table(ids) == [fine.get(t[0], t) for t in world.truth(ids)]


def test_a_time_in_no_known_unit_is_not_guessed(world: ArchiveWorld) -> None:
    """binance-public-data#474: what the next change of the unit would look like. Right: REST says the time."""
    ids = world.ids()
    world.plant("unit", unit="ns", ids=(ids.first + 10, ids.first + 19))
    report = world.ingest()
    assert report.read.refused == {"time is in no unit that the mapping knows": 10}
    assert kinds(report) == {"rows_unreadable": 10, "ids_missing": 10}
    assert world.table(ids) == world.truth(ids)


def test_a_file_that_is_not_its_checksum_is_refused_by_name_and_taken_later(world: ArchiveWorld) -> None:
    """binance-public-data#405, #241, #40: checksums do not match, files are issued again later."""
    world.plant("wrong_checksum")
    report = world.ingest()
    assert (report.status, report.error, report.committed_rows) == ("refused", "ChecksumMismatch", 0)
    state = world.state()
    assert state is not None
    assert (state.status, state.checksum, state.taken) == ("refused", "mismatch", None)
    world.simulator.archives.clear()
    assert world.ingest().status == "ingested"
    assert world.state().checksum == "verified"  # type: ignore[union-attr]
    assert world.table(world.ids()) == world.truth(world.ids())


def test_a_file_issued_between_its_checksum_and_itself_is_asked_for_again(world: ArchiveWorld) -> None:
    """binance-public-data#405: caught in the middle of a re-issue."""
    world.plant("wrong_checksum", times=1)
    assert world.ingest().status == "ingested"


def test_a_missing_checksum_is_a_state_of_its_own(world: ArchiveWorld) -> None:
    """binance-public-data#469: missing .CHECKSUM."""
    world.plant("no_checksum")
    report = world.ingest()
    assert kinds(report) == {"checksum_missing": 1}
    state = world.state()
    assert state is not None
    assert (state.status, state.checksum, state.upstream_sha256) == ("ingested", "missing", None)
    assert state.sha256 is not None
    assert world.table(world.ids()) == world.truth(world.ids())


@pytest.mark.parametrize(
    ("planted", "error"),
    [
        ({"kind": "corrupt"}, "ArchiveUnreadable"),
        ({"kind": "not_zip"}, "ArchiveUnreadable"),
        ({"kind": "bomb"}, "ArchiveBomb"),
        ({"kind": "nested"}, "ArchiveUnreadable"),
        ({"kind": "two_members"}, "ArchiveUnreadable"),
        ({"kind": "other_member"}, "ArchiveUnreadable"),
    ],
    ids=lambda v: v["kind"] if isinstance(v, dict) else "",
)
def test_corrupt_and_hostile_zips_are_refused(world: ArchiveWorld, planted: dict[str, str], error: str) -> None:
    """binance-public-data#469: corrupt zips; and what nobody should be able to send us."""
    world.plant(**planted)  # type: ignore[arg-type]
    report = world.ingest()
    assert (report.status, report.error) == ("refused", error)
    assert world.committed == []
    assert list((world.folder / "work").glob("*.rows")) == []


def test_a_file_that_is_not_out_yet_is_absent_and_the_api_has_its_range(world: ArchiveWorld) -> None:
    """binance-public-data#375: the archive is a week late."""
    world.plant("no_file")
    report = world.ingest()
    assert (report.status, report.error, report.left) == ("absent", "ArchiveAbsent", [])
    assert world.state().status == "absent"  # type: ignore[union-attr]


def test_a_late_file_that_differs_from_the_api_is_settled_by_it(world: ArchiveWorld) -> None:
    """binance-public-data#375: then the uploaded file differed from REST. ccxt#28672: so do live and archive.

    Right: a difference that is seen is decided by the API and recorded with both rows.
    """
    ids = world.ids()
    world.plant("other_quantity", ids=(ids.last - 40, ids.last))
    report = world.ingest()
    assert kinds(report)["ids_in_conflict"] >= 41
    difference = next(d for d in report.found.differences if d.id == ids.last)
    assert (difference.why, len(difference.archive)) == ("the API shows another trade", 1)
    assert difference.taken is not None
    assert world.table(ids) == world.truth(ids)


def test_two_rows_of_one_id_are_decided_by_the_api(world: ArchiveWorld) -> None:
    """binance-public-data#353 within a file: one id, two contents."""
    ids = world.ids()
    world.plant("conflict", ids=(ids.first + 50, ids.first + 54))
    report = world.ingest()
    assert kinds(report)["ids_in_conflict"] == 5
    assert {d.why for d in report.found.differences} == {"two different rows of one id"}
    assert {len(d.archive) for d in report.found.differences} == {2}
    assert world.table(ids) == world.truth(ids)


def test_rows_that_cannot_be_read_are_counted_and_asked_for(world: ArchiveWorld) -> None:
    ids = world.ids()
    world.plant("garbage", rows=3)
    world.plant("bad_price", ids=(ids.first + 9, ids.first + 9))
    report = world.ingest()
    assert report.read.refused == {"not a row of the mapping's columns": 3, "price is not above 0": 1}
    assert len(report.read.examples) == 4
    assert world.table(ids) == world.truth(ids)


def test_a_header_is_no_row(world: ArchiveWorld) -> None:
    world.plant("header")
    report = world.ingest()
    assert (report.read.header, kinds(report)) == (True, {})
    assert world.table(world.ids()) == world.truth(world.ids())


# --- interruptions ----------------------------------------------------------------------------------------------


def test_a_download_goes_on_where_it_broke_off(world: ArchiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schemahub.archive_download.BLOCK", 4096)
    world.plant("break_off", times=2)
    report = world.ingest()
    assert report.status == "ingested"
    assert report.issue is not None
    assert report.issue.resumed == 2
    starts = [first for path, first in world.simulator.archives.requests if path.endswith(".zip")]
    assert len(starts) == 3
    assert 0 == starts[0] < starts[1] < starts[2]


def test_a_worker_that_is_stopped_keeps_what_it_committed_and_the_next_takes_the_rest(world: ArchiveWorld) -> None:
    ids, stop = world.ids(), Event()
    seen: list[int] = []

    def commit(fetched: object) -> None:
        world.commit(fetched)  # type: ignore[arg-type]
        seen.append(len(world.committed))
        stop.set()

    world.plant("skip", ids=(ids.first + 100, ids.first + 100))
    import schemahub.archive_ingest as module

    assert module.GROUP_ROWS > 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GROUP_ROWS", 1)
        report = world.ingest(stop=stop, commit=commit)
    assert report.status == "stopped"
    assert 0 < report.committed_rows < ids.size
    before = len(world.committed)
    rest = world.ingest()
    assert rest.status == "ingested"
    assert not {f.chunk for f in world.committed[:before]} & {f.chunk for f in world.committed[before:]}
    assert world.table(ids) == world.truth(ids)


def test_what_another_path_made_durable_is_not_fought_over(world: ArchiveWorld) -> None:
    """A REST task stored a chunk and died before its commit: its object has other bytes for the same trades."""
    from schemahub import raw
    from schemahub.pacing import PacedExchange
    from schemahub.paging import paging_of
    from schemahub.streams import Chunk
    from tests.unit.archive_worlds import MAPPING

    ids = world.ids(NEW)
    grid = Chunk((ids.first // 1_000 + 1) * 1_000, (ids.first // 1_000 + 2) * 1_000 - 1)
    deps = world.deps
    stored = raw.store(
        deps.objects,
        BINANCE,
        paging_of(MAPPING).fetch(PacedExchange.of(deps, "binance"), BINANCE, grid, deps.clock, lambda: None),
    )
    world.ingest(NEW)
    assert deps.ledger.segment(BINANCE, grid.first).sha256 == stored.sha256
    assert world.table(ids) == world.truth(ids, micros=True, millis=range(grid.first, grid.last + 1))


def test_an_api_that_cannot_be_asked_leaves_only_what_needs_it(world: ArchiveWorld) -> None:
    ids = world.ids()
    hole = (ids.first + 1_200, ids.first + 1_210)
    world.plant("skip", ids=hole)
    world.pipeline.fault("http_status", "binance", "BTC-USDT")
    report = world.ingest()
    assert report.status == "ingested"
    assert [tuple(part) for part in report.left] == [hole]
    assert report.found.silent
    world.pipeline.cure()
    world.pipeline.later(600)
    assert world.ingest().left == []
    assert world.table(ids) == world.truth(ids)


def test_all_that_can_be_wrong_with_one_file_is_named_and_mended_together(world: ArchiveWorld) -> None:
    """The same plants as in tests/integration/test_heavy_backfill.py, in one day instead of a month."""
    ids = world.ids()
    hole = (ids.first + 600, ids.first + 640)
    world.plant("truncate", share=0.9)
    world.plant("skip", ids=hole)
    world.pipeline.fault("missing_forever", "binance", "BTC-USDT", match={"ids": list(hole)})
    world.plant("skip", ids=(ids.first + 900, ids.first + 950))
    world.plant("conflict", ids=(ids.first + 1_000, ids.first + 1_004))
    world.plant("unit", unit="us", ids=(ids.first + 1_100, ids.first + 1_150))
    world.plant("repeat", ids=(ids.first + 1_200, ids.first + 1_299), times=1)
    world.plant("another_day", rows=20)
    world.plant("interleave", ways=7)
    world.plant("garbage", rows=3)
    said = kinds(world.ingest())
    assert said.keys() >= {
        "ids_absent", "ids_missing", "ids_in_conflict", "units_mixed", "rows_repeated", "rows_disordered",
        "rows_of_another_day", "rows_unreadable", "truncated",
    }  # fmt: skip
    assert (said["ids_absent"], said["rows_of_another_day"], said["rows_repeated"]) == (41, 20, 100)
    truth = world.truth(ids, without=range(hole[0], hole[1] + 1))
    # Where the file is finer than the API, its microseconds are kept.
    assert [(*row[:4], row[4] // 1000) for row in world.table(ids)] == [(*row[:4], row[4] // 1000) for row in truth]
