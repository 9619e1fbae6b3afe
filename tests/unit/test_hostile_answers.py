"""An exchange whose answers fail: each sickness is retried until the table is whole, or ends in an error with a name.

Each test says where the sickness was seen: ``peers §X`` is a section of the review of other systems that SchemaHub
began with. What the retries are is read from the state machine; the judge is the simulator's oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub import errors, exchanges
from schemahub.pacing import PacedExchange
from tests.lake import make_glue_check_versions
from tests.unit.pipelines import BINANCE, FAST, Pipeline, make_pipeline

PAGES = {"on": "page"}


@pytest.fixture
def pipeline(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    make_glue_check_versions(monkeypatch)
    with running(FAST) as server:
        yield make_pipeline(aws, server, tmp_path)


def assert_cured(pipeline: Pipeline, error: str, times: int) -> None:
    """The run met the sickness ``times`` times, under that name, and the table is the exchange all the same."""
    pipeline.run()
    assert pipeline.world.retried[error] == times
    pipeline.assert_exact()
    assert pipeline.absent() == []


def assert_halted(pipeline: Pipeline, *names: type[Exception]) -> None:
    """The run ends with a named error that names the stream; nothing is committed; cured, the next run is whole."""
    with pytest.raises(names, match="coinbase") as caught:
        pipeline.ingest()
    assert getattr(caught.value, "remedy", "")
    pipeline.assert_nothing_committed()
    pipeline.cure()
    pipeline.later(600)
    pipeline.run()
    pipeline.assert_exact()


# --- slow down --------------------------------------------------------------------------------------------------


def test_429_with_retry_after_makes_everybody_wait_that_long(pipeline: Pipeline) -> None:
    """peers §B rotki#3687: a Retry-After longer than the client's own cap was cut short, and a ban followed.

    Right: nothing is sent for as long as the exchange says, and then everything is fetched.
    """
    pipeline.fault("http_status", status=429, retry_after="77", match=PAGES, times=1)
    since_ms = pipeline.clock.now_ms()
    assert_cured(pipeline, "RateLimited", 1)
    assert pipeline.clock.now_ms() - since_ms >= 77_000


def test_429_without_retry_after_waits_for_the_bucket_s_window(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peers §A: 429s came at chunk boundaries, and each worker backed off for itself.

    Right: the shared bucket is penalised by the window of its mapping, and then everything is fetched.
    """
    pipeline.fault("http_status", status=429, match=PAGES, times=2)
    shared = PacedExchange.of(pipeline.world.deps, "coinbase").throttle.shared
    penalties: list[int] = []
    original = shared.penalise
    monkeypatch.setattr(shared, "penalise", lambda asked: penalties.append(original(asked)))
    assert_cured(pipeline, "RateLimited", 2)
    assert penalties == [shared.bucket.pause_s * 1000] * 2


def test_418_is_a_ban_that_is_waited_for(pipeline: Pipeline) -> None:
    """peers §B profit-trailer#444, rotki#3687: going on after Binance's 418 makes the ban longer.

    Right: one request meets it, nothing is sent until it is over, and then everything is fetched.
    """
    pipeline.fault("http_status", BINANCE.exchange, BINANCE.product, status=418, retry_after=120, match=PAGES, times=1)
    since_ms = pipeline.clock.now_ms()
    pipeline.run(BINANCE)
    assert pipeline.world.retried["RateLimited"] == 1
    assert pipeline.clock.now_ms() - since_ms >= 120_000
    pipeline.assert_exact(BINANCE)


def test_429_for_good_is_an_error_and_nothing_is_committed(pipeline: Pipeline) -> None:
    """peers §B "more than 1 bot on 1 IP": somebody else uses up the limit of our address.

    Right: a named error after few requests; the breaker keeps everybody from hammering.
    """
    pipeline.fault("http_status", status=429)
    assert_halted(pipeline, errors.RateLimited, errors.CircuitOpen)
    assert pipeline.requests() < 60


# --- no answer, or half of one ----------------------------------------------------------------------------------


def test_a_burst_of_5xx_opens_the_breaker_and_is_outlived(pipeline: Pipeline) -> None:
    """peers §A: a breaker of 120 s for each short burst; here it opens for seconds and doubles.

    Right: retries and the breaker bridge eight failures in a row, and everything is fetched.
    """
    pipeline.fault("http_status", status=503, match=PAGES, times=8)
    pipeline.run()
    retried = pipeline.world.retried
    assert retried["ExchangeUnavailable"] + retried["CircuitOpen"] >= 6
    pipeline.assert_exact()
    assert pipeline.absent() == []


def test_5xx_for_good_is_an_error_and_nothing_is_committed(pipeline: Pipeline) -> None:
    """peers §B airbyte#2627: a failed sync forgot what it had, or pretended to have it all.

    Right: a named error; no watermark; the next run is whole.
    """
    pipeline.fault("http_status", status=502)
    assert_halted(pipeline, errors.ExchangeUnavailable, errors.CircuitOpen)


