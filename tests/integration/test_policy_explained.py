"""`hive policy`: the engine of the harness decides for people, as an unprivileged program of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.config import Config
from reconciler.control import models as api
from reconciler.errors import HiveError
from reconciler.explaining import explain
from tests.support.policycases import MAIN, MAIN_DENY, cases

pytestmark = [pytest.mark.asyncio, pytest.mark.integration]

REPO = Path(__file__).parents[2]


def config(**harness: str) -> Config:
    paths = {"package": str(REPO / "harness"), "venv": str(REPO / ".venv-harness"), **harness}
    return Config.model_validate({"build_user": "nobody", "harness": paths})


def view(**bash: list[str]) -> api.SpecView:
    return api.SpecView(agent="scout", generation=3, commit=None, digest=None, spec={"bash": bash})


async def test_it_is_decided_as_inside_and_told_with_the_patterns() -> None:
    spec = view(allow=list(MAIN), deny=list(MAIN_DENY))
    for case in [case for case in cases() if case.allow == MAIN][::90]:
        answer = await explain(config(), spec, case.command, "/state")
        assert answer.allowed is case.allowed
        assert case.why in answer.reason
        assert (answer.allow, answer.deny) == (list(MAIN), list(MAIN_DENY))


async def test_the_folder_counts() -> None:
    spec = view(allow=["echo *"])
    assert (await explain(config(), spec, "echo x > ../y", "/state/deep")).allowed
    assert not (await explain(config(), spec, "echo x > ../y", "/state")).allowed


async def test_an_agent_without_a_generation_has_no_shell() -> None:
    nothing = api.SpecView(agent="scout", generation=None, commit=None, digest=None, spec={})
    answer = await explain(config(), nothing, "ls", "/state")
    assert not answer.allowed
    assert "no shell" in answer.reason


async def test_hostile_text_is_shown_and_not_interpreted() -> None:
    answer = await explain(config(), view(allow=["ls"]), "ls \x1b[31m", "/state")
    assert not answer.allowed
    assert "\x1b" not in answer.command + answer.reason


async def test_an_engine_that_cannot_start_is_an_error_and_no_permission() -> None:
    with pytest.raises(HiveError):
        await explain(config(venv="/nowhere"), view(allow=["ls"]), "ls", "/state")
    with pytest.raises(HiveError):
        await explain(config(package="/nowhere/harness"), view(allow=["ls"]), "ls", "/state")
