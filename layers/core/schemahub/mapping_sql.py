# ruff: noqa: S608  the SQL's parts are names and texts of a checked mapping, quoted by _quoted and _text
"""The SQL of the transform, made from a mapping and from nothing else."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence

from schemahub.errors import BadMapping
from schemahub.mappings import NS, Fields, Mapping
from schemahub.table import micros

REASONS = (
    "",
    "trade_id is missing or not an integer",
    "position is outside of the segment",
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
_QUOTED_OR_NUMBER = r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|-[A-Za-z]+'
"""A string or a number of JSON text: taken one after the other, no number within a string is mistaken for one."""


def transform_sql(mapping: Mapping, source: str) -> str:
    """SELECT that maps ``source`` (see ``rows_sql``) to typed values, what is wrong with them, and the line.

    segment, id, price, quantity, side, trade_us, reason, odd, price_text, quantity_text, line. A temporary table
    ``segments`` says for each file the number, range and time bound of its segment. ``id`` is a text where the mapping
    says so, ``side`` an index of SIDES, ``trade_us`` microseconds since the epoch, ``reason`` an index of REASONS. Only
    where ``odd`` can a double have lost something of price or quantity.
    """
    fields = mapping.fields
    # What the segment's range is about: the trade's id or, in nanoseconds, its time.
    position, trade_us = ("time_ns", "time_ns // 1000") if mapping.by_time else ("id", "trade_us")
    return f"""
SELECT segment, id, price, quantity, side, {trade_us} AS trade_us,
    (CASE WHEN id IS NULL THEN 1
          WHEN {position} NOT BETWEEN first AND last THEN 2
          WHEN price IS NULL OR NOT (price > 0 AND price < 'infinity'::DOUBLE) THEN 3
          WHEN quantity IS NULL OR NOT (quantity > 0 AND quantity < 'infinity'::DOUBLE) THEN 4
          WHEN side IS NULL THEN 5
          WHEN {trade_us} IS NULL THEN 6
          WHEN {trade_us} NOT BETWEEN {EARLIEST_US} AND latest_us THEN 7
          ELSE 0 END)::UTINYINT AS reason,
    ({_odd_sql("price")} OR {_odd_sql("quantity")}) AS odd, price_text, quantity_text, line
FROM (SELECT segment, first, last, latest_us, line, price_text, quantity_text,
          {_id_sql(mapping)} AS id, TRY_CAST(price_text AS DOUBLE) AS price,
          TRY_CAST(quantity_text AS DOUBLE) AS quantity, {_side_sql(fields)} AS side,
          {_time_sql(fields, 1) if mapping.by_time else _time_sql(fields, 1000)} AS {trade_us.split()[0]}
      FROM ({source}) JOIN segments USING (file))"""


def reads_characters(mapping: Mapping) -> bool:
    """Whether rows are read with every number's own characters, a third as fast.

    DuckDB parses a JSON number and prints it anew: of 1688669597.827736912 it leaves 1688669597.8277369. Positions made
    of such times need all of it; and arrays, whose elements have no names, are read by no quicker way.
    """
    fields = mapping.fields
    return fields.in_arrays or (fields.ts_type == "epoch" and fields.tick_ns < NS[str(fields.ts_unit)])


def rows_sql(mapping: Mapping, files: Sequence[str], *, with_lines: bool = False) -> str:
    """SELECT of the mapping's source fields as text from JSON-lines files, one row a line, with ``file`` and ``line``.

    The quick way leaves ``line`` NULL. All give NULLs for a line that is not a row of JSON.
    """
    names = [str(n) for n in dict.fromkeys(mapping.fields.sources)]
    if len({n.lower() for n in names}) < len(names):
        raise BadMapping(f"{mapping.exchange}: the transform cannot tell apart source fields that differ only in case")
    listed = "[" + ", ".join(_text(f) for f in files) + "]"
    if reads_characters(mapping):
        quoted = f"""replace(regexp_replace(line, {_text(_QUOTED_OR_NUMBER)}, '"\\0"', 'g'), '""', '"')"""
        paths = "[" + ", ".join(_text(f"$[{n}]" if mapping.fields.in_arrays else f"$.{n}") for n in names) + "]"
        texts = f"CASE WHEN json_valid(line) THEN json_extract_string({quoted}, {paths}) END"
        inner = f"SELECT filename, line, {texts} AS texts FROM {_lines_sql(listed)}"
        chosen, line = {name: f"texts[{at}]" for at, name in enumerate(names, 1)}, "line"
    elif with_lines:
        shape = _text(json.dumps(dict.fromkeys(names, "VARCHAR")))
        row = f"CASE WHEN json_valid(line) THEN json_transform(line, {shape}) END"
        inner = f"SELECT filename, line, {row} AS row FROM {_lines_sql(listed)}"
        chosen, line = {name: f"row.{_quoted(name)}" for name in names}, "line"
    else:
        shape = "{" + ", ".join(f"{_text(n)}: 'VARCHAR'" for n in names) + "}"
        inner = (
            f"SELECT * FROM read_json({listed}, filename = true, format = 'newline_delimited', columns = {shape}, "
            f"ignore_errors = true, compression = 'zstd')"
        )
        chosen, line = {name: _quoted(name) for name in names}, "NULL::VARCHAR"
    columns = ", ".join(f"{chosen[str(getattr(mapping.fields, role))]} AS {alias}" for role, alias in ROLES.items())
    return unsigned_sql(mapping, f"SELECT {columns}, filename AS file, {line} AS line FROM ({inner})")


def _lines_sql(listed: str) -> str:
    # \x01 cannot stand in JSON text, so that the one CSV column is the whole line.
    return (
        f"read_csv({listed}, filename = true, header = false, auto_detect = false, delim = '\x01', quote = '', "
        f"escape = '', columns = {{'line': 'VARCHAR'}}, compression = 'zstd')"
    )


def unsigned_sql(mapping: Mapping, source: str) -> str:
    """``source`` without the sign of quantities whose sign only says the side."""
    if not mapping.fields.ignore_sign:
        return source
    amount = "CASE WHEN starts_with(quantity_text, '-') THEN quantity_text[2:] ELSE quantity_text END"
    return f"SELECT * REPLACE ({amount} AS quantity_text) FROM ({source})"


def _id_sql(mapping: Mapping) -> str:
    """``id_text`` as the table's id; NULL for what is none."""
    if mapping.fields.id_type == "text":
        return "CASE WHEN regexp_full_match(id_text, '[!-~]{1,64}') THEN id_text END"
    number = "TRY_CAST(id_text AS BIGINT)"
    # The cast takes '1.0' and '1e3' for integers: only what reads back the same is one.
    unsigned = f" AND {number} >= 0" if mapping.by_time else ""
    return f"CASE WHEN {number}::VARCHAR = id_text{unsigned} THEN {number} END"


