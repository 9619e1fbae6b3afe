"""What one query may say: a single statement that only reads the lake's own tables.

DuckDB's own sandbox (query.py) keeps files and hosts shut. It does not keep everything shut: ``enable_logging`` in a
FROM writes a file, ``current_setting`` shows credentials, and a function that reads files may read the engine's spill
directory. So the parsed statement is looked at too, function by function, wherever it stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import duckdb

from schemahub.errors import BadQuery, QueryRefused

SOURCES = frozenset({
    "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_tables", "duckdb_types", "duckdb_views",
    "generate_series", "json_each", "json_tree", "pg_timezone_names", "pragma_version", "range", "repeat", "repeat_row",
    "unnest",
})  # fmt: skip
"""Functions that may stand in a FROM. None of them reads a file, a setting, or SQL from a text."""
CLOSED = frozenset({
    "current_query", "current_setting", "getenv", "getvariable", "iceberg_verify_equality_deletes",
    "json_deserialize_sql", "json_execute_serialized_sql", "nextval", "currval", "write_log",
})  # fmt: skip
"""Functions of values that show the machine, or change the engine."""
_SETTINGS = frozenset({"pg_settings", "duckdb_settings", "duckdb_secrets", "duckdb_logs"})
_FILE = re.compile(r"[/\\:*?]|\.\w+$")
_EXPLAIN = ("explain", "analyze")


def single_select(sql: str) -> str:
    """``sql`` if it is exactly one statement that only reads: SELECT, WITH, FROM, VALUES, SHOW, DESCRIBE, EXPLAIN.

    Raises:
        BadQuery: not one such statement, or no SQL.
        QueryRefused: it names a file, another host, a setting, or a function that reaches one.
    """
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise BadQuery(f"DuckDB: {str(error)[:800]}") from error
    if len(statements) != 1:
        raise BadQuery(f"there are {len(statements)} statements")
    kind = statements[0].type
    if kind not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        raise BadQuery(f"a {kind.name} is not a SELECT")
    for node in _nodes(_tree(_explained(sql) if kind == duckdb.StatementType.EXPLAIN else sql)):
        _judge(node)
    return sql


def _explained(sql: str) -> str:
    """The statement that an EXPLAIN [ANALYZE] is about."""
    tokens = [offset for offset, _ in duckdb.tokenize(sql)]
    encoded = sql.encode()  # offsets are bytes
    for word, offset in zip(_EXPLAIN, tokens, strict=False):
        if encoded[offset : offset + len(word)].decode(errors="replace").lower() != word:
            break
        tokens = tokens[1:]
    return encoded[tokens[0] :].decode() if tokens else ""


def _tree(sql: str) -> Any:
    with duckdb.connect() as db:
        (found,) = db.execute("SELECT json_serialize_sql(?)", [sql]).fetchone() or ("{}",)
    tree = json.loads(found)
    if tree.get("error", True):
        raise BadQuery(f"this is not a SELECT: {tree.get('error_message', 'it cannot be parsed')[:200]}")
    return tree


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of the parsed statement."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _judge(node: dict[str, Any]) -> None:
    match node:
        case {"type": "TABLE_FUNCTION", "function": {"function_name": str(name)}} if name.lower() not in SOURCES:
            raise QueryRefused(f"{name}() may not stand in a FROM: a query reads the lake's tables and nothing else")
        case {"function_name": str(name)} if name.lower() in CLOSED:
            raise QueryRefused(f"{name}() may not be called: it shows or changes what is not in the lake")
        case {"type": "BASE_TABLE" | "SHOW_REF", "table_name": str(name)} if _FILE.search(name):
            raise QueryRefused(f"{name[:100]!r} is a file or an address, not a table of the lake")
        case {"type": "BASE_TABLE" | "SHOW_REF", "table_name": str(name)} if name.lower() in _SETTINGS:
            raise QueryRefused(f"{name} may not be read: it shows settings of this machine")
