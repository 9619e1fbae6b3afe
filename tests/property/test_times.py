"""Times as people write them: one parser, which takes what it writes and never raises anything but ValueError."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemahub_cli.times import parse, written

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 21, 12, 30, 15, 250, tzinfo=UTC)
MOMENTS = st.integers(86_400 * 10**6, 253_402_214_400 * 10**6).map(lambda us: EPOCH + timedelta(microseconds=us))
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))


@pytest.mark.parametrize(("text", "moment"), [
    ("now", NOW),
    ("today", datetime(2026, 11, 21, tzinfo=UTC)),
    ("yesterday", datetime(2026, 11, 20, tzinfo=UTC)),
    ("90s", NOW - timedelta(seconds=90)),
    ("15m", NOW - timedelta(minutes=15)),
    ("12h", NOW - timedelta(hours=12)),
    ("7d", NOW - timedelta(days=7)),
    ("2w", NOW - timedelta(days=14)),
    ("2026-11", datetime(2026, 11, 1, tzinfo=UTC)),
    ("2026-11-03", datetime(2026, 11, 3, tzinfo=UTC)),
    ("2026-11-03T10:00", datetime(2026, 11, 3, 10, tzinfo=UTC)),
    ("2026-11-03 10:00", datetime(2026, 11, 3, 10, tzinfo=UTC)),
    ("2026-11-03T10:00:07.25Z", datetime(2026, 11, 3, 10, 0, 7, 250_000, tzinfo=UTC)),
    ("2026-11-03T10:00+02:00", datetime(2026, 11, 3, 8, tzinfo=UTC)),
])  # fmt: skip
def test_each_form_names_one_moment(text: str, moment: datetime) -> None:
    assert parse(text, NOW) == moment


@pytest.mark.parametrize("text", [
    "", "tomorrow", "Today ", "7",
    "d", "7y", "-7d", "7 d", "9999999d", "2026", "2026-13", "2026-02-30", "2026-11-03T25:00",
    "2026-W45-1", "20261103", "٧d", "1969-12-31", "999999w", "2026-11-03T10", "0001-01-01T00:00+14:00", "7d\n",
])  # fmt: skip
def test_what_is_no_time_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"write 12h|before 1970"):
        parse(text, NOW)


@given(MOMENTS)
def test_what_is_written_is_read_back(moment: datetime) -> None:
    assert parse(written(moment), NOW) == moment


@given(MOMENTS, OFFSETS)
def test_the_zone_in_which_a_moment_is_written_changes_nothing(moment: datetime, offset: timezone) -> None:
    assert parse(moment.astimezone(offset).isoformat(), NOW) == moment


@given(st.integers(0, 99_999), st.sampled_from("smhdw"), MOMENTS)
def test_an_age_is_that_long_before_now_whatever_the_zone_of_now(number: int, unit: str, now: datetime) -> None:
    length = timedelta(seconds=number * {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[unit])
    text = f"{number}{unit}"
    if now - EPOCH < length:
        with pytest.raises(ValueError):
            parse(text, now)
    else:
        assert parse(text, now) == now - length == parse(text, now.astimezone(timezone(timedelta(hours=9))))


@given(st.one_of(st.text(max_size=40), st.from_regex(r"[0-9smhdwTZ:+\- ]{1,30}", fullmatch=True)))
def test_any_text_is_a_moment_in_utc_or_a_value_error(text: str) -> None:
    try:
        moment = parse(text, NOW)
    except ValueError:
        return
    assert moment.utcoffset() == timedelta(0)
    assert moment.year >= 1970


@given(st.dates(date(1971, 1, 1), date(9998, 12, 31)))
def test_yesterday_is_the_day_before_today_and_a_month_begins_with_its_first_day(day: date) -> None:
    now = datetime.fromisoformat(f"{day}T23:59:59+00:00")
    assert parse("today", now) - parse("yesterday", now) == timedelta(days=1)
    assert parse(str(day)[:7], now) == parse(f"{str(day)[:7]}-01", now) <= parse("today", now)
