"""300 agents of one hived, some in real containers: they all converge, and what happens to one of them or to
hived restarts no other."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.app import Hived
from reconciler.control import models as api
from reconciler.effects.protocols import ContainerStatus
from reconciler.model.names import AgentName
from reconciler.plan.steps import Settled
from tests.integration.containers_kit import needs_containers
from tests.support.fleets import name_of
from tests.support.mixed import ROOT, MixedFleet, mixed_fleet

pytestmark = [pytest.mark.asyncio, needs_containers]
AGENTS = 300
REAL = 20
IDLE = {"idle"}
_DEADLINE_S = 120.0


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[MixedFleet]:
    async with mixed_fleet(tmp_path, AGENTS, REAL) as made:
        yield made


async def states(hived: Hived) -> dict[str, str]:
    return {agent.name: agent.state for agent in await hived.agents.all()}


async def all_idle(hived: Hived) -> None:
    """Wait until everybody runs, has said hello and waits for messages."""
    await until(hived, lambda found: set(found.values()) == IDLE)


async def until(hived: Hived, holds: Callable[[dict[str, str]], bool]) -> None:
    found: dict[str, str] = {}
    try:
        async with asyncio.timeout(_DEADLINE_S):
            while not holds(found := await states(hived)):  # noqa: ASYNC110 - a fact of other processes
                await asyncio.sleep(0.25)
    except TimeoutError:
        others = {name: state for name, state in found.items() if state not in IDLE}
        pytest.fail(f"after {_DEADLINE_S} s there are still {len(others)}: {dict(list(others.items())[:9])}")


async def starts(world: MixedFleet, hived: Hived) -> dict[AgentName, str | None]:
    """The invocation of each agent's container, real or simulated."""
    found = await hived.containers.statuses()
    assert {status.phase for status in found.values()} == {"running"}
    assert sorted(found) == sorted(world.names)
    return {name: status.invocation for name, status in found.items()}


async def leader(hived: Hived, name: AgentName) -> int:
    found: ContainerStatus = await hived.containers.status(name)
    assert found.leader_pid is not None
    return found.leader_pid


@pytest.mark.parametrize("real", [REAL], ids=[f"{REAL} real and {AGENTS - REAL} simulated containers"])
async def test_many_agents_converge_and_what_happens_to_one_or_to_hived_restarts_no_other(
    world: MixedFleet, real: int
) -> None:
    async with world.at_work() as hived:
        await all_idle(hived)
        began = await starts(world, hived)
        assert len(world.containers.history) == AGENTS - real, "each was started once"
        assert {Path(f"/proc/{await leader(hived, name)}/cmdline").exists() for name in world.real_names} == {
            True
        }
        await nothing_is_to_be_done(world, hived)
        await every_real_harness_gets_its_message(world, hived)
        stopped = [world.real_names[-1], name_of(AGENTS - 1)]
        for name in stopped:
            await hived.agents.stop(ROOT, name, api.Act())
        await until(hived, lambda found: {found[name] for name in stopped} == {"stopped"})
        assert [name for name, state in (await states(hived)).items() if state != "idle"] == sorted(stopped)
        for name in stopped:
            await hived.agents.start(ROOT, name, api.Act())
        await all_idle(hived)
        later = await starts(world, hived)
        assert {name for name in later if later[name] != began[name]} == set(stopped)
        crashed = [world.real_names[0], name_of(AGENTS - 2)]
        killed = await leader(hived, crashed[0])
    os.kill(killed, signal.SIGKILL)  # while nobody looks
    world.containers.crash(crashed[1])
    async with world.at_work() as hived:
        await hived.passes.first_read.wait()
        await all_idle(hived)
        last = await starts(world, hived)
        assert {name for name in last if last[name] != later[name]} == set(crashed)
        ends = await world.store.events.all("SELECT agent FROM events WHERE kind = 'agent.crashed'")
        assert sorted(row["agent"] for row in ends) == sorted(crashed), "told once each"
        await nothing_is_to_be_done(world, hived)
        await every_real_harness_gets_its_message(world, hived)


async def nothing_is_to_be_done(world: MixedFleet, hived: Hived) -> None:
    """A full read finds everybody as they should be, and looks at the world only."""
    await hived.passes.full_read()  # who is late with something is done now
    await asyncio.sleep(0)
    began = await starts(world, hived)
    before = len(world.faults.calls)
    await hived.passes.full_read()
    assert world.looked[before:].count("containers.statuses") == 1, "all are read at once"
    assert "containers.status" not in world.looked[before:]
    with world.watching_changes() as changes:
        await hived.passes.full_read()
    assert changes == [], "it only looks"
    assert dict(hived.passes._queue) == {}
    assert await starts(world, hived) == began
    plans = await hived.agents.plans()
    assert [plan.agent for plan in plans if plan.steps] == []
    assert len(plans) == AGENTS
    looked = await hived.passes.look_all()
    assert {type(plan.outcome) for plan in looked.values()} == {Settled}


async def every_real_harness_gets_its_message(world: MixedFleet, hived: Hived) -> None:
    sent = {
        name: await hived.broker.send_as_operator(ROOT, api.NewMessage(to=name, body="hello"))
        for name in world.real_names
    }
    assert len(sent) == REAL

    async def waiting() -> list[str]:
        rows = await world.store.state.all("SELECT recipient FROM messages WHERE state <> 'acked'")
        return [row["recipient"] for row in rows if row["recipient"] in world.real_names]

    async with asyncio.timeout(_DEADLINE_S):
        while await waiting():  # noqa: ASYNC110 - a row is not announced
            await asyncio.sleep(0.05)
