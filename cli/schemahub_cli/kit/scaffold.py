"""A mapping file to begin with: every key that is needed, with what it means beside it.

It is a whole mapping of an imaginary exchange, so that `try --simulator` works at once and each step from there to the
real one can be looked at. What a person must say stands in angle brackets, and `lint` does not pass while it does.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from string import Template

from schemahub import mapping_file
from schemahub.errors import BadConfig, BadMapping
from schemahub.mappings import parse_mapping

SCHEMA_PATH = Path(mapping_file.__file__).with_name("mapping.schema.json")


class Asks(StrEnum):
    """How an answer is asked for: the values of ``requests.page.asks``."""

    IDS_BELOW = "ids_below"
    IDS_FROM = "ids_from"
    TIME_FROM = "time_from"
    NEWEST = "newest"


_PAGES = {
    Asks.IDS_BELOW: """\
  ids: dense                       # dense: a hole means loss; sparse: the exchange skips numbers
  page: {asks: ids_below, parameter: before}      # trades with ids below the cursor, newest first""",
    Asks.IDS_FROM: """\
  ids: dense                       # dense: a hole means loss; sparse: the exchange skips numbers
  page: {asks: ids_from, parameter: from_id, inclusive: true}   # inclusive: the trade at the cursor is shown too""",
    Asks.TIME_FROM: """\
  ids: sparse                      # says nothing where the cursor is a time
  page: {asks: time_from, parameter: start, unit: ms, inclusive: true}   # inclusive: trades at the cursor's time too
    # query: {sort: asc}           # parameters that go with the cursor only
    # slack_ns: 1000               # if the times in the rows are rounded and the cursor's are not""",
    Asks.NEWEST: """\
  ids: sparse                      # says nothing where only the newest trades are shown
  page: {asks: newest}             # no cursor at all: what falls out of the newest page between two runs is lost
    # windows: [{seconds: 3600, query: {time: hour}}]   # questions whose answers hold all trades of so long""",
}

_TEMPLATE = Template(Path(__file__).with_name("scaffold.yaml").read_text(encoding="utf-8"))


def scaffold(exchange: str, folder: Path, base_url: str | None = None, asks: Asks = Asks.IDS_BELOW) -> Path:
    """Write ``folder/exchange.yaml`` and return its path.

    Raises:
        BadMapping: the name or the URL cannot stand in a mapping.
        BadConfig: the file is there already, or no folder is.
    """
    path = folder / f"{exchange}.yaml"
    text = _TEMPLATE.substitute(
        schema=Path(os.path.relpath(SCHEMA_PATH, folder.resolve())).as_posix(),
        exchange=exchange,
        base_url=base_url or f"https://api.{exchange.replace('_', '-')}.example",
        page=_PAGES[asks],
    )
    try:
        parse_mapping(text, path.name)
    except BadMapping as error:
        raise BadMapping(error.reason, remedy="Choose another name or --base-url; nothing was written.") from error
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise BadConfig(f"{path} is there already", remedy="Nothing was written; edit it, or move it away.") from error
    except OSError as error:
        remedy = "SCHEMAHUB_MAPPINGS names the folder of the mappings; it must be there."
        raise BadConfig(f"{path} cannot be written: {error.strerror}", remedy=remedy) from error
    return path
