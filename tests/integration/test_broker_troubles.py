"""What is wrong with the model's host for everybody: told once, waited for together, tried by one for all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from harness import wire
from reconciler.broker import troubles
from reconciler.broker.core import Seats
from reconciler.broker.troubles import Sign
from reconciler.model.instants import MICRO, micros
from reconciler.model.names import AgentName
from tests.support.brokers import BOSS, SCOUT, SMITH, World, until

pytestmark = pytest.mark.asyncio
ALL = (BOSS, SCOUT, SMITH)
HAIKU = "claude-haiku-5-5"
REFUSED = Sign("credential", "scout", "haiku", "invalid x-api-key")


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path, seats=Seats(cap=8, idle_s=1e9))
    await world.agent(BOSS, role="manager", allow=("*",), spec={"model": "haiku"})
    await world.agent(SCOUT, allow=("*",), spec={"model": "haiku"})
    await world.agent(SMITH, allow=("*",), spec={"model": "opus"})
    for name in ALL:
        await world.hello(name)
        await world.runs(name)
        await world.poll(name)
    async with world.running():
        yield world
    await world.close()


async def heard(world: World, *signs: Sign) -> None:
    """The gateway told, and it was taken."""
    for sign in signs:
        world.broker.troubles.heard(sign)
    async with asyncio.timeout(30):
        await until(lambda: not world.broker.troubles._signs)


async def let_in(world: World, *names: AgentName) -> None:
    """Somebody (of these) was let in to try. Time that passed before the troubles' task went to sleep is not
    seen by its timer, so it is made to look."""
    async with asyncio.timeout(30):
        while not {name for name, _ in world.broker.troubles._prober.values()} & set(names or ALL):
            world.broker.troubles.look()
            await asyncio.sleep(0.005)


async def told(world: World) -> list[str]:
    found = (await world.broker.messages(agent="operator", before=None, limit=50)).items
    return [message.body for message in reversed(found) if message.sender == "system"]


async def shown(world: World) -> list[str]:
    return [str((await world.presence.now(name)).state) for name in ALL]


async def served(world: World) -> list[AgentName]:
    """Who gets a message when asking now."""
    return [name for name in ALL if (await world.poll(name)).messages]


async def failing_turn(world: World, agent: AgentName, outcome: wire.Outcome, sign: Sign) -> None:
    turn, _ = await world.turn(agent)
    await heard(world, sign)
    await world.end(agent, turn, outcome)


async def test_a_refused_credential_rests_all_agents_and_the_operator_is_told_once(world: World) -> None:
    for name in ALL:
        await world.event(name, "task")
    begun = [await world.turn(name) for name in ALL]
    for name, (turn, _) in zip(ALL, begun, strict=True):
        await heard(world, Sign("credential", name, "haiku", "invalid x-api-key"))
        await world.end(name, turn, "auth", error="who are you")
    assert await shown(world) == ["parked"] * 3
    now = await world.presence.now(SMITH)
    assert now.until is not None
    assert "refused the credential (all agents): invalid x-api-key" in now.reason
    [only] = await told(world)
    assert "The model's host refused the credential: invalid x-api-key" in only
    assert "No message is lost" in only
    world.clock.advance(59)
    assert await served(world) == []
    rows = await world.store.state.all(
        "SELECT state, redelivered, failures FROM messages WHERE recipient <> 'operator'"
    )
    assert {(r["state"], r["redelivered"], r["failures"]) for r in rows} == {("queued", 1, 0)}
    [said] = world.broker.troubles.told()
    assert "invalid x-api-key" in said


async def test_one_agent_tries_for_all_the_operators_message_first_and_its_success_frees_everybody(
    world: World,
) -> None:
    await world.event(BOSS, "old")
    await world.event(SCOUT, "older than the operator's")
    await heard(world, REFUSED)
    await world.say("smith", "the operator's")
    world.clock.advance(61)
    await let_in(world)
    assert await served(world) == [SMITH]
    assert "smith tries" in (await world.presence.now(SCOUT)).reason
    inbox = await world.poll(SMITH)  # the same lease again
    turn = await world.begin(SMITH, inbox.lease)
    await heard(world, Sign("ok", "smith", "opus"))
    assert await shown(world) == ["idle", "idle", "thinking"]
    await world.end(SMITH, turn)
    assert await served(world) == [BOSS, SCOUT]
    assert world.broker.troubles.told() == []


async def test_each_vain_try_is_somebody_elses_and_later(world: World) -> None:
    for name in ALL:
        await world.event(name, "task")
    await heard(world, REFUSED)
    tried: list[str] = []
    gaps: list[float] = []
    last = world.clock.now()
    for _ in range(6):
        [trouble] = world.broker.troubles.open()
        world.clock.advance(trouble.until_at / MICRO - world.clock.now() - 1)
        assert await served(world) == []
        world.clock.advance(1.5)
        await let_in(world)
        [name] = await served(world)
        inbox = await world.poll(name)
        turn = await world.begin(name, inbox.lease)
        await heard(world, Sign("credential", name, "haiku", "still not"))
        await world.end(name, turn, "auth")
        tried.append(name)
        gaps.append(world.clock.now() - last)
        last = world.clock.now()
    assert sorted(tried[:3]) == sorted(ALL), "one after the other"
    assert sorted(tried[3:]) == sorted(ALL)
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 900
    assert len(await told(world)) == 1


async def test_an_agent_that_is_let_in_and_does_nothing_does_not_hold_up_the_others(world: World) -> None:
    await world.event(SCOUT, "one")
    await world.event(SMITH, "two")
    await heard(world, REFUSED)
    world.clock.advance(61)
    await let_in(world)
    assert await served(world) == [SCOUT]
    world.clock.advance(troubles.PROBE_S + 1)
    await let_in(world, SMITH)
    assert SMITH in await served(world)


async def test_an_agent_that_keeps_the_operators_message_and_never_asks_does_not_hold_up_the_others(
    world: World,
) -> None:
    await world.say("scout", "the operator's")
    await world.event(SMITH, "two")
    await heard(world, REFUSED)
    world.clock.advance(61)
    await let_in(world)
    inbox = await world.poll(SCOUT)
    assert inbox.lease is not None
    await world.broker.return_lease(SCOUT, inbox.lease)
    world.clock.advance(troubles.PROBE_S + 1)
    await let_in(world, SMITH)
    assert SMITH in await served(world)


async def test_the_operator_can_let_one_try_at_once(world: World) -> None:
    await world.event(SCOUT, "task")
    await heard(world, REFUSED)
    assert await served(world) == []
    await world.broker.direct(SCOUT, "wake")
    assert await served(world) == [SCOUT]


async def test_what_a_container_says_of_its_turn_rests_nobody_else(world: World) -> None:
    await world.event(SCOUT, "task")
    await world.event(SMITH, "task")
    turn, _ = await world.turn(SCOUT)
    await world.end(SCOUT, turn, "auth", error="I say that your credential is bad")
    assert await shown(world) == ["idle", "parked", "idle"]
    assert await served(world) == [SMITH]
    assert await told(world) == []


async def test_one_agent_that_is_forbidden_something_proves_nothing_two_do(world: World) -> None:
    def forbidden(agent: str, turn: int) -> Sign:
        return Sign("forbidden", agent, "haiku", "not for your organization", turn=turn)

    await heard(world, forbidden("scout", 1), forbidden("scout", 1))
    assert world.broker.troubles.open() == []
    await heard(world, Sign("ok", "smith", "opus"), forbidden("scout", 2))
    assert world.broker.troubles.open() == [], "somebody was answered in between"
    await heard(world, forbidden("smith", 3))
    assert [one.key for one in world.broker.troubles.open()] == ["credential"]


async def test_one_agent_that_is_forbidden_something_in_many_turns_rests_nobody_else(world: World) -> None:
    for turn in range(1, 6):
        await heard(world, Sign("forbidden", "scout", "haiku", "not for your organization", turn=turn))
    assert world.broker.troubles.open() == []
    world.clock.advance(troubles.ALONE_S)
    await heard(world, Sign("forbidden", "scout", "haiku", "not for your organization", turn=6))
    assert [one.key for one in world.broker.troubles.open()] == ["credential"], (
        "nobody was answered meanwhile"
    )


async def test_a_long_limit_rests_the_agents_of_that_model_until_its_end_and_then_one_after_the_other(
    world: World,
) -> None:
    for name in ALL:
        await world.event(name, "task")
    end = micros(world.clock.now() + 3600)
    await heard(world, *(Sign("ok", name, HAIKU) for name in (BOSS, SCOUT)), Sign("ok", "smith", "opus"))
    await failing_turn(world, SCOUT, "rate_limited", Sign("limit", "scout", HAIKU, "slow down", end))
    assert await shown(world) == ["parked", "parked", "idle"]
    assert (await world.presence.now(BOSS)).until == end / 1e6
    assert await served(world) == [SMITH], "another model has another limit"
    [only] = await told(world)
    assert "All agents on haiku wait" in only
    await world.say(BOSS, "urgent")
    world.clock.advance(3601)
    await let_in(world)
    assert [n for n in await served(world) if n != SMITH] == [BOSS], "the operator's message goes first"
    turn = await world.begin(BOSS, (await world.poll(BOSS)).lease)
    await heard(world, Sign("ok", BOSS, HAIKU))
    assert "one agent after the other" in (await world.presence.now(SCOUT)).reason
    world.clock.advance(2)
    assert SCOUT in await served(world)
    await world.end(BOSS, turn)


async def test_a_short_limit_is_a_matter_of_the_agent_that_met_it(world: World) -> None:
    await world.event(SCOUT, "task")
    end = micros(world.clock.now() + 20)
    await failing_turn(world, SCOUT, "rate_limited", Sign("limit", "scout", "haiku", "slow", end))
    assert await shown(world) == ["idle", "parked", "idle"]
    assert (await world.presence.now(SCOUT)).until == pytest.approx(end / 1e6, abs=0.01)
    assert await told(world) == []


async def test_a_trouble_and_that_it_was_told_outlive_hived(world: World) -> None:
    await world.event(SCOUT, "task")
    await heard(world, REFUSED)
    assert len(await told(world)) == 1
    again = await World.open(world.directory, seats=Seats(cap=8, idle_s=1e9))
    again.clock = world.clock
    await again.restart()
    try:
        await again.hello(SCOUT)
        assert await again.broker.inbox(SCOUT, "b" * 32, wait_s=0, limit=5, turn=None) is not None
        assert (await again.poll(SCOUT)).messages == []
        assert [one.key for one in again.broker.troubles.open()] == ["credential"]
    finally:
        await again.close()
    await heard(world, Sign("ok", "scout", "haiku"))
    world.clock.advance(60)
    await heard(world, REFUSED)
    assert len(await told(world)) == 1, "what comes back so soon is the same"
    await heard(world, Sign("ok", "scout", "haiku"))
    world.clock.advance(troubles.AGAIN_S + 1)
    await heard(world, REFUSED)
    assert len(await told(world)) == 2


async def test_an_api_that_is_away_for_long_is_told_and_each_agent_tries_by_itself(world: World) -> None:
    await world.event(SCOUT, "task")
    await world.event(SMITH, "task")
    refused = Sign("unavailable", "scout", "haiku", "connection refused")
    await failing_turn(world, SCOUT, "unavailable", refused)
    assert await shown(world) == ["idle", "parked", "idle"]
    assert await told(world) == []
    world.clock.advance(troubles.TELL_UNAVAILABLE_S + 1)
    await heard(world, Sign("unavailable", "smith", "opus", "connection refused"))
    [only] = await told(world)
    assert "does not answer: connection refused" in only
    turn, _ = await world.turn(SCOUT)
    await world.end(SCOUT, turn, "unavailable")
    assert (await world.presence.now(SCOUT)).state == "parked"
    await heard(world, Sign("ok", "smith", "opus"))
    assert (await world.presence.now(SCOUT)).state == "idle", "what helps one ends the others' waiting"
