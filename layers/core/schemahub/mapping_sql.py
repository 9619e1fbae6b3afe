# ruff: noqa: S608  the SQL's parts are names and texts of a checked mapping, quoted by _quoted and _text
"""The SQL of the transform, made from a mapping and from nothing else."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence

from schemahub.errors import BadMapping
from schemahub.mappings import Fields, Mapping
from schemahub.table import micros

REASONS = (
    "",
    "trade_id is missing or not an integer",
    "trade_id is outside of the segment",
    "price is not a finite number above 0",
    "quantity is not a finite number above 0",
    "side is not one of the mapping's",
    "time cannot be read",
    "time is out of bounds",
)
"""Index 0 is a good row. The first reason that holds is the one that is given."""

EARLIEST_US = micros(dt.datetime(2009, 1, 3, tzinfo=dt.UTC))
"""No trade is older than Bitcoin's first block: seconds read as milliseconds and the like show here."""
LATEST_AFTER_COMMIT_US = 86_400_000_000
UNIT_US = {"s": 1_000_000.0, "ms": 1000.0, "us": 1.0, "ns": 0.001}
MAX_INT64 = 2**63 - 1
SIDES = ("BUY", "SELL")
ROLES = {
    "trade_id": "id_text",
    "price": "price_text",
    "quantity": "quantity_text",
    "side": "side_text",
    "trade_ts": "time_text",
}
"""Which column of ``rows_sql`` has the text of which of the mapping's fields."""
CARRIED_LENGTH = 15
"""A decimal of at most so many digits comes back from a double as it went in (DBL_DIG), unless it is subnormal."""

_OFFSET_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d([.,]\d{1,9})?[+-]\d\d:?\d\d"


def transform_sql(mapping: Mapping, source: str) -> str:
    """SELECT that maps ``source`` (see ``rows_sql``) to typed values, what is wrong with them, and the line.

    segment, id, price, quantity, side, trade_us, reason, odd, price_text, quantity_text, line. A temporary table
    ``segments`` says for each file the number, range and time bound of its segment. ``side`` is an index of SIDES,
    ``trade_us`` microseconds since the epoch, ``reason`` an index of REASONS. Only where ``odd`` can a double have lost
    something of price or quantity.
    """
    fields = mapping.fields
    sides = " ".join(f"WHEN {_text(said)} THEN {SIDES.index(taker)}" for said, taker in fields.side_values.items())
    return f"""
SELECT segment, id, price, quantity, side, trade_us,
    -- The cast takes '1.0' and '1e3' for integers: only what reads back the same is one.
    (CASE WHEN id IS NULL OR id::VARCHAR <> id_text THEN 1
          WHEN id NOT BETWEEN first AND last THEN 2
          WHEN price IS NULL OR NOT (price > 0 AND price < 'infinity'::DOUBLE) THEN 3
          WHEN quantity IS NULL OR NOT (quantity > 0 AND quantity < 'infinity'::DOUBLE) THEN 4
          WHEN side IS NULL THEN 5
          WHEN trade_us IS NULL THEN 6
          WHEN trade_us NOT BETWEEN {EARLIEST_US} AND latest_us THEN 7
          ELSE 0 END)::UTINYINT AS reason,
    ({_odd_sql("price")} OR {_odd_sql("quantity")}) AS odd, price_text, quantity_text, line
FROM (SELECT segment, first, last, latest_us, line, id_text, price_text, quantity_text,
          TRY_CAST(id_text AS BIGINT) AS id, TRY_CAST(price_text AS DOUBLE) AS price,
          TRY_CAST(quantity_text AS DOUBLE) AS quantity,
          (CASE side_text {sides} END)::UTINYINT AS side, {_time_sql(fields)} AS trade_us
      FROM ({source}) JOIN segments USING (file))"""


