"""An exchange whose trades are odd: repeated, missing, late, changed, unreadable. Kept exactly, classed or quarantined.

Each test says where the oddity was seen: ``peers §X`` is a section of the review of other systems that SchemaHub began
with. Raw keeps what was sent in every case; the judge of the table is the simulator's oracle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub import errors, events, ingest, publishing, raw
from schemahub.fetch import fetch_chunk
from schemahub.holes import LOOKS, LOOKS_APART_S, merged
from schemahub.mappings import load_mapping
from schemahub.pacing import PacedExchange
from schemahub.repair import holes_of
from schemahub.streams import Chunk, Stream
from tests.lake import make_glue_check_versions
from tests.unit.pipelines import BINANCE, FAST, Pipeline, make_pipeline
from tests.unit.worlds import STREAM

PAGES = {"on": "page"}
BOTH = pytest.mark.parametrize(
    "stream", [STREAM, pytest.param(BINANCE, marks=pytest.mark.long)], ids=["descending", "ascending"]
)


@pytest.fixture
def pipeline(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    make_glue_check_versions(monkeypatch)
    with running(FAST) as server:
        yield make_pipeline(aws, server, tmp_path)


def spoil(pipeline: Pipeline, kind: str, stream: Stream = STREAM, **spec: Any) -> None:
    pipeline.fault(kind, stream.exchange, stream.product, **spec)


# --- repeated, out of order, shifted ----------------------------------------------------------------------------


@BOTH
def test_duplicate_rows_are_stored_once(pipeline: Pipeline, stream: Stream) -> None:
    """peers §B binance-public-data#203: a long run of exact duplicates inside one file.

    Right: each trade once in raw and once in the table, without a DISTINCT.
    """
    spoil(pipeline, "duplicate_rows", stream, rows=40)
    pipeline.run(stream)
    pipeline.assert_exact(stream)


@BOTH
def test_rows_out_of_order_are_sorted(pipeline: Pipeline, stream: Stream) -> None:
    """peers §B binance-public-data#293 and #339: rows of two dates interleaved, not sorted.

    Right: the order of an answer decides nothing.
    """
    spoil(pipeline, "unordered_rows", stream)
    pipeline.run(stream)
    pipeline.assert_exact(stream)


@BOTH
def test_a_page_that_overlaps_its_neighbour_adds_nothing_twice(pipeline: Pipeline, stream: Stream) -> None:
    """peers §B ccxt#5861 and #8272: pages that repeat or skip rows at their edge.

    Right: rows beyond the cursor are dropped here and come with their own page.
    """
    spoil(pipeline, "overlap", stream, rows=25)
    pipeline.run(stream)
    pipeline.assert_exact(stream)


@BOTH
def test_a_page_that_skips_rows_is_asked_again(pipeline: Pipeline, stream: Stream) -> None:
    """peers §B ccxt#15827: trades of a burst lost between two pages.

    Right: the second look finds them; nothing is absent.
    """
    border = pipeline.border() if stream == STREAM else (pipeline.head(stream) - 150) // 1000 * 1000
    spoil(pipeline, "skip_rows", stream, match={"ids": [border + 20, border + 60], "on": "page", "requests": [1, 1]})
    pipeline.run(stream)
    pipeline.assert_exact(stream)
    assert pipeline.absent(stream) == []


# --- missing, late ------------------------------------------------------------------------------------------------


def test_ids_missing_for_good_are_classed_and_proved_by_later_looks(pipeline: Pipeline) -> None:
    """peers §B binance-public-data#363, #378: many single ids that the exchange never issued; #28: ids that jumped.

    Right: recorded as absent with a class, everything else is in the table, and three looks apart prove the hole.
    """
    border = pipeline.border()
    gone = [border - 50, border + 10, border + 11]
    spoil(pipeline, "missing_forever", match={"ids": [gone[0], gone[0]]})
    spoil(pipeline, "missing_forever", match={"ids": gone[1:]})
    pipeline.run()
    kind = "exchange_skipped"
    assert pipeline.absent() == [(gone[0], gone[0], kind), (gone[1], gone[2], kind)]
    pipeline.assert_exact(without=gone)
    for _ in range(LOOKS - 1):
        assert not any(gap.proved for gap in merged(holes_of(pipeline.world.deps, STREAM)))
        pipeline.later(LOOKS_APART_S + 1)
        pipeline.repair()
    assert [(g.first, g.ids, g.proved) for g in merged(holes_of(pipeline.world.deps, STREAM))] == [
        (gone[0], 1, True),
        (gone[1], 2, True),
    ]


@BOTH
def test_ids_that_appear_late_near_the_head_are_in_the_table_once(pipeline: Pipeline, stream: Stream) -> None:
    """peers §B 4 and ccxt#26945: the newest trades were not there yet when they were asked for.

    Right: the hole is `not_yet`, not `exchange_skipped`; asked again later it is filled, once.
    """
    head = pipeline.head(stream)
    spoil(pipeline, "late_ids", stream, match={"ids": [head - 8, head - 6]}, after_s=60)
    pipeline.run(stream)
    assert pipeline.absent(stream) == [(head - 8, head - 6, "not_yet")]
    pipeline.assert_exact(stream, without=range(head - 8, head - 5))
    pipeline.later(61)
    pipeline.repair(stream)
    pipeline.transform()
    pipeline.assert_exact(stream)


def test_a_head_that_is_not_settled_is_left_for_the_next_run(pipeline: Pipeline) -> None:
    """peers §A 7 and §B freqtrade#2892: what is not there yet was taken for what never was.

    Right: a node that lacks everything from an id on proves nothing: IncompletePage, no watermark beyond it, and the
    next run has it all.
    """
    head = pipeline.head()
    spoil(pipeline, "late_ids", match={"ids": [head - 20, head + 10**6], "on": "page"}, after_s=3_000)
    pipeline.run()
    assert pipeline.absent() == []
    mark = pipeline.world.deps.ledger.watermark(STREAM)
    assert mark is not None
    assert mark.high == head - 21
    pipeline.later(3_001)
    pipeline.run()
    pipeline.assert_exact()


# --- changed ------------------------------------------------------------------------------------------------------


def test_a_trade_that_changes_between_two_looks_is_a_conflict(pipeline: Pipeline) -> None:
    """peers §B ccxt#28672: two sources told one trade with two quantities; #353: one id, different trades.

    Right: PageConflict, not retried; nothing of that chunk is committed.
    """
    border = pipeline.border()
    spoil(pipeline, "skip_rows", match={"ids": [border + 20, border + 22], "on": "page", "requests": [1, 2]})
    spoil(pipeline, "mutate", match={"ids": [border + 23, border + 23], "on": "head", "requests": [1, None]})
    with pytest.raises(errors.PageConflict, match=f"the id {border + 23}"):
        pipeline.ingest()
    assert pipeline.world.retried["PageConflict"] == 0
    assert pipeline.world.committed()[-1][1] == border - 1
    pipeline.cure()
    pipeline.run()
    pipeline.assert_exact()


def test_a_trade_that_changes_between_two_fetches_never_overwrites(pipeline: Pipeline) -> None:
    """peers §B binance-public-data#405, #241, #40: files were issued again with other content.

    Right: the stored original stays, the second writer gets RawConflict, the table keeps the first.
    """
    pipeline.run()
    border, deps = pipeline.border(), pipeline.world.deps
    chunk = next(Chunk(s.first, s.last) for s in deps.ledger.segments(STREAM) if s.first == border)
    spoil(pipeline, "mutate", match={"ids": [border + 23, border + 23], "requests": [1, None]})
    fetched = fetch_chunk(
        PacedExchange.of(deps, "coinbase"), STREAM, chunk, page_size=1000, descending=True, pause=deps.clock.sleep
    )
    with pytest.raises(errors.RawConflict, match="coinbase#BTC-USD"):
        raw.store(deps.objects, STREAM, fetched)
    pipeline.transform()
    pipeline.assert_exact()


# --- odd values ---------------------------------------------------------------------------------------------------


def test_microseconds_where_milliseconds_were_are_quarantined(pipeline: Pipeline) -> None:
    """peers §B binance-public-data#386, #387, #474: times changed from ms to µs, and volume fell 2,750 times.

    Right: such a row is in quarantine with its reason, never at a time 1,000 times later; all others are in the table.
    """
    one = pipeline.head(BINANCE) - 700
    spoil(pipeline, "wrong_unit", BINANCE, match={"ids": [one, one], "on": "page"})
    pipeline.run(BINANCE)
    assert pipeline.quarantine() == {one: "time is out of bounds"}
    pipeline.assert_exact(BINANCE, without=[one])


def test_a_unit_that_changed_for_good_stops_publishing_and_loses_nothing(pipeline: Pipeline) -> None:
    """peers §B binance-public-data#474: the new unit came for every row, from one day on.

    Right: the originals are kept and committed, QuarantineExceeded names the evidence, nothing wrong is published.
    """
    pipeline.run(BINANCE)
    before = pipeline.table(BINANCE)
    pipeline.later(3_600)
    spoil(pipeline, "wrong_unit", BINANCE, rows=None)
    pipeline.ingest(BINANCE)
    with pytest.raises(errors.QuarantineExceeded, match="binance#BTC-USDT"):
        pipeline.transform()
    assert pipeline.table(BINANCE) == before
    pending = list(pipeline.world.deps.ledger.pending())
    assert sum(s.count for s in pending) > 100
    assert set(pipeline.quarantine().values()) == {"time is out of bounds"}


def test_numbers_keep_their_text_and_become_the_nearest_double(pipeline: Pipeline) -> None:
    """peers §B cryptostore#45, nautilus#3549, ninjabot#72, trading-strategy#148: digits lost on the way.

    Right: raw has 18 decimals and exponents as sent; the table has the nearest double of exactly that text.
    """
    border = pipeline.border()
    spoil(pipeline, "odd_numbers", match={"ids": [border + 5, border + 9], "on": "page"})
    pipeline.run()
    texts = pipeline.raw_texts()
    rows = {row[0]: row for row in pipeline.table()}
    for one in range(border + 5, border + 10):
        sent = json.loads(texts[one])
        assert "E+" in sent["price"]
        assert len(sent["size"].partition(".")[2]) == 18
        assert rows[one][2:4] == (float(sent["price"]), float(sent["size"]))
    true = {row[0]: row for row in pipeline.oracle()}
    assert rows.keys() == true.keys()
    assert all(rows[one][2] == true[one][2] for one in rows)
    assert all(rows[one] == true[one] for one in rows if not border + 5 <= one <= border + 9)


@pytest.mark.parametrize("value", ["0", "-1.5"])
def test_a_price_of_zero_or_below_is_quarantined(pipeline: Pipeline, value: str) -> None:
    """peers §A 3: a price that was missing became 0 and stood in the table.

    Right: quarantine with the reason and the original text; all other rows are in the table.
    """
    one = pipeline.border() - 40
    spoil(pipeline, "bad_price", value=value, match={"ids": [one, one], "on": "page"})
    pipeline.run()
    assert pipeline.quarantine() == {one: "price is not a finite number above 0"}
    assert json.loads(pipeline.raw_texts()[one])["price"] == value
    pipeline.assert_exact(without=[one])


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("price", "price is not a finite number above 0"),
        pytest.param("size", "quantity is not a finite number above 0", marks=pytest.mark.long),
        pytest.param("side", "side is not one of the mapping's", marks=pytest.mark.long),
        ("time", "time cannot be read"),
    ],
)
def test_a_missing_field_is_quarantined_with_its_reason(pipeline: Pipeline, field: str, reason: str) -> None:
    """peers §A 13: a bad row was a warning in a log, and dropped.

    Right: quarantine with the reason, counted; all other rows are in the table.
    """
    one = pipeline.border() - 40
    spoil(pipeline, "missing_field", field=field, match={"ids": [one, one], "on": "page"})
    pipeline.run()
    assert pipeline.quarantine() == {one: reason}
    pipeline.assert_exact(without=[one])


def test_a_missing_id_is_no_trade_and_no_answer(pipeline: Pipeline) -> None:
    """peers §A 5 and §B cryptofeed#797: without its id nobody can say which trade a row is.

    Right: MalformedResponse; nothing is guessed, nothing of the chunk is committed.
    """
    border = pipeline.border()
    spoil(pipeline, "missing_field", field="id", match={"ids": [border + 5, border + 5], "on": "page"})
    with pytest.raises(errors.MalformedResponse, match="trade id 'None'"):
        pipeline.ingest()
    assert pipeline.world.committed()[-1][1] == border - 1


def test_unknown_extra_fields_are_kept_in_raw_and_change_nothing_else(pipeline: Pipeline) -> None:
    """peers, feature "Schema contract: evolve / freeze / discard": a new column broke the loaders.

    Right: with `keep` raw has it and the table is what it was.
    """
    spoil(pipeline, "extra_field", rows=30, field="venue", value={"a": ["'", 1]})
    pipeline.run()
    assert sum('"venue":{"a":["\'",1]}' in text for text in pipeline.raw_texts().values()) >= 30
    pipeline.assert_exact()


def test_unknown_extra_fields_fail_where_the_contract_says_so(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with `on_new_field: fail`. Right: UnmappedField names the field; the originals are kept and pending."""
    strict = replace(load_mapping("coinbase"), on_new_field="fail")
    monkeypatch.setattr(publishing, "load_mapping", lambda name: strict)
    spoil(pipeline, "extra_field", field="venue")
    pipeline.ingest()
    with pytest.raises(errors.UnmappedField, match="venue"):
        pipeline.transform()
    assert pipeline.table() == []
    assert list(pipeline.world.deps.ledger.pending())


