"""The shared bucket under contention: atomic reservations beside optimistic read-modify-write.

    python bench/throttle.py [--endpoint http://127.0.0.1:4566] [--threads 16] [--requests 20] [--batch 10]

N threads reserve M slots each from Coinbase's bucket and do not wait for them, so that the store and not the pacing is
measured; the bucket is saturated from the first moment on. Without an endpoint the table lives in this process (moto)
and every call is made to last ``--latency-ms``, as one to DynamoDB does.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from moto import mock_aws

from schemahub.clock import SystemClock
from schemahub.mappings import load_mapping
from schemahub.throttle import Bucket, GoAt, SharedBucket

TABLE = "bench-throttle"
BUCKET = Bucket.of(load_mapping("coinbase"))
MAX_WAIT_MS = 1_000_000


class Counted:
    """A Table that counts writes; in moto, one call at a time on the item, as in DynamoDB, after ``latency_s``."""

    def __init__(self, table: Any, latency_s: float) -> None:
        self._table = table
        self._latency_s = latency_s
        self._guard = threading.Lock()
        self.writes = self.reads = 0

    def update_item(self, **request: Any) -> Any:
        return self._call(self._table.update_item, request, 1, 0)

    def get_item(self, **request: Any) -> Any:
        return self._call(self._table.get_item, request, 0, 1)

    def _call(self, call: Callable[..., Any], request: dict[str, Any], writes: int, reads: int) -> Any:
        if self._latency_s:
            time.sleep(self._latency_s)
            with self._guard:
                self.writes += writes
                self.reads += reads
                return call(**request)
        with self._guard:
            self.writes += writes
            self.reads += reads
        return call(**request)


def naive(table: Counted, clock: SystemClock) -> int:
    """What one writes first: read the bucket, decide, write it back if nobody was faster; returns the slot in µs."""
    while True:
        seen = table.get_item(Key={"exchange": BUCKET.exchange}, ConsistentRead=True).get("Item", {}).get("tat_us", 0)
        now = clock.now_ms() * 1000
        tat = max(now, int(seen)) + BUCKET.interval_us(1)
        try:
            table.update_item(
                Key={"exchange": BUCKET.exchange},
                UpdateExpression="SET tat_us = :tat",
                ConditionExpression="attribute_not_exists(tat_us) OR tat_us = :seen",
                ExpressionAttributeValues={":tat": tat, ":seen": seen},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
        else:
            return max(now, tat - BUCKET.tolerance_us)


def taker(kind: str, batch: int, table: Counted) -> Callable[[], Sequence[int]]:
    """A worker: each call reserves some slots and returns their times."""
    clock = SystemClock()
    if kind == "naive":
        return lambda: [naive(table, clock)]
    shared = SharedBucket(table, BUCKET, clock)

    def take() -> Sequence[int]:
        outcome = shared.reserve([1] * batch, MAX_WAIT_MS)
        assert isinstance(outcome, GoAt), "reserve fewer: the bucket is full for a quarter of an hour"
        return outcome.times_us

    return take


def measure(kind: str, batch: int, threads: int, requests: int, table: Counted) -> dict[str, Any]:
    """One run: everybody starts at once and takes at least ``requests`` slots."""
    waits: list[float] = []
    slots: list[int] = []
    ready = threading.Barrier(threads + 1)

    def work(take: Callable[[], Sequence[int]]) -> None:
        ready.wait()
        mine: list[int] = []
        while len(mine) < requests:
            began = time.perf_counter()
            mine += take()
            waits.append(time.perf_counter() - began)
        slots.extend(mine)

    running = [threading.Thread(target=work, args=(taker(kind, batch, table),)) for _ in range(threads)]
    for thread in running:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in running:
        thread.join()
    elapsed = time.perf_counter() - began
    ahead = [slot for slot in slots if slot > min(slots) + BUCKET.tolerance_us]
    assert len(slots) >= threads * requests, "a thread died"
    assert len(ahead) == len(set(ahead)), "a slot was given twice"
    return {
        "way": kind,
        "batch": batch,
        "slots": len(slots),
        "slots_per_s": round(len(slots) / elapsed),
        "writes_per_slot": round(table.writes / len(slots), 3),
        "reads_per_slot": round(table.reads / len(slots), 3),
        "worst_wait_ms": round(1000 * max(waits)),
    }


def open_table(endpoint: str | None, threads: int, stack: ExitStack) -> Any:
    if endpoint is None:
        stack.enter_context(mock_aws())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ.setdefault(name, "test")
    dynamodb = boto3.resource(
        "dynamodb", endpoint_url=endpoint, region_name="us-east-1", config=Config(max_pool_connections=threads)
    )
    table = dynamodb.create_table(
        TableName=f"{TABLE}-{os.getpid()}",
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "exchange", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "exchange", "AttributeType": "S"}],
    )
    table.wait_until_exists()
    stack.callback(table.delete)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", help="of an embedded AWS; without it, moto in this process")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--requests", type=int, default=20, help="slots that each thread takes")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--latency-ms", type=float, default=5, help="of one call, only without an endpoint")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with ExitStack() as stack:
        table = open_table(args.endpoint, args.threads, stack)
        results = []
        for kind, batch in (("naive", 1), ("atomic", 1), ("atomic", args.batch)):
            table.delete_item(Key={"exchange": BUCKET.exchange})
            latency_s = 0 if args.endpoint else args.latency_ms / 1000
            results.append(measure(kind, batch, args.threads, args.requests, Counted(table, latency_s)))
    if args.json:
        print(json.dumps(results))
        return
    print(f"{'way':8}{'batch':>6}{'slots/s':>10}{'writes/slot':>13}{'reads/slot':>12}{'worst wait':>13}")
    for r in results:
        print(
            f"{r['way']:8}{r['batch']:>6}{r['slots_per_s']:>10}{r['writes_per_slot']:>13}"
            f"{r['reads_per_slot']:>12}{r['worst_wait_ms']:>10} ms"
        )


if __name__ == "__main__":
    main()
