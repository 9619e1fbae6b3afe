"""What a line of tests/bad_inputs says, done to the world: damage first, then one call with a damaged input."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError, ReadTimeoutError
from typer.testing import CliRunner

from schemahub.backfill_task import read_spec
from schemahub.batches import Batch
from schemahub.clock import FakeClock
from schemahub.deps import Settings
from schemahub.locks import Locks
from schemahub.mappings import load_mapping, parse_mapping
from schemahub.streams import Segment, Stream
from schemahub.throttle import Bucket
from schemahub_cli import target
from schemahub_cli.main import app
from tests.lake import packed
from tests.lake import segment_of as lake_segment
from tests.unit.bad_market import NOW_MS, as_bytes, coinbase_row
from tests.unit.bad_world import BTC, DATABASE, TABLE, BadWorld
from tests.unit.pages import ROOT

RUNNER = CliRunner()
ETH = Stream("coinbase", "ETH-USD")
ENVIRONMENT = {f"SCHEMAHUB_{n}": "x" for n in ("BUCKET", "LOCKS_TABLE", "STREAMS_TABLE", "THROTTLE_TABLE", "DATABASE")}


class Refused(Exception):
    """What a command said: the name of its error, its message, and its exit code."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(document.get("message", ""))
        self.document = document


# --- damage ---------------------------------------------------------------------------------------------------------


