"""What each function weighs unzipped, with its layers: Lambda refuses more than 250 MiB.

    python -m local.layer_sizes [BUILD_DIRECTORY]

reads what `sam build` made (default `.aws-sam/build`) and exits with 1 when a function is past the limit kept here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse

LIMIT_MIB = 240
"""Lambda's own limit is 250 MiB (AWS, Lambda quotas: deployment package, unzipped, with layers); 10 are in reserve."""

MIB = 1024 * 1024


@dataclass(frozen=True)
class Weight:
    """One function: its logical id, and the MiB of its code and of each of its layers."""

    function: str
    parts: dict[str, float]

    @property
    def total_mib(self) -> float:
        return sum(self.parts.values())


def weights(build: Path) -> list[Weight]:
    """All functions of a build, in the template's order.

    Raises FileNotFoundError if `build` holds no built template.
    """
    template: dict[str, Any] = yaml_parse((build / "template.yaml").read_text())
    resources = template["Resources"]
    common = template.get("Globals", {}).get("Function", {}).get("Layers", [])
    found = []
    for name, resource in resources.items():
        if resource["Type"] != "AWS::Serverless::Function":
            continue
        properties = resource["Properties"]
        # SAM appends a function's own list to the one in Globals.
        layers = [layer["Ref"] for layer in [*common, *properties.get("Layers", [])]]
        parts = {"code": _mib(build / properties["CodeUri"])}
        parts |= {layer: _mib(build / resources[layer]["Properties"]["ContentUri"]) for layer in layers}
        found.append(Weight(name, parts))
    return found


def bytecode(build: Path) -> dict[str, set[str]]:
    """The interpreters (`cpython-313`) for which each layer of a build has bytecode."""
    template: dict[str, Any] = yaml_parse((build / "template.yaml").read_text())
    layers = {
        name: build / resource["Properties"]["ContentUri"]
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::Serverless::LayerVersion"
    }
    return {name: {file.stem.rpartition(".")[2] for file in path.rglob("*.pyc")} for name, path in layers.items()}


def _mib(directory: Path) -> float:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / MIB


def main(arguments: list[str]) -> int:
    """Print the table; the exit code is 1 if a function is too large, 2 if there is no build."""
    build = Path(arguments[0] if arguments else ".aws-sam/build")
    try:
        found = weights(build)
    except FileNotFoundError:
        print(f"{build} holds no built template: run `sam build` first", file=sys.stderr)
        return 2
    print(f"{'function':<26} {'MiB':>7}   of which")
    for weight in found:
        parts = ", ".join(f"{part} {mib:.1f}" for part, mib in weight.parts.items())
        print(f"{weight.function:<26} {weight.total_mib:7.1f}   {parts}")
    for layer, interpreters in bytecode(build).items():
        print(f"{layer}: bytecode for {', '.join(sorted(interpreters)) or 'no interpreter (slower cold starts)'}")
    heavy = [weight for weight in found if weight.total_mib > LIMIT_MIB]
    for weight in heavy:
        print(f"{weight.function} is past {LIMIT_MIB} MiB; Lambda refuses it at 250", file=sys.stderr)
    return 1 if heavy else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
