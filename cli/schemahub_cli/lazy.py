"""A group whose commands are imported when they are called: what starts every command must cost nothing."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Mapping


HELP = {"--help", "-h"}


class Named(NamedTuple):
    """Where a command is, and what the list of commands says of it (the first paragraph of its own help)."""

    module: str
    attribute: str
    help: str


class _Loaded(MutableMapping[str, Any]):
    """The commands by name; each is imported when it is first looked up."""

    def __init__(self, named: Mapping[str, Named]) -> None:
        self.named = dict(named)

    def __getitem__(self, name: str) -> Any:
        return _load(name, self.named[name])

    def __setitem__(self, name: str, command: Any) -> None:
        raise TypeError(f"{name}: commands are named in the table of the group")

    def __delitem__(self, name: str) -> None:
        del self.named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)


@functools.cache
def _load(name: str, where: Named) -> Any:
    found = getattr(import_module(where.module), where.attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
        alone.command(name)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = name
    return command


def _load_help() -> None:
    """Import what Typer draws help with, but not its readers of Markdown and tracebacks, which no help of ours uses.

    They bring two parsers and Pygments: 0.17 of 0.34 s of CPU. For the rest of the process they are what they were.
    """
    left_out = {name: ModuleType(name) for name in ("rich.markdown", "rich.traceback") if name not in sys.modules}
    for stub in left_out.values():
        stub.Markdown = stub.Traceback = None  # type: ignore[attr-defined]
    sys.modules.update(left_out)
    try:
        import_module("typer.rich_utils")
    finally:
        for name in left_out:
            del sys.modules[name]


def lazy_group(named: Mapping[str, Named]) -> type[TyperGroup]:
    """The class of a Typer app whose commands are these."""

    class Group(TyperGroup):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.commands = _Loaded(named)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            if HELP & set(args):
                _load_help()
            return super().resolve_command(ctx, args)

        def format_help(self, ctx: Any, formatter: Any) -> None:
            _load_help()
            TyperGroup.format_help(self._outline(), ctx, formatter)

        def _outline(self) -> TyperGroup:
            """Itself with commands that only have a name and a line of help."""
            outline = copy.copy(self)
            outline.commands = {name: TyperCommand(name, help=where.help) for name, where in named.items()}
            return outline

    return Group