def place(world: BadWorld, name: str) -> tuple[str, Any]:
    """Store and key of what the tables call ``raw:40``, ``watermark``, ``lock`` …"""
    kind, _, number = name.partition(":")
    stream, at = str(BTC), int(number or 0)
    match kind:
        case "watermark" | "last_run":
            return "streams", {"stream": stream, "item": kind}
        case "segment":
            return "streams", {"stream": stream, "item": f"segment#{at:020d}"}
        case "lock":
            return "locks", {"lock_id": BTC.lock_id}
        case "process lock":
            return "locks", {"lock_id": "ingest#coinbase"}
        case "publish lock":
            return "locks", {"lock_id": "publish#unified_trades"}
        case "slots":
            return "throttle", {"exchange": "coinbase"}
        case "breaker":
            return "throttle", {"exchange": "coinbase#breaker"}
    last = min(at // 10 * 10 + 9, 75)
    run = f"schemahub/plans/{world.run['id']}/"
    keys = {
        "raw": f"{BTC.raw_prefix}{at:020d}_{last:020d}_{last - at + 1}.jsonl.zst",
        "mirror": BTC.mirror_key,
        "seed": "schemahub/config/products.json",
        "streams list": f"{run}streams.jsonl",
        "chunk list": world.plan["chunks_key"],
        "batch list": world.batches["batches_key"],
        "manifest": f"schemahub/plans/run-2/manifests/{world.batch()['batch_id']}.json",
        "data file": next(k[1] for k in world.base if k[0] == "s3" and "/data/" in k[1] and "020_0" in k[1]),
        "metadata": next(v for k, v in world.base.items() if k[0] == "glue").split("/", 3)[3],
    }
    return "s3", keys.get(kind, name)


def prepare(world: BadWorld, case: dict[str, Any]) -> None:
    """The world as the case finds it."""
    for change in case.get("before", ()):
        damage(world, change)
    if "rows" in case:
        case["batch"] = batch_of_rows(world, case["rows"])
    answers = [case["answer"]] if "answer" in case else case.get("answers", [])
    world.market.spoils = [dict(a) for a in answers]


def damage(world: BadWorld, change: dict[str, Any]) -> None:
    """One edit of a table: of an item, of an object, of Glue's table, or of the time."""
    if "clock" in change:
        world.clock.advance(change["clock"])
    elif "newest" in change:
        world.market.newest = change["newest"]
    elif "property" in change:
        set_property(world, change["property"], change["value"])
    elif change.get("at") == "glue":
        world.glue.delete_table(DatabaseName=DATABASE, Name=TABLE)
    else:
        store, key = place(world, change["at"])
        (damage_object if store == "s3" else damage_item)(world, store, key, change)


def damage_item(world: BadWorld, store: str, key: dict[str, str], change: dict[str, Any]) -> None:
    table = world.tables[store]
    if change.get("gone"):
        table.delete_item(Key=key)
        return
    item = table.get_item(Key=key).get("Item", key)
    item |= {name: as_number(value) for name, value in change.get("set", {}).items()}
    table.put_item(Item={k: v for k, v in item.items() if k not in change.get("drop", ())})


def as_number(value: Any) -> Any:
    """A value as boto3 takes it."""
    return Decimal(str(value)) if isinstance(value, float) else value


def damage_object(world: BadWorld, store: str, key: str, change: dict[str, Any]) -> None:
    s3, bucket = world.s3, world.deps.settings.bucket
    if change.get("gone"):
        s3.delete_object(Bucket=bucket, Key=key)
        return
    body, meta = world.base.get((store, key), (b"", {}))
    if "cut" in change:
        body = body[: change["cut"]]
    elif "more" in change:
        body += as_bytes(change["more"])
    elif "edit" in change:
        found = json.loads(body)
        edit(found, change["edit"])
        body = json.dumps(found).encode()
    elif "swap" in change:
        old, new = change["swap"]
        assert old.encode() in body
        body = body.replace(old.encode(), new.encode())
    elif "body" in change:
        body = as_bytes(change["body"])
    if "bytes" in change:
        body = bytes.fromhex(change["bytes"])
    meta = {k: v for k, v in meta.items() if k not in change.get("without", ())} | change.get("meta", {})
    s3.put_object(Bucket=bucket, Key=change.get("as", key), Body=body, Metadata={} if change.get("bare") else meta)


def set_property(world: BadWorld, name: str, value: str) -> None:
    from schemahub.catalog import LakeCatalog

    with LakeCatalog(world.session).load_table((DATABASE, TABLE)).transaction() as transaction:
        transaction.set_properties({name: value})


def edit(document: Any, edits: dict[str, Any]) -> None:
    """Set values by dotted paths; the value ``(gone)`` takes the key away. ``0`` is an index of a list."""
    for path, value in edits.items():
        *way, last = path.split(".")
        inner = document
        for name in way:
            inner = inner[int(name)] if isinstance(inner, list) else inner[name]
        if value == "(gone)":
            del inner[int(last) if isinstance(inner, list) else last]
        elif isinstance(inner, list):
            inner[int(last)] = value
        else:
            inner[last] = value


@contextmanager
def failing(world: BadWorld, fault: dict[str, Any] | None) -> Iterator[None]:
    """AWS refuses an operation (``s3.PutObject``): ``times`` times, or always; ``applied``: after it was done."""
    if fault is None:
        yield
        return
    clients = [world.deps.objects.client, world.deps.ledger.client, world.deps.ledger.table.meta.client]
    event = ("after-call." if fault.get("applied") else "before-call.") + fault["operation"]
    left = [fault.get("times", math.inf)]

    def strike(**_: Any) -> None:
        if left[0] <= 0:
            return
        left[0] -= 1
        if fault.get("code") is None:
            raise ReadTimeoutError(endpoint_url="https://aws")
        answer: dict[str, Any] = {
            "Error": {"Code": fault["code"], "Message": "said so"},
            "ResponseMetadata": {"HTTPStatusCode": fault["status"]},
        }
        if "reasons" in fault:
            answer["CancellationReasons"] = [{"Code": code} for code in fault["reasons"]]
        raise ClientError(answer, fault["operation"].split(".")[1])

    for client in clients:
        client.meta.events.register_first(event, strike)
    try:
        yield
    finally:
        for client in clients:
            client.meta.events.unregister(event, strike)


# --- doors ----------------------------------------------------------------------------------------------------------


def knock(world: BadWorld, case: dict[str, Any]) -> Any:
    """Call the case's door with its input; the answer, or the error that comes out."""
    door = case["door"]
    if "settings" in case:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in case["settings"].items()}
        world.deps.settings = replace(world.deps.settings, **values)
    if door in world.handlers:
        if "payload" in case:
            return world.call(door, case["payload"])
        payload = copy.deepcopy(world.payload(door))
        if "rows" in case:
            payload["batch"] = case["batch"]
        edit(payload, case.get("set", {}))
        return world.call(door, payload)
    return DOORS[door](world, case)


def batch_of_rows(world: BadWorld, rows: list[Any]) -> dict[str, Any]:
    """A committed segment of another stream whose raw object holds just these rows; text goes in as it is."""
    lines = [r if isinstance(r, str) else {**coinbase_row(201 + n), **r} for n, r in enumerate(rows)]
    lines = [{k: v for k, v in r.items() if v != "(gone)"} if isinstance(r, dict) else r for r in lines]
    body, content = packed(lines)
    segment: Segment = lake_segment(ETH, 201, 200 + len(rows), lines, content, committed_at=NOW_MS)
    world.deps.objects.put(segment.raw_key, body)
    return Batch.of([segment]).to_json()


