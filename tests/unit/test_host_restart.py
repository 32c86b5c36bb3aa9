"""A host that was started again: its containers are gone, and that is nobody's crash."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from reconciler.config import Config
from reconciler.effects.containers import proc, record
from reconciler.effects.containers.driver import ShimContainers
from reconciler.model.names import AgentName
from reconciler.model.states import Desired as Want
from reconciler.model.states import ProposalState
from reconciler.plan.facts import Actual, Bounds, Deployment, Desired, Target
from reconciler.plan.planner import plan
from reconciler.plan.steps import Kind

NAME = AgentName("scout")
GONE = Actual(
    phase="exited", toplevel="/nix/store/new", invocation="a", started_at=100.0, directories=True,
    sockets=True, host_restarted=True,
)  # fmt: skip


def kinds(desired: Desired, actual: Actual) -> list[Kind]:
    return [step.kind for step in plan(desired, actual, 105.0, Bounds()).steps]


def test_the_container_is_started_again_and_no_crash_is_told() -> None:
    desired = Desired(NAME, Want.RUNNING, Target(1, "/nix/store/new"))
    assert kinds(desired, GONE) == [Kind.CLEAR]
    assert kinds(desired, dataclasses.replace(GONE, host_restarted=False)) == [Kind.REPORT_CRASH]


def test_a_candidate_under_probe_gets_another_start_and_is_not_rolled_back() -> None:
    deployment = Deployment(7, ProposalState.ACTIVATING, False, "/nix/store/new", 2, 99.0, building=False)
    desired = Desired(NAME, Want.RUNNING, Target(1, "/nix/store/old"), deployment)
    assert kinds(desired, GONE) == [Kind.CLEAR, Kind.START]
    assert kinds(desired, dataclasses.replace(GONE, host_restarted=False)) == [Kind.ROLL_BACK]


@pytest.mark.asyncio
async def test_a_record_of_another_boot_or_pid_namespace_is_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "containers" / NAME
    folder.mkdir(parents=True)
    containers = ShimContainers(Config(state_dir=str(tmp_path)))
    for world, restarted in ((proc.world_id(), False), ("another/pid:[4026531836]/1", True)):
        written = record.Record(
            name=NAME, invocation="a", toplevel="/nix/store/new", world=world, started_at=1.0, phase="exited"
        )
        record.write_record(folder, written)
        status = await containers.status(NAME)
        assert (status.phase, status.host_restarted) == ("exited", restarted)
