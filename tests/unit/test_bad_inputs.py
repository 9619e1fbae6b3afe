"""Every line of tests/bad_inputs: this input, that error, and of all state only what the line allows may have moved."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from schemahub import errors
from schemahub.errors import SchemaHubError
from tests.unit.bad_doors import Refused, failing, knock, prepare
from tests.unit.bad_world import BTC, BadWorld, bad_world, changes
from tests.unit.pages import ROOT, rows_under, text_of

TABLES = sorted((ROOT / "tests/bad_inputs").glob("*.yaml"))
LISTED = 64
"""Cases of the list that this began with; `n` says which of them a line is."""
NEVER = {"watermark", "segment", "raw", "mirror", "seed", "table", "table files"}
"""What no refused input may ever move."""
FIELDS = {"surface", "door", "may_move", "stream", "note", "cases"}


def written_out(value: Any) -> Any:
    """``{repeat: [text, times]}`` as the long text that nobody wants to read."""
    if isinstance(value, dict):
        if value.keys() == {"repeat"}:
            text, times = value["repeat"]
            return text * times
        return {k: written_out(v) for k, v in value.items()}
    return [written_out(v) for v in value] if isinstance(value, list) else value


def cases() -> list[dict[str, Any]]:
    found = []
    for path in TABLES:
        for table in yaml.safe_load_all(path.read_text()):
            assert table.keys() <= FIELDS, path.name
            common = {name: table[name] for name in ("door", "may_move", "stream", "surface") if name in table}
            for line in table["cases"]:
                moves = {*table.get("may_move", ()), *line.get("may_move", ())}
                found.append({**common, **line, "may_move": moves, "file": path.stem})
    return found


CASES = cases()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadWorld]:
    log = logging.getLogger("schemahub")
    level = log.level
    log.setLevel(logging.CRITICAL)
    with bad_world(tmp_path_factory.mktemp("mappings")) as world:
        yield world
    log.setLevel(level)


@pytest.fixture
def world(made: BadWorld) -> Iterator[BadWorld]:
    try:
        yield made
    finally:
        made.restore()


def name_of(case: dict[str, Any]) -> str:
    return re.sub(r"[^\w.]+", "-", f"{case['file']}-{case['door']}-{case['case']}")


@pytest.mark.filterwarnings("ignore:No application metrics")
@pytest.mark.parametrize("case", [pytest.param(c, id=name_of(c)) for c in CASES])
def test_a_bad_input_is_named_and_moves_nothing(world: BadWorld, case: dict[str, Any]) -> None:
    case = written_out(case)
    prepare(world, case)
    before = world.state()
    with failing(world, case.get("aws")):
        outcome = attempt(world, case)
    moved = changes(before, world.state())
    assert ("NeedsALook" in world.counted.names) == case.get("alarm", False)
    if "error" in case:
        assert isinstance(outcome, Exception), f"it was taken: {outcome}"
        check_error(outcome, case)
        assert moved <= case["may_move"], f"moved {sorted(moved - case['may_move'])}"
    else:
        if isinstance(outcome, Exception):
            raise outcome
        assert case["then"].items() <= dict(outcome).items()
        assert moved - case["may_move"] == set(case.get("moves", ())), f"moved {sorted(moved)}"


def attempt(world: BadWorld, case: dict[str, Any]) -> Any:
    """The answer, or the error that came out."""
    try:
        return knock(world, case)
    except Exception as error:
        return error


def check_error(error: Exception, case: dict[str, Any]) -> None:
    """Its name is the line's, and it says what is meant, which stream, which range and what to do."""
    if isinstance(error, Refused):
        assert error.document["error"] == case["error"], error.document
        assert error.document["exit_code"] == case.get("exit", 1)
        text, remedy, stream = str(error), error.document.get("remedy", "usage"), error.document.get("stream")
    else:
        assert type(error).__name__ == case["error"], repr(error)
        assert isinstance(error, SchemaHubError)
        text, remedy, stream = str(error), error.remedy, error.stream
        assert remedy in text
        assert len(text) < 3000, "nobody reads that"
        if "span" in case:
            assert error.span == tuple(case["span"])
    assert remedy not in ("", SchemaHubError.remedy)
    for fragment in [case["says"]] if isinstance(case.get("says", []), str) else case.get("says", []):
        assert fragment in text
    wanted = case.get("stream")
    if wanted is not None:
        assert stream == (str(BTC) if wanted is True else wanted or None)


# --- the tables themselves ------------------------------------------------------------------------------------------


def test_every_case_of_the_list_has_a_line() -> None:
    numbers = {n for c in CASES for n in ([c["n"]] if isinstance(c.get("n"), int) else c.get("n", []))}
    assert numbers == set(range(1, LISTED + 1))


def test_no_line_allows_a_loss() -> None:
    for case in CASES:
        if "error" in case:
            known = {"raw"} if case.get("aws", {}).get("applied") else set()  # it was written, only nobody said so
            assert not case["may_move"] & NEVER - known, case["case"]
            assert case["error"] == "usage" or issubclass(getattr(errors, case["error"]), SchemaHubError)


def test_every_line_is_told_from_the_others() -> None:
    twice = [name for name, count in Counter(name_of(c) for c in CASES).items() if count > 1]
    assert not twice


def test_the_docs_count_the_lines() -> None:
    counted = Counter(c["surface"] for c in CASES)
    told = {row[0]: int(row[1]) for row in rows_under("docs/correctness.md", "Bad input")}
    assert told == counted
    assert f"{len(CASES)} bad inputs" in text_of("docs/correctness.md")