def rows_sql(mapping: Mapping, files: Sequence[str], *, with_lines: bool = False) -> str:
    """SELECT of the mapping's source fields as text from JSON-lines files, one row a line, with ``file`` and ``line``.

    The quick way leaves ``line`` NULL. Both give NULLs for a line that is not a JSON object.
    """
    fields = mapping.fields
    names = list(dict.fromkeys(fields.sources))
    if len({n.lower() for n in names}) < len(names):
        raise BadMapping(f"{mapping.exchange}: the transform cannot tell apart source fields that differ only in case")
    listed = "[" + ", ".join(_text(f) for f in files) + "]"
    if with_lines:
        shape = _text(json.dumps(dict.fromkeys(names, "VARCHAR")))
        # \x01 cannot stand in JSON text, so that the one CSV column is the whole line.
        inner = (
            f"SELECT filename, line, CASE WHEN json_valid(line) THEN json_transform(line, {shape}) END AS row "
            f"FROM read_csv({listed}, filename = true, header = false, auto_detect = false, delim = '\x01', "
            f"quote = '', escape = '', columns = {{'line': 'VARCHAR'}}, compression = 'zstd')"
        )
        prefix, line = "row.", "line"
    else:
        shape = "{" + ", ".join(f"{_text(n)}: 'VARCHAR'" for n in names) + "}"
        inner = (
            f"SELECT * FROM read_json({listed}, filename = true, format = 'newline_delimited', columns = {shape}, "
            f"ignore_errors = true, compression = 'zstd')"
        )
        prefix, line = "", "NULL::VARCHAR"
    chosen = ", ".join(f"{prefix}{_quoted(getattr(fields, role))} AS {alias}" for role, alias in ROLES.items())
    return f"SELECT {chosen}, filename AS file, {line} AS line FROM ({inner})"


def json_numbers_sql(mapping: Mapping, files: Sequence[str]) -> str:
    """SELECT of whether any price or quantity in the files is a JSON number, which DuckDB would print anew."""
    names = dict.fromkeys((mapping.fields.price, mapping.fields.quantity))
    listed = "[" + ", ".join(_text(f) for f in files) + "]"
    shape = "{" + ", ".join(f"{_text(n)}: 'JSON'" for n in names) + "}"
    # As text, a JSON string still begins with its quote.
    either = " OR ".join(f"ascii({_quoted(n)}::VARCHAR) BETWEEN ascii('-') AND ascii('9')" for n in names)
    return (
        f"SELECT coalesce(bool_or({either}), false) FROM read_json({listed}, format = 'newline_delimited', "
        f"columns = {shape}, ignore_errors = true, compression = 'zstd')"
    )


def _odd_sql(role: str) -> str:
    """Whether the double may have lost something: long text that its double does not print as, zeros apart."""
    trimmed = f"rtrim(rtrim({role}_text, '0'), '.')"
    return (
        f"CASE WHEN strlen({role}_text) <= {CARRIED_LENGTH} THEN {role} < 1e-300 "
        f"ELSE {role}::VARCHAR NOT IN ({trimmed}, {trimmed} || '.0') END"
    )


def _time_sql(fields: Fields) -> str:
    """``time_text`` as microseconds since the epoch; finer digits are cut off. A time without its zone is no time."""
    if fields.ts_type == "iso8601":
        return (
            f"epoch_us(TRY_CAST(CASE WHEN time_text LIKE '____-__-__T__:__:__%Z' "
            f"OR regexp_full_match(time_text, {_text(_OFFSET_TIME)}) THEN time_text END AS TIMESTAMPTZ))"
        )
    unit = UNIT_US[str(fields.ts_unit)]
    whole = "TRY_CAST(time_text AS BIGINT)"
    scaled = f"{whole} * {int(unit)}" if unit >= 1 else f"{whole} // {round(1 / unit)}"
    most = int(MAX_INT64 // unit) if unit >= 1 else MAX_INT64
    fraction = "TRY_CAST(time_text AS DECIMAL(38, 12))"
    return (
        f"(CASE WHEN {whole}::VARCHAR = time_text THEN CASE WHEN {whole} BETWEEN 0 AND {most} THEN {scaled} END "
        f"WHEN {fraction} BETWEEN 0 AND {most} THEN TRY_CAST(floor({fraction} * {unit:.3f}) AS BIGINT) END)"
    )


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
