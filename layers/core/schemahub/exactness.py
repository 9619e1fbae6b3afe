"""What a double cannot carry of a price or a quantity: found, counted, and kept as text or DECIMAL where asked for.

Who reformats what: DuckDB reads a JSON *string* as it stands, but parses a JSON *number* and prints it again (``1.50``
becomes ``1.5``, ``0.1000000000000000055`` becomes ``0.1``). Where a mapping asks for exact columns, objects that hold
such numbers are therefore read by Python, which hands over the number's own characters (those of arrays are read by
``mapping_sql.rows_sql``, which keeps them in any case).
"""

# ruff: noqa: S608  names and paths are quoted by mapping_sql
from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Context, Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from schemahub.mapping_sql import ROLES, json_numbers_sql, rows_sql, transform_sql
from schemahub.mappings import Mapping
from schemahub.pointers import Element
from schemahub.table import DECIMAL_PRECISION, DECIMAL_SCALE

LINES = 20_000
_DECIMAL = pa.decimal128(DECIMAL_PRECISION, DECIMAL_SCALE)
_QUANTUM = Decimal(1).scaleb(-DECIMAL_SCALE)
_PLAIN = rf"^[0-9]{{1,{DECIMAL_PRECISION - DECIMAL_SCALE}}}(\.[0-9]{{0,{DECIMAL_SCALE}}})?$"
_CONTEXT = Context(prec=DECIMAL_PRECISION)


def carried(text: str) -> bool:
    """Whether the double nearest to the decimal ``text`` prints, at its shortest, as the same number."""
    try:
        return Decimal(text) == Decimal(repr(float(text)))
    except (InvalidOperation, ValueError):
        return False


def sends_numbers(mapping: Mapping, paths: Iterable[Path]) -> bool:
    """Whether an object's first line has the price or the quantity as a JSON number. A look, not a proof."""
    return any(_first_has_number(mapping, path) for path in paths)


def _first_has_number(mapping: Mapping, path: Path) -> bool:
    with path.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as plain:
        line = io.BufferedReader(plain).readline()
    try:
        row = json.loads(line)
        return any(
            isinstance(row[name], int | float) and not isinstance(row[name], bool)
            for name in (mapping.fields.price, mapping.fields.quantity)
        )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return False


def holds_numbers(db: duckdb.DuckDBPyConnection, mapping: Mapping, paths: Sequence[str]) -> bool:
    """The proof: whether any line of the objects has the price or the quantity as a JSON number."""
    return bool((db.execute(json_numbers_sql(mapping, paths)).fetchone() or (0,))[0])


def parsed_rows(mapping: Mapping, paths: Sequence[str]) -> pa.RecordBatchReader:
    """The rows of ``mapping_sql.rows_sql`` with every number's own characters, and the lines."""
    schema = pa.schema([(name, pa.string()) for name in (*ROLES.values(), "file", "line")])
    names = [getattr(mapping.fields, role) for role in ROLES]

    def batches() -> Iterator[pa.RecordBatch]:
        for path in paths:
            for lines in _chunks(Path(path)):
                columns = list(zip(*(_texts(line, names) for line in lines), strict=True))
                yield pa.RecordBatch.from_arrays(
                    [*(pa.array(c, pa.string()) for c in columns), pa.array([path] * len(lines)), pa.array(lines)],
                    schema=schema,
                )

    return pa.RecordBatchReader.from_batches(schema, batches())


def _chunks(path: Path) -> Iterator[list[str]]:
    with path.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as plain:
        lines: list[str] = []
        for line in io.TextIOWrapper(plain, encoding="utf-8", newline="\n"):
            lines.append(line.rstrip("\n"))
            if len(lines) == LINES:
                yield lines
                lines = []
        if lines:
            yield lines


def _texts(line: str, names: Sequence[Element]) -> list[str | None]:
    try:
        row = json.loads(line, parse_float=str, parse_int=str)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        return [None] * len(names)
    return [_text(row.get(name)) for name in names]


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)  # true and false; a list or an object is no value of any column


def count_inexact(db: duckdb.DuckDBPyConnection, mapping: Mapping, source: str) -> int:
    """How many prices and quantities of good rows a double cannot carry, among those that may be such (``odd``)."""
    return _count(
        db.execute(f"SELECT price_text, quantity_text FROM ({transform_sql(mapping, source)}) WHERE reason = 0 AND odd")
    )


def count_inexact_numbers(db: duckdb.DuckDBPyConnection, mapping: Mapping, paths: Sequence[str]) -> int:
    """The same for JSON numbers, whose own characters only the line has. Shorter than 16 of them, a double carries."""
    fields = mapping.fields
    names = "|".join(re.escape(str(name)) for name in (fields.price, fields.quantity))
    long = rf'"({names})"\s*:\s*"?([0-9.eE+-]{{16,}}|[0-9.]+[eE]-[0-9]{{3,}})'.replace("'", "''")
    rows = db.execute(
        f"SELECT line FROM ({transform_sql(mapping, rows_sql(mapping, paths, with_lines=True))}) "
        f"WHERE reason = 0 AND regexp_matches(line, '{long}')"
    )
    found = 0
    while chunk := rows.fetchmany(LINES):
        for (line,) in chunk:
            found += sum(not carried(text) for text in _texts(line, (fields.price, fields.quantity)) if text)
    return found


def _count(rows: duckdb.DuckDBPyConnection) -> int:
    found = 0
    while chunk := rows.fetchmany(LINES):
        found += sum(not carried(text) for row in chunk for text in row)
    return found


def decimals(texts: pa.Array) -> pa.Array:
    """``texts`` as DECIMAL(38, 18), exactly; NULL for one that does not fit."""
    try:
        # Arrow raises where a digit would be lost, but numbers that are too large wrap around ("222000e17").
        if pc.all(pc.match_substring_regex(texts, _PLAIN)).as_py():
            return pc.cast(texts, _DECIMAL)
    except pa.ArrowInvalid:
        pass
    return pa.array([_fitting(text) for text in texts.to_pylist()], _DECIMAL)


def _fitting(text: str) -> Decimal | None:
    try:
        value = Decimal(text)
        rounded = value.quantize(_QUANTUM, context=_CONTEXT)
    except InvalidOperation:
        return None
    return rounded if rounded == value else None
