"""Times as people write them, for every option that takes one: ``7d``, ``yesterday``, ``2026-11-03T10:00``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import typer

FORMS = "12h, 7d, now, today, yesterday, 2026-11, 2026-11-03 or 2026-11-03T10:00"
_AGE = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MONTH = re.compile(r"\d{4}-\d{2}")
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?:[zZ]|[+-]\d{2}:\d{2})?)?")


def parse(text: str, now: datetime) -> datetime:
    """The moment that is meant, in UTC, which is also the zone of what names none.

    An age (``90s``, ``15m``, ``12h``, ``7d``, ``2w``) is that long before ``now``; a day or a month is its beginning.

    Raises:
        ValueError: it is none of FORMS, or a moment outside the years 1970 to 9999.
    """
    try:
        moment = _parse(text, now.astimezone(UTC))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text[:40]!r} is not a time: write {FORMS} (UTC)") from error
    if moment.year < 1970:
        raise ValueError(f"{text[:40]!r} is before 1970")
    return moment


def _parse(text: str, now: datetime) -> datetime:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    words = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    if text in words:
        return words[text]
    if not text.isascii():
        raise ValueError(text)
    if age := _AGE.fullmatch(text):
        return now - timedelta(**{_UNITS[age[2]]: int(age[1])})
    if _MONTH.fullmatch(text):
        text = f"{text}-01"
    if not _ISO.fullmatch(text):
        raise ValueError(text)
    moment = datetime.fromisoformat(text.upper())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def written(moment: datetime) -> str:
    """A moment as state machines and people get it: ``2026-11-03`` at midnight, otherwise ``2026-11-03T10:00:00Z``."""
    text = moment.astimezone(UTC).isoformat().removesuffix("+00:00")
    return text.removesuffix("T00:00:00") if text.endswith("T00:00:00") else f"{text}Z"


def option(text: str) -> datetime:
    """``parse`` for the ``parser=`` of an option. Raises typer.BadParameter, which is exit code 2."""
    try:
        return parse(text, datetime.now(UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def position_or_time(text: str) -> int | datetime:
    """The same for an option that also takes a position: digits alone are one."""
    from schemahub.streams import MAX_POSITION

    if not (text.isascii() and text.isdigit()):
        return option(text)
    if len(text) > 19 or int(text) > MAX_POSITION:
        raise typer.BadParameter(f"{text[:40]} is larger than any id")
    return int(text)
