"""Deployments that the running container takes up: no restart, and a restart after all when it does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.model.states import ProposalState
from reconciler.plan.facts import Bounds
from reconciler.plan.steps import Again, Outcome, Settled, Waiting
from tests.support.passbench import SMITH, PassBench, pass_bench

pytestmark = pytest.mark.asyncio
ASKED = (SMITH, "spec")


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[PassBench]:
    """Smith runs generation 1."""
    async with pass_bench(tmp_path, in_place=True) as made:
        await made.approve("haiku")
        await made.settle()
        await made.say_hello_again()
        made.told.directed.clear()
        yield made


async def until_asked(bench: PassBench) -> Outcome:
    """Passes until the harness is asked to take up the new generation, and one more."""
    for _ in range(20):
        outcome = await bench.passes.run_pass(SMITH)
        if bench.builds.running(SMITH):
            await bench.built(SMITH)
        elif ASKED in bench.told.directed:
            return outcome
    raise AssertionError("it was never asked")


async def test_a_change_of_settings_is_taken_up_without_a_restart(bench: PassBench) -> None:
    proposal = await bench.approve("opus")
    outcome = await until_asked(bench)
    assert isinstance(outcome, Again)
    assert SMITH in bench.memory.draining, "no turn begins meanwhile"
    assert await bench.state_of(proposal) is ProposalState.ACTIVATING
    await bench.say_hello_again()
    assert await bench.settle() == Settled()
    assert await bench.state_of(proposal) is ProposalState.DEPLOYED
    assert (await bench.agent())["generation"] == 2
    assert len(bench.containers.history) == 1
    assert bench.nix.pointers[SMITH] == 2
    assert SMITH not in bench.memory.draining
    assert bench.told.directed == [ASKED], "asked once"


async def test_a_change_of_what_the_container_is_made_of_restarts_it(bench: PassBench) -> None:
    await bench.approve("haiku", limits={"memoryMax": "8G"})
    await bench.settle()
    assert (await bench.agent())["generation"] == 2
    assert len(bench.containers.history) == 2
    assert bench.told.directed == []


async def test_a_harness_that_does_not_take_it_up_in_time_gets_another_container(bench: PassBench) -> None:
    proposal = await bench.approve("opus")
    await until_asked(bench)
    await bench.clock.sleep(Bounds().hello_s + 1)
    assert await bench.settle() == Settled()
    assert await bench.state_of(proposal) is ProposalState.DEPLOYED
    assert len(bench.containers.history) == 2


async def test_a_turn_that_began_meanwhile_is_not_cut_short(bench: PassBench) -> None:
    proposal = await bench.approve("opus")
    await until_asked(bench)
    bench.memory.busy.add(SMITH)
    await bench.clock.sleep(10 * Bounds().hello_s)
    outcome = await bench.passes.run_pass(SMITH)
    assert isinstance(outcome, Waiting)
    assert "take up" in outcome.on
    bench.memory.busy.clear()
    await bench.say_hello_again()
    await bench.settle()
    assert await bench.state_of(proposal) is ProposalState.DEPLOYED
    assert len(bench.containers.history) == 1


async def test_hived_that_dies_in_between_asks_again_and_goes_on(bench: PassBench) -> None:
    proposal = await bench.approve("opus")
    await until_asked(bench)
    await bench.die()
    bench.told.directed.clear()
    await until_asked(bench)
    await bench.say_hello_again()
    assert await bench.settle() == Settled()
    assert await bench.state_of(proposal) is ProposalState.DEPLOYED
    assert len(bench.containers.history) == 1


async def test_the_next_start_is_from_the_new_root(bench: PassBench) -> None:
    await bench.approve("opus")
    await until_asked(bench)
    await bench.say_hello_again()
    await bench.settle()
    before = bench.containers.running()[SMITH]
    async with bench.store.state.transaction() as tx:
        await tx.run("UPDATE agents SET restart_wanted = restart_wanted + 1")
    await bench.settle()
    assert bench.containers.running()[SMITH] == bench.nix.profiles[SMITH][2] != before


async def test_a_hived_that_has_just_begun_waits_for_the_harness_to_come_back(bench: PassBench) -> None:
    """It may be in a turn, or in its pause between two tries: no reason for another container."""
    proposal = await bench.approve("opus")
    await until_asked(bench)
    await bench.die()
    greeted = bench.memory.hellos.pop(SMITH)
    bench.told.directed.clear()
    outcome = await bench.passes.run_pass(SMITH)
    assert isinstance(outcome, Again)
    assert outcome.after_s > Bounds().hello_s
    bench.memory.hellos[SMITH] = greeted + 1
    await bench.say_hello_again()
    assert await bench.settle() == Settled()
    assert await bench.state_of(proposal) is ProposalState.DEPLOYED
    assert len(bench.containers.history) == 1
