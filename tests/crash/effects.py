"""What a worker changes outside itself, named so that the same effect has the same name in every run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

READS = ("Get", "List", "Head", "Describe", "Query", "Scan", "BatchGet")
"""Whatever is not one of these is an effect: a call that nobody has thought of is counted too."""
RETURN = "answer to Step Functions"


@dataclass(frozen=True)
class Effect:
    """One change, or a worker's answer, on which the state machine acts."""

    invocation: int
    """The number of the Lambda invocation in its history, from 0."""
    state: str
    """Where the machine stands, as ``IngestStreams.FetchChunks.FetchChunk``."""
    call: str

    @property
    def kind(self) -> tuple[str, str]:
        return self.state, self.call


def is_read(operation: str) -> bool:
    return operation.startswith(READS)


def describe(service: str, operation: str, url: str, body: bytes) -> str:
    """What a call changes, with chance and range taken out: ``S3 PutObject raw``."""
    if service == "s3":
        key = unquote(urlsplit(url).path).split("schemahub/", 1)[-1]
        return f"S3 {operation} {_family(key)}"
    document = json.loads(body) if body[:1] == b"{" else {}
    if service == "dynamodb":
        return f"DynamoDB {operation} {_items(document)}".strip()
    return f"{service.upper() if len(service) < 4 else service.capitalize()} {operation}"


def _items(document: dict[str, Any]) -> str:
    """Which items a DynamoDB call is about: ``lock stream``, ``segment``; of a transaction all kinds."""
    if "TransactItems" in document:
        entries = [next(iter(entry.values())) for entry in document["TransactItems"]]
        return " + ".join(sorted({_items(entry) for entry in entries}))
    table = document.get("TableName", "").rsplit("-", 1)[-1]
    item = document.get("Key") or document.get("Item") or {}
    if table == "locks":
        return f"lock {item['lock_id']['S'].split('#')[0]}"
    if table == "streams":
        return str(item["item"]["S"].split("#")[0])
    return "breaker" if item["exchange"]["S"].endswith("#breaker") else "slots"


def _family(key: str) -> str:
    """What kind of object a key below ``schemahub/`` is."""
    folder, _, rest = key.partition("/")
    name = rest.rsplit("/", 1)[-1]
    if folder == "plans":
        return _plan(rest, name)
    if folder == "unified_trades":
        if rest.startswith("data/"):
            return "data file"
        if name.endswith(".metadata.json"):
            return "table metadata"
        return "manifest list" if name.startswith("snap-") else "table manifest"
    return {"checkpoints": "mirror"}.get(folder, "raw" if folder.startswith("raw_") else folder)


def _plan(rest: str, name: str) -> str:
    if "/manifests/" in rest:
        return "manifest of a batch"
    if rest.count("/") == 1:
        return f"list of {name.removesuffix('.jsonl')}"
    return "remaining chunks" if name.endswith(".remaining.jsonl") else "chunks"
