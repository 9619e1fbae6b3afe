"""What a command says: tables and lines for people, one JSON document for machines, an exit code for scripts."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Annotated, Any, NoReturn, ParamSpec

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from schemahub.errors import SchemaHubError
from schemahub_cli import debug

P = ParamSpec("P")
LOG_WIDTH = 120
"""Columns where nobody can be asked: files, pipes, CI."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
StackOption = Annotated[
    str | None,
    typer.Option(
        "--stack",
        metavar="NAME",
        envvar="SCHEMAHUB_STACK",
        show_default=False,
        help="Name of a deployed CloudFormation stack (AWS credentials and region as usual). Default: the local stack.",
    ),
]


class Exit(IntEnum):
    """Exit codes (docs/cli.md lists them)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_STACK = 3
    BUSY = 4


class StackUnreachable(SchemaHubError):
    """The stack that was meant is not there, or does not answer."""

    remedy = "Start the local one with `schemahub local up`, or name a deployed one with --stack."


class ExecutionFailed(SchemaHubError):
    """An execution that was followed ended as FAILED, TIMED_OUT or ABORTED."""

    remedy = "What is committed stays, and finished chunks are not fetched again."


class FileUnusable(SchemaHubError):
    """The machine does not let a file or a folder be read or written that the command line names."""

    remedy = "Name a file or a folder that can be read and written here."


class UnexpectedError(SchemaHubError):
    """What no command foresees: a bug of SchemaHub."""

    remedy = (
        "This is a bug of SchemaHub, please report it. `schemahub --debug COMMAND` (or SCHEMAHUB_DEBUG=1) shows where "
        "it happened; what was committed stays as it is."
    )

    @classmethod
    def of(cls, error: BaseException) -> UnexpectedError:
        return cls(f"{type(error).__name__}: {error}"[:600])


class Say:
    """Where a command's words go. With ``as_json`` people's words are dropped and ``result`` prints the document."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = Console(quiet=as_json, highlight=False)
        if not self.console.is_terminal and "COLUMNS" not in os.environ:
            self.console.width = LOG_WIDTH

    def line(self, text: str = "") -> None:
        """One line for people; Rich markup is understood."""
        self.console.print(text, soft_wrap=True)

    def result(self, document: Any, *renderables: Any) -> None:
        """The command's result: the document for machines, the renderables for people."""
        if self.as_json:
            print(json.dumps(document, indent=2, default=str))
        for renderable in renderables:
            self.console.print(renderable, soft_wrap=isinstance(renderable, str))


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Run a command so that every failure has a name, a remedy and an exit code, and no traceback."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json"))
        _check_text(kwargs.values())
        try:
            function(*args, **kwargs)
        except StackUnreachable as error:
            fail(error, Exit.NO_STACK, as_json)
        except SchemaHubError as error:
            fail(error, Exit.FAILED, as_json)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise
        except Exception as error:
            from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, NoCredentialsError

            if isinstance(error, EndpointConnectionError | NoCredentialsError):
                fail(StackUnreachable(str(error)), Exit.NO_STACK, as_json)
            if isinstance(error, ClientError | BotoCoreError):
                fail(error, Exit.FAILED, as_json)
            if isinstance(error, OSError) and error.filename is not None:
                fail(FileUnusable(f"{str(error.filename)[:200]}: {error.strerror}"), Exit.FAILED, as_json)
            if debug.wanted():
                raise
            fail(UnexpectedError.of(error), Exit.FAILED, as_json)

    return run


def _check_text(values: Iterable[Any]) -> None:
    """Refuse bytes of the command line that are no UTF-8: Python hands them on as what no library takes for text."""
    for value in values:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise typer.BadParameter(f"{text[:40]!a} is not UTF-8")


def fail(error: Exception, code: Exit, as_json: bool) -> NoReturn:
    """Print a named error (on stderr, or as the JSON document) and leave with ``code``."""
    show(error, code, as_json)
    raise typer.Exit(int(code))


def show(error: Exception, code: Exit, as_json: bool) -> None:
    """Print a named error: for people on stderr, for machines as the JSON document."""
    remedy = getattr(error, "remedy", "")
    reason = getattr(error, "reason", str(error))
    if as_json:
        print(
            json.dumps(
                {
                    "error": type(error).__name__,
                    "message": str(reason),
                    "remedy": remedy,
                    "stream": getattr(error, "stream", None),
                    "exit_code": int(code),
                },
                indent=2,
            )
        )
    else:
        where = f"{error.stream}: " if getattr(error, "stream", None) else ""  # type: ignore[attr-defined]
        err = Console(stderr=True, highlight=False)
        err.print(f"[bold red]{type(error).__name__}[/]  {escape(where + str(reason))}", soft_wrap=True)
        if remedy:
            err.print(f"[dim]→[/] {escape(remedy)}", soft_wrap=True)


def listing(*columns: str, title: str | None = None, numbers: tuple[str, ...] = (), **options: Any) -> Table:
    """An empty table as narrow as it gets: text columns, then columns of numbers, which are never cut."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
        title_style="bold",
        **options,
    )
    for name in columns:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def clock(seconds: float) -> str:
    """Seconds as people read them: ``8 s``, ``3:05``, ``2:03:05``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def dollars(usd: float) -> str:
    """US dollars with as many digits as matter: ``$0.0042``, ``$12.30``."""
    return f"${usd:,.2f}" if usd >= 1 else f"${usd:.4f}"
