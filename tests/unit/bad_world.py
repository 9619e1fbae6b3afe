"""One small world for every bad input: three runs over a small exchange, and a look at all of its state.

Run 1 (ids 1..19) is in the table. Run 2 (20..39) is committed and transformed, and waits to be published. Run 3
(40..75) is under way: planned, the chunks 40..49 and 50..59 fetched, nothing of it committed. Every door is the real
handler.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import random
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import requests
from boto3.dynamodb.types import TypeDeserializer
from moto import mock_aws
from moto.dynamodb.models import dynamodb_backends
from moto.glue.models import glue_backends
from moto.s3.models import s3_backends

from schemahub import runtime
from schemahub.clock import FakeClock
from schemahub.deps import Deps, Settings, build
from schemahub.exchanges import RequestsHttp
from schemahub.streams import Stream
from tests.conftest import REGION, create_tables, quick_session
from tests.lake import make_glue_check_versions
from tests.unit.bad_market import NOW_MS, Market
from tests.unit.pages import ROOT

BUCKET, DATABASE, TABLE = "schemahub-test-bad", "schemahub_test", "unified_trades"
BTC = Stream("coinbase", "BTC-USD")
PAGE_SIZE = 10
ACCOUNT = "123456789012"
MACHINE = "arn:aws:states:us-east-1:123456789012:execution:ingest"
CONTEXT = SimpleNamespace(
    function_name="test", memory_limit_in_mb=128, invoked_function_arn="arn:test", aws_request_id="1"
)
State = dict[tuple[str, ...], Any]
FOLDERS = {
    "raw_coinbase_trades": "raw",
    "raw_binance_trades": "raw",
    "checkpoints": "mirror",
    "config": "seed",
    "plans": "plan",
    "quarantine": "quarantine",
    "unified_trades": "table files",
}


@dataclass
class Counted:
    """Metrics that a step counted."""

    names: set[str] = field(default_factory=set)

    def add_metric(self, name: str, **_: Any) -> None:
        self.names.add(name)


@dataclass
class BadWorld:
    session: boto3.Session
    deps: Deps
    market: Market
    handlers: dict[str, Any]
    topic: str
    run: dict[str, Any] = field(default_factory=dict)
    lock: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    batches: dict[str, Any] = field(default_factory=dict)
    base: State = field(default_factory=dict)

    @property
    def clock(self) -> FakeClock:
        assert isinstance(self.deps.clock, FakeClock)
        return self.deps.clock

    def call(self, door: str, payload: Any) -> Any:
        """The handler, with a payload that went through JSON as between two states (unless JSON cannot hold it)."""
        return self.handlers[door](copy.deepcopy(payload), CONTEXT)

    # --- the valid payload of each door -----------------------------------------------------------------------------

    def payload(self, door: str) -> dict[str, Any]:
        chunk = {"first": 60, "last": 69}
        step = {"schema_version": 1, "execution": self.execution(3), "run": self.run}
        held = {**step, "stream": BTC.to_json(), "lock": self.lock}
        asked = {"schema_version": 1, "products": [str(BTC)], "range": {"ids": [0, 9]}}
        below = {
            "execution": self.execution(6, "backfill"),
            "run": {"id": "run-6", "arn": "arn:backfill", "fences": {}},
        }
        planned = "schemahub/plans/run-6/backfill/coinbase/BTC-USD/000001/chunks.jsonl"
        plan = {"status": "planned", "chunks_key": planned, "within": {"first": 0, "last": 9}}
        return {
            "open_backfill": {"schema_version": 1, "execution": below["execution"], "input": asked},
            "plan_backfill": {**held, **below, "request": asked},
            "commit_backfill": {**held, **below, "plan": plan, "final": False},
            "close_backfill": {"schema_version": 1, **below},
            "maintain": {"schema_version": 1, **below, "action": "repair", "stream": BTC.to_json(), "holes": []},
            "open_run": {"schema_version": 1, "execution": self.execution(4), "input": {"schema_version": 1}},
            "lock": {**step, "stream": BTC.to_json(), "action": "acquire"},
            "release": {**held, "action": "release"},
            "plan_stream": held,
            "fetch_chunk": {**{k: v for k, v in held.items() if k != "execution"}, "chunk": chunk},
            "commit_segments": {**held, "plan": self.plan, "final": False},
            "close_run": step,
            "list_pending": {"schema_version": 1, "execution": self.execution(5), "input": {"schema_version": 1}},
            "transform_batch": {"schema_version": 1, "run": self.batches.get("run"), "batch": self.batch()},
            "publish": {
                "schema_version": 1,
                "execution": self.execution(2, "transform"),
                **{name: self.batches.get(name) for name in ("run", "bucket", "batches_key")},
            },
            "release_on_failure": {
                "detail": {"executionArn": self.execution(3)["Id"], "status": "FAILED", "stopDate": NOW_MS + 1}
            },
        }[door]

    def execution(self, number: int, machine: str = "ingest") -> dict[str, Any]:
        return {"Id": f"{MACHINE.replace('ingest', machine)}:run-{number}", "RedriveCount": 0}

    def batch(self) -> Any:
        """The batch that waits to be published."""
        if self.base:
            return json.loads(self.base["s3", self.batches["batches_key"]][0].splitlines()[0])
        body = self.deps.objects.get(self.batches["batches_key"]) if self.batches else None
        return json.loads(body.splitlines()[0]) if body else None

    # --- building it ------------------------------------------------------------------------------------------------

    def build(self) -> None:
        seed = {"schema_version": 1, "streams": [{"exchange": "coinbase", "product": "BTC-USD"}]}
        self.deps.objects.put("schemahub/config/products.json", json.dumps(seed).encode())
        for number, newest in ((1, 19), (2, 39)):
            self.market.newest = newest
            self._ingest(number)
            self.batches = self.call("list_pending", self._with(number, self.payload("list_pending"), "transform"))
            self.call("transform_batch", self.payload("transform_batch"))
            if number == 1:
                self.call("publish", self.payload("publish"))
        self.market.newest = 75
        self._plan(3)
        for first in (40, 50):
            self.call("fetch_chunk", self.payload("fetch_chunk") | {"chunk": {"first": first, "last": first + 9}})
        self.base = self.state()

    def _with(self, number: int, payload: dict[str, Any], machine: str = "ingest") -> dict[str, Any]:
        return {**payload, "execution": self.execution(number, machine)}

    def _plan(self, number: int) -> None:
        opened = self._with(number, self.payload("open_run")) | {"input": {"products": [str(BTC)]}}
        self.run = self.call("open_run", opened)["run"]
        self.lock = self.call("lock", self._with(number, self.payload("lock")))
        self.plan = self.call("plan_stream", self._with(number, self.payload("plan_stream")))

    def _ingest(self, number: int) -> None:
        self._plan(number)
        for line in (self.deps.objects.get(self.plan["chunks_key"]) or b"").splitlines():
            self.call("fetch_chunk", self.payload("fetch_chunk") | {"chunk": json.loads(line)})
        for door in ("commit_segments", "release", "close_run"):
            self.call(door, self._with(number, self.payload(door)))

    # --- looking at all of it, and putting it back ------------------------------------------------------------------

    def state(self) -> State:
        """Every item, every object with its metadata, and where Glue points: straight from the account in memory."""
        seen: State = {}
        for name, table in self.tables.items():
            keys = [k["AttributeName"] for k in table.key_schema]
            for item in dynamodb_backends[ACCOUNT][REGION].tables[table.name].all_items():
                found = item.to_json()["Attributes"]
                seen[(name, *(found[k]["S"] for k in keys))] = found
        for key, held in s3_backends[ACCOUNT]["aws"].buckets[BUCKET].keys.items():
            seen["s3", key] = (bytes(held.value), user_metadata(held.metadata))
        for name, table in glue_backends[ACCOUNT][REGION].databases[DATABASE].tables.items():
            seen["glue", name] = table.as_dict()["Parameters"]["metadata_location"]
        return seen

    def __post_init__(self) -> None:
        # The fault injection of a case sits on the adapters' clients: damage and repair go by clients of their own.
        self.s3, self.glue, dynamodb = (
            self.session.client("s3"),
            self.session.client("glue"),
            self.session.resource("dynamodb"),
        )
        names = self.settings = self.deps.settings
        self.tables = {
            "locks": dynamodb.Table(names.locks_table),
            "streams": dynamodb.Table(names.streams_table),
            "throttle": dynamodb.Table(names.throttle_table),
        }
        for table in self.tables.values():
            table.load()

    def restore(self) -> None:
        """Back to the base, by touching only what differs."""
        now = self.state()
        for where in [k for k in {**now, **self.base} if now.get(k) != self.base.get(k)]:
            store, *key = where
            wanted = self.base.get(where)
            if store == "s3":
                if wanted is None:
                    self.s3.delete_object(Bucket=BUCKET, Key=key[0])
                else:
                    self.s3.put_object(Bucket=BUCKET, Key=key[0], Body=wanted[0], Metadata=wanted[1])
            elif store == "glue":
                put = self.glue.update_table if where in now else self.glue.create_table
                parameters = {**self._glue["Parameters"], "metadata_location": wanted}
                put(DatabaseName=DATABASE, TableInput={**self._glue, "Parameters": parameters})
            else:
                table = self.tables[store]
                if wanted is None:
                    names = [k["AttributeName"] for k in table.key_schema]
                    table.delete_item(Key=dict(zip(names, key, strict=True)))
                else:
                    table.meta.client.put_item(TableName=table.name, Item=plain(wanted))
        self.market.spoils, self.market.newest = [], 75
        self.deps.paced.clear()
        self.deps.settings = self.settings
        self.deps.metrics = self.counted = Counted()  # type: ignore[assignment]
        self.deps.rng = random.Random(1)
        self.clock.advance((NOW_MS - self.clock.now_ms()) / 1000)

    def remember_glue(self) -> None:
        found = self.glue.get_table(DatabaseName=DATABASE, Name=TABLE)["Table"]
        known = ("Name", "Description", "StorageDescriptor", "PartitionKeys", "TableType", "Parameters")
        self._glue = {name: found[name] for name in known if name in found}


def plain(item: dict[str, Any]) -> dict[str, Any]:
    """An item in the types of boto3's resources, which the clients of resources take."""
    deserialise = TypeDeserializer().deserialize
    return {name: deserialise(value) for name, value in item.items()}


