"""EventBridge Scheduler expressions: nothing else checks them before the deployment fails."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest

MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
# Field, lowest and highest value, names (EventBridge Scheduler user guide, "Cron-based schedules").
FIELDS: list[tuple[str, int, int, list[str]]] = [
    ("minutes", 0, 59, []),
    ("hours", 0, 23, []),
    ("day of month", 1, 31, []),
    ("month", 1, 12, MONTHS),
    ("day of week", 1, 7, DAYS),
    ("year", 1970, 2199, []),
]


def problem(expression: str) -> str | None:
    """Why Scheduler would refuse the expression, None if it would not."""
    match = re.fullmatch(r"(rate|cron|at)\((.*)\)", expression)
    if not match:
        return "not rate(...), cron(...) or at(...)"
    kind, body = match.groups()
    return {"rate": rate_problem, "cron": cron_problem, "at": at_problem}[kind](body)


def rate_problem(body: str) -> str | None:
    match = re.fullmatch(r"([1-9]\d*) (minute|hour|day)(s?)", body)
    if not match:
        return "not a positive number and minutes, hours or days"
    return None if (match[1] == "1") == (match[3] == "") else "singular for 1, plural for more"


def at_problem(body: str) -> str | None:
    try:
        datetime.strptime(body, "%Y-%m-%dT%H:%M:%S")  # noqa: DTZ007 - Scheduler takes the zone from elsewhere
    except ValueError:
        return "not yyyy-mm-ddThh:mm:ss"
    return None


def cron_problem(body: str) -> str | None:
    parts = body.split()
    if len(parts) != 6:
        return f"{len(parts)} fields, not 6 (minutes hours day-of-month month day-of-week year)"
    if [parts[2], parts[4]].count("?") != 1:
        return "exactly one of day-of-month and day-of-week must be ?"
    for part, (name, low, high, names) in zip(parts, FIELDS, strict=True):
        for item in part.split(","):
            if not item_ok(item, name, low, high, names):
                return f"{name}: {item!r}"
    return None


def item_ok(item: str, name: str, low: int, high: int, names: list[str]) -> bool:
    def value(text: str) -> int | None:
        if text in names:
            return names.index(text) + 1
        return int(text) if text.isascii() and text.isdigit() and low <= int(text) <= high else None

    if item == "*":
        return True
    if name.startswith("day") and (item in ("?", "L") or re.fullmatch(r"\d+W|[1-7]L|[1-7]#[1-5]", item)):
        return True
    base, slash, step = item.partition("/")
    if slash and not (step.isdigit() and int(step) > 0):
        return False
    if base == "*":
        return True
    first, dash, last = base.partition("-")
    bounds = [value(first), value(last) if dash else value(first)]
    return None not in bounds and bounds[0] <= bounds[1]  # type: ignore[operator]


@pytest.mark.parametrize(
    "expression",
    [
        "rate(6 hours)",
        "rate(1 hour)",
        "cron(0 */6 * * ? *)",
        "cron(15 2 ? * MON-FRI *)",
        "cron(0 0 L * ? *)",
        "cron(0,30 8-18 ? JAN,JUL 2#1 2027-2029)",
        "at(2027-01-31T06:00:00)",
    ],
)
def test_good_expressions_pass(expression: str) -> None:
    assert problem(expression) is None


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "6 hours",
        "rate(6 hour)",
        "rate(1 hours)",
        "rate(0 hours)",
        "rate(2 weeks)",
        "cron(0 */6 * * *)",
        "cron(0 */6 * * * *)",
        "cron(60 0 * * ? *)",
        "cron(0 24 * * ? *)",
        "cron(0 0 ? * ? *)",
        "cron(0 0 32 * ? *)",
        "cron(0 0 ? * FRI-MON *)",
        "cron(0 0/0 * * ? *)",
        "at(2027-02-30T00:00:00)",
        "at(tomorrow)",
        "every(6 hours)",
    ],
)
def test_bad_expressions_are_found(expression: str) -> None:
    assert problem(expression) is not None


def test_the_schedules_of_the_template_are_valid(template: dict[str, Any]) -> None:
    """Those of samconfig.toml: test_samconfig.py."""
    for name in ("IngestSchedule", "MaintainSchedule"):
        assert problem(template["Parameters"][name]["Default"]) is None, name


def test_the_schedules_have_no_names_of_their_own_and_can_be_switched_off(resources: dict[str, Any]) -> None:
    schedules = [r["Properties"] for r in resources.values() if r["Type"] == "AWS::Scheduler::Schedule"]
    assert sorted(s["ScheduleExpression"]["Ref"] for s in schedules) == ["IngestSchedule", "MaintainSchedule"]
    for schedule in schedules:
        assert "Name" not in schedule  # a second stage in the account would collide
        assert schedule["State"] == {"Ref": "ScheduleState"}
        assert schedule["Target"]["Input"] == '{"schema_version": 1}'


def test_the_schedules_do_not_always_meet(template: dict[str, Any]) -> None:
    """A run holds the streams that the other wants: were one interval a multiple of the other, it always would."""
    hours = [
        int(re.fullmatch(r"rate\((\d+) hours\)", template["Parameters"][name]["Default"])[1])  # type: ignore[index]
        for name in ("IngestSchedule", "MaintainSchedule")
    ]
    assert max(hours) % min(hours)
