"""SQL on a deployed stack: Athena through the stack's workgroup, polled and paged."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from schemahub.errors import BadQuery
from schemahub_cli.target import Target

TABLE = "unified_trades"
LIVE = ("QUEUED", "RUNNING")
_WITH = re.compile(r"\s*with\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """Rows of a query, as text where the engine gives text."""

    columns: list[str]
    rows: list[list[Any]]
    scanned_bytes: int | None = None
    seconds: float = 0.0


def with_trades(sql: str) -> str:
    """The query with ``trades`` naming the unified table, as it does locally."""
    sql = sql.strip().rstrip(";")
    head = f"WITH trades AS (SELECT * FROM {TABLE})"  # noqa: S608  a constant
    return f"{head}, {sql[match.end() :]}" if (match := _WITH.match(sql)) else f"{head} {sql}"


def run(target: Target, sql: str, *, max_rows: int, sleep: Callable[[float], None] = time.sleep) -> Answer:
    """Run one statement and read at most ``max_rows`` of its rows.

    Raises:
        BadQuery: Athena refuses or fails it; its own words are in the message.
    """
    client = target.client("athena")
    query = client.start_query_execution(
        QueryString=with_trades(sql),
        WorkGroup=target.outputs["AthenaWorkgroupName"],
        QueryExecutionContext={"Database": target.database},
    )["QueryExecutionId"]
    wait = 0.3
    while True:
        seen = client.get_query_execution(QueryExecutionId=query)["QueryExecution"]
        if seen["Status"]["State"] not in LIVE:
            break
        sleep(wait)
        wait = min(2.0, wait * 1.5)
    if seen["Status"]["State"] != "SUCCEEDED":
        raise BadQuery(f"Athena: {seen['Status'].get('StateChangeReason', seen['Status']['State'])}")
    statistics = seen.get("Statistics", {})
    rows = _rows(client, query)
    columns = [str(c) for c in next(rows, [])]
    return Answer(
        columns,
        [row for row, _ in zip(rows, range(max_rows), strict=False)],
        statistics.get("DataScannedInBytes"),
        statistics.get("TotalExecutionTimeInMillis", 0) / 1000,
    )


def _rows(client: Any, query: str) -> Iterator[list[Any]]:
    """All rows of the result; the first one is the header."""
    for page in client.get_paginator("get_query_results").paginate(QueryExecutionId=query):
        for row in page["ResultSet"]["Rows"]:
            yield [cell.get("VarCharValue") for cell in row["Data"]]
