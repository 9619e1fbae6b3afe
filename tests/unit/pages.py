"""Reading the documentation: text, tables and code blocks of a page."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def rows_under(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head; backticks are taken off the first cell."""
    section = re.split(rf"^#+ {re.escape(heading)}$", text_of(page), flags=re.MULTILINE)[1]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert lines, f"{page} has no table under {heading}"
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines[0].splitlines()[2:]]
    return [[row[0].strip("| ").replace("`", ""), *(c.strip("| ") for c in row[1:])] for row in cells]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
