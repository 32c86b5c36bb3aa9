"""One state for every badge, told when it changes, remembered over restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from harness import wire
from reconciler.control import models as api
from reconciler.effects.protocols import ContainerStatus
from reconciler.errors import OperatorError
from reconciler.plan.steps import Again, Failed, Waiting
from tests.support.brokers import OTHER_BOOT, SCOUT, SMITH, World, event, events

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path)
    await world.agent(SMITH)
    yield world
    await world.close()


async def next_state(stream: AsyncGenerator[api.Event, None]) -> tuple[str, str, str | None]:
    """State, reason and end of the next `agent.state`."""
    while True:
        found = await asyncio.wait_for(anext(stream), 5)
        if found.kind == "agent.state":
            return found.data["state"], found.data["reason"], found.data["until"]


async def test_every_change_is_told_once_with_reason_and_end(world: World) -> None:
    async with world.running():
        stream = world.events.stream(after=0)
        assert await next_state(stream) == ("starting", "its harness has not said hello yet", None)
        await world.runs(SMITH)
        await world.hello(SMITH)
        assert await next_state(stream) == ("idle", "", None)
        await world.event(SMITH)
        turn, _ = await world.turn(SMITH)
        assert await next_state(stream) == ("thinking", "", None)
        await world.broker.turn_events(SMITH, turn, events(event(1, "compaction", before_tokens=9)))
        assert (await next_state(stream))[0] == "compacting"
        done = events(event(2, "compaction", before_tokens=9, after_tokens=1))
        await world.broker.turn_events(SMITH, turn, done)
        assert (await next_state(stream))[0] == "thinking"
        await world.broker.nap(SMITH, wire.Nap(seconds=60, reason="tired"))
        await world.end(SMITH, turn)
        assert await next_state(stream) == ("napping", "tired", "2023-11-14T22:14:20.000Z")
        await world.clock.asleep(2, at_least_s=60)  # for the nap, and for its idle session
        world.clock.advance(60)
        assert (await next_state(stream))[0] == "idle"
        await world.broker.harness_gone(SMITH)
        assert (await next_state(stream))[0] == "starting"
        await world.set("smith", crashes=1)
        await world.presence.set_phase(SMITH, ContainerStatus("exited"), Again(4.0))
        assert await next_state(stream) == ("crashed", "its container ended", "2023-11-14T22:14:24.000Z")
        await stream.aclose()


async def test_a_change_by_another_service_is_told(world: World) -> None:
    await world.runs(SMITH)
    await world.hello(SMITH)
    async with world.running():
        stream = world.events.stream(after=0)
        assert (await next_state(stream))[0] == "idle"
        async with world.store.state.transaction() as tx:
            await tx.run("UPDATE agents SET desired = 'stopped' WHERE name = 'smith'")
            await tx.emit("agent.state", "smith", desired="stopped")
        found = await next_state_with_reason(stream)
        assert found == ("stopped", "its container is being stopped")
        await stream.aclose()


async def next_state_with_reason(stream: AsyncGenerator[api.Event, None]) -> tuple[str, str]:
    while True:
        found = await asyncio.wait_for(anext(stream), 5)
        if found.kind == "agent.state" and "state" in found.data:
            return found.data["state"], found.data["reason"]


async def test_the_same_delay_seen_by_pass_after_pass_is_one_change(world: World) -> None:
    await world.set("smith", crashes=1)
    for _ in range(3):
        await world.presence.set_phase(SMITH, ContainerStatus("absent"), Again(10.0))
        world.clock.advance(0.1)
    now = await world.presence.now(SMITH)
    assert (now.state, now.until) == ("crashed", 1_700_000_010.0)


async def test_why_a_container_is_not_there_is_the_reason_that_the_pass_gave(world: World) -> None:
    await world.presence.set_phase(
        SMITH, ContainerStatus("absent"), Failed("no such store path", temporary=True)
    )
    assert (await world.presence.now(SMITH)).reason == "no such store path"
    await world.presence.set_phase(SMITH, ContainerStatus("absent"), Waiting("an approved proposal"))
    now = await world.presence.now(SMITH)
    assert (now.state, now.reason) == ("stopped", "waiting for an approved proposal")


async def test_since_counts_from_the_change_and_survives_a_restart(world: World) -> None:
    async with world.running():
        stream = world.events.stream(after=0)
        await world.runs(SMITH)
        await world.hello(SMITH)
        while (await next_state(stream))[0] != "idle":
            pass
        await stream.aclose()
    began = world.clock.now()
    world.clock.advance(500)
    await world.restart()
    now = await world.presence.now(SMITH)
    assert (now.state, now.since) == ("idle", began), "before the first pass, history knows best"
    async with world.running():
        await world.runs(SMITH)
        await world.hello(SMITH)
        await world.presence.tell("smith")
        assert (await world.presence.now(SMITH)).since == began
    told = await world.events.list(after=0, agent="smith", kind="agent.state", limit=100)
    assert [e.data["state"] for e in told.items].count("idle") == 1


async def test_a_harness_is_ready_once_it_asks_for_messages_and_a_new_one_starts_over(world: World) -> None:
    await world.hello(SMITH)
    assert not world.presence.is_ready(SMITH)
    world.woken.clear()
    await world.poll(SMITH)
    assert world.presence.is_ready(SMITH)
    assert world.woken == ["smith"], "the pass that probes it waits for this"
    await world.poll(SMITH)
    assert world.woken == ["smith"]
    await world.hello(SMITH, OTHER_BOOT)
    assert not world.presence.is_ready(SMITH)


async def test_an_unknown_agent_is_not_found(world: World) -> None:
    with pytest.raises(OperatorError) as caught:
        await world.presence.now(SCOUT)
    assert caught.value.code == "not-found"
