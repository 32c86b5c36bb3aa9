"""Naps: what ends one, what does not, and that nothing polls meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from harness import wire
from reconciler.control import models as api
from reconciler.model.names import AgentName
from tests.support.brokers import ALICE, BOSS, OTHER_BOOT, SCOUT, SMITH, World

pytestmark = pytest.mark.asyncio
THIRD_BOOT = "3" * 32
NAP_S = 3600


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path)
    for name in (SMITH, SCOUT, BOSS):
        await world.agent(name, role="manager" if name == BOSS else "agent", allow=("*",))
        await world.hello(name)
        await world.runs(name)
    yield world
    await world.close()


async def nap(world: World, seconds: int = NAP_S) -> wire.Napping:
    return await world.broker.nap(SMITH, wire.Nap(seconds=seconds, reason="tired"))


async def naps(world: World) -> str | None:
    """Until when smith is shown as napping."""
    now = await world.presence.now(SMITH)
    return None if now.state != "napping" else f"{now.until:.0f}"


async def hived_dies(world: World) -> str:
    await world.restart()
    await world.hello(SMITH, OTHER_BOOT)
    return OTHER_BOOT


async def harness_dies(world: World) -> str:
    await world.hello(SMITH, OTHER_BOOT)
    return OTHER_BOOT


async def container_dies(world: World) -> str:
    await world.broker.harness_gone(SMITH)
    await world.hello(SMITH, OTHER_BOOT)
    return OTHER_BOOT


async def host_dies(world: World) -> str:
    await world.broker.harness_gone(SMITH)
    await world.restart()
    world.clock.advance(60)
    await world.broker.harness_gone(SMITH)
    await world.hello(SMITH, THIRD_BOOT)
    return THIRD_BOOT


@pytest.mark.parametrize("dies", [hived_dies, harness_dies, container_dies, host_dies])
@pytest.mark.parametrize("in_turn", [False, True], ids=["at rest", "in a turn"])
async def test_a_nap_outlives_every_death_and_ends_on_time(
    world: World, dies: Callable[[World], Awaitable[str]], in_turn: bool
) -> None:
    await world.event(SMITH, "first")
    if in_turn:
        await world.turn(SMITH)
    await nap(world)
    end = f"{world.clock.now() + NAP_S:.0f}"
    boot = await dies(world)
    await world.runs(SMITH)
    assert await naps(world) == end
    assert (await world.poll(SMITH, boot)).messages == []
    waiting = asyncio.ensure_future(world.poll(SMITH, boot, wait_s=180))
    await world.clock.asleep()
    world.clock.advance(100)
    assert not waiting.done()
    waiting.cancel()
    world.clock.advance(NAP_S - 100 - 60 - 1)
    assert (await world.poll(SMITH, boot)).messages == []
    world.clock.advance(62)
    assert [m.body for m in (await world.poll(SMITH, boot)).messages] == ["first"]


async def test_the_second_nap_in_a_row_counts_and_may_be_shorter(world: World) -> None:
    await nap(world)
    told = await nap(world, 30)
    assert told.until is not None
    assert await naps(world) == f"{world.clock.now() + 30:.0f}"
    world.clock.advance(31)
    assert await naps(world) is None
    await nap(world, 40)
    assert await naps(world) == f"{world.clock.now() + 40:.0f}"


async def a_peer_writes(world: World) -> None:
    await world.send(SCOUT, "smith", "wake up!")


async def the_manager_writes(world: World) -> None:
    await world.send(BOSS, "smith", "wake up!")


async def an_event_comes(world: World) -> None:
    await world.event(SMITH)


async def a_question_expires(world: World) -> None:
    request = wire.AskOperator(question="tea?", ttl_seconds=60, key=world.key())
    await world.broker.ask(SMITH, request)
    world.clock.advance(61)
    assert await world.broker._questions.expire() == 1
    assert await world.scalar("SELECT COUNT(*) FROM messages WHERE kind = 'answer'") == 1


async def a_question_is_cancelled(world: World) -> None:
    asked = await world.broker.ask(SMITH, wire.AskOperator(question="tea?", key=world.key()))
    await world.broker.cancel_question(ALICE, asked.id)


async def it_says_what_it_does(world: World) -> None:
    await world.broker.set_status(SMITH, wire.Status(text="dreaming"))


async def an_order_comes(world: World) -> None:
    await world.broker.direct(SMITH, "repos")


@pytest.mark.parametrize(
    "happens",
    [a_peer_writes, the_manager_writes, an_event_comes, a_question_expires, a_question_is_cancelled,
     it_says_what_it_does, an_order_comes],
)  # fmt: skip
async def test_nothing_else_ends_a_nap(world: World, happens: Callable[[World], Awaitable[None]]) -> None:
    await nap(world)
    end = await naps(world)
    await happens(world)
    assert (await world.poll(SMITH)).messages == []
    assert await naps(world) == end


async def test_a_crash_ends_the_managers_nap_but_nobody_elses(world: World) -> None:
    await world.broker.nap(BOSS, wire.Nap(seconds=NAP_S))
    await nap(world)
    await world.broker.notify(AgentName("manager"), "scout crashed", urgent=True, key="crash-1")
    assert [m.body for m in (await world.poll(BOSS)).messages] == ["scout crashed"]
    assert await naps(world) is not None


async def test_an_answer_of_the_operator_ends_a_nap(world: World) -> None:
    asked = await world.broker.ask(SMITH, wire.AskOperator(question="tea?", key=world.key()))
    await nap(world)
    await world.broker.answer(ALICE, asked.id, api.Answer(text="yes"))
    assert len((await world.poll(SMITH)).messages) == 1


async def test_who_is_told_something_urgent_learns_that_it_does_not_nap(world: World) -> None:
    await world.say(SMITH, "one")
    turn, _ = await world.turn(SMITH)
    await world.say(SMITH, "two")
    assert (await nap(world)).until is None
    await world.end(SMITH, turn)
    assert [m.body for m in (await world.poll(SMITH)).messages] == ["two"]


async def test_what_the_operator_lets_come_once_more_ends_a_nap(world: World) -> None:
    message = await world.say(SMITH, "hard")
    async with world.store.state.transaction() as tx:
        await tx.run("UPDATE messages SET state = 'acked', set_aside_at = 1 WHERE id = ?", message)
    await nap(world)
    await world.broker.redeliver(ALICE, message)
    assert [m.id for m in (await world.poll(SMITH)).messages] == [message]


async def test_nobody_looks_at_the_database_while_an_agent_naps(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.event(SMITH)
    await nap(world)
    waiting = asyncio.ensure_future(world.poll(SMITH, wait_s=180))
    await world.clock.asleep()
    looks = 0
    state = type(world.store.state)
    for name in ("one", "all"):
        before: Any = getattr(state, name)

        def counted(self: Any, *given: Any, _before: Any = before) -> Any:
            nonlocal looks
            looks += 1
            return _before(self, *given)

        monkeypatch.setattr(state, name, counted)
    for _ in range(17):
        world.clock.advance(10)
        for _ in range(20):
            await asyncio.sleep(0)
    assert (looks, waiting.done()) == (0, False)
    world.clock.advance(11)
    assert (await asyncio.wait_for(waiting, 30)).messages == []
    assert 0 < looks < 10, "one long poll costs a look at its beginning and one at its end"
