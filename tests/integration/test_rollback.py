"""A rollback, from the operator's word to the container that runs again; what a newer decision does to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.approvals.projection import missing_tags
from reconciler.control import models as api
from reconciler.errors import OperatorError
from reconciler.lifecycle import LifecycleService
from reconciler.model.names import AgentName
from reconciler.model.risk import highest
from reconciler.model.states import ProposalState
from reconciler.plan.steps import Settled
from reconciler.store import rollbacks
from tests.fakes.services import FakeAgents
from tests.support.approvals import ALICE, SMITH, World, agent_nix
from tests.support.passbench import PassBench, future_path, pass_bench

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[PassBench]:
    async with pass_bench(tmp_path) as made:
        yield made


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with await World.open(tmp_path) as made:
        yield made


def lifecycle(world: World) -> LifecycleService:
    return LifecycleService(
        store=world.store, agents=FakeAgents(), approvals=world.service, wake=world.wake, now=world.clock.now
    )


async def go_back(bench: PassBench, number: int | None = None) -> int:
    """As the operator asks for it; the proposal's id."""
    async with bench.store.state.transaction() as tx:
        goal = await rollbacks.target(tx, "smith", number)
        return await rollbacks.insert(
            tx, AgentName("smith"), goal, "unix:root", api.Rollback(), ("low", "[]")
        )


async def test_an_earlier_path_runs_again_under_a_new_number_and_nothing_is_built(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    first = bench.containers.running()[SMITH]
    await bench.approve("opus")
    await bench.settle()
    builds = list(bench.nix.builds)
    back = await go_back(bench)
    assert await bench.settle() == Settled()
    assert await bench.state_of(back) is ProposalState.DEPLOYED
    assert bench.containers.running()[SMITH] == first
    assert (await bench.agent())["generation"] == 3
    assert bench.nix.profiles[SMITH][3] == first
    assert bench.nix.pointers[SMITH] == 3
    assert bench.nix.builds == builds
    # what was left is not gone back to by itself, only by its number
    with pytest.raises(OperatorError, match="no earlier generation"):
        await go_back(bench)
    assert await bench.state_of(await go_back(bench, 2)) is ProposalState.APPROVED
    await bench.settle()
    assert (await bench.agent())["generation"] == 4
    assert bench.containers.running()[SMITH] == bench.nix.profiles[SMITH][2]


async def test_a_rollback_that_does_not_come_up_is_itself_rolled_back(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    await bench.approve("opus")
    await bench.settle()
    running = bench.containers.running()[SMITH]
    bench.mute |= {path async for path in future_path(bench, "haiku")}
    back = await go_back(bench)
    await bench.settle()
    assert await bench.state_of(back) is ProposalState.FAILED
    assert bench.containers.running()[SMITH] == running
    assert (await bench.agent())["generation"] == 2


async def test_a_rollback_is_shown_like_every_proposal_and_its_tags_are_known(world: World) -> None:
    await world.agent(SMITH)
    later = await world.propose(SMITH, SMITH, {"agent.nix": agent_nix(model='"opus"')})
    await world.approve(later)
    await world.deploy(later)
    made = await lifecycle(world).rollback(ALICE, SMITH, api.Rollback(note="worse than before"))
    assert (made.state, made.rollback_of, made.note) == (ProposalState.APPROVED, 1, "worse than before")
    assert (made.requested_by, made.decided_by) == ("operator", ALICE.name)
    assert made.description == "back to generation 1"
    assert ("model", '"opus"', '"haiku"') in [(c.option, c.before, c.after) for c in made.changes]
    assert made.risk is highest(change.risk for change in made.changes)
    assert not await missing_tags(world.git, world.store.state, SMITH), "what waits in the outbox is no drift"
    chain = await world.service.why(made.id)
    assert [cause.text for cause in chain.chain] == [
        "alice (operator) rolled back to generation 1: worse than before"
    ]


async def test_a_newer_approval_takes_the_place_of_a_rollback_that_has_not_come_up(world: World) -> None:
    await world.agent(SMITH)
    second = await world.propose(SMITH, SMITH, {"agent.nix": agent_nix(model='"opus"')})
    await world.approve(second)
    await world.deploy(second)
    back = await lifecycle(world).rollback(ALICE, SMITH, api.Rollback())
    third = await world.propose(SMITH, SMITH, {"agent.nix": agent_nix(model='"sonnet"')})
    await world.approve(third)
    assert (await world.get(back.id)).state is ProposalState.SUPERSEDED
    with pytest.raises(OperatorError):
        await world.service.cancel(ALICE, back.id, api.Decide())
