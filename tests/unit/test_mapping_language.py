"""The language itself: a schema that explains every key, hints for misspelt ones, and a core that names no exchange."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from schemahub.errors import BadMapping
from schemahub.mapping_file import SCHEMA
from schemahub.mappings import exchanges, load_mapping, mappings_dir, parse_mapping
from tests.unit.pages import ROOT


def followed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with what it refers to; its own words win."""
    if "$ref" not in schema:
        return schema
    return {**SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]], **schema}


def properties(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key that a mapping may have, with its schema; items of lists and free names are followed too."""
    for name, child in schema.get("properties", {}).items():
        yield f"{path}{name}", followed(child)
        yield from properties(followed(child), f"{path}{name}/")
    if "items" in schema:
        yield from properties(followed(schema["items"]), f"{path}*/")


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(("path", "schema"), [pytest.param(p, s, id=p) for p, s in properties(SCHEMA)])
def test_every_key_is_described_and_its_examples_are_right(path: str, schema: dict[str, Any]) -> None:
    assert len(schema.get("description", "")) > 10
    for example in schema.get("examples", []):
        Draft202012Validator({**schema, "$defs": SCHEMA["$defs"]}).validate(example)
    if schema.get("type") == "object":
        assert "additionalProperties" in schema, "a misspelt key must not pass"


def places(document: Any, schema: dict[str, Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every written key whose object allows known keys only."""
    schema = followed(schema)
    if isinstance(document, list):
        for number, item in enumerate(document):
            yield from places(item, schema.get("items", {}), (*path, number))
    for name, child in document.items() if isinstance(document, dict) else ():
        if name in schema.get("properties", {}):
            yield (*path, name)
            yield from places(child, schema["properties"][name], (*path, name))


@pytest.mark.parametrize("exchange", exchanges())
def test_every_misspelt_key_is_refused_with_the_right_one(exchange: str) -> None:
    document = yaml.safe_load((mappings_dir() / f"{exchange}.yaml").read_text())
    found = list(places(document, SCHEMA))
    assert len(found) > 40
    for *parents, name in found:
        if len(name) < 3:
            continue
        slip = copy.deepcopy(document)
        at = slip
        for part in parents:
            at = at[part]
        at[wrong := name[:-1] + name[-1] * 2] = at.pop(name)
        with pytest.raises(BadMapping) as caught:
            parse_mapping(yaml.safe_dump(slip), "slip.yaml")
        where = "/".join(map(str, parents)) or "(top)"
        assert f"{where}: unknown key {wrong!r} (did you mean {name!r}?)" in str(caught.value)


@pytest.mark.parametrize("exchange", exchanges())
def test_a_mapping_says_where_its_facts_come_from_and_loads(exchange: str) -> None:
    mapping = load_mapping(exchange)
    assert any(source.startswith("https://") for source in mapping.sources)
    assert any(source.startswith("ccxt ") for source in mapping.sources)


def test_times_and_the_newest_trades_are_no_ids() -> None:
    asks = {x: load_mapping(x).requests.page.asks for x in exchanges()}
    assert set(asks.values()) == {"ids_below", "ids_from", "time_from", "newest"}
    for exchange, how in asks.items():
        assert load_mapping(exchange).by_time is (how in ("time_from", "newest"))


# --- no module of the core names an exchange ------------------------------------------------------------------------

CORE = sorted((ROOT / "layers/core/schemahub").glob("*.py"))


def words(source: str) -> Iterator[tuple[int, str]]:
    """Every name and every text of a module, without comments and docstrings (also those below a name)."""
    tree = ast.parse(source)
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in prose:
            yield line, str(node.value)
        for name in ("id", "attr", "name", "arg", "module", "asname"):
            if isinstance(found := getattr(node, name, None), str):
                yield line, found


def named(source: str) -> list[tuple[int, str]]:
    known = re.compile("|".join({name.split("_")[0] for name in exchanges()}), re.IGNORECASE)
    return [(line, word[:60]) for line, word in words(source) if known.search(word)]


@pytest.mark.parametrize("module", CORE, ids=lambda path: path.stem)
def test_no_module_of_the_core_names_an_exchange(module: Path) -> None:
    assert named(module.read_text()) == []


@pytest.mark.parametrize(
    "source",
    ['x = "coinbase"', "def of_kraken(): pass", "import schemahub.okx", "a.gemini_id", 'f"{x} of OKX"', 'x = b"bybit"'],
)
def test_a_name_would_be_seen(source: str) -> None:
    assert named(source)
    assert not named(f'"""Module: {exchanges()}."""\n# coinbase\nx = 1\n"""Like kraken\'s."""\n')
