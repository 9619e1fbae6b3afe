"""SQL on a deployed stack: Athena through the stack's workgroup; its result is read from the bucket as it is needed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemahub.errors import BadQuery, QueryTimeout
from schemahub_cli.target import Target

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "unified_trades"
LIVE = ("QUEUED", "RUNNING")
_COMMENTS = re.compile(r"(\s+|--[^\n]*(\n|\Z)|/\*.*?\*/)*", re.DOTALL)
_EXPLAIN = re.compile(r"explain(\s+analyze)?\s+(\([^)]*\)\s*)?", re.IGNORECASE)
_WITH = re.compile(r"with\s+(recursive\s+)?", re.IGNORECASE)
_SHOW = re.compile(r"show\s+\w+", re.IGNORECASE)
_DESCRIBE = re.compile(r"(describe|desc|show\s+columns\s+(?:in|from))\s+(\w+)", re.IGNORECASE)


@dataclass(frozen=True)
class Result:
    """What a statement gave: Arrow batches, and the bytes that Athena bills."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    scanned_bytes: int | None


def with_trades(sql: str) -> str:
    """The query with ``trades`` naming the unified table, as it does locally."""
    sql = sql.strip().rstrip(";")
    sql = sql[_end(_COMMENTS, sql) :]
    if found := _DESCRIBE.fullmatch(sql):
        return f"{found[1]} {TABLE if found[2].lower() == 'trades' else found[2]}"
    if _SHOW.match(sql):
        return sql
    if found := _EXPLAIN.match(sql):
        return found[0] + with_trades(sql[found.end() :])
    trades = f"trades AS (SELECT * FROM {TABLE})"  # noqa: S608  a constant
    if found := _WITH.match(sql):
        return f"WITH {(found[1] or '').upper().strip()} ".replace("  ", " ") + f"{trades}, {sql[found.end() :]}"
    return f"WITH {trades} {sql}"


def _end(pattern: re.Pattern[str], sql: str) -> int:
    return found.end() if (found := pattern.match(sql)) else 0


def run(
    target: Target,
    sql: str,
    *,
    timeout_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Run one statement; its rows are fetched as they are taken.

    A statement that is given up, by its time or by Ctrl-C, is stopped: what it would go on scanning costs money.

    Raises:
        BadQuery: Athena refuses or fails it; its own words are in the message.
        QueryTimeout: it was not finished within ``timeout_s`` seconds.
    """
    client = target.client("athena")
    deadline = clock() + timeout_s
    query = client.start_query_execution(
        QueryString=with_trades(sql),
        WorkGroup=target.outputs["AthenaWorkgroupName"],
        QueryExecutionContext={"Database": target.database},
    )["QueryExecutionId"]
    wait, done = 0.3, False
    try:
        while True:
            seen = client.get_query_execution(QueryExecutionId=query)["QueryExecution"]
            if done := seen["Status"]["State"] not in LIVE:
                break
            if clock() + wait > deadline:
                raise QueryTimeout(f"Athena did not finish within {timeout_s:g} s; the query was stopped")
            sleep(wait)
            wait = min(2.0, wait * 1.5)
    finally:
        if not done:
            client.stop_query_execution(QueryExecutionId=query)
    if seen["Status"]["State"] != "SUCCEEDED":
        raise BadQuery(f"Athena: {seen['Status'].get('StateChangeReason', seen['Status']['State'])}")
    from schemahub_cli import athena_result  # Arrow takes a third of a second to import

    place = seen.get("ResultConfiguration", {}).get("OutputLocation", "")
    schema, batches = athena_result.read(client, target.client("s3"), query, place)
    return Result(schema, batches, seen.get("Statistics", {}).get("DataScannedInBytes"))
