"""Every command and option is in docs/cli.md, and everything that the docs name exists."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from schemahub_cli.main import app

ROOT = Path(__file__).parents[2]
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
DOCS = [*sorted((ROOT / "docs").glob("**/*.md")), *(p for p in [ROOT / "README.md"] if p.exists())]


def leaves(group: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    for name, child in sorted(group.commands.items()):  # type: ignore[attr-defined]
        if hasattr(child, "commands"):
            yield from leaves(child, (*path, name))
        else:
            yield " ".join((*path, name)), child


COMMANDS = dict(leaves(get_command(app)))


def options_of(command: object) -> set[str]:
    names: set[str] = set()
    for parameter in command.params:  # type: ignore[attr-defined]
        if parameter.param_type_name == "option":
            names |= {*parameter.opts, *parameter.secondary_opts}
    return names - {"--help", "-h"}


def section(name: str) -> str:
    match = re.search(rf"^## `schemahub {re.escape(name)}`$(.*?)(?=^## |\Z)", CLI, re.MULTILINE | re.DOTALL)
    assert match, f"docs/cli.md has no section for schemahub {name}"
    return match[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_its_options_are_in_the_docs_and_no_others(name: str) -> None:
    table = "\n".join(line.split("|")[1] for line in section(name).splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(--?[a-z-]+)`", table)) == options_of(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_and_each_option_what_it_means(name: str) -> None:
    command = COMMANDS[name]
    assert len(command.help or "") > 40  # type: ignore[attr-defined]
    for parameter in command.params:  # type: ignore[attr-defined]
        assert getattr(parameter, "help", None), f"{name} {parameter.name} has no help"


def test_the_docs_describe_no_command_that_is_gone() -> None:
    assert set(re.findall(r"^## `schemahub ([a-z -]+)`$", CLI, re.MULTILINE)) == set(COMMANDS)


def examples() -> list[tuple[str, str]]:
    """Every line of a code block, and every piece of inline code, that begins with the command."""
    found = []
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        for line in re.findall(r"(?:^|`)(?:[A-Z_]+=\S+ )?(?:\.venv/bin/)?(schemahub [a-z][^`\n]*)", text, re.MULTILINE):
            found.append((path.name, line))
    return found


@pytest.mark.parametrize(("path", "line"), examples())
def test_every_example_names_a_command_and_options_that_exist(path: str, line: str) -> None:
    words = shlex.split(line.split(" > ")[0].split(" | ")[0], comments=True)[1:]
    name = next((n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS), None)
    if name is None:
        # A group on its own, such as `schemahub local`.
        assert any(n.startswith(f"{words[0]} ") for n in COMMANDS), f"{path}: {line}"
        return
    used = {word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
    assert used <= options_of(COMMANDS[name]) | {"--help"}, f"{path}: {line}"


def test_the_exit_codes_are_documented() -> None:
    from schemahub_cli.output import Exit

    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", CLI, re.MULTILINE)}
    assert documented == {*map(int, Exit), 130}
