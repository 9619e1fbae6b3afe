"""When EventBridge Scheduler starts the next run: a state machine's schedule, and what its expression says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from schemahub_cli.target import Target

_FORM = re.compile(r"(rate|cron|at)\((.*)\)")
_RATE = re.compile(r"(\d{1,9}) (minute|hour|day)s?")
_DAY_NUMBER = re.compile(r"(?<![#/\d])[1-7](?!\d)")


@dataclass(frozen=True)
class Schedule:
    """A schedule as ``GetSchedule`` shows it; ``since`` is its start date, or when it was created."""

    expression: str
    enabled: bool
    since: datetime
    until: datetime | None = None
    zone: str = "UTC"

    def next_run(self, now: datetime) -> datetime | None:
        """The first moment after ``now`` at which it starts its target; None where it does not any more.

        Raises ValueError for an expression that Scheduler would not take.
        """
        if not self.enabled:
            return None
        found = next_run(self.expression, now, self.since, self.zone)
        return None if found is None or (self.until is not None and found > self.until) else found


def next_run(expression: str, now: datetime, since: datetime, zone: str = "UTC") -> datetime | None:
    """The first moment after ``now`` and not before ``since`` that ``rate()``, ``cron()`` or ``at()`` names, in UTC.

    Args:
        since: from when on a rate counts.
        zone: in which the fields of ``cron()`` and the time of ``at()`` are written.

    Raises:
        ValueError: it is none of them.
    """
    form = _FORM.fullmatch(expression.strip())
    if form is None:
        raise ValueError(f"{expression[:60]!r} is not rate(), cron() or at()")
    kind, text = form[1], form[2].strip()
    if kind == "rate":
        return _next_of_rate(text, now, since)
    if kind == "at":
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
        return moment if moment > now else None
    return _next_of_cron(text, max(now, since - timedelta(microseconds=1)).astimezone(ZoneInfo(zone)))


def _next_of_rate(text: str, now: datetime, since: datetime) -> datetime:
    form = _RATE.fullmatch(text)
    if form is None or not int(form[1]):
        raise ValueError(f"rate({text[:40]}) is not a number of minutes, hours or days")
    step = timedelta(**{f"{form[2]}s": int(form[1])})
    since = since.astimezone(UTC)
    return since if since > now else since + ((now - since) // step + 1) * step


def _next_of_cron(text: str, after: datetime) -> datetime | None:
    from croniter import croniter
    from croniter.croniter import CroniterBadDateError, CroniterError

    fields = text.upper().split()
    if len(fields) != 6:
        raise ValueError(f"cron({text[:60]}) has {len(fields)} fields, not 6")
    minute, hour, day, month, weekday, year = fields
    # Scheduler counts weekdays from 1 = Sunday, and has the year where other crons have seconds before it.
    weekday = _DAY_NUMBER.sub(lambda number: str(int(number[0]) - 1), weekday)
    if last := re.fullmatch(r"(\d)L", weekday):
        weekday = f"L{last[1]}"
    try:
        return croniter(f"{minute} {hour} {day} {month} {weekday} 0 {year}", after).get_next(datetime).astimezone(UTC)
    except CroniterBadDateError:
        return None
    except CroniterError as error:
        raise ValueError(f"cron({text[:60]}): {error}") from error


def schedule_of(where: Target, machine_arn: str) -> Schedule | None:
    """The schedule that starts a state machine; None where the stack has none. Raises ClientError."""
    client = where.client("scheduler")
    for summary in _summaries(client):
        if summary["Target"]["Arn"] == machine_arn:
            seen = client.get_schedule(Name=summary["Name"], GroupName=summary.get("GroupName", "default"))
            return Schedule(
                seen["ScheduleExpression"],
                seen.get("State", "ENABLED") == "ENABLED",
                _utc(seen.get("StartDate") or seen["CreationDate"]),
                _utc(seen["EndDate"]) if seen.get("EndDate") else None,
                seen.get("ScheduleExpressionTimezone") or "UTC",
            )
    return None


def _summaries(client: Any) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator("list_schedules").paginate():
        yield from page["Schedules"]


def _utc(when: datetime) -> datetime:
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
