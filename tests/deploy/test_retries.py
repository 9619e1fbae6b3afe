"""Retry blocks come from one table, and the files hold what it says."""

from __future__ import annotations

import json

import pytest

from statemachines import retries
from tests.deploy.conftest import MACHINES, ROOT


@pytest.mark.parametrize("name", MACHINES.values())
def test_the_retry_blocks_are_those_of_the_table(name: str) -> None:
    text = (ROOT / "statemachines" / f"{name}.asl.json").read_text()
    for state, task in retries.tasks(json.loads(text)):
        assert task["Retry"] == [r.to_json() for r in retries.retriers(task)], state
    assert retries.rewritten(text) == text, "run `make retries`"


def test_a_block_that_somebody_changed_by_hand_is_put_right() -> None:
    text = (ROOT / "statemachines" / "ingest.asl.json").read_text()
    changed = text.replace('"MaxAttempts": 20', '"MaxAttempts": 5').replace('"Lambda.Unknown", ', "")
    assert changed != text
    assert retries.rewritten(changed) == text
