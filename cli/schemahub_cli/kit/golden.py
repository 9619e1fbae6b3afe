"""Golden fixtures: an answer as it was sent, and beside it the rows that the mapping made of it, looked at by a person.

``<folder>/<exchange>/<PRODUCT>.answer.json`` holds the exact bytes, ``<PRODUCT>.rows.json`` what each row became. A
change of a mapping or of the transform that reads an old answer in another way shows as a difference.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemahub.errors import SchemaHubError
from schemahub.mappings import Mapping, load_mapping, mappings_dir
from schemahub_cli.kit.pages import Page, Reading, SavedAnswer, newest_page, readings

ANSWER, ROWS = ".answer.json", ".rows.json"


class NoGolden(SchemaHubError):
    """There is nothing to compare with."""

    remedy = "Keep one with `schemahub exchange golden EXCHANGE PRODUCT`, or name the folder with --folder."


@dataclass(frozen=True)
class Compared:
    """One fixture and how the rows differ from it now; empty: not at all."""

    name: str
    rows: int
    differences: list[str]


def default_folder() -> Path:
    """``tests/golden`` beside the folder of the mappings."""
    return mappings_dir().parent / "tests" / "golden"


def keep(
    folder: Path, mapping: Mapping, product: str, page: Page, read: list[Reading], source: str, now_ms: int
) -> Path:
    """Write the fixture of a page; an older one of the same product is replaced. Returns the file of the rows."""
    home = folder / mapping.exchange
    home.mkdir(parents=True, exist_ok=True)
    (home / f"{product}{ANSWER}").write_bytes(page.body)
    document = {
        "schema_version": 1,
        "exchange": mapping.exchange,
        "product": product,
        "source": source,
        "taken_at": dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC).isoformat(),
        "rows": [shown(reading) for reading in read],
    }
    path = home / f"{product}{ROWS}"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def shown(reading: Reading) -> dict[str, Any]:
    """A row as sent beside what it became."""
    became = {"refused": reading.reason} if reading.unified is None else {"unified": reading.unified}
    return {"sent": reading.row.text, **became}


def compare(folder: Path, exchange: str | None = None) -> Iterator[Compared]:
    """Read every kept answer again.

    Raises:
        NoGolden: no fixture is there.
    """
    paths = sorted(folder.glob(f"{exchange or '*'}/*{ROWS}"))
    if not paths:
        raise NoGolden(f"no golden fixtures in {folder}" + (f" of {exchange}" if exchange else ""))
    for path in paths:
        name, rows = f"{path.parent.name}/{path.name.removesuffix(ROWS)}", 0
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            rows = len(document["rows"])
            found = [shown(reading) for reading in _read_again(path, document)]
            yield Compared(name, rows, list(_differences(document["rows"], found)))
        except (SchemaHubError, OSError, ValueError, KeyError, TypeError) as error:
            yield Compared(name, rows, [f"{type(error).__name__}: {getattr(error, 'reason', error)}"])


def _read_again(path: Path, document: dict[str, Any]) -> list[Reading]:
    mapping, product = load_mapping(document["exchange"]), document["product"]
    body = path.with_name(path.name.removesuffix(ROWS) + ANSWER).read_bytes()
    page = newest_page(mapping, product, SavedAnswer(body))
    taken_ms = round(dt.datetime.fromisoformat(document["taken_at"]).timestamp() * 1000)
    return readings(mapping, product, page.rows, taken_ms)


def _differences(wanted: list[dict[str, Any]], found: list[dict[str, Any]]) -> Iterator[str]:
    """Columns that the fixture does not know are no difference: a new column changes no old one."""
    if len(wanted) != len(found):
        yield f"{len(found)} rows, {len(wanted)} in the fixture"
    for number, (old, new) in enumerate(zip(wanted, found, strict=False), 1):
        before, now = _flat(old), _flat(new)
        for key, value in before.items():
            if now.get(key) != value:
                yield f"row {number}: {key} is {now.get(key)!r}, {value!r} in the fixture"
        if "refused" in now and "refused" not in before:
            yield f"row {number}: refused now: {now['refused']}"


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {**row.get("unified", {}), **{key: value for key, value in row.items() if key != "unified"}}
