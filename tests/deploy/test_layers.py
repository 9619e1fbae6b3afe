"""The layers: locked with hashes, in step with the project's lock, small enough, and really for Lambda's platform."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from local import layer_sizes
from tests.deploy.conftest import ROOT

LAYERS = ["core", "arrow", "duckdb", "iceberg"]
AWS_SDK = {"boto3", "botocore", "s3transfer", "awscrt"}
AARCH64 = 183  # ELF e_machine


def locked(file: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==([^\s;]+)", file.read_text(), re.MULTILINE))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_lock_has_hashes_and_names_no_host(layer: str) -> None:
    text = (ROOT / "layers" / layer / "requirements.lock").read_text()
    assert locked(ROOT / "layers" / layer / "requirements.lock")
    assert "://" not in text
    for entry in re.split(r"\n(?=[a-z0-9])", text.strip()):
        assert "--hash=sha256:" in entry, entry.splitlines()[0]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_lock_agrees_with_the_versions_that_are_developed_and_tested(layer: str) -> None:
    project = locked(ROOT / "requirements.lock")
    versions = locked(ROOT / "layers" / layer / "requirements.lock")
    assert {name: project.get(name) for name in versions} == versions


def test_no_layer_repeats_the_sdk_or_another_layer() -> None:
    held: dict[str, str] = {}
    for layer in LAYERS:
        for name in locked(ROOT / "layers" / layer / "requirements.lock"):
            assert name not in AWS_SDK
            assert held.setdefault(name, layer) == layer, f"{name} is in {held[name]} and in {layer}"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real `sam build` for Lambda."""
    directory = tmp_path_factory.mktemp("build")
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "SAM_CLI_TELEMETRY": "0",
        "AWS_DEFAULT_REGION": "us-east-1",
        "SCHEMAHUB_LAYER_TARGET": "lambda",
    }
    command = [str(binaries / "sam"), "build", "--no-cached", "--build-dir", str(directory / "build")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return directory / "build"


@pytest.mark.xdist_group("sam-build")
def test_every_function_fits_with_its_layers(build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert layer_sizes.main([str(build)]) == 0, capsys.readouterr().err
    assert len(layer_sizes.weights(build)) == 16


@pytest.mark.xdist_group("sam-build")
def test_the_size_check_refuses_what_is_too_large(
    build: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_sizes, "LIMIT_MIB", 1)
    assert layer_sizes.main([str(build)]) == 1
    assert "FetchChunkFunction is past" in capsys.readouterr().err


def test_the_size_check_says_when_there_is_no_build(tmp_path: Path) -> None:
    assert layer_sizes.main([str(tmp_path)]) == 2


@pytest.mark.xdist_group("sam-build")
def test_the_binaries_are_for_lambda(build: Path, template: dict[str, Any]) -> None:
    libraries = [file for file in build.rglob("*.so*") if file.is_file()]
    assert len(libraries) > 20
    for file in libraries:
        [machine] = struct.unpack_from("<H", file.read_bytes()[:20], 18)
        assert machine == AARCH64, file
        tag = re.search(r"\.cpython-(\d+)-", file.name)
        assert tag is None or tag[1] == "313", file


@pytest.mark.xdist_group("sam-build")
def test_bytecode_is_of_lambdas_interpreter_or_absent(build: Path) -> None:
    for layer, interpreters in layer_sizes.bytecode(build).items():
        assert interpreters <= {"cpython-313"}, layer


@pytest.mark.xdist_group("sam-build")
def test_the_core_layer_holds_the_product_and_every_mapping(build: Path) -> None:
    package = build / "CoreLayer" / "python" / "schemahub"
    assert {file.name for file in (package / "mappings").iterdir()} == {
        file.name for file in (ROOT / "mappings").glob("*.yaml")
    }
    sources = ROOT / "layers" / "core" / "schemahub"
    assert {file.name for file in package.iterdir() if file.is_file()} == {
        file.name for file in sources.iterdir() if file.is_file()
    }