def test_silence_is_a_timeout_that_is_retried(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """peers §B amazon-dynamodb-lock-client#1: threads that waited for ever held everything.

    Right: the request ends by itself, is retried, and everything is fetched.
    """
    monkeypatch.setattr(exchanges, "READ_TIMEOUT_S", 0.2)
    pipeline.fault("hang", seconds=1.0, match=PAGES, times=2)
    assert_cured(pipeline, "ExchangeUnavailable", 2)


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_body_that_breaks_off_is_never_a_short_page(pipeline: Pipeline, how: str) -> None:
    """peers §B binance-public-data#354: a file that ended at 09:29 was taken for the whole day.

    Right: half a body is no answer, whether the connection was reset or closed; retried, everything is fetched.
    """
    pipeline.fault("reset", how=how, match=PAGES, times=2)
    assert_cured(pipeline, "ResponseInterrupted", 2)


# --- 200, and not what was asked for ----------------------------------------------------------------------------


def test_truncated_json_is_never_a_short_page(pipeline: Pipeline) -> None:
    """peers §B lake-api#5: what could not be parsed was skipped with a warning.

    Right: MalformedResponse, retried, everything is fetched.
    """
    pipeline.fault("truncated_json", match=PAGES, times=2)
    assert_cured(pipeline, "MalformedResponse", 2)


def test_html_with_200_is_retried_and_not_stored(pipeline: Pipeline) -> None:
    """peers §B binance-public-data#469: an error page was saved under a data file's name.

    Right: MalformedResponse, retried, everything is fetched.
    """
    pipeline.fault("html_200", match=PAGES, times=2)
    assert_cured(pipeline, "MalformedResponse", 2)


@pytest.mark.parametrize(
    "kind",
    [
        "html_200",
        "nan",
        *(pytest.param(k, marks=pytest.mark.long) for k in ("truncated_json", "object_200", "empty_body")),
    ],
)
def test_nonsense_for_good_is_an_error_and_nothing_is_committed(pipeline: Pipeline, kind: str) -> None:
    """peers §A 12 and §B lake-api#5: an unreadable answer became an empty one.

    Right: MalformedResponse with the stream's name; no watermark; the next run is whole.
    """
    pipeline.fault(kind, match=PAGES)
    assert_halted(pipeline, errors.MalformedResponse)


def test_an_empty_list_with_200_is_asked_again(pipeline: Pipeline) -> None:
    """peers §B freqtrade#11460: one pair in four came back empty, and nobody was told.

    Right: EmptyPage, retried, everything is fetched.
    """
    pipeline.fault("empty_list", match=PAGES, times=2)
    assert_cured(pipeline, "EmptyPage", 2)


def test_an_empty_list_for_good_is_an_error_and_nothing_is_committed(pipeline: Pipeline) -> None:
    """peers §A 7: an empty page counted as a finished one, and the cursor moved on.

    Right: EmptyPage; no watermark; the next run is whole.
    """
    pipeline.fault("empty_list", match=PAGES)
    assert_halted(pipeline, errors.EmptyPage)


def test_an_empty_newest_page_of_a_running_stream_moves_nothing(pipeline: Pipeline) -> None:
    """peers §A 7, at the head: "nothing new" and "no answer" look the same in an empty list.

    Right: EmptyPage; watermark and table stay; the next run goes on.
    """
    pipeline.run()
    before = pipeline.world.committed(), pipeline.table()
    pipeline.later(3_600)
    pipeline.fault("empty_list", match={"on": "head"})
    with pytest.raises(errors.EmptyPage, match="coinbase#BTC-USD"):
        pipeline.ingest()
    assert (pipeline.world.committed(), pipeline.table()) == before
    pipeline.cure()
    pipeline.run()
    assert len(pipeline.table()) > len(before[1])
    pipeline.assert_exact()


# --- products ---------------------------------------------------------------------------------------------------


def test_a_delisted_product_is_named_and_what_was_pulled_stays(pipeline: Pipeline) -> None:
    """peers §B catalyst#85, freqtrade PR#5733: delisted products vanished, and with them their history.

    Right: UnknownProduct for that stream, others go on, table and watermark stay.
    """
    pipeline.run()
    before = pipeline.world.committed(), pipeline.table()
    pipeline.fault("delisted")
    pipeline.later(3_600)
    with pytest.raises(errors.UnknownProduct, match="coinbase#BTC-USD") as caught:
        pipeline.ingest()
    assert "seed" in caught.value.remedy
    assert (pipeline.world.committed(), pipeline.table()) == before
    pipeline.run(BINANCE)
    pipeline.assert_exact(BINANCE)
    assert pipeline.table() == before[1]


@pytest.mark.parametrize("above", [False, True], ids=["below", "above"])
def test_ids_that_restart_after_a_relisting_halt_the_stream(pipeline: Pipeline, above: bool) -> None:
    """peers §B ccxt#13790: LUNA/BTC was relisted, its history replaced, its ids began again.

    Right: below the watermark HeadBehindWatermark, above it EmptyPage or IncompletePage (nothing joins the two
    histories); nothing of the new history is mixed into the old one.
    """
    pipeline.run()
    before = pipeline.world.committed(), pipeline.table()
    pipeline.fault("relist", first_id=pipeline.head() + 2_000 if above else 1, age_s=3_600.0)
    pipeline.later(60)
    with pytest.raises(
        (errors.EmptyPage, errors.IncompletePage) if above else errors.HeadBehindWatermark, match="coinbase#BTC-USD"
    ):
        pipeline.ingest()
    assert (pipeline.world.committed(), pipeline.table()) == before
    pipeline.cure()
    pipeline.later(3_600)
    pipeline.run()
    pipeline.assert_exact()
