"""What the demo waits for before it prints where it is."""

from __future__ import annotations

from typing import Any, cast

import pytest

from reconciler.demo import control, seed
from reconciler.demo.launch import World

NO_WORLD = cast(World, None)


def _agent(name: str, *, desired: str, state: str, held: bool) -> dict[str, Any]:
    return {"name": name, "desired": desired, "state": state, "held": held, "generation": 1}


def test_nobody_waits_for_agents_that_are_held_or_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {
        "/v1/agents": [
            _agent("hm1nd", desired="running", state="idle", held=False),
            _agent("scout", desired="running", state="held", held=True),
            _agent("smith", desired="stopped", state="stopped", held=False),
        ],
        "/v1/holds": [{"scope": "scout"}],
    }
    monkeypatch.setattr(control, "get", lambda _world, path: {"items": answers[path]})
    monkeypatch.setattr(seed, "_READY_S", 0.0)  # who is waited for is late at once
    assert seed.wait_until_at_work(NO_WORLD, lambda _line: None) == []
    assert seed.held(NO_WORLD) == ["scout is held: `hive release scout`"]
    answers["/v1/holds"].insert(0, {"scope": "*"})
    assert seed.held(NO_WORLD) == ["the hive is held: `hive release --all`"]


def test_who_runs_and_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [_agent("smith", desired="running", state="starting", held=False)]
    monkeypatch.setattr(control, "get", lambda _world, _path: {"items": late})
    monkeypatch.setattr(seed, "_READY_S", -1.0)
    assert seed.wait_until_at_work(NO_WORLD, lambda _line: None) == ["smith: starting"]
