"""Reading a mapping file: strict YAML, the JSON Schema, and what a schema cannot say."""

from __future__ import annotations

import difflib
import json
import math
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml
from jsonschema import Draft202012Validator

from schemahub.errors import BadMapping, MalformedResponse
from schemahub.pointers import at_pointer, members

SCHEMA = json.loads(Path(__file__).with_name("mapping.schema.json").read_text())
MAX_FILE_BYTES = 64 * 1024
MAX_PAGES_PER_SECOND = 200
"""No public trades API allows more: a mapping that says so has a slip in amount, per_seconds or cost."""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases (a few lines can unfold to gigabytes), duplicate keys and control characters."""

    # Of its own: other libraries in the process (the SAM translator) teach tags to every SafeLoader.
    yaml_multi_constructors: ClassVar[dict[Any, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if len(str(value)) > 1000:
            raise yaml.YAMLError("a value is longer than 1000 characters")
        if not str(value).isprintable():  # "$" of a pattern would let a final line break through
            raise yaml.YAMLError(f"{str(value)[:40]!r} holds a control character")
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"key {key!r} is not text: quote it")
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_document(text: str, origin: str = "mapping") -> dict[str, Any]:
    """The checked document of a YAML text.

    Raises:
        BadMapping: with the path of each offending key, and the nearest known one for a key nobody knows.
    """
    document, problems = document_and_problems(text, origin)
    if problems:
        raise BadMapping(f"{origin}: " + "; ".join(problems)[:2000])
    return document


def document_and_problems(text: str, origin: str = "mapping") -> tuple[dict[str, Any], list[str]]:
    """What stands in a YAML text, and what is wrong with it, each as ``path/of/the/key: what is wrong``.

    Raises:
        BadMapping: it is no YAML that a mapping could be.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_FILE_BYTES:
        raise BadMapping(f"{origin} is larger than {MAX_FILE_BYTES // 1024} KiB")
    try:
        document = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: 0x_ and 2001-99-99 look like a number and a date to YAML.
        raise BadMapping(f"{origin} is not valid YAML: {' '.join(str(error).split())[:400]}") from error
    problems = [_explain(e) for e in Draft202012Validator(SCHEMA).iter_errors(document)]
    problems = problems or [
        *_unknown_placeholders(document),
        *_unkept_limits(document["limits"]),
        *_fields_read_twice(document["fields"]),
        *_contradictions(document),
        *_archive_that_cannot_be(document),
        *_codes_with_two_meanings(document.get("errors", {})),
        *_examples_that_do_not_fit(document),
    ]
    return document, sorted(problems)


def _unknown_placeholders(doc: dict[str, Any]) -> Iterator[str]:
    """Braces that ``str.format`` would fail on, or that would reach into objects (``{symbol.__class__}``)."""
    requests = doc["requests"]
    texts = [
        *((name, doc[name], {"base", "quote"}) for name in ("symbol", "symbol_long") if name in doc),
        ("products/path", doc["products"]["path"], set()),
        ("requests/path", requests["path"], {"symbol"}),
        *((f"products/query/{name}", text, set()) for name, text in doc["products"].get("query", {}).items()),
        *((f"requests/query/{name}", text, {"symbol"}) for name, text in requests.get("query", {}).items()),
        *((f"requests/page/query/{name}", text, set()) for name, text in requests["page"].get("query", {}).items()),
        *(
            (f"archive/{name}", doc["archive"][name], {"symbol", "yyyy", "mm", "dd"})
            for name in ("daily", "monthly")
            if name in doc.get("archive", {})
        ),
    ]
    for where, text, known in texts:
        try:
            names = {name for _, name, form, conversion in string.Formatter().parse(text) if name is not None}
            strange = any(form or conversion for _, _, form, conversion in string.Formatter().parse(text))
        except ValueError as error:
            yield f"{where}: {error}"
            continue
        if strange or names - known:
            yield f"{where}: {text[:60]!r} may only hold the placeholders {sorted(known)}"


def _unkept_limits(limits: dict[str, Any]) -> Iterator[str]:
    numbers = [*(limits[name] for name in ("amount", "per_seconds", "burst")), *limits["cost"].values()]
    if not all(math.isfinite(number) for number in numbers):
        yield "limits: every number must be finite"
    elif limits["amount"] / limits["per_seconds"] / limits["cost"]["page"] > MAX_PAGES_PER_SECOND:
        yield f"limits: more than {MAX_PAGES_PER_SECOND} pages a second, which no exchange allows"


def _fields_read_twice(fields: dict[str, Any]) -> Iterator[str]:
    """A price that is read as the quantity too would pass every other check."""
    sources = [field["from"] for name, field in fields.items() if name != "side" or "values" in field]
    for name in sorted({str(s) for s in sources if sources.count(s) > 1}):
        yield f"fields: {name!r} is read twice"


def _contradictions(doc: dict[str, Any]) -> Iterator[str]:
    """What every key alone allows, and all together do not."""
    requests, fields = doc["requests"], doc["fields"]
    by_id = requests["page"]["asks"].startswith("ids_")
    if by_id and fields["trade_id"]["type"] != "integer":
        yield "fields/trade_id/type: paging by id needs integers"
    elements = [fields[name]["from"] for name in fields]
    if len({type(e) for e in elements}) > 1:
        yield "fields: a row is an object (names) or an array (places), not both"
    assets = doc.get("assets", {})
    if len(set(assets.values())) < len(assets):
        yield "assets: two of the exchange's assets have the same name of ours"
    sides = fields["side"].get("values") or fields["side"]["sign"]
    for side in sorted({"BUY", "SELL"} - set(sides.values())):
        yield f"fields/side: nothing that the exchange writes means {side}"
    if "sign" in fields["side"] and fields["side"]["from"] != fields["quantity"]["from"]:
        yield "fields/side/sign: only the sign of the quantity says a side"
    if "sign" in fields["side"] and "sign" not in fields["quantity"]:
        yield "fields/quantity/sign: must be `ignore` where the sign says the side"

    page = requests["page"]
    given = [requests.get("size_parameter"), page.get("parameter"), *requests.get("query", {}), *page.get("query", {})]
    for name in sorted({n for n in given if n and given.count(n) > 1}):
        yield f"requests: the parameter {name!r} is given twice"
    if not requests.get("unknown_product_status") and "unknown_product" not in doc.get("errors", {}):
        yield "requests: neither a status nor a code of `errors` means that a product is unknown"


