"""Seats of resident sessions over the real broker: who gets messages, who is told to park, what is shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from harness import wire
from reconciler.broker.core import Seats
from reconciler.broker.residency import PARK_S, Count
from reconciler.errors import TemporaryError
from reconciler.model.names import AgentName
from tests.support.brokers import BOOT, BOSS, OTHER_BOOT, SCOUT, SMITH, World, event, events, until

pytestmark = pytest.mark.asyncio

ALL = (SCOUT, SMITH, BOSS)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Three agents and one seat."""
    world = await World.open(tmp_path, seats=Seats(cap=1, idle_s=900))
    for name in ALL:
        await world.agent(name, allow=("*",))
        await world.hello(name)
        await world.runs(name)
    yield world
    await world.close()


def waiting(world: World, agent: AgentName) -> asyncio.Task[wire.Inbox]:
    """A long poll of the agent's harness."""
    return asyncio.create_task(world.poll(agent, wait_s=170))


async def parking(world: World, agent: AgentName) -> wire.Directive:
    """The order to park, as the harness gets it."""
    async with asyncio.timeout(20):
        while True:
            for order in (await world.broker.directives(agent, wait_s=0, after=0)).directives:
                if order.kind == "park":
                    return order
            await asyncio.sleep(0)


async def reason(world: World, agent: AgentName) -> str:
    return (await world.presence.now(agent)).reason


async def test_an_agent_without_a_seat_waits_and_says_so_until_a_seat_is_given_up(world: World) -> None:
    async with world.running():
        await world.event(SCOUT)
        turn, _ = await world.turn(SCOUT)
        await world.event(SMITH)
        poll = waiting(world, SMITH)
        await until(lambda: world.presence.seats().waiting == 1)
        assert await reason(world, SMITH) == "waiting for a seat"
        await world.end(SCOUT, turn)
        order = await parking(world, SCOUT)
        assert order.data == {"after": turn}
        assert not poll.done(), "its CLI may still be there"
        await world.broker.parked(SCOUT)
        assert [m.sender for m in (await asyncio.wait_for(poll, 20)).messages] == ["system"]
        assert await reason(world, SMITH) == ""
        assert (await world.presence.now(SMITH)).resident


async def test_one_that_goes_on_and_on_does_not_keep_the_others_waiting(world: World) -> None:
    async with world.running():
        await world.event(SCOUT)
        turn, _ = await world.turn(SCOUT)
        await world.event(SCOUT)
        await world.event(SMITH)
        poll = waiting(world, SMITH)
        await until(lambda: world.presence.seats().waiting == 1)
        await world.end(SCOUT, turn)
        assert (await world.poll(SCOUT)).lease is None, "it has had its turn"
        await world.broker.parked(SCOUT)
        assert (await asyncio.wait_for(poll, 20)).lease is not None


async def test_what_the_operator_writes_goes_before_what_agents_write(world: World) -> None:
    async with world.running():
        await world.event(SCOUT)
        await world.turn(SCOUT)
        await world.event(SMITH)
        plain = waiting(world, SMITH)
        await until(lambda: world.presence.seats().waiting == 1)
        await world.say(BOSS)
        asked = waiting(world, BOSS)
        await until(lambda: world.presence.seats().waiting == 2)
        await world.broker.harness_gone(SCOUT)
        assert (await asyncio.wait_for(asked, 20)).lease is not None
        assert not plain.done()
        plain.cancel()


async def test_a_seat_comes_back_when_its_harness_vanishes_or_greets_without_a_cli(world: World) -> None:
    await world.event(SCOUT)
    await world.turn(SCOUT)
    await world.broker.harness_gone(SCOUT)
    assert world.presence.seats() == Count(cap=1, taken=0, busy=0, waiting=0)
    await world.hello(SMITH, resident=True)
    assert world.presence.seats().taken == 1
    await world.hello(SMITH, OTHER_BOOT)
    assert world.presence.seats().taken == 0


async def test_a_new_hived_knows_who_is_at_work_and_who_has_a_cli(world: World) -> None:
    await world.event(SCOUT)
    turn, _ = await world.turn(SCOUT)
    await world.restart()
    assert world.presence.seats() == Count(cap=1, taken=1, busy=1, waiting=0)
    await world.hello(SCOUT, BOOT, turn, resident=True)
    await world.hello(SMITH, resident=True)
    assert world.presence.seats() == Count(cap=1, taken=2, busy=1, waiting=0), "one too many"
    async with world.running():
        await parking(world, SMITH)


async def test_a_seat_whose_harness_does_not_answer_is_given_away_after_a_while(world: World) -> None:
    async with world.running():
        await world.event(SCOUT)
        turn, _ = await world.turn(SCOUT)
        await world.event(SMITH)
        poll = waiting(world, SMITH)
        await until(lambda: world.presence.seats().waiting == 1)
        await world.end(SCOUT, turn)
        await parking(world, SCOUT)
        waited_s = 0
        async with asyncio.timeout(20):
            while not poll.done():
                world.clock.advance(1)
                waited_s += 1
                for _ in range(20):
                    await asyncio.sleep(0)
        assert (await poll).lease is not None
        assert waited_s >= PARK_S