def mapping(world: BadWorld, case: dict[str, Any]) -> Any:
    if "text" in case:
        return parse_mapping(case["text"], "coinbase.yaml")
    name = f"{case.get('of', 'coinbase')}.yaml"
    text = (ROOT / "mappings" / name).read_text()
    if "swap" in case:
        old, new = case["swap"]
        assert old in text
        return parse_mapping(text.replace(old, new), name)
    document = yaml.safe_load(text)
    edit(document, case["set"])
    return parse_mapping(yaml.safe_dump(document, allow_unicode=True), name)


def task(world: BadWorld, case: dict[str, Any]) -> Any:
    """The object that an ECS task reads: of a backfill (``of: rest``, ``archive``) or of corrections."""
    lease = {"lock_id": BTC.backfill_lock_id, "owner": "o", "run": "r", "attempt": 0, "fence": 1}
    whole = {
        "schema_version": 1, "run": "run-6", "stream": BTC.to_json(), "lease": lease, "kind": "rest", "within": [0, 9],
        "workers": 3, "chunk_concurrency": 5, "chunks": [[0, 9]], "file": None,
    }  # fmt: skip
    binance = Stream("binance", "BTC-USDT")
    file = {"stream": binance.to_json(), "kind": "daily", "begin": "2024-06-01"}
    correct = {"schema_version": 1, "kind": "correct", "run": "r", "stream": binance.to_json(), "files": [file]}
    document = {"rest": whole, "correct": correct}[case.get("of", "rest")]
    edit(document, case.get("set", {}))
    body = as_bytes(case["body"]) if "body" in case else json.dumps(document).encode()
    stored = None if case.get("gone") else body
    return read_spec(replace(world.deps, objects=SimpleNamespace(get=lambda key: stored)), "schemahub/plans/run-6/task")


def reachable(FunctionName: str, Payload: bytes) -> dict[str, Any]:
    """The stack's probe of an exchange: it answers there."""
    found = {"exchange": json.loads(Payload)["exchange"], "region": "us-east-1", "at": 1, "products": 1}
    return {"Payload": io.BytesIO(json.dumps({"outcome": "reachable", **found}).encode())}


def command(world: BadWorld, case: dict[str, Any]) -> Any:
    """A command line on a stack that is this world; the document that it prints with --json."""
    states = SimpleNamespace(
        get_paginator=lambda name: SimpleNamespace(paginate=lambda **_: [{"executions": []}]),
        start_execution=lambda **given: started.append(given) or {"executionArn": f"arn:m:{given['name']}"},
        describe_execution=lambda **_: {
            "startDate": datetime(2024, 3, 14, tzinfo=UTC),
            "stopDate": datetime(2024, 3, 14, tzinfo=UTC),
            "status": "SUCCEEDED",
            "output": "{}",
        },
        list_map_runs=lambda **_: {"mapRuns": []},
        list_executions=lambda **_: {"executions": []},
        invoke=reachable,
        get_account_settings=lambda: {"AccountLimit": {"UnreservedConcurrentExecutions": 1000}},
    )
    started: list[dict[str, Any]] = []
    stack = SimpleNamespace(
        stack="schemahub-test",
        where="schemahub-test (local)",
        local=True,
        stage="test",
        ingest_arn="arn:ingest",
        transform_arn="arn:transform",
        deps=world.deps,
        client=lambda service: states,
        database=DATABASE,
        session=world.session,
        outputs={},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "resolve", lambda name: stack)
        connect_to_nothing(patch)
        result = RUNNER.invoke(app, [*case["argv"], "--json"], input=case.get("stdin"))
    assert not started, "an execution was started"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    document: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        document = json.loads(result.stdout)
    if result.exit_code:
        raise Refused({"error": "usage", "message": result.stderr, **document, "exit_code": result.exit_code})
    return document


def connect_to_nothing(patch: pytest.MonkeyPatch) -> None:
    import duckdb

    from schemahub_cli import lake

    db = duckdb.connect()
    db.execute("CREATE TABLE trades (exchange VARCHAR, symbol VARCHAR, trade_id VARCHAR)")
    patch.setattr(lake, "connect", lambda where, views=(), **_: db)


DOORS: dict[str, Any] = {
    "mapping": mapping,
    "load_mapping": lambda world, case: load_mapping(case["name"]),
    "settings": lambda world, case: Settings.from_env(
        {k: v for k, v in (ENVIRONMENT | case["env"]).items() if v != "(gone)"}
    ),
    "bucket": lambda world, case: Bucket.of(load_mapping("coinbase"), case["share"]),
    "lease": lambda world, case: Locks(world.tables["locks"], FakeClock(), lease_ms=case["lease_ms"]),
    "cli": command,
    "task": task,
}