def user_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """What the writer said of an object, without what S3 adds."""
    prefix = "x-amz-meta-"
    return {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}


def changes(before: State, after: State) -> set[str]:
    """What is not as it was, by the names that the tables of tests/bad_inputs use."""
    found = set()
    for where in {**before, **after}:
        old, new = before.get(where), after.get(where)
        if old == new:
            continue
        store, key = where[0], where[-1]
        if store == "s3":
            found.add(FOLDERS.get(key.split("/")[1], key))
        elif store == "locks":
            renewed = bool(old and new) and {k for k in {**old, **new} if old.get(k) != new.get(k)} == {"lease_until"}
            found.add("lease" if renewed else "lock")
        elif store == "streams":
            found.add(key.split("#")[0])
        elif store == "throttle":
            found.add("breaker" if key.endswith("#breaker") else "slots")
        else:
            found.add("table")
    return found


def handlers(stack: pytest.MonkeyPatch) -> dict[str, Any]:
    """Each function's own handler, by its folder."""
    found = {}
    for path in sorted((ROOT / "functions").glob("*/app.py")):
        spec = importlib.util.spec_from_file_location(f"bad_input_{path.parent.name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "handler"):
            continue  # a task of ECS: nothing comes in but the object that a plan wrote
        if hasattr(module, "deps_from_env"):
            stack.setattr(module, "deps_from_env", lambda: runtime.deps_from_env())
        found[path.parent.name] = module.handler
    return {**found, "release": found["lock"]}


@contextmanager
def bad_world(folder: Path) -> Iterator[BadWorld]:
    """The world, made once for all cases of a process."""
    with ExitStack() as held:
        patch = held.enter_context(pytest.MonkeyPatch.context())
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.setenv("POWERTOOLS_TRACE_DISABLED", "true")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        patch.setenv("SCHEMAHUB_MAPPINGS", str(small_pages(folder)))
        make_glue_check_versions(patch)
        held.enter_context(mock_aws())
        session = quick_session()
        topic = session.client("sns").create_topic(Name="alarms")["TopicArn"]
        patch.setenv("SCHEMAHUB_ALARM_TOPIC_ARN", topic)
        session.client("s3").create_bucket(Bucket=BUCKET)
        session.client("glue").create_database(DatabaseInput={"Name": DATABASE})
        names = create_tables(session)
        settings = Settings(
            BUCKET, names["locks"], names["streams"], names["throttle"], DATABASE, chunk_pages=1, cold_start_trades=1000
        )
        market, web = Market(), requests.Session()
        web.trust_env = False
        web.mount("https://", market)
        deps = build(settings, session, FakeClock(NOW_MS), RequestsHttp(web))
        patch.setattr(runtime, "deps_from_env", lambda: deps)
        world = BadWorld(session, deps, market, handlers(patch), topic)
        world.build()
        world.remember_glue()
        world.base = world.state()
        world.restore()
        yield world


def small_pages(folder: Path) -> Path:
    """The mappings with pages of ten rows: a chunk is then a page, and every case takes milliseconds."""
    for path in sorted((ROOT / "mappings").glob("*.yaml")):
        text, found = re.subn(r"^  page_size: \d+", f"  page_size: {PAGE_SIZE}", path.read_text(), flags=re.MULTILINE)
        assert found == 1
        (folder / path.name).write_text(text)
    return folder
