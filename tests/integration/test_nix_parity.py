"""The option table in Nix and the pydantic model say the same: equal defaults, equal verdicts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reconciler.model.spec import Spec

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("nix-instantiate") is None, reason="needs nix"),
]
BARE = Path(__file__).parents[2] / "modules/bare"

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


def nix(expression: str) -> Any:
    done = subprocess.run(
        ["nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://", "-E", expression],
        check=True, capture_output=True, text=True, timeout=120,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "NIX_STATE_DIR": "/nonexistent/var"},
    )  # fmt: skip
    return json.loads(done.stdout)


def verdicts(samples: list[dict[str, Any]], tmp_path: Path) -> list[dict[str, Any]]:
    """Of the Nix side, for each `hyperhive` set: the normalised value and its refusals."""
    file = tmp_path / "samples.json"
    file.write_text(json.dumps(samples))
    (tmp_path / "prompt.md").write_text("")
    expression = f"""
      let
        checker = import {BARE}/types.nix;
        options = import {BARE}/options.nix {{ inherit (checker) types; }};
        # No tree: whether a prompt exists is a matter of the commit, not of its type.
        judge = checker.check {{ root = null; }} "hyperhive" (checker.types.record options);
      in
      map judge (builtins.fromJSON (builtins.readFile {file}))
    """
    found: list[dict[str, Any]] = nix(expression)
    return found


def test_an_empty_agent_has_equal_defaults_on_both_sides(tmp_path: Path) -> None:
    [found] = verdicts([{}], tmp_path)
    assert found == {"value": Spec().model_dump(mode="json"), "refusals": []}


def test_both_sides_give_the_same_verdict_on_every_value_at_every_option(tmp_path: Path) -> None:
    samples = [at(path, value) for path in places(Spec().model_dump(mode="json")) for value in VALUES]
    assert len(samples) > 3000
    different = []
    for sample, found in zip(samples, verdicts(samples, tmp_path), strict=True):
        try:
            ours: Any = Spec.model_validate(sample).model_dump(mode="json")
        except ValidationError:
            ours = None
        theirs = found["value"] if not found["refusals"] else None
        if ours != theirs:
            different.append((sample, "accepted" if ours else "refused", found["refusals"]))
    assert different == []


def test_every_refusal_names_its_option_and_says_what_is_allowed(tmp_path: Path) -> None:
    samples = [at(path, value) for path in places(Spec().model_dump(mode="json")) for value in VALUES]
    for found in verdicts(samples, tmp_path):
        for refusal in found["refusals"]:
            assert refusal["where"].startswith("hyperhive.")
            assert refusal["why"]
            assert refusal["allowed"] or "no option" in refusal["why"], refusal


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("modle", "model"),
        ("bahs", "bash"),
        ("uidmap", "uidMap"),
        ("Limits", "limits"),
        ("mcpServer", "mcpServers"),
    ],
)
def test_a_misspelt_option_is_told_its_nearest_names(tmp_path: Path, written: str, meant: str) -> None:
    [found] = verdicts([{written: 1}], tmp_path)
    [refusal] = found["refusals"]
    assert f"the nearest are {meant}" in refusal["why"]


def test_a_hostile_name_costs_nothing(tmp_path: Path) -> None:
    [found] = verdicts([{"x" * 100_000: 1}], tmp_path)
    assert found["refusals"][0]["why"] == "is no option"
