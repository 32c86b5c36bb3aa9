"""A hived that starts anew serves whoever is at work, whatever the next step of that agent waits for: it may
wait for the agent itself to end its turn."""

from __future__ import annotations

import dataclasses

import pytest

from reconciler.model.names import AgentName
from reconciler.model.states import Desired as Want
from reconciler.model.states import ProposalState
from reconciler.plan.facts import Actual, Bounds, Deployment, Desired, Target
from reconciler.plan.planner import plan
from reconciler.plan.steps import Kind, Waiting

OLD, NEW = "/nix/store/old", "/nix/store/new"
AT_WORK = Actual(
    phase="running", toplevel=OLD, invocation="a", started_at=1.0, hello=True, ready=True, busy=True,
    directories=True, sockets=False,
)  # fmt: skip
BUILDING = Deployment(7, ProposalState.BUILDING, False, None, None, None, building=True)
BUILT = dataclasses.replace(BUILDING, toplevel=NEW, building=False)


@pytest.mark.parametrize(
    ("deployment", "actual"),
    [
        pytest.param(BUILDING, AT_WORK, id="a build goes on"),
        pytest.param(BUILT, AT_WORK, id="its turn must end first"),
        pytest.param(
            BUILT, dataclasses.replace(AT_WORK, stored=False, rebuild="a build"), id="a root is built again"
        ),
    ],
)
def test_an_agent_at_work_is_served_before_anything_is_waited_for(
    deployment: Deployment, actual: Actual
) -> None:
    desired = Desired(AgentName("smith"), Want.RUNNING, Target(1, OLD), deployment)
    seen = plan(desired, actual, 10.0, Bounds())
    assert [step.kind for step in seen.steps] == [Kind.SERVE_SOCKETS]
    rests = plan(desired, dataclasses.replace(actual, sockets=True), 10.0, Bounds())
    assert rests.steps == ()
    assert isinstance(rests.outcome, Waiting)
