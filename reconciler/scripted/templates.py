"""The small template language of scenario values. Pure.

`${name}` and `${name|filter}`: named groups of the scenario's conditions, captures of steps, and `agent`,
`model`, `prompt`. `${result.N}`: the N-th tool result of the exchange (from 0; -1 is the last);
`${result.N.json.a.b.0}` walks into it when it is JSON. A value that is nothing but `${name|int}` becomes a
number. `$${` stands for a plain `${`. Nothing else is evaluated.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from reconciler.scripted.conversation import ToolResult

BUILTIN = frozenset({"agent", "model", "prompt"})
_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}")
_NUMBER = re.compile(r"\$\{[^}|]*\|int\}")
_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_RESULT = re.compile(r"result\.(-?[0-9]{1,3})((?:\.json(?:\.[A-Za-z0-9_-]+)*)?)")


class TemplateError(ValueError):
    """A reference that is malformed, unknown, or cannot be filled from this conversation; says which and
    why."""


def _nix(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


FILTERS: dict[str, Callable[[str], str]] = {
    "json": lambda text: json.dumps(text)[1:-1],
    "nix": _nix,
    "shell": shlex.quote,
    "line": _first_line,
    "trim": str.strip,
    "lower": str.lower,
    "int": str.strip,
}


def check(value: Any, known: frozenset[str]) -> Iterator[str]:
    """What is wrong with the references in a value (strings at any depth), as sentences; `known` are names
    that may be used."""
    for text in _strings(value):
        for match in _REFERENCE.finditer(text):
            if match[1] is None:
                continue
            name, _, chosen = match[1].partition("|")
            if chosen and chosen not in FILTERS:
                yield f"{match[0]}: unknown filter {chosen!r}; there are {', '.join(sorted(FILTERS))}"
            if name.startswith("result."):
                if not _RESULT.fullmatch(name):
                    yield f"{match[0]}: write ${{result.N}} or ${{result.N.json.path}}"
            elif not _NAME.fullmatch(name) or name not in known | BUILTIN:
                yield f"{match[0]}: unknown name; there are {', '.join(sorted(known | BUILTIN))}"


def fill(value: Any, names: Mapping[str, str], results: Sequence[ToolResult]) -> Any:
    """The value with every reference in its strings replaced; raises `TemplateError`."""
    if isinstance(value, str):
        filled = _REFERENCE.sub(lambda match: _one(match, names, results), value)
        return int(filled) if _NUMBER.fullmatch(value) and filled.isdecimal() else filled
    if isinstance(value, list):
        return [fill(item, names, results) for item in value]
    if isinstance(value, dict):
        return {key: fill(item, names, results) for key, item in value.items()}
    return value


def _one(match: re.Match[str], names: Mapping[str, str], results: Sequence[ToolResult]) -> str:
    if match[1] is None:
        return "${"
    name, _, chosen = match[1].partition("|")
    text = _result(name, results) if name.startswith("result.") else names.get(name)
    if text is None:
        raise TemplateError(f"{match[0]}: unknown name")
    return FILTERS[chosen](text) if chosen else text


def _result(name: str, results: Sequence[ToolResult]) -> str:
    match = _RESULT.fullmatch(name)
    if match is None:
        raise TemplateError(f"${{{name}}}: write ${{result.N}} or ${{result.N.json.path}}")
    try:
        text = results[int(match[1])].text
    except IndexError:
        raise TemplateError(f"${{{name}}}: the exchange has {len(results)} tool results") from None
    path = match[2].split(".")[2:]
    return _walk(name, text, path) if match[2] else text


def _walk(name: str, text: str, path: Sequence[str]) -> str:
    try:
        value: Any = json.loads(text)
        for part in path:
            value = value[int(part)] if isinstance(value, list) else value[part]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise TemplateError(f"${{{name}}}: not in the result {text[:120]!r}") from None
    return value if isinstance(value, str) else json.dumps(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
