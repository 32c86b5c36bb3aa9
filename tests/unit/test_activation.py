"""Which changes of an agent a running container can take up."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.model.activation import IN_PLACE, needs_restart
from reconciler.model.spec import Spec


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"model": "opus"}, False),
        ({"bash": {"allow": ["git *"], "deny": []}}, False),
        ({"send": {"allow": ["*"]}, "budget": {"usdPerDay": 2.0, "tokensPerTurn": 1}}, False),
        ({"mcpServers": {"x": {"command": "y", "args": [], "env": {}, "allow": []}}}, False),
        ({}, False),
        ({"role": "manager"}, True),
        ({"limits": {"memoryMax": "8G"}}, True),
        ({"nix": {"enable": True}}, True),
        ({"model": "opus", "uidMap": {"base": 1048576}}, True),
        ({"somethingNew": 1}, True),
    ],
)
def test_only_what_a_container_is_made_of_needs_another_one(change: dict[str, Any], anew: bool) -> None:
    before = Spec().model_dump(mode="json")
    assert needs_restart(before, {**before, **change}) is anew
    assert needs_restart({**before, **change}, before) is anew


def test_every_setting_of_the_list_is_one() -> None:
    assert set(Spec.model_fields) >= IN_PLACE