def _side_sql(fields: Fields) -> str:
    """The taker's side as an index of SIDES; a quantity of zero, which has no sign, is refused as a quantity."""
    if fields.side_by_sign:
        negative, positive = (SIDES.index(fields.side_by_sign[sign]) for sign in ("negative", "positive"))
        return f"(CASE WHEN starts_with(side_text, '-') THEN {negative} ELSE {positive} END)::UTINYINT"
    sides = " ".join(f"WHEN {_text(said)} THEN {SIDES.index(taker)}" for said, taker in fields.side_values.items())
    return f"(CASE side_text {sides} END)::UTINYINT"


def json_numbers_sql(mapping: Mapping, files: Sequence[str]) -> str:
    """SELECT of whether any price or quantity in the files is a JSON number, which DuckDB would print anew."""
    names = dict.fromkeys((str(mapping.fields.price), str(mapping.fields.quantity)))
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


def _time_sql(fields: Fields, step_ns: int) -> str:
    """``time_text`` in steps of so many nanoseconds since the epoch; finer digits are cut off.

    A time without its zone is no time.
    """
    if fields.ts_type == "iso8601":
        return (
            f"epoch_us(TRY_CAST(CASE WHEN time_text LIKE '____-__-__T__:__:__%Z' "
            f"OR regexp_full_match(time_text, {_text(_OFFSET_TIME)}) THEN time_text END AS TIMESTAMPTZ))"
        ) + (f" * {NS['us'] // step_ns}" if step_ns < NS["us"] else "")
    unit = NS[str(fields.ts_unit)] / step_ns
    whole = "TRY_CAST(time_text AS BIGINT)"
    scale = f"* {int(unit)}" if unit >= 1 else f"// {round(1 / unit)}"
    most = int(MAX_INT64 // unit) if unit >= 1 else MAX_INT64
    # As text: DuckDB divides 128-bit numbers bit by bit, 400 times as long. What is written otherwise is rare.
    before = "TRY_CAST(split_part(time_text, '.', 1) AS BIGINT)"
    digits = len(str(int(unit))) - 1 if unit >= 1 else 0
    after = f" + CAST(rpad(split_part(time_text, '.', 2), {digits}, '0') AS BIGINT)" if digits else ""
    fraction = "TRY_CAST(time_text AS DECIMAL(38, 12))"
    return (
        f"(CASE WHEN {whole}::VARCHAR = time_text THEN CASE WHEN {whole} BETWEEN 0 AND {most} THEN {whole} {scale} END "
        f"WHEN regexp_full_match(time_text, '[0-9]{{1,18}}[.][0-9]+') AND "
        f"{before} < {most} THEN {before} {scale}{after} "
        f"WHEN {fraction} BETWEEN 0 AND {most} THEN TRY_CAST(floor({fraction} * {unit:.3f}) AS BIGINT) END)"
    )


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
