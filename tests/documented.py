"""The shell lines of the pages that a new user follows, in the order in which they are printed."""

from __future__ import annotations

import re
import textwrap

from tests.unit.pages import text_of

PAGES = ("README.md", "docs/first-hour.md")

NOT_RUN = {
    "make test": "it would run itself",
    "export AWS_DEFAULT_REGION=eu-central-1": "for an account",
    "sam build && sam deploy": "asks, and deploys into an account; `make run` deploys the same template with sam",
    "schemahub update-seed --stack schemahub --quote USD --limit 20": "a stack in an account",
    "schemahub run --stack schemahub --dry-run": "a stack in an account",
    "schemahub run --stack schemahub": "a stack in an account",
    "schemahub status --stack schemahub": "a stack in an account",
    'schemahub query --stack schemahub "SELECT exchange, count(*) AS trades FROM trades GROUP BY 1"': "Athena",
    "schemahub verify --stack schemahub": "a stack in an account",
}
"""Lines that the run of the pages leaves out, each with its reason. They are parsed like all others."""


def lines_of(page: str) -> list[str]:
    """The lines of the page's shell blocks as they are printed, without their comments."""
    found = re.findall(r"^( *)```sh\n(.*?)^\1```", text_of(page), re.MULTILINE | re.DOTALL)
    lines = [line for _, block in found for line in textwrap.dedent(block).splitlines()]
    return [line for line in (re.sub(r"\s+# .*", "", line) for line in lines) if line.strip()]


def script_of(page: str) -> str:
    """What a user types who follows the page, but for the lines that are named above."""
    return "\n".join(["set -eu", *(line for line in lines_of(page) if line not in NOT_RUN)]) + "\n"
