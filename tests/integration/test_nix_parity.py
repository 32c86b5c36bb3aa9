"""The option table in Nix and the pydantic model say the same: equal defaults, equal verdicts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reconciler.model.spec import Spec
from tests.integration.spec_samples import samples_everywhere, verdict

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("nix-instantiate") is None, reason="needs nix"),
]
BARE = Path(__file__).parents[2] / "modules/bare"


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
    samples = samples_everywhere()
    assert len(samples) > 3000
    different = []
    for sample, found in zip(samples, verdicts(samples, tmp_path), strict=True):
        ours = verdict(sample)
        theirs = found["value"] if not found["refusals"] else None
        if ours != theirs:
            different.append((sample, "accepted" if ours else "refused", found["refusals"]))
    assert different == []


def test_every_refusal_names_its_option_and_says_what_is_allowed(tmp_path: Path) -> None:
    for found in verdicts(samples_everywhere(), tmp_path):
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
