"""Agents that only feed each other: slowed, held, shown, and let go or dropped by the operator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from harness import wire
from reconciler.broker.loops import HELD_MAX
from reconciler.control import models as api
from reconciler.errors import AgentError, OperatorError
from reconciler.model.names import AgentName
from tests.support.brokers import ALICE, BOSS, OTHER_BOOT, SCOUT, SMITH, VIEWER, World

pytestmark = pytest.mark.asyncio
SLOW, HOLD = 24, 48


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path)
    for name in (SCOUT, SMITH, BOSS):
        await world.agent(name, role="manager" if name == BOSS else "agent", allow=("*",))
        await world.hello(name)
        await world.runs(name)
    yield world
    await world.close()


async def answer(world: World, agent: AgentName, to: str) -> wire.Sent:
    """The agent takes up all that is due in one turn, and writes one message."""
    turn, inbox = await world.turn(agent)
    assert inbox.lease is not None, "nothing was due"
    sent = await world.broker.send(agent, wire.SendMessage(to=to, body=f"{agent} says", key=world.key()))
    await world.end(agent, turn)
    return sent


async def play(world: World, circle: tuple[AgentName, ...]) -> tuple[int, int, wire.Sent]:
    """The agents of a circle write to the next one until nothing goes on: how many messages came at once,
    how many later, and the last one's answer."""
    at_once = later = 0
    await world.say(circle[0], "begin")
    at = 0
    while True:
        sent = await answer(world, circle[at], circle[(at + 1) % len(circle)])
        row = (await world.store.state.all("SELECT due_at FROM messages WHERE id = ?", sent.ids[0]))[0]
        if row["due_at"] is None:
            return at_once, later, sent
        if row["due_at"]:
            later += 1
            assert (await world.poll(circle[(at + 1) % len(circle)])).lease is None, "it came too early"
            world.clock.advance(row["due_at"] / 1e6 - world.clock.now() + 0.001)
        else:
            at_once += 1
        at = (at + 1) % len(circle)


@pytest.mark.parametrize("circle", [(SCOUT, SMITH), (SCOUT, SMITH, BOSS)])
async def test_a_circle_of_agents_is_slowed_then_held_whatever_its_length(
    world: World, circle: tuple[AgentName, ...]
) -> None:
    at_once, later, sent = await play(world, circle)
    assert (at_once, later) == (SLOW, HOLD - SLOW)
    assert "held" in sent.note
    [loop] = (await world.broker.loops()).items
    assert (loop.state, loop.waiting, loop.hops) == ("held", 1, HOLD + 1)
    page = await world.broker.messages(agent=None, before=None, limit=1)
    assert page.items[0].state == "held"


async def test_a_word_of_the_operator_begins_anew(world: World) -> None:
    await play(world, (SCOUT, SMITH))
    [waits] = (await world.broker.loops()).items
    asleep = SMITH if (HOLD % 2) == 0 else SCOUT
    await world.say(asleep, "enough: write a report")
    sent = await answer(world, asleep, str(BOSS))
    assert sent.note == ""
    assert [m.sender for m in (await world.poll(BOSS)).messages] == [asleep]
    assert (await world.broker.loops()).items == [waits], "what was held stays held"


async def test_what_is_stale_stands_behind_what_is_held_and_what_is_fresh_passes_it(world: World) -> None:
    """Else who was drawn into a circle once could tell its peer nothing until a person looks."""
    await play(world, (SCOUT, SMITH))
    sender, other = (SCOUT, SMITH) if HOLD % 2 == 0 else (SMITH, SCOUT)
    await world.set(sender, hops=SLOW)
    sent = await world.broker.send(sender, wire.SendMessage(to=other, body="and", key=world.key()))
    assert "held" in sent.note, "alone it would be slowed only"
    await world.say(sender, "go on")
    sent = await answer(world, sender, str(other))
    assert sent.note == ""
    assert [m.id for m in (await world.poll(other)).messages] == sent.ids
    [loop] = (await world.broker.loops()).items
    assert loop.waiting == 2


async def test_what_is_slowed_is_not_overtaken(world: World) -> None:
    await world.set(SCOUT, hops=SLOW)
    slowed = await world.send(SCOUT, "smith", "first")
    await world.set(SCOUT, hops=0)
    fresh = await world.send(SCOUT, "smith", "second")
    assert (await world.poll(SMITH)).messages == []
    world.clock.advance(2)
    assert [m.id for m in (await world.poll(SMITH)).messages] == [*slowed, *fresh]


async def test_held_messages_do_not_fill_an_inbox_against_others(world: World) -> None:
    await world.set(SCOUT, hops=HOLD)
    for _ in range(HELD_MAX):
        assert (await world.send(SCOUT, "smith", "and another one")) != []
    with pytest.raises(AgentError, match="held already") as refused:
        await world.send(SCOUT, "smith", "one more")
    assert refused.value.code == "queue-full"
    await world.send(BOSS, "smith", "from somebody else")
    assert [m.sender for m in (await world.poll(SMITH)).messages] == [BOSS]


