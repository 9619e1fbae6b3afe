"""Finding a place in a JSON document, and a value in a row."""

from __future__ import annotations

from typing import Any

from schemahub.errors import MalformedResponse

Element = str | int
"""Where a value stands in a row: the name of a field, or the place in an array."""


def at_pointer(document: Any, pointer: str) -> Any:
    """What stands at a JSON pointer; its part ``*`` is the only member that holds a list.

    Raises:
        MalformedResponse: the document has no such place.
    """
    for part in pointer.split("/")[1:]:
        if isinstance(document, list) and part.isdecimal() and int(part) < len(document):
            document = document[int(part)]
        elif isinstance(document, dict) and part == "*":
            document = document[only_list(document)]
        elif isinstance(document, dict) and part in document:
            document = document[part]
        else:
            raise MalformedResponse(f"the answer has no {pointer!r}")
    return document


def only_list(document: dict[str, Any]) -> str:
    """The name of the only member that holds a list. Raises MalformedResponse when there is none, or more."""
    lists = [name for name, value in document.items() if isinstance(value, list)]
    if len(lists) != 1:
        raise MalformedResponse(f"{len(lists)} members of the answer hold a list, one was expected")
    return lists[0]


def element_of(row: Any, element: Element) -> Any:
    """What stands at ``element`` of a row; a row that is a text is each of its own elements."""
    if isinstance(row, dict):
        return row.get(element)
    if isinstance(row, list):
        return row[element] if isinstance(element, int) and element < len(row) else None
    return row


def members(rows: Any) -> list[Any]:
    """The rows of a list, or of an object that holds each under its name; none of anything else."""
    return list(rows.values()) if isinstance(rows, dict) else list(rows) if isinstance(rows, list) else []
