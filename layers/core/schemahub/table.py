"""The unified table: columns, types, partitions, order, and how each column is stored in Parquet.

Nothing here imports an engine at the top: the transform has pyarrow and no PyIceberg, the publisher the reverse.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schemahub.streams import PREFIX

TABLE = "unified_trades"
LOCATION = f"{PREFIX}{TABLE}"
DATA_PREFIX = f"{LOCATION}/data/"
METADATA_PREFIX = f"{LOCATION}/metadata/"
PARTITION = "trade_day"
ROW_GROUP_ROWS = 250_000
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
DICTIONARY, PLAIN = "DICTIONARY", "PLAIN"
"""The only encodings here: every reader reads them by default. Those of Parquet 2 stop Spark and fastparquet
(docs/decisions/0007-encodings.md), and save nothing that zstd does not."""


@dataclass(frozen=True)
class Column:
    """A column with its Iceberg field id, by which every reader finds it even after a rename."""

    field_id: int
    name: str
    kind: str
    """``string``, ``double``, ``timestamptz`` (µs, UTC) or ``decimal`` (38 digits, 18 of them behind the point)."""
    encoding: str
    doc: str
    required: bool = True


COLUMNS = (
    Column(1, "exchange", "string", DICTIONARY, "Upper case"),
    Column(2, "symbol", "string", DICTIONARY, "BASE-QUOTE: BTC-USD"),
    Column(3, "trade_id", "string", PLAIN, "The exchange's number, as text"),
    Column(4, "side", "string", DICTIONARY, "BUY or SELL: what the taker did"),
    Column(5, "price", "double", PLAIN, "Quote currency for one unit of base"),
    Column(6, "quantity", "double", PLAIN, "Base currency"),
    Column(7, "trade_ts", "timestamptz", PLAIN, "When the exchange says it happened"),
    Column(8, "ingest_ts", "timestamptz", DICTIONARY, "When its segment was committed"),
)
EXACT_COLUMNS = {
    "none": (),
    "text": (
        Column(9, "price_text", "string", PLAIN, "The price as it was sent", required=False),
        Column(10, "quantity_text", "string", PLAIN, "The quantity as it was sent", required=False),
    ),
    "decimal": (
        Column(11, "price_decimal", "decimal", DICTIONARY, "The price; NULL if it does not fit", required=False),
        Column(12, "quantity_decimal", "decimal", DICTIONARY, "The quantity; NULL if it does not fit", required=False),
    ),
}
"""What a mapping's ``contract.exact`` adds. The ids are fixed, because data files are written by who cannot see the
table; the publisher adds the columns to a table that lacks them, and its older files read as NULL there."""
OPTIONAL = tuple(column for columns in EXACT_COLUMNS.values() for column in columns)
DECIMAL_PRECISION, DECIMAL_SCALE = 38, 18

SORT_FIELDS = ("exchange", "symbol", "trade_ts")
"""Equal times are ordered by trade id as a number, which Iceberg cannot express over a text column."""

PROPERTIES = {
    # PyIceberg's own retry would append a second time what a lost answer had already appended (design §5, Publish).
    "commit.retry.num-retries": "0",
    "write.parquet.compression-codec": "zstd",
    "write.parquet.compression-level": "3",
    "write.parquet.row-group-limit": str(ROW_GROUP_ROWS),
    "write.target-file-size-bytes": str(192 * 1024 * 1024),
    # Nobody but the bucket's lifecycle deletes: no role holds s3:DeleteObject.
    "write.metadata.delete-after-commit.enabled": "false",
    "write.metadata.previous-versions-max": "50",
    "gc.enabled": "true",
}


def arrow_schema(columns: Sequence[Column] = COLUMNS) -> Any:
    """The Arrow schema of a data file. ``PARQUET:field_id`` becomes the field id that Iceberg reads columns by.

    Text of few values is handed over as codes (a third of the writer's time otherwise); in the file it is plain text.
    """
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "double": pa.float64(),
        "timestamptz": pa.timestamp("us", "UTC"),
        "decimal": pa.decimal128(DECIMAL_PRECISION, DECIMAL_SCALE),
    }
    codes = pa.dictionary(pa.int8(), pa.string())
    return pa.schema(
        [
            pa.field(
                c.name,
                codes if c.kind == "string" and c.encoding == DICTIONARY else types[c.kind],
                nullable=not c.required,
                metadata={b"PARQUET:field_id": str(c.field_id).encode()},
            )
            for c in columns
        ]
    )


def iceberg_schema() -> Any:
    from pyiceberg.schema import Schema

    return Schema(*(iceberg_field(column) for column in COLUMNS))


def iceberg_field(column: Column) -> Any:
    from pyiceberg.types import DecimalType, DoubleType, NestedField, PrimitiveType, StringType, TimestamptzType

    types: dict[str, PrimitiveType] = {
        "string": StringType(),
        "double": DoubleType(),
        "timestamptz": TimestamptzType(),
        "decimal": DecimalType(DECIMAL_PRECISION, DECIMAL_SCALE),
    }
    return NestedField(
        field_id=column.field_id,
        name=column.name,
        field_type=types[column.kind],
        required=column.required,
        doc=column.doc,
    )


def partition_spec() -> Any:
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.transforms import DayTransform

    source = next(c.field_id for c in COLUMNS if c.name == "trade_ts")
    return PartitionSpec(PartitionField(source_id=source, field_id=1000, transform=DayTransform(), name=PARTITION))


def sort_order() -> Any:
    from pyiceberg.table.sorting import SortField, SortOrder
    from pyiceberg.transforms import IdentityTransform

    ids = {c.name: c.field_id for c in COLUMNS}
    return SortOrder(*(SortField(source_id=ids[name], transform=IdentityTransform()) for name in SORT_FIELDS))


def micros(moment: dt.datetime) -> int:
    """Microseconds since the epoch, exactly (a float's 53 bits would not do for all)."""
    return (moment - EPOCH) // dt.timedelta(microseconds=1)


def day_of(trade_us: int) -> dt.date:
    """The UTC day of a time in microseconds: the partition."""
    return (EPOCH + dt.timedelta(microseconds=trade_us)).date()