async def test_giving_the_operators_word_back_makes_nobody_fresh_again(world: World) -> None:
    """A hostile harness can return a lease as often as it likes, and take an answer up with it."""
    await world.say(SCOUT, "begin")
    for _ in range(HOLD):
        inbox = await world.poll(SCOUT)
        assert inbox.lease is not None
        sent = await world.broker.send(SCOUT, wire.SendMessage(to="smith", body="tick", key=world.key()))
        if sent.note:
            break
        await world.broker.return_lease(SCOUT, inbox.lease)
        await answer(world, SMITH, str(SCOUT))
    else:
        pytest.fail("the circle was never slowed")


async def test_a_turn_without_end_is_a_circle_too(world: World) -> None:
    await world.say(SCOUT, "begin")
    turn, _ = await world.turn(SCOUT)
    for _ in range(HOLD):
        sent = await world.broker.send(SCOUT, wire.SendMessage(to="smith", body="tick", key=world.key()))
        if sent.note or (await answer(world, SMITH, str(SCOUT))).note:
            break
        assert (await world.poll(SCOUT, turn=turn)).messages
    else:
        pytest.fail("the circle was never slowed")
    await world.end(SCOUT, turn)


async def test_a_question_to_many_within_one_turn_stays_fresh(world: World) -> None:
    """Who asks all others and reads their answers one by one goes in no circle."""
    await world.say(BOSS, "ask everybody")
    turn, _ = await world.turn(BOSS)
    for _ in range(SLOW + 5):
        await world.send(BOSS, "smith", "how are you?")
        await answer(world, SMITH, str(BOSS))
    for _ in range(SLOW + 5):
        assert (await world.poll(BOSS, turn=turn, limit=1)).messages
    assert await world.scalar("SELECT hops FROM agents WHERE name = ?", BOSS) == 2
    await world.end(BOSS, turn)


@pytest.mark.parametrize("deliver", [True, False])
async def test_the_operator_lets_go_or_drops(world: World, deliver: bool) -> None:
    _, _, held = await play(world, (SCOUT, SMITH))
    other = SMITH if HOLD % 2 == 0 else SCOUT
    waiting = asyncio.ensure_future(world.poll(other, wait_s=60))
    request = api.DecideLoop(deliver=deliver, note="seen")
    assert (await world.broker.decide_loop(ALICE, (SMITH, SCOUT), request)).items == []
    if deliver:
        inbox = await waiting
        assert [m.id for m in inbox.messages] == held.ids
        await world.broker.return_lease(other, inbox.lease or 0)
        assert (await answer(world, other, str(BOSS))).note == "", "the count began anew"
    else:
        waiting.cancel()
        page = await world.broker.messages(agent=None, before=None, limit=1)
        assert (page.items[0].id, page.items[0].state) == (held.ids[0], "dropped")
    audit = await world.store.state.all("SELECT action, target FROM audit ORDER BY id DESC LIMIT 1")
    assert tuple(audit[0]) == ("loop.deliver" if deliver else "loop.drop", "smith scout")


async def test_a_viewer_decides_nothing_and_what_does_not_wait_is_not_found(world: World) -> None:
    await play(world, (SCOUT, SMITH))
    request = api.DecideLoop(deliver=True)
    with pytest.raises(OperatorError, match="may only look"):
        await world.broker.decide_loop(VIEWER, (SCOUT, SMITH), request)
    with pytest.raises(OperatorError, match="nothing waits"):
        await world.broker.decide_loop(ALICE, (SCOUT, BOSS), request)
    await world.broker.decide_loop(ALICE, (SCOUT, SMITH), request.model_copy(update={"dry_run": True}))
    assert (await world.broker.loops()).items, "a rehearsal changes nothing"


async def test_a_slowed_message_comes_by_itself_also_to_a_poll_that_waits_and_after_a_restart(
    world: World,
) -> None:
    await world.set(SCOUT, hops=SLOW)
    sent = await world.broker.send(SCOUT, wire.SendMessage(to="smith", body="so?", key=world.key()))
    assert "slowed" in sent.note
    assert [one.state for one in (await world.broker.loops()).items] == ["slowed"]
    await world.restart()
    await world.hello(SMITH, OTHER_BOOT)
    await world.runs(SMITH)
    waiting = asyncio.ensure_future(world.poll(SMITH, OTHER_BOOT, wait_s=60))
    await world.clock.asleep()
    world.clock.advance(1)
    inbox = await waiting
    assert [m.id for m in inbox.messages] == sent.ids
    assert (await world.broker.loops()).items == []


async def test_what_is_read_within_a_turn_makes_it_staler_by_one_at_most(world: World) -> None:
    await world.say(SCOUT, "begin")
    turn, _ = await world.turn(SCOUT)
    await world.set(SMITH, hops=9)
    await world.send(SMITH, "scout", "by the way")
    await world.poll(SCOUT, turn=turn)
    assert await world.scalar("SELECT hops FROM agents WHERE name = 'scout'") == 1
    await world.end(SCOUT, turn)


async def test_messages_to_the_operator_are_never_slowed(world: World) -> None:
    await world.set(SCOUT, hops=10 * HOLD)
    sent = await world.broker.send(SCOUT, wire.SendMessage(to="operator", body="help", key=world.key()))
    assert (sent.note, (await world.broker.loops()).items) == ("", [])
