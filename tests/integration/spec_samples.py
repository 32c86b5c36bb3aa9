"""Settings that a person may write, right and wrong, at every option; and what the pydantic model says
of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from reconciler.model.spec import Spec

# Patterns of the shell: what can match and what can not.
PATTERNS = [
    "if *",
    "FOO=* git *",
    "X=*",
    "ls &",
    "cat <<*",
    "& ls",
    "git && ls",
    "git:* push",
    "'git' *",
    "a=b if",
    "[ *",
    "[[ *",
    "-x",
    "~/x",
    "./x *",
    "Read(/x)",
    ":*",
    "x:*",
    "* && *",
    "find * -exec * ;",
    "]x",
    "x] *",
    "echo $(*)",
    "Bash",
    "\\ls",
    "x\\ *",
    "a  b",
    "<<*",
    "&",
    "ls & &",
    "ls <<* &",
    "ls & <<* &",
    "FOO=1 FOO=2",
    "f=o& x",
    "git *",
    "Bash(git *)",
    "Bash()",
    "Bash( x)",
    "Bash(x",
    " git",
    "git ",
    "git\t*",
    "*",
    "git:*",
]

# Whatever a person may write somewhere; each is tried at every option.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 15, 16, 65536, 65537, 131072, 1023, 1024, 4294836224, 4294901760, 1000000001,
    0.0, 0.1, 0.11, 0.5, 0.75, 0.999, 1.0, 1.5, 100000, 100000.5, 2.0,
    "", " ", "x", "haiku", "opus[1m]", "opus[2m]", "Opus", "claude-opus-4-20250514", "a" * 64, "a" * 65, "9x",
    "4G", "0G", "12T", "4g", "4", "99999999999G", "200%", "0%", "99999%", "100000%", "%",
    "agent", "manager", "operator", "queen", "*", "**", "A", "-x", "a" * 31, "a" * 32, "scout-1",
    "prompt.md", "./prompt.md", "/prompt.md", "../x", "a/../b", "a/..b", "a b", "x" * 200, "x" * 201,
    "git *", "Bash(git *)", "Bash()", "Bash( x)", "Bash(x", " git", "git ", "git\t*", "git\n*", "*", "git:*",
    "p" * 500, "p" * 501, "grün *", "Read", "Bash", "web_search", "web search", "t" * 80, "t" * 81,
    [], ["x"], ["git *"], ["haiku"], ["opus", "sonnet"], ["Read"], ["Read", "Bash"], ["manager"], ["*"],
    [1], [None], [["x"]], [""], ["git *"] * 200, ["git *"] * 201, ["example.org"],
    {}, {"x": 1}, {"allow": []}, {"base": None}, {"base": 65536}, {"base": 1}, {"enable": True},
    {"enable": "yes"}, {"usdPerDay": 5}, {"usdPerDay": 0}, {"atTokens": 0.5}, {"maxBytes": 1024},
    {"memoryMax": "1G", "tasksMax": 16},
    {"srv": {"command": "x"}}, {"srv": {}}, {"srv": {"command": ""}}, {"Srv": {"command": "x"}},
    {"srv": {"command": "x", "args": ["a"], "env": {"A b": "c"}, "allow": ["t"]}},
    {"srv": {"command": "x", "env": {"A": 1}}}, {"srv": {"command": "x", "more": 1}},
    {"srv": {"command": "x" * 4097}}, {"hyperhive": {"command": "x"}},
    *([pattern] for pattern in PATTERNS),
]  # fmt: skip


def places(table: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every group and every option of the defaults."""
    for name, value in table.items():
        yield (*path, name)
        if isinstance(value, dict) and name != "mcpServers":
            yield from places(value, (*path, name))


def at(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def samples_everywhere() -> list[dict[str, Any]]:
    """Each value at each option and group: `hyperhive` sets."""
    return [at(path, value) for path in places(Spec().model_dump(mode="json")) for value in VALUES]


def verdict(sample: dict[str, Any]) -> dict[str, Any] | None:
    """The spec with its defaults, or None if the model refuses it."""
    try:
        return Spec.model_validate(sample).model_dump(mode="json")
    except ValidationError:
        return None
