"""The formats in which ``schemahub query`` writes rows. Apart from export.py, so that --help imports no Arrow."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from schemahub.errors import BadInput

_ALSO = {".jsonl": "ndjson", ".feather": "arrow"}


class Format(StrEnum):
    """How an answer is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    NDJSON = "ndjson"
    PARQUET = "parquet"
    ARROW = "arrow"

    @property
    def binary(self) -> bool:
        return self in (Format.PARQUET, Format.ARROW)

    @classmethod
    def of(cls, path: Path) -> Format:
        """By a file's extension. Raises BadInput where it says nothing."""
        suffix = path.suffix.lower()
        name = _ALSO.get(suffix, suffix.removeprefix("."))
        files = [form for form in cls if form is not cls.TABLE]
        for form in files:
            if form == name:
                return form
        known = ", ".join(f".{form}" for form in files)
        raise BadInput(f"the name {path.name!r} does not say a format", remedy=f"Use {known}, or say --format.")
