"""Payloads: what is missing, unknown or wrong is refused before anything is done, by a name and with the place."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from schemahub import events
from schemahub.deps import Settings
from schemahub.errors import BadConfig, BadProductId, BadStateInput, SchemaVersionMismatch
from schemahub.runtime import log_keys, parse_event
from schemahub.streams import MAX_POSITION, Chunk, Stream

EXECUTION = {
    "Id": "arn:aws:states:us-east-1:1:execution:ingest:run-1",
    "RedriveCount": 2,
    "Input": {"a": 1},
    "Name": "run-1",
}
RUN = {"id": "run-1", "arn": EXECUTION["Id"], "fences": {"coinbase": 3}}
STREAM = {"exchange": "coinbase", "product": "BTC-USD", "dataset": "trades"}
LOCK = {"status": "held", "owner": "me", "fence": 1, "attempt": 0, "surplus": "of an answer"}
PLAN = {"status": "planned", "chunks_key": "schemahub/plans/run-1/coinbase/BTC-USD.jsonl", "chunks": 3, "head": 9}
BASE = {"schema_version": 1, "execution": EXECUTION, "run": RUN, "stream": STREAM, "lock": LOCK}
GOOD: dict[type[BaseModel], dict[str, Any]] = {
    events.OpenRun: {"schema_version": 1, "execution": EXECUTION, "input": {"products": ["coinbase:BTC-USD"]}},
    events.LockStep: {**BASE, "action": "release"},
    events.PlanStep: BASE,
    events.FetchStep: {k: v for k, v in BASE.items() if k != "execution"} | {"chunk": {"first": 1, "last": 2}},
    events.CommitStep: {**BASE, "plan": PLAN, "final": False},
    events.CloseRun: {"schema_version": 1, "execution": EXECUTION, "run": RUN},
    events.ListPending: {"schema_version": 1, "execution": EXECUTION, "input": {"schema_version": 1}},
    events.BatchStep: {"schema_version": 1, "run": RUN, "batch": {}},
    events.ProbeExchange: {"schema_version": 1, "exchange": "coinbase"},
    events.PublishStep: {
        "schema_version": 1,
        "execution": EXECUTION,
        "run": RUN,
        "bucket": "b",
        "batches_key": PLAN["chunks_key"],
    },
}
EACH = pytest.mark.parametrize("model", GOOD, ids=lambda m: m.__name__)


@EACH
def test_a_good_payload_is_accepted(model: type[BaseModel]) -> None:
    assert parse_event(model, GOOD[model])


@EACH
def test_nothing_may_be_missing_but_what_has_a_default(model: type[BaseModel]) -> None:
    for name in GOOD[model]:
        if name == "lock" and model is events.LockStep:
            continue
        with pytest.raises((BadStateInput, SchemaVersionMismatch)):
            parse_event(model, {k: v for k, v in GOOD[model].items() if k != name})


@EACH
def test_nothing_unknown_is_accepted(model: type[BaseModel]) -> None:
    with pytest.raises(BadStateInput, match="surplus"):
        parse_event(model, {**GOOD[model], "surplus": 1})


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5, [1]])
def test_another_releases_payload_is_refused_by_its_version(version: Any) -> None:
    with pytest.raises(SchemaVersionMismatch, match="this code speaks 1"):
        parse_event(events.PlanStep, {**BASE, "schema_version": version})


@pytest.mark.parametrize("event", [None, [], "x", 7])
def test_what_is_no_object_is_refused(event: Any) -> None:
    with pytest.raises(SchemaVersionMismatch):
        parse_event(events.PlanStep, event)


@pytest.mark.parametrize(
    "chunk",
    [
        {"first": -1, "last": 2},
        {"first": 1, "last": MAX_POSITION + 1},
        {"first": "1", "last": 2},
        {"first": 1.0, "last": 2},
        {"first": True, "last": 2},
        {"first": 1},
        None,
        [1, 2],
    ],
    ids=str,
)
def test_a_chunk_that_cannot_be_meant_is_refused(chunk: Any) -> None:
    with pytest.raises(BadStateInput, match="chunk"):
        parse_event(events.FetchStep, {**GOOD[events.FetchStep], "chunk": chunk})


def test_a_chunk_that_runs_backwards_or_a_product_that_escapes_is_refused_by_its_value() -> None:
    with pytest.raises(BadStateInput):
        parse_event(events.FetchStep, {**GOOD[events.FetchStep], "chunk": {"first": 2, "last": 1}}).chunk.value()
    with pytest.raises(BadProductId):
        parse_event(events.PlanStep, {**BASE, "stream": {**STREAM, "product": "../x"}}).stream.value()


@pytest.mark.parametrize(
    "key",
    [
        "",
        "schemahub/plans/../x.jsonl",
        "schemahub/plans/run/../x.jsonl",
        "schemahub/plans/run/../../config/products.json",
        "schemahub/raw_coinbase_trades/x",
        "/schemahub/plans/r/x",
        "schemahub/plans/r",
        "schemahub/plans/r/x\n",
        "schemahub/plans/r/a/b/c/d",
        "s3://b/schemahub/plans/r/x",
    ],
)
def test_only_keys_of_plans_are_read(key: str) -> None:
    with pytest.raises(BadStateInput):
        parse_event(events.CommitStep, {**GOOD[events.CommitStep], "plan": {**PLAN, "chunks_key": key}})


@pytest.mark.parametrize("run_id", ["", "a/b", "..", "a" * 81, "run 1", "run\n"])
def test_a_run_id_that_is_no_name_is_refused(run_id: str) -> None:
    with pytest.raises(BadStateInput):
        parse_event(events.PlanStep, {**BASE, "run": {**RUN, "id": run_id}})


@pytest.mark.parametrize(
    "request_",
    [
        {"products": "coinbase:BTC-USD"},
        {"products": [7]},
        {"exchange": ["coinbase"]},
        {"products": ["x"] * 10_001},
        {"exchanges": ["x"] * 101},
        [],
    ],
    ids=lambda r: str(r)[:40],
)
def test_an_input_of_another_shape_is_refused(request_: Any) -> None:
    with pytest.raises(BadStateInput):
        parse_event(events.OpenRun, {**GOOD[events.OpenRun], "input": request_})


def test_the_context_object_may_hold_more_or_less() -> None:
    """An emulator knows no RedriveCount; AWS adds Input, Name, RoleArn and StartTime."""
    assert events.Execution(**EXECUTION).RedriveCount == 2  # type: ignore[arg-type]
    assert events.Execution(Id="arn:x").RedriveCount == 0


@pytest.mark.parametrize(
    ("arn", "name"),
    [
        ("arn:aws:states:us-east-1:1:execution:ingest:run-1", "run-1"),
        ("arn:x:execution:m/Label:12:uu id", "uu-id"),
        ("a" * 300, "a" * 80),
        ("arn:x:a/b.c", "a-b-c"),
    ],
)
def test_an_executions_name_is_a_key(arn: str, name: str) -> None:
    assert events.Execution(Id=arn).name == name


def test_every_log_line_can_name_run_stream_and_chunk() -> None:
    event = parse_event(events.FetchStep, GOOD[events.FetchStep])
    assert log_keys(event) == {"run": "run-1", "stream": "coinbase#BTC-USD#trades", "chunk": "1..2"}
    assert event.chunk.value() == Chunk(1, 2)
    assert event.stream.value() == Stream("coinbase", "BTC-USD")


ENV = {
    "SCHEMAHUB_BUCKET": "b",
    "SCHEMAHUB_LOCKS_TABLE": "l",
    "SCHEMAHUB_STREAMS_TABLE": "s",
    "SCHEMAHUB_THROTTLE_TABLE": "t",
    "SCHEMAHUB_DATABASE": "d",
}


def test_settings_have_defaults_for_what_nobody_has_to_turn() -> None:
    settings = Settings.from_env(
        {**ENV, "SCHEMAHUB_PRODUCTS": " coinbase:BTC-USD, ,binance:BTC-USDT", "SCHEMAHUB_ENDPOINTS": " "}
    )
    assert settings.products == ("coinbase:BTC-USD", "binance:BTC-USDT")
    assert (settings.limit_share, settings.chunk_pages, settings.endpoints) == (1.0, 10, {})


@pytest.mark.parametrize(
    "change",
    [
        {"BUCKET": ""},
        {"LIMIT_SHARE": "0"},
        {"LIMIT_SHARE": "1.1"},
        {"LIMIT_SHARE": "x"},
        {"LIMIT_SHARE": "nan"},
        {"CHUNK_PAGES": "0"},
        {"CHUNK_PAGES": "1001"},
        {"COLD_START_TRADES": "0"},
        {"COLD_START_HOURS": "-1"},
        {"ENDPOINTS": "http://x"},
        {"ENDPOINTS": "[]"},
        {"ENDPOINTS": '{"coinbase": 7}'},
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_meant_is_named(change: dict[str, str]) -> None:
    name, value = next(iter(change.items()))
    with pytest.raises(BadConfig, match=f"SCHEMAHUB_{name}"):
        Settings.from_env({**ENV, f"SCHEMAHUB_{name}": value})


def transform_input(**keys: Any) -> dict[str, Any]:
    return {"schema_version": 1, "execution": EXECUTION, "input": {"schema_version": 1, **keys}}


@pytest.mark.parametrize("since", [None, 0, 17, MAX_POSITION, "2024-01-01", "2024-01-01T12:00:00Z"])
def test_a_rederivation_names_streams_and_where_it_begins(since: Any) -> None:
    wanted = {"streams": ["coinbase:BTC-USD"], "since": since}
    parsed = parse_event(events.ListPending, transform_input(rederive=wanted)).input.rederive
    assert parsed == events.Rederive(streams=["coinbase:BTC-USD"], since=since)


@pytest.mark.parametrize("wanted", [
    {}, [], "x", {"streams": []}, {"streams": "coinbase:BTC-USD"}, {"streams": ["a"], "until": "x"}, {"until": 1},
    {"streams": ["a"], "since": -1}, {"streams": ["a"], "since": 1.5}, {"streams": ["a"], "since": True},
    {"streams": ["a"], "since": "yesterday"}, {"streams": ["a"], "since": "2024-13-01"}, {"streams": ["a"] * 1001},
    {"streams": ["a"], "since": MAX_POSITION + 1},
])  # fmt: skip
def test_a_rederivation_that_cannot_be_meant_is_refused(wanted: Any) -> None:
    with pytest.raises(BadStateInput, match="rederive"):
        parse_event(events.ListPending, transform_input(rederive=wanted))


def test_a_misspelt_input_of_transform_is_refused_and_not_taken_for_an_ordinary_one() -> None:
    with pytest.raises(BadStateInput, match="rederiv"):
        parse_event(events.ListPending, transform_input(rederiv={"streams": ["coinbase:BTC-USD"]}))


def test_transform_takes_what_ingest_starts_it_with() -> None:
    started = {"AWS_STEP_FUNCTIONS_STARTED_BY_EXECUTION_ID": "arn", "run": RUN}
    assert parse_event(events.ListPending, transform_input(**started)).input.rederive is None
