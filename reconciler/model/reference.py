"""docs/agent-nix.md, made from the spec's models. `python -m reconciler.model.reference` prints it; a test
compares it with the checked-in page."""

# ruff: noqa: E501 (rows of tables)

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from reconciler.model.spec import Spec

_HEAD = """# `agent.nix`, the settings of an agent

Made from `reconciler/model/spec.py` by `python -m reconciler.model.reference`; do not edit.

`agent.nix` is a NixOS module; the agent's settings live under `hyperhive.*`. On the bare platform (no nixpkgs)
it is the same file with plain values only. A change takes effect when its commit is proposed and approved.

    { ... }:
    {
      hyperhive = {
        model = "haiku";
        bash.allow = [ "git *" "nix build .*" ];
        send.allow = [ "manager" "operator" ];
      };
    }

A pattern of `bash.allow` is written as in Claude Code: `git *` (any arguments), `git:*` (the same), `git status`
(exactly this), `Bash(git *)` (the same as `git *`). Every simple command of a pipeline or list must match one
and none of `bash.deny`; substitutions, redirections into files, background jobs, and programs that run other
programs are refused unless a pattern names that form.

| option | type | default | meaning |
|---|---|---|---|
"""

# When a change takes effect, and its risk when it grows: design facts that the schema cannot know.
_TAIL = """
## When a change takes effect

| settings | effect | risk when it grows |
|---|---|---|
| `model`, `models` | next turn | elevated if dearer |
| `role` | restart | dangerous |
| `bash.*`, `tools.allow`, `prompt`, `compact.*`, `notes.*` | end of the turn | elevated; dangerous for `*`, interpreters and launchers; prompt, compact and notes low |
| `mcpServers`, `tools.server` | end of the turn | dangerous |
| `send.allow`, `budget.*`, `network.allow` | at once | elevated; `*` dangerous |
| `limits.*`, `nix.enable` | restart | elevated |
| `uidMap.base` | fixed when the agent is created | invalid |

A change that needs no restart is taken up by the running container between two turns (`--now` does not wait for
the end of a turn, and restarts). On NixOS, where a root holds more than its settings, every change restarts it.
"""


def text() -> str:
    """The whole page."""
    schema = Spec.model_json_schema()
    rows = "".join(_row(*found) for found in _options(schema, schema["properties"], ""))
    return _HEAD + rows + _TAIL


def _options(
    schema: dict[str, Any], properties: dict[str, Any], prefix: str
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(option, its schema, the description of the group it stands in), in the order of the models."""
    for name, entry in properties.items():
        target = schema["$defs"].get(str(entry.get("$ref", "")).rpartition("/")[2])
        if target is not None and "properties" in target:
            words = target.get("description", "")
            for option, inner, _ in _options(schema, target["properties"], f"{prefix}{name}."):
                yield option, inner, inner.get("description") or words
        else:
            yield prefix + name, entry, str(entry.get("description", ""))


def _row(option: str, entry: dict[str, Any], words: str) -> str:
    default = f"`{json.dumps(entry['default'])}`" if "default" in entry else ""
    meaning = " ".join(words.split())
    cells = (f"`{option}`", _type(entry), default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _type(entry: dict[str, Any]) -> str:
    if "anyOf" in entry:
        return " or ".join(_type(one) for one in entry["anyOf"])
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    match entry.get("type"):
        case "array":
            bound = ", empty" if entry.get("maxItems") == 0 else ""
            return f"list of {_type(entry.get('items', {}))}{bound}"
        case "object":
            return "attribute set"
        case "null":
            return "null"
        case "string" if "pattern" in entry:
            return f"string like `{entry['pattern']}`"
        case kind:
            bounds = [
                f"{sign} {entry[key]}"
                for key, sign in (
                    ("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"),
                    ("multipleOf", "multiple of"),
                )
                if key in entry
            ]  # fmt: skip
            return " ".join([str(kind or "value"), ", ".join(bounds)]).strip()


if __name__ == "__main__":
    sys.stdout.write(text())
