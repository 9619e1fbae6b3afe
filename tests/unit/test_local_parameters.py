"""`schemahub local up` and `make run` deploy the same, so that neither makes the other deploy again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from local import bring_up, demo, deploy, ministack, sim_process, stack
from local.stack import Stack
from schemahub_cli import target
from schemahub_cli.main import app
from schemahub_cli.output import Say


class Reached(Exception):
    """As far as a deployment would have come."""


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What would have been deployed, by whom in order; nothing is started."""
    asked: list[dict[str, Any]] = []

    def up(home: Path, **given: Any) -> Stack:
        asked.append({name: value for name, value in given.items() if name not in ("progress", "port", "auth")})
        raise Reached

    monkeypatch.setenv("SCHEMAHUB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stack, "up", up)
    monkeypatch.setattr(ministack, "running", lambda home: None)
    monkeypatch.setattr(sim_process, "start", lambda home, port: True)
    monkeypatch.setattr(target, "resolve_local", lambda home: None)
    return asked


@pytest.mark.parametrize("mode", [[], ["--live"]], ids=["simulated", "live"])
def test_make_run_and_local_up_deploy_the_same_parameters(deployed: list[dict[str, Any]], mode: list[str]) -> None:
    CliRunner().invoke(app, ["local", "up", *mode])
    for words in ([], ["--full"]):
        with pytest.raises(Reached):
            demo.run(demo.parse([*words, *mode]), Say(True))
    assert len(deployed) == 3
    first = {"schedule": False, "products": "", **deployed[0]}
    assert [{"schedule": False, "products": "", **given} for given in deployed] == [first] * 3
    assert first["parameters"] == ({"ColdStartHours": bring_up.LIVE_HOURS} if mode else {})


def test_what_was_built_is_not_built_again_for_other_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    monkeypatch.setattr(deploy, "BUILD", tmp_path / "aws-sam" / "local")

    def sam_build(home: Path) -> None:
        built.append(home)
        deploy.BUILD.mkdir(parents=True, exist_ok=True)

    say: Callable[[str], None] = lambda text: None  # noqa: E731
    monkeypatch.setattr(deploy, "_sam_build", sam_build)
    monkeypatch.setattr(deploy, "_fingerprint", lambda parameters: f"sources-1 {sorted(parameters)}")
    for _ in range(2):
        deploy.build(tmp_path, say)
    assert len(built) == 1
    monkeypatch.setattr(deploy, "_fingerprint", lambda parameters: "sources-2")
    deploy.build(tmp_path, say)
    assert len(built) == 2


def test_a_build_that_failed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "BUILD", tmp_path / "aws-sam" / "local")
    deploy.BUILD.mkdir(parents=True)
    (deploy.BUILD.parent / "local-built").write_text(deploy._fingerprint({}))
    monkeypatch.setattr(deploy, "_fingerprint", lambda parameters: "other")

    def fails(home: Path) -> None:
        raise deploy.DeployFailed("no space")

    monkeypatch.setattr(deploy, "_sam_build", fails)
    with pytest.raises(deploy.DeployFailed):
        deploy.build(tmp_path, lambda text: None)
    assert not (deploy.BUILD.parent / "local-built").exists()


def test_what_a_build_printed_is_shown_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "make: *** [/tmp/layers/core/Makefile:9: build-CoreLayer] Error 2"

    def fails(options: demo.Options, say: Say) -> int:
        raise deploy.DeployFailed(said)

    monkeypatch.setenv("SCHEMAHUB_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "run", fails)
    assert demo.main([]) == 1
    assert said in capsys.readouterr().err
