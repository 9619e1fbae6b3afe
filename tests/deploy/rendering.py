"""What CloudFormation makes of the template with given parameters: its intrinsic functions over plain values.

Only as far as this template uses them; another function is a KeyError. What a resource returns (`Ref`, `Fn::GetAtt`) is
written as `<Name>` and `<Name.Attribute>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PSEUDO = {
    "AWS::AccountId": "111111111111",
    "AWS::Partition": "aws",
    "AWS::Region": "eu-central-1",
    "AWS::URLSuffix": "amazonaws.com",
}
NOTHING = object()
"""What `AWS::NoValue` leaves: no list item, no key."""


@dataclass(frozen=True)
class Stack:
    """A template with values for its parameters; those not given have their defaults."""

    template: Mapping[str, Any]
    given: Mapping[str, str]

    @property
    def parameters(self) -> dict[str, str]:
        declared = self.template["Parameters"]
        assert set(self.given) <= set(declared), "a parameter that the template does not have"
        return {name: str(self.given.get(name, body.get("Default"))) for name, body in declared.items()}

    def condition(self, name: str) -> bool:
        return bool(self.render(self.template["Conditions"][name]))

    def resources(self) -> dict[str, Any]:
        """What is deployed, rendered."""
        return {
            name: {**body, "Properties": self.render(body.get("Properties", {}))}
            for name, body in self.template["Resources"].items()
            if "Condition" not in body or self.condition(body["Condition"])
        }

    def outputs(self) -> dict[str, Any]:
        return {
            name: self.render(body["Value"])
            for name, body in self.template["Outputs"].items()
            if "Condition" not in body or self.condition(body["Condition"])
        }

    def refused(self) -> list[str]:
        """What the template's rules say against these parameters."""
        return [
            assertion["AssertDescription"]
            for rule in self.template["Rules"].values()
            if self.render(rule.get("RuleCondition", True))
            for assertion in rule["Assertions"]
            if not self.render(assertion["Assert"])
        ]

    def render(self, value: Any) -> Any:
        if isinstance(value, list):
            return [item for item in map(self.render, value) if item is not NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            [(name, argument)] = value.items()
            if name == "Condition" and isinstance(argument, str):
                return self.condition(argument)
            if name == "Ref":
                return self._ref(argument)
            if name.startswith("Fn::"):
                return self._functions()[name](argument)
        rendered = {key: self.render(item) for key, item in value.items()}
        return {key: item for key, item in rendered.items() if item is not NOTHING}

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return NOTHING
        return self.parameters.get(name) if name in self.template["Parameters"] else PSEUDO.get(name, f"<{name}>")

    def _functions(self) -> dict[str, Callable[[Any], Any]]:
        render = self.render
        return {
            "Fn::And": lambda a: all(map(render, a)),
            "Fn::Contains": lambda a: render(a[1]) in render(a[0]),
            "Fn::Equals": lambda a: str(render(a[0])) == str(render(a[1])),
            "Fn::FindInMap": lambda a: self.template["Mappings"][render(a[0])][render(a[1])][render(a[2])],
            "Fn::GetAtt": lambda a: f"<{a if isinstance(a, str) else '.'.join(a)}>",
            "Fn::If": lambda a: render(a[1] if self.condition(a[0]) else a[2]),
            "Fn::Join": lambda a: a[0].join(render(a[1])),
            "Fn::Not": lambda a: not render(a[0]),
            "Fn::Select": lambda a: render(a[1])[int(a[0])],
            "Fn::Split": lambda a: render(a[1]).split(a[0]),
            "Fn::Sub": self._sub,
        }

    def _sub(self, argument: Any) -> str:
        text, own = (argument, {}) if isinstance(argument, str) else argument
        variables = {name: self.render(value) for name, value in own.items()}

        def value(match: re.Match[str]) -> str:
            name = match[1]
            return str(variables[name] if name in variables else self._ref(name))

        return re.sub(r"\$\{([^!}]+)\}", value, text)


def referred(rendered: Any) -> Iterator[str]:
    """The resources that a rendered value speaks of."""
    if isinstance(rendered, dict):
        for item in rendered.values():
            yield from referred(item)
    elif isinstance(rendered, list):
        for item in rendered:
            yield from referred(item)
    elif isinstance(rendered, str):
        yield from (match.partition(".")[0] for match in re.findall(r"<([A-Za-z0-9.]+)>", rendered))