def _archive_that_cannot_be(doc: dict[str, Any]) -> Iterator[str]:
    """A path that is another stream's or another day's file too would be taken as this one's history."""
    archive = doc.get("archive")
    if archive is None:
        return
    parts = {"daily": ("symbol", "yyyy", "mm", "dd"), "monthly": ("symbol", "yyyy", "mm")}
    for name, needed in parts.items():
        path = archive.get(name)
        if path is None:
            continue
        if lacking := [part for part in needed if "{" + part + "}" not in path]:
            yield f"archive/{name}: lacks {{{lacking[0]}}}, so that different files would have one path"
        if "dd" not in needed and "{dd}" in path:
            yield f"archive/{name}: a month's file has no day"
        if ".." in path.split("/"):
            yield f"archive/{name}: leads out of its folder"
    listed = list(archive["columns"].values()) if isinstance(archive["columns"], dict) else archive["columns"]
    for column in sorted({str(c) for c in listed if listed.count(c) > 1}):
        yield f"archive/columns: {column!r} stands twice"
    for name, field in doc["fields"].items():
        # A file is of one product: its name says which.
        if name != "product" and isinstance(field["from"], str) and field["from"] not in listed:
            yield f"archive/columns: no column becomes {field['from']!r}, which fields/{name} is read from"


def _codes_with_two_meanings(errors: dict[str, Any]) -> Iterator[str]:
    codes = [code for name, listed in errors.items() if name != "at" for code in listed]
    for code in sorted({c for c in codes if codes.count(c) > 1}):
        yield f"errors: {code!r} has two meanings"


def _examples_that_do_not_fit(doc: dict[str, Any]) -> Iterator[str]:
    """An example shows the form of an answer: one that the rest of the file cannot read is of another answer."""
    products, fields = doc["products"], doc["fields"]
    pair = {"pair/from": products["pair"]["from"]} if "pair" in products else {}
    named = {name: products[name] for name in ("symbol", "base", "quote", "status", "disabled") if name in products}
    listed = {**named, **pair, **{f"only/{name}": name for name in products.get("only", {})}}
    wanted = {
        "requests": {f"fields/{name}/from": fields[name]["from"] for name in fields},
        "products": {f"products/{name}": element for name, element in listed.items()},
    }
    for section, elements in wanted.items():
        where, pointer = f"{section}/example", doc[section]["rows"]
        try:
            rows = members(at_pointer(json.loads(doc[section]["example"]), pointer))
        except (ValueError, RecursionError):
            yield f"{where}: not JSON"
            continue
        except MalformedResponse:
            rows = []
        if not rows:
            yield f"{where}: has no row at {pointer!r}"
            continue
        # A product that is a bare text is all of its own fields.
        bare = section == "products" and isinstance(rows[0], str) and "pair" in products
        for key, element in () if bare else elements.items():
            if not _has(rows[0], element):
                yield f"{where}: the row has no {element!r}, which {key} names{_hint(rows[0], element)}"


def _hint(row: Any, element: Any) -> str:
    """What a row has instead of ``element``."""
    if isinstance(row, list):
        return f" (it is an array of {len(row)}, counted from 0)"
    if not isinstance(row, dict):
        return ""
    near = [*difflib.get_close_matches(str(element), list(row), n=1), *(name for name in row if str(element) in name)]
    return f" (did you mean {near[0]!r}?)" if near else f" (it has {', '.join(row)[:200]})"


def _has(row: Any, element: Any) -> bool:
    if isinstance(element, int):
        return isinstance(row, list) and element < len(row)
    return isinstance(row, dict) and element in row


def _explain(error: Any) -> str:
    where = "/".join(str(p) for p in error.absolute_path) or "(top)"
    schema = error.schema if isinstance(error.schema, dict) else {}
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(schema.get("properties", {}))
        unknown = [k for k in error.instance if k not in known]
        near = [difflib.get_close_matches(k, known, n=1) for k in unknown]
        hints = [f"{k!r}" + (f" (did you mean {n[0]!r}?)" if n else "") for k, n in zip(unknown, near, strict=True)]
        return f"{where}: unknown key {', '.join(hints)}"
    if error.validator == "not":
        key = ", ".join(map(repr, error.validator_value.get("required", ()))) or "this key"
        return f"{where}: {key} does not go with the other keys here"
    if error.validator in ("oneOf", "anyOf") and all("required" in choice for choice in error.validator_value):
        choices = [" and ".join(choice["required"]) for choice in error.validator_value]
        return f"{where}: {'one' if error.validator == 'oneOf' else 'at least one'} of {', '.join(choices)} is needed"
    meant = [schema["description"]] if error.validator in ("pattern", "oneOf") and "description" in schema else []
    meant += [f"for example {schema['examples'][0]!r}"] if error.validator == "pattern" and "examples" in schema else []
    return f"{where}: {error.message[:200]}" + (f" ({'; '.join(meant)})" if meant else "")
