"""When the next scheduled run is: EventBridge Scheduler's expressions, read as its documentation reads them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemahub_cli.schedules import Schedule, next_run, schedule_of

NOW = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)  # a Saturday
SINCE = datetime(2026, 11, 1, 0, 10, tzinfo=UTC)
MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:schemahub-test-ingest"


@pytest.mark.parametrize(("expression", "at"), [
    ("rate(6 hours)", "2026-11-21T18:10"),
    ("rate(1 minute)", "2026-11-21T12:31"),
    ("rate(1 day)", "2026-11-22T00:10"),
    ("cron(0 6 * * ? *)", "2026-11-22T06:00"),
    ("cron(15 10 ? * MON-FRI *)", "2026-11-23T10:15"),
    ("cron(15 10 ? * 2-6 *)", "2026-11-23T10:15"),
    ("cron(0 0 ? * 1 *)", "2026-11-22T00:00"),
    ("cron(0/20 12 * * ? *)", "2026-11-21T12:40"),
    ("cron(0 8 L * ? *)", "2026-11-30T08:00"),
    ("cron(0 8 ? * 6L *)", "2026-11-27T08:00"),
    ("cron(0 8 ? * 2#1 *)", "2026-12-07T08:00"),
    ("cron(0 8 ? * MON,4 *)", "2026-11-23T08:00"),
    ("cron(0 8 1 1 ? 2028)", "2028-01-01T08:00"),
    ("cron(0 8 1W * ? *)", "2026-12-01T08:00"),
    ("cron(0 8 1 1 ? 2025)", None),
    ("at(2026-11-22T09:00:00)", "2026-11-22T09:00"),
    ("at(2026-11-20T09:00:00)", None),
])  # fmt: skip
def test_each_form_of_expression_names_its_next_moment(expression: str, at: str | None) -> None:
    expected = None if at is None else datetime.fromisoformat(at).replace(tzinfo=UTC)
    assert next_run(expression, NOW, SINCE) == expected


def test_fields_are_of_the_schedules_own_zone_also_across_a_change_of_the_clock() -> None:
    assert next_run("cron(0 6 * * ? *)", NOW, SINCE, "Europe/Berlin") == datetime(2026, 11, 22, 5, tzinfo=UTC)
    before = datetime(2026, 3, 28, 12, tzinfo=UTC)  # the clocks go forward in the night that follows
    assert next_run("cron(0 6 * * ? *)", before, SINCE - timedelta(365), "Europe/Berlin") == datetime(
        2026, 3, 29, 4, tzinfo=UTC
    )
    assert next_run("at(2026-11-22T09:00:00)", NOW, SINCE, "Asia/Tokyo") == datetime(2026, 11, 22, tzinfo=UTC)


@pytest.mark.parametrize("expression", ["", "rate(0 hours)", "rate(6 fortnights)", "cron(0 6 * *)", "every day",
                                        "cron(61 6 * * ? *)", "at(soon)"])  # fmt: skip
def test_what_scheduler_would_not_take_is_a_value_error(expression: str) -> None:
    with pytest.raises(ValueError):
        next_run(expression, NOW, SINCE)


@given(st.integers(1, 5_000), st.sampled_from(["minute", "hour", "day"]), st.integers(0, 10**8))
def test_a_rate_counts_from_its_beginning_and_its_next_moment_is_the_first_one_that_follows(
    number: int, unit: str, later_s: int
) -> None:
    now, step = SINCE + timedelta(seconds=later_s), timedelta(**{f"{unit}s": number})
    at = next_run(f"rate({number} {unit}s)", now, SINCE)
    assert at is not None
    assert now < at <= now + step
    assert (at - SINCE) % step == timedelta(0)


def test_a_disabled_schedule_starts_nothing_and_none_starts_after_its_end() -> None:
    assert Schedule("rate(6 hours)", False, SINCE).next_run(NOW) is None
    assert Schedule("rate(6 hours)", True, SINCE, NOW + timedelta(hours=1)).next_run(NOW) is None
    assert Schedule("rate(6 hours)", True, NOW + timedelta(days=3)).next_run(NOW) == NOW + timedelta(days=3)


def test_the_schedule_of_a_machine_is_found_among_all_of_the_account(aws: boto3.Session) -> None:
    client = aws.client("scheduler")
    for number in range(3):
        target = MACHINE if number == 1 else f"{MACHINE}-{number}"
        client.create_schedule(
            Name=f"one-{number}", ScheduleExpression=f"rate({number + 5} hours)", FlexibleTimeWindow={"Mode": "OFF"},
            State="DISABLED" if number == 1 else "ENABLED",
            Target={"Arn": target, "RoleArn": "arn:aws:iam::123456789012:role/r"},
        )  # fmt: skip
    where: Any = SimpleNamespace(client=aws.client)
    found = schedule_of(where, MACHINE)
    assert found is not None
    assert (found.expression, found.enabled, found.zone) == ("rate(6 hours)", False, "UTC")
    assert schedule_of(where, f"{MACHINE}-9") is None
