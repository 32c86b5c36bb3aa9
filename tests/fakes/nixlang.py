"""A reader for the plain-value subset of Nix: sets, dotted names, lists, strings, numbers, booleans, null,
comments.

Enough for an `agent.nix` without functions and logic, so that fast tests need no Nix. What it cannot read it
refuses; it accepts nothing that Nix would not.
"""

from __future__ import annotations

import re
from typing import Any

_TOKEN = re.compile(
    r"""\s+ | \#[^\n]* | /\*.*?\*/
    | (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<number>-?[0-9]+(?:\.[0-9]+)?)
    | (?P<name>[A-Za-z_][A-Za-z0-9_'-]*)
    | (?P<mark>\.\.\.|[{}\[\]=;.,:])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class NixError(ValueError):
    """The text is not of the subset."""


def parse(text: str) -> Any:
    """The value of an expression; a leading `{ … }:` of names is skipped, as of a module that uses none."""
    tokens = _tokens(text)
    reader = _Reader(tokens)
    reader.skip_arguments()
    value = reader.value()
    if reader.peek() is not None:
        raise NixError(f"unexpected {reader.peek()!r}")
    return value


def _tokens(text: str) -> list[str]:
    tokens, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise NixError(f"syntax error at {text[place : place + 20]!r}")
        if match.lastgroup:
            tokens.append(match.group())
        place = match.end()
    return tokens


class _Reader:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._place = 0

    def peek(self) -> str | None:
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def take(self, wanted: str | None = None) -> str:
        token = self.peek()
        if token is None or (wanted is not None and token != wanted):
            raise NixError(f"expected {wanted or 'more'}, found {token!r}")
        self._place += 1
        return token

    def skip_arguments(self) -> None:
        depth_end = self._tokens.index("}") if "}" in self._tokens else -1
        if 0 < depth_end < len(self._tokens) - 1 and self._tokens[depth_end + 1] == ":":
            self._place = depth_end + 2

    def value(self) -> Any:
        token = self.take()
        if token == "{":
            return self._set()
        if token == "[":
            items = []
            while self.peek() != "]":
                items.append(self.value())
            self.take("]")
            return items
        if token.startswith('"'):
            return _string(token)
        if token in {"true", "false", "null"}:
            return {"true": True, "false": False, "null": None}[token]
        if re.fullmatch(r"-?[0-9]+", token):
            return int(token)
        if re.fullmatch(r"-?[0-9.]+", token):
            return float(token)
        raise NixError(f"undefined variable {token!r}")

    def _set(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while self.peek() != "}":
            path = [self._key()]
            while self.peek() == ".":
                self.take(".")
                path.append(self._key())
            self.take("=")
            value = self.value()
            self.take(";")
            place = result
            for name in path[:-1]:
                place = place.setdefault(name, {})
                if not isinstance(place, dict):
                    raise NixError(f"attribute {name!r} already defined")
            if path[-1] in place:
                raise NixError(f"attribute {path[-1]!r} already defined")
            place[path[-1]] = value
        self.take("}")
        return result

    def _key(self) -> str:
        token = self.take()
        if token.startswith('"'):
            return _string(token)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_'-]*", token):
            raise NixError(f"{token!r} is no attribute name")
        return token


def _string(token: str) -> str:
    inner = token[1:-1]
    if re.search(r"(?<![\\$])\$\{", inner):
        raise NixError("string interpolation")
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m.group(1), m.group(1)), inner, flags=re.DOTALL)
