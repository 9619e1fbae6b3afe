"""DynamoDB's condition and update expressions over plain items, as far as SchemaHub writes them.

An expression is parsed once into a function; what is not understood is a ``ValueError``, never a guess. That it judges
as DynamoDB's emulator does is held by tests/simulation/test_stores.py.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

Item = dict[str, Any]
Scope = tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, str]]
"""The item, the values by ``:name``, the names by ``#name``."""
Condition = Callable[[Scope], bool]
Operand = Callable[[Scope], Any]

_TOKEN = re.compile(r"\s*(<>|<=|>=|[()=<>,+-]|[:#]?[A-Za-z_][A-Za-z0-9_]*)")
_COMPARE = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TYPES = {"S": str, "N": Decimal, "L": list, "M": dict, "BOOL": bool}
MISSING = object()


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.findall(text)
        if "".join(self.tokens) != re.sub(r"\s+", "", text):
            raise ValueError(f"cannot read {text!r}")
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str | None = None) -> str:
        token = self.peek()
        if not token or (wanted is not None and token.upper() != wanted):
            raise ValueError(f"{wanted or 'more'} expected, not {token!r}")
        self.at += 1
        return token

    def accept(self, wanted: str) -> bool:
        found = self.peek().upper() == wanted
        self.at += found
        return found

    def either(self) -> Condition:
        terms = [self.both()]
        while self.accept("OR"):
            terms.append(self.both())
        return terms[0] if len(terms) == 1 else lambda scope: any(term(scope) for term in terms)

    def both(self) -> Condition:
        terms = [self.single()]
        while self.accept("AND"):
            terms.append(self.single())
        return terms[0] if len(terms) == 1 else lambda scope: all(term(scope) for term in terms)

    def single(self) -> Condition:
        if self.accept("NOT"):
            inner = self.single()
            return lambda scope: not inner(scope)
        if self.accept("("):
            inner = self.either()
            self.take(")")
            return inner
        if self.peek().lower() in ("attribute_exists", "attribute_not_exists", "attribute_type"):
            return self.function()
        left = self.operand()
        if self.accept("BETWEEN"):
            low = self.operand()
            self.take("AND")
            high = self.operand()
            return lambda scope: _compare("<=", low(scope), left(scope)) and _compare("<=", left(scope), high(scope))
        sign = self.take()
        if sign not in _COMPARE:
            raise ValueError(f"no comparison: {sign!r}")
        right = self.operand()
        return lambda scope: _compare(sign, left(scope), right(scope))

    def function(self) -> Condition:
        name = self.take().lower()
        self.take("(")
        path = self.operand()
        if name == "attribute_type":
            self.take(",")
            kind = self.operand()
            self.take(")")
            return lambda scope: isinstance(path(scope), _TYPES[kind(scope)])
        self.take(")")
        wanted = name == "attribute_exists"
        return lambda scope: (path(scope) is not MISSING) == wanted

    def operand(self) -> Operand:
        token = self.take()
        if token.startswith(":"):
            return lambda scope: scope[1][token]
        if token.lower() == "if_not_exists":
            self.take("(")
            path = self.operand()
            self.take(",")
            default = self.operand()
            self.take(")")
            return lambda scope: default(scope) if path(scope) is MISSING else path(scope)
        if token.startswith("#"):
            return lambda scope: scope[0].get(scope[2][token], MISSING)
        return lambda scope: scope[0].get(token, MISSING)

    def value(self) -> Operand:
        first = self.operand()
        if self.peek() in ("+", "-"):
            sign = operator.add if self.take() == "+" else operator.sub
            second = self.operand()
            return lambda scope: sign(first(scope), second(scope))
        return first


def _compare(sign: str, left: Any, right: Any) -> bool:
    """What is missing, or of another type, is unequal to everything and neither below nor above it."""
    if left is MISSING or right is MISSING or type(left) is not type(right):
        return sign == "<>"
    return bool(_COMPARE[sign](left, right))


@functools.cache
def condition(text: str) -> Condition:
    """A condition, filter or key condition."""
    parser = _Parser(text)
    parsed = parser.either()
    if parser.peek():
        raise ValueError(f"{text!r} goes on after its end")
    return parsed


@functools.cache
def update(text: str) -> Callable[[Scope], Item]:
    """An update: gives the new item; every right side sees the old one."""
    parser = _Parser(text)
    sets: list[tuple[str, Operand]] = []
    removes: list[str] = []
    while parser.peek():
        if parser.accept("SET"):
            while True:
                name = parser.take()
                parser.take("=")
                sets.append((name, parser.value()))
                if not parser.accept(","):
                    break
        elif parser.accept("REMOVE"):
            while True:
                removes.append(parser.take())
                if not parser.accept(","):
                    break
        else:
            raise ValueError(f"{text!r}: {parser.peek()!r} is neither SET nor REMOVE")

    def apply(scope: Scope) -> Item:
        def named(name: str) -> str:
            return scope[2][name] if name.startswith("#") else name

        changed = {named(name): value(scope) for name, value in sets}
        if any(value is MISSING for value in changed.values()):
            raise ValueError(f"{text!r} uses an attribute that is not there")
        gone = {named(name) for name in removes}
        return {k: v for k, v in {**scope[0], **changed}.items() if k not in gone}

    return apply
