"""The result of an Athena query: its CSV in the bucket, read in pieces, with the types that Athena says it has."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from botocore.exceptions import ConnectionClosedError, HTTPClientError, IncompleteReadError, ResponseStreamingError

from schemahub.errors import BadQuery, StoreUnavailable

PIECE_BYTES = 4 << 20
TRIES = 4
BROKEN = (ConnectionClosedError, HTTPClientError, IncompleteReadError, ResponseStreamingError)
_TYPES = {
    "boolean": pa.bool_(),
    "tinyint": pa.int8(),
    "smallint": pa.int16(),
    "int": pa.int32(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
    "varbinary": pa.binary(),
}
"""What is not here (texts, and arrays, maps and rows, which Athena writes in a notation of its own) stays text."""


def read(athena: Any, s3: Any, query: str, place: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and batches of a finished query, whose result is at ``place`` (``s3://bucket/key.csv``).

    SHOW, DESCRIBE and EXPLAIN leave no CSV: their few lines come through Athena's own interface.

    Raises:
        BadQuery: a value is not of the type that Athena names.
        StoreUnavailable: the bucket did not give the result, after TRIES.
    """
    first = athena.get_query_results(QueryExecutionId=query, MaxResults=1)["ResultSet"]
    columns = first["ResultSetMetadata"]["ColumnInfo"]
    schema = pa.schema([pa.field(column["Name"], arrow_type(column)) for column in columns])
    if not place.endswith(".csv"):
        return schema, _lines(athena, query, schema)
    return schema, _rows(s3, place, schema)


def arrow_type(column: dict[str, Any]) -> pa.DataType:
    """The Arrow type of a column, as Athena describes it."""
    kind = str(column["Type"]).lower()
    if kind == "decimal":
        return pa.decimal128(int(column["Precision"]), int(column["Scale"]))
    return _TYPES.get(kind, pa.string())


def _rows(s3: Any, place: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    parts = urlsplit(place)
    names = [str(number) for number in range(len(schema))]  # a query may call two columns the same
    reader = pyarrow.csv.open_csv(
        io.BufferedReader(Pieces(s3, parts.netloc, parts.path.lstrip("/")), PIECE_BYTES),
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False, block_size=1 << 20, column_names=names, skip_rows_after_names=1
        ),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,  # an empty text is "", a null is nothing
        ),
    )
    for batch in reader:
        yield _typed(batch.columns, schema)


def _lines(athena: Any, query: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for page in athena.get_paginator("get_query_results").paginate(QueryExecutionId=query):
        rows = [[cell.get("VarCharValue") for cell in row["Data"]] for row in page["ResultSet"]["Rows"]]
        if rows:
            yield _typed([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], schema)


def _typed(texts: list[pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for field, column in zip(schema, texts, strict=True):
        try:
            columns.append(_column(column, field.type))
        except (pa.ArrowInvalid, ValueError, KeyError) as error:
            raise BadQuery(
                f"Athena's column {field.name} is not all {field.type}: {str(error)[:200]}",
                remedy=f"Write CAST({field.name} AS varchar) in the query.",
            ) from error
    return pa.record_batch(columns, schema=schema)


def _column(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_binary(kind):  # 68 65 6c
        return pa.array([None if v is None else bytes.fromhex(v) for v in column.to_pylist()], kind)
    if pa.types.is_timestamp(kind) and kind.tz:
        if not pc.all(pc.ends_with(column, " UTC")).as_py():
            return pa.array([None if v is None else _instant(v) for v in column.to_pylist()], kind)
        return pc.utf8_slice_codeunits(column, 0, -4).cast(pa.timestamp(kind.unit)).cast(kind)
    return column.cast(kind)


def _instant(value: str) -> dt.datetime:
    """``2024-03-01 00:01:40.000 Europe/Berlin``, or ``+01:00`` for the zone."""
    clock, _, zone = value.rpartition(" ")
    if zone[:1] in "+-":
        return dt.datetime.fromisoformat(clock + zone)
    return dt.datetime.fromisoformat(clock).replace(tzinfo=ZoneInfo(zone))


class Pieces(io.RawIOBase):
    """An object of S3 as a file that is read once, PIECE_BYTES at a time: a connection that breaks costs one piece."""

    def __init__(self, s3: Any, bucket: str, key: str) -> None:
        self._s3, self._where = s3, {"Bucket": bucket, "Key": key}
        head = s3.head_object(**self._where)
        self._size, self._where["IfMatch"] = head["ContentLength"], head["ETag"]
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), PIECE_BYTES, self._size - self._at)
        if wanted <= 0:
            return 0
        piece = self._piece(f"bytes={self._at}-{self._at + wanted - 1}")
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _piece(self, span: str) -> bytes:
        for left in reversed(range(TRIES)):
            try:
                return bytes(self._s3.get_object(**self._where, Range=span)["Body"].read())
            except BROKEN as error:
                if not left:
                    raise StoreUnavailable(f"the result broke off at {span}: {error}") from error
        raise AssertionError("unreachable")