async def test_messages_that_are_gone_or_given_back_keep_no_seat(world: World) -> None:
    await world.event(SCOUT)
    inbox = await world.poll(SCOUT)
    assert world.presence.seats().busy == 1
    assert inbox.lease is not None
    await world.broker.return_lease(SCOUT, inbox.lease)
    assert world.presence.seats() == Count(cap=1, taken=1, busy=0, waiting=0)


async def test_a_compaction_needs_a_seat_too_and_is_shown_as_one(world: World) -> None:
    await world.event(SMITH)
    await world.turn(SMITH)
    order = wire.BeginTurn(lease=None, key="k" * 16, purpose="compaction")
    with pytest.raises(TemporaryError) as refused:
        await world.broker.begin_turn(SCOUT, BOOT, order)
    assert refused.value.code == "no-seat"
    await world.broker.harness_gone(SMITH)
    turn = (await world.broker.begin_turn(SCOUT, BOOT, order)).turn
    now = await world.presence.now(SCOUT)
    assert (now.state, now.reason) == ("compacting", "summing its conversation up")
    await world.broker.turn_events(
        SCOUT, turn, events(event(1, "compaction", before_tokens=90, after_tokens=10))
    )
    assert (await world.presence.now(SCOUT)).state == "compacting", "until its end"


async def test_what_follows_an_order_is_given_out_only_after_the_harness_has_it(world: World) -> None:
    await world.broker.direct(SCOUT, "session", session_id="s")
    await world.event(SCOUT)
    assert (await world.poll(SCOUT)).lease is None
    [order] = (await world.broker.directives(SCOUT, wait_s=0, after=0)).directives
    assert (await world.poll(SCOUT)).lease is None
    await world.broker.directives(SCOUT, wait_s=0, after=order.id)
    assert (await world.poll(SCOUT)).lease is not None


async def test_what_a_compaction_and_a_rewriting_did_are_events_told_once(world: World) -> None:
    async with world.running():
        turn = (
            await world.broker.begin_turn(
                SCOUT, BOOT, wire.BeginTurn(lease=None, key="k" * 16, purpose="compaction")
            )
        ).turn
        lines = events(
            event(1, "compaction", before_tokens=90),
            event(2, "compaction", before_tokens=90, after_tokens=10),
            event(3, "notes", before_bytes=9, error="headings are lost"),
        )
        await world.broker.turn_events(SCOUT, turn, lines)
        await world.broker.turn_events(SCOUT, turn, lines)
        await world.end(SCOUT, turn)
        told: list[tuple[str, object]] = []
        async with asyncio.timeout(20):
            while len(told) < 2:
                world.clock.advance(1)  # hints are told with pauses
                await asyncio.sleep(0)
                found = await world.events.list(after=0, agent=SCOUT, kind=None, limit=100)
                told = [
                    (one.kind, one.data)
                    for one in found.items
                    if one.kind in {"agent.compacted", "agent.notes"}
                ]
        assert told == [
            ("agent.compacted", {"before_tokens": 90, "after_tokens": 10}),
            ("agent.notes", {"before_bytes": 9, "error": "headings are lost"}),
        ]


async def test_a_fresh_session_has_an_empty_context_also_after_a_restart(world: World) -> None:
    await world.event(SCOUT)
    turn, _ = await world.turn(SCOUT)
    full = events(event(1, "context", used_tokens=700, window_tokens=1000))
    await world.broker.turn_events(SCOUT, turn, full)
    await world.set(SCOUT, session_id="another")
    world.presence.fresh_session(SCOUT)
    late = events(event(2, "context", used_tokens=800, window_tokens=1000))
    await world.broker.turn_events(SCOUT, turn, late)
    await world.end(SCOUT, turn)
    assert (await world.presence.now(SCOUT)).context_used == 0
    await world.restart()
    now = await world.presence.now(SCOUT)
    assert (now.context_used, now.context_window) == (0, 1000)


async def test_one_that_idles_since_before_a_restart_of_hived_can_be_told_to_park(world: World) -> None:
    await world.event(SCOUT)
    turn, _ = await world.turn(SCOUT)
    await world.end(SCOUT, turn)
    await world.restart()
    for name in (SCOUT, SMITH):
        await world.broker.hello(name, wire.Hello(wire=1, boot=BOOT, resident=name == SCOUT))
        await world.runs(name)
    async with world.running():
        await world.event(SMITH)
        poll = waiting(world, SMITH)
        order = await parking(world, SCOUT)
        assert order.data["after"] >= turn, "or the harness takes it for an order from before its last turn"
        await world.broker.parked(SCOUT)
        assert (await asyncio.wait_for(poll, 20)).messages