# --- clocks -------------------------------------------------------------------------------------------------------


def test_an_exchange_s_clock_that_goes_backwards_loses_no_trade(pipeline: Pipeline) -> None:
    """peers §B binance-public-data#293, python-binance#1270: later trades with earlier times, and paging by time.

    Right: ids decide what is fetched, so every trade is there, with the time that the exchange gave it.
    """
    border = pipeline.border()
    spoil(pipeline, "clock_backwards", seconds=5_400.0, match={"ids": [border + 5, border + 60], "on": "page"})
    pipeline.run()
    back = [
        (*trade[:4], trade[4] - 5_400_000_000) if border + 5 <= trade[0] <= border + 60 else trade
        for trade in pipeline.oracle()
    ]
    assert pipeline.table() == back


def test_our_clock_that_goes_backwards_plans_nothing_and_catches_up(pipeline: Pipeline) -> None:
    """peers §B python-binance#1270: a machine whose clock was off by its UTC offset.

    Right: trades that are "not yet" do not count, nothing is lost or moved back, and the next good run catches up.
    """
    pipeline.run()
    before = pipeline.world.committed(), pipeline.table()
    pipeline.later(1_800)
    pipeline.clock.ahead_s -= 7_200
    assert pipeline.ingest()["status"] in ("nothing_new", "covered")
    assert pipeline.world.committed() == before[0]
    pipeline.clock.ahead_s += 7_200
    pipeline.run()
    assert len(pipeline.table()) > len(before[1])
    pipeline.assert_exact()


def test_newest_trades_with_an_absurd_time_do_not_hold_the_stream_back(pipeline: Pipeline) -> None:
    """peers §B binance-public-data#474 at the head: a time in the year 50,000 is not a young trade.

    Right: the head goes on; the row is committed as sent and quarantined, not waited for in silence.
    """
    pipeline.run(BINANCE)
    one = pipeline.head(BINANCE) + 3
    pipeline.later(86_400 / 3)
    spoil(pipeline, "wrong_unit", BINANCE, match={"ids": [one, one]})
    run = pipeline.world.open("binance:BTC-USDT")["run"]
    base = {"execution": pipeline.world.execution(), "run": run, "stream": BINANCE.to_json()}
    plan = pipeline.world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": pipeline.world.acquire(base)})
    assert plan["head"] > one + 900
    pipeline.world.deps.locks.release_run(run["arn"])
    pipeline.run(BINANCE)
    assert pipeline.quarantine() == {one: "time is out of bounds"}
    pipeline.assert_exact(BINANCE, without=[one])
