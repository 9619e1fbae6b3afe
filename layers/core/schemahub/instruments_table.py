"""The Iceberg table ``instruments``: the seed's instruments for whoever queries, rewritten whole when they changed.

The seed is the truth, the table its copy. A writer loads the table first and reads the seed then: whoever commits last
has read the last seed, because Glue refuses a commit over a table that has moved since it was loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.exceptions import NoSuchTableError, TableAlreadyExistsError
from pyiceberg.table import Table

from schemahub import seed
from schemahub.clock import Clock
from schemahub.errors import CommitConflict
from schemahub.instruments import Instrument, moment
from schemahub.objects import ObjectStore
from schemahub.publish import settle
from schemahub.streams import PREFIX
from schemahub.table import PROPERTIES

TABLE = "instruments"
LOCATION = f"{PREFIX}{TABLE}"
CONTENT = "schemahub.instruments.sha256"
"""Table property: the hash of the rows, set in the commit that wrote them. Snapshots expire, properties do not."""


@dataclass(frozen=True)
class Column:
    """A column, its Iceberg field id, and how an instrument fills it."""

    field_id: int
    name: str
    kind: str
    """``string``, ``int`` or ``timestamptz`` (µs, UTC)."""
    doc: str


COLUMNS = (
    Column(1, "exchange", "string", "Upper case, as in unified_trades"),
    Column(2, "exchange_symbol", "string", "The exchange's spelling: BTCUSDT"),
    Column(3, "symbol", "string", "BASE-QUOTE, as in unified_trades: BTC-USDT"),
    Column(4, "base", "string", "What is traded: BTC"),
    Column(5, "quote", "string", "What it is paid in: USDT"),
    Column(6, "status", "string", "online, offline (listed, does not trade) or delisted"),
    Column(7, "exchange_status", "string", "The exchange's own word, the last that it said"),
    Column(8, "listing_epoch", "int", "1, and one more each time that a delisted product is listed again"),
    Column(9, "first_seen", "timestamptz", "The first look that ever showed it"),
    Column(10, "listed_since", "timestamptz", "The first look that showed the current listing"),
    Column(11, "last_seen", "timestamptz", "The last look that showed it; to a day while it stays listed"),
)


@dataclass(frozen=True)
class Written:
    """The outcome. ``unchanged``: the table already holds these rows."""

    status: str
    snapshot_id: int | None
    rows: int


def publish(catalog: GlueCatalog, objects: ObjectStore, database: str, clock: Clock) -> Written:
    """Make the table hold what the seed in the bucket says. Safe to run twice, late, and beside another one.

    Raises:
        BadConfig: the seed is not one. CommitConflict: the table kept moving, or its state stayed unknown.
    """
    rows: Sequence[Instrument] = ()

    def rewrite_if_changed(table: Table) -> bool:
        nonlocal rows
        rows = seed.read(objects).instruments
        content = _hash(rows)
        if table.metadata.properties.get(CONTENT) == content:
            return False
        _rewrite(table, objects, rows, content)
        return True

    try:
        table, changed = settle(lambda: load(catalog, objects.bucket, database), rewrite_if_changed, clock)
    except CommitConflict as error:
        raise CommitConflict(f"the table {TABLE} was {error.reason}"[:400], remedy=seed.AGAIN) from error
    return _written("published" if changed else "unchanged", table, rows)


def _written(status: str, table: Table, rows: Sequence[Instrument]) -> Written:
    snapshot = table.current_snapshot()
    return Written(status, snapshot.snapshot_id if snapshot else None, len(rows))


def load(catalog: GlueCatalog, bucket: str, database: str) -> Table:
    """The table; a new one where there is none. One that Glue lost is not searched for: it is written again."""
    try:
        return catalog.load_table((database, TABLE))
    except NoSuchTableError:
        pass
    location = f"s3://{bucket}/{LOCATION}"
    try:
        return catalog.create_table((database, TABLE), _iceberg_schema(), location=location, properties=PROPERTIES)
    except TableAlreadyExistsError:
        return catalog.load_table((database, TABLE))


def _hash(rows: Sequence[Instrument]) -> str:
    columns = [c.name for c in COLUMNS]
    return hashlib.sha256(json.dumps([columns, *(r.to_json() for r in rows)]).encode()).hexdigest()


def _rewrite(table: Table, objects: ObjectStore, rows: Sequence[Instrument], content: str) -> None:
    """All files out and one in, with the property that says so: one commit, one snapshot."""
    from pyiceberg.io.pyarrow import parquet_file_to_data_file

    # A function of the content: what a crash or a rival left at this name is this file.
    key = f"{LOCATION}/data/{content}.parquet"
    if rows:
        objects.put_new(key, _parquet(rows))
    old = [task.file for task in table.scan().plan_files()]
    with table.transaction() as transaction:
        transaction.set_properties({CONTENT: content})
        with transaction.update_snapshot().overwrite() as snapshot:
            for file in old:
                snapshot.delete_data_file(file)
            if rows:
                location = f"s3://{objects.bucket}/{key}"
                snapshot.append_data_file(parquet_file_to_data_file(table.io, table.metadata, location))


def _parquet(rows: Sequence[Instrument]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"string": pa.string(), "int": pa.int32(), "timestamptz": pa.timestamp("us", "UTC")}
    schema = pa.schema(
        [
            pa.field(c.name, types[c.kind], nullable=False, metadata={b"PARQUET:field_id": str(c.field_id).encode()})
            for c in COLUMNS
        ]
    )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([_row(r) for r in rows], schema), sink, compression="zstd")
    return sink.getvalue()


def _row(instrument: Instrument) -> dict[str, Any]:
    return {
        "exchange": instrument.exchange.upper(),
        "exchange_symbol": instrument.symbol,
        "symbol": instrument.product,
        "base": instrument.base,
        "quote": instrument.quote,
        "status": instrument.status,
        "exchange_status": instrument.exchange_status,
        "listing_epoch": instrument.listing_epoch,
        "first_seen": moment(instrument.first_seen),
        "listed_since": moment(instrument.listed_since),
        "last_seen": moment(instrument.last_seen),
    }


def _iceberg_schema() -> Any:
    from pyiceberg.schema import Schema
    from pyiceberg.types import IntegerType, NestedField, PrimitiveType, StringType, TimestamptzType

    types: dict[str, PrimitiveType] = {"string": StringType(), "int": IntegerType(), "timestamptz": TimestamptzType()}
    return Schema(
        *(
            NestedField(field_id=c.field_id, name=c.name, field_type=types[c.kind], required=True, doc=c.doc)
            for c in COLUMNS
        )
    )
