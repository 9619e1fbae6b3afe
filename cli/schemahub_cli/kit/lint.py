"""What a schema cannot see in a mapping: its own example answers are read, mapped, and asked for from its simulator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from schemahub.errors import BadMapping
from schemahub.mapping_file import document_and_problems
from schemahub.mappings import Mapping, parse_mapping
from schemahub_cli.kit.checks import checks

_TO_FILL_IN = re.compile(r"<[A-Za-z][^<>]*>")
"""What `schemahub exchange new` leaves for a person to say."""


@dataclass(frozen=True)
class Problem:
    """One thing to correct: where in the file, and what is wrong."""

    line: int
    where: str
    """Path of the key, for example `requests/page/unit`; empty for the whole file."""
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.line), self.where, self.text) if part)


def lint(path: Path) -> list[Problem]:
    """Everything that is wrong with a mapping file, in the order of its lines; empty if it can be used."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return [Problem(1, "", f"cannot be read as UTF-8 text: {error}"[:300])]
    try:
        document, said = document_and_problems(text, path.name)
    except BadMapping as error:
        return [Problem(_yaml_line(error.reason), "", error.reason)]
    if not said:
        said = [*_left_open(document), *_checked(parse_mapping(text, path.name), path)]
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return sorted((_placed(problem, root) for problem in said), key=lambda problem: problem.line)


def _checked(mapping: Mapping, path: Path) -> Iterator[str]:
    if mapping.exchange != path.stem:
        yield f"exchange: is {mapping.exchange!r}, but the file is {path.name}: they must agree"
    yield from checks(mapping)


def _left_open(value: Any, where: str = "") -> Iterator[str]:
    """Texts that the scaffold left for a person to fill in."""
    if isinstance(value, str) and (found := _TO_FILL_IN.search(value)):
        yield f"{where}: still to be filled in: {found[0]}"
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from _left_open(child, f"{where}/{name}" if where else str(name))


def _placed(said: str, root: Any) -> Problem:
    """A message ``path/of/the/key: text`` with the line of that key, or of the unknown one that the text names."""
    where, _, text = said.partition(": ")
    unknown = re.match(r"unknown key '([^']+)'", text)
    parts = [] if where == "(top)" else where.split("/")
    return Problem(_line(root, [*parts, *([unknown[1]] if unknown else [])]), "" if where == "(top)" else where, text)


def _line(node: Any, parts: list[str]) -> int:
    """The line of the key at this path, or of the last one on the way to it."""
    line = 1
    for part in parts:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        if isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
            key = node = node.value[int(part)]
        elif found := next(((k, v) for k, v in pairs if k.value == part), None):
            key, node = found
        else:
            break
        line = key.start_mark.line + 1
    return line


def _yaml_line(reason: str) -> int:
    found = re.findall(r"line (\d+)", reason)
    return int(found[-1]) if found else 1
