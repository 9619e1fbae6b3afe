"""The README and the first hour as printed, by a shell that has only what the pages ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import ministack, sim_process, stack
from tests.documented import PAGES, script_of

BUSY_MACHINE_S = 500
INDEX = ("PIP_", "UV_")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """PATH, HOME and this machine's way to its package index.

    And where the data is and which ports are taken, so that no other stack is touched (docs/cli.md).
    """
    home = tmp_path_factory.mktemp("documented") / "home"
    outside = [p for p in os.environ["PATH"].split(os.pathsep) if Path(p) != Path(sys.executable).parent]
    yield {
        **{name: value for name, value in os.environ.items() if name in ministack.PASSED_ON or name.startswith(INDEX)},
        "PATH": os.pathsep.join(outside),
        "SCHEMAHUB_HOME": str(home),
        "SCHEMAHUB_AWS_PORT": str(ministack.free_port()),
        "SCHEMAHUB_SIM_PORT": str(ministack.free_port()),
    }
    sim_process.stop(home)
    stack.down(home)


@pytest.mark.timeout(2 * BUSY_MACHINE_S)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_printed(page: str, environment: dict[str, str]) -> None:
    ran = subprocess.run(
        ["bash", "-x", "-c", script_of(page)],
        cwd=ministack.REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUSY_MACHINE_S,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert "every trade of every range is in the table exactly once" in ran.stdout
