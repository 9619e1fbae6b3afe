"""Command lines of the AWS CLI, checked against botocore's own descriptions of the services."""

from __future__ import annotations

import functools
import json
from typing import Any

import botocore.session
from botocore import xform_name
from botocore.model import OperationModel, ServiceModel

GLOBAL = {"--region", "--profile", "--output", "--query", "--no-cli-pager"}
# Commands that the CLI has beside those of the services' models, with their own options.
OWN = {
    ("ecr", "get-login-password"): set(),
    ("s3", "sync"): {"--delete", "--dryrun"},
}


@functools.cache
def service(name: str) -> ServiceModel:
    return botocore.session.get_session().get_service_model(name)


def problem(words: list[str]) -> str | None:
    """Why the AWS CLI would refuse the command, None if it would not. `words` begin after `aws`."""
    name, command, *rest = words
    options = parse(rest)
    if (name, command) in OWN:
        unknown = set(options) - OWN[name, command] - GLOBAL
        return f"no such option: {sorted(unknown)}" if unknown else None
    operations = {xform_name(o, "-"): o for o in service(name).operation_names}
    if command not in operations:
        return f"{name} has no command {command}"
    return misuse(service(name).operation_model(operations[command]), options)


def parse(words: list[str]) -> dict[str, list[str]]:
    """Options and the words behind each."""
    found: dict[str, list[str]] = {}
    option = ""
    for word in words:
        if word.startswith("--"):
            option = word
            found[option] = []
        elif option:
            found[option].append(word)
    return found


def misuse(operation: OperationModel, options: dict[str, list[str]]) -> str | None:
    shape: Any = operation.input_shape
    members = {f"--{xform_name(name, '-')}": (name, member) for name, member in shape.members.items()}
    for option, values in options.items():
        if option in GLOBAL:
            continue
        plain = f"--{option.removeprefix('--no-')}" if option.startswith("--no-") else option
        if plain not in members:
            return f"no such option: {option}"
        member = members[plain][1]
        if (member.type_name == "boolean") != (not values):
            return f"{option} takes {'no value' if member.type_name == 'boolean' else 'a value'}"
        if member.type_name == "structure" and values[0].startswith("{"):
            unknown = set(json.loads(values[0])) - set(member.members)
            if unknown:
                return f"{option} has no {sorted(unknown)}"
        elif member.type_name == "structure":
            unknown = {word.partition("=")[0] for word in values[0].split(",")} - set(member.members)
            if unknown:
                return f"{option} has no {sorted(unknown)}"
        if getattr(member, "enum", None) and values[0] not in member.enum:
            return f"{option} is none of {member.enum}"
    given = {members[option][0] for option in options if option in members}
    given |= {members[f"--{o[5:]}"][0] for o in options if o.startswith("--no-") and f"--{o[5:]}" in members}
    missing = set(shape.required_members) - given
    return f"lacks {sorted(missing)}" if missing else None
