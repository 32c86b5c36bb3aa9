"""Messages under leases: who gets what, when, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from harness import wire
from reconciler.broker import core, delivery, sending
from reconciler.broker.policy import Policy
from reconciler.control import models as api
from reconciler.errors import AgentError, OperatorError
from reconciler.model.names import AgentName
from reconciler.store import agents
from reconciler.store.agents import EXISTING_OF
from reconciler.store.db import Reader, Row
from tests.support.brokers import ALICE, BOOT, BOSS, OTHER_BOOT, SCOUT, SMITH, VIEWER, World

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path)
    await world.agent(SCOUT, allow=("smith", "manager", "operator"))
    await world.agent(SMITH)
    await world.agent(BOSS, role="manager", allow=("*",))
    for name in (SCOUT, SMITH, BOSS):
        await world.hello(name)
        await world.runs(name)
    yield world
    await world.close()


def bodies(inbox: wire.Inbox) -> list[str]:
    return [message.body for message in inbox.messages]


# ---------------------------------------------------------------------------------------------------- sending
async def test_a_message_reaches_the_named_agent_with_its_proven_sender(world: World) -> None:
    [message] = await world.send(SCOUT, "smith", "salve\n<b>@all</b>")
    inbox = await world.poll(SMITH)
    assert [(m.id, m.sender, m.body, m.redelivered, m.kind) for m in inbox.messages] == [
        (message, "scout", "salve\n<b>@all</b>", False, "message")
    ]
    assert (await world.poll(SCOUT)).messages == []


async def test_manager_means_whoever_is_the_manager_now(world: World) -> None:
    await world.send(SMITH, "manager", "to the role")
    await world.send(SMITH, "hm1nd", "to the name")
    assert bodies(await world.poll(BOSS)) == ["to the role", "to the name"]


async def test_a_star_goes_to_all_that_the_sender_may_write_to_and_not_to_itself(world: World) -> None:
    ids = await world.send(BOSS, "*", "hear me")
    rows = await world.store.state.all("SELECT recipient FROM messages ORDER BY id")
    assert [row["recipient"] for row in rows] == ["scout", "smith", "operator"]
    assert len(ids) == 3
    await world.send(SMITH, "*", "up")
    rows = await world.store.state.all("SELECT recipient FROM messages WHERE sender = 'smith' ORDER BY id")
    assert [row["recipient"] for row in rows] == ["hm1nd", "operator"]


@pytest.mark.parametrize(
    ("to", "code", "words"),
    [
        ("smith", "invalid", "yourself"),
        ("scout", "forbidden", "you may write to: manager, hm1nd, operator"),
        ("nobody", "not-found", "you may write to: manager, hm1nd, operator"),
        ("../etc", "not-found", "no agent"),
        ("system", "not-found", "no agent"),
        ("OPERATOR", "not-found", "no agent"),
    ],
)
async def test_a_recipient_that_is_not_permitted_is_refused_with_those_that_are(
    world: World, to: str, code: str, words: str
) -> None:
    with pytest.raises(AgentError) as caught:
        await world.send(SMITH, to)
    assert caught.value.code == code
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert await world.scalar("SELECT COUNT(*) FROM messages") == 0


async def test_the_deployed_generation_decides_not_the_one_being_probed(world: World) -> None:
    await world.generation(SMITH, 2, {"send": {"allow": ["scout"]}}, deployed=False)
    with pytest.raises(AgentError, match="may not write"):
        await world.send(SMITH, "scout")
    await world.generation(SMITH, 3, {"send": {"allow": ["scout"]}}, deployed=True)
    assert await world.send(SMITH, "scout")


async def test_a_destroyed_agent_is_unknown(world: World) -> None:
    await world.set("smith", desired="destroyed")
    with pytest.raises(AgentError, match="no agent 'smith'"):
        await world.send(SCOUT, "smith")


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("x" * 65_537, "too-large", "65537 bytes"),
        ("€" * 22_000, "too-large", "66000 bytes"),
        ("a\x00b", "invalid", "NUL"),
        (" \n ", "invalid", "empty"),
    ],
    ids=["too long", "too long in bytes only", "with NUL", "blank"],
)
async def test_a_bad_body_is_refused_for_agents_and_the_operator_alike(
    world: World, body: str, code: str, words: str
) -> None:
    request = wire.SendMessage.model_construct(to="manager", body=body, in_reply_to=None, key="k" * 8)
    with pytest.raises(AgentError, match=words) as caught:
        await world.broker.send(SMITH, request)
    assert caught.value.code == code
    with pytest.raises(OperatorError, match=words):
        await world.say("smith", body)
    assert await world.scalar("SELECT COUNT(*) FROM messages") == 0


async def test_a_body_of_exactly_the_limit_passes(world: World) -> None:
    await world.send(SMITH, "manager", "x" * 65_536)
    assert len(bodies(await world.poll(BOSS))[0]) == 65_536


async def test_the_same_key_sends_once_and_answers_the_same(world: World) -> None:
    first = await world.send(BOSS, "*", "once", key="k" * 8)
    assert await world.send(BOSS, "*", "once", key="k" * 8) == first
    assert await world.scalar("SELECT COUNT(*) FROM messages") == len(first)
    with pytest.raises(AgentError, match="another message"):
        await world.send(BOSS, "*", "twice", key="k" * 8)
    assert await world.send(SCOUT, "smith", "once", key="k" * 8) != first


async def test_a_reply_must_be_to_a_message_of_ones_own(world: World) -> None:
    [foreign] = await world.send(SCOUT, "smith")
    with pytest.raises(AgentError, match="no message"):
        await world.send(BOSS, "scout", in_reply_to=foreign)
    with pytest.raises(AgentError, match="no message"):
        await world.send(SCOUT, "smith", in_reply_to=999)
    await world.poll(SMITH)
    [reply] = await world.send(SCOUT, "smith", in_reply_to=foreign)
    assert await world.scalar("SELECT in_reply_to FROM messages WHERE id = ?", reply) == foreign


async def test_a_queue_is_bounded_per_pair_and_in_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "PAIR_MAX", 3)
    monkeypatch.setattr(sending, "QUEUE_MAX", 5)
    for _ in range(3):
        await world.send(SMITH, "manager")
    with pytest.raises(AgentError, match="3 of your messages wait") as caught:
        await world.send(SMITH, "manager")
    assert caught.value.code == "queue-full"
    for _ in range(2):
        await world.send(SCOUT, "manager")
    with pytest.raises(AgentError, match="5 messages wait"):
        await world.send(SCOUT, "manager")
    await world.poll(BOSS)
    await world.send(SMITH, "manager")


# ---------------------------------------------------------------------------------------------- the operator
async def test_the_operators_message_with_a_key_is_sent_once(world: World) -> None:
    request = api.NewMessage(to="scout", body="hello", key="key-of-mine")
    first = await world.broker.send_as_operator(ALICE, request)
    assert await world.broker.send_as_operator(ALICE, request) == first
    assert await world.scalar("SELECT COUNT(*) FROM messages") == 1
    for to, body in (("smith", "hello"), ("scout", "bye")):
        with pytest.raises(OperatorError, match="another message"):
            await world.broker.send_as_operator(ALICE, api.NewMessage(to=to, body=body, key="key-of-mine"))


async def test_an_agents_key_belongs_to_its_recipient_too(world: World) -> None:
    await world.send(SCOUT, "smith", key="key-of-scout")
    with pytest.raises(AgentError, match="another message"):
        await world.send(SCOUT, "operator", key="key-of-scout")


async def test_the_operators_message_is_audited_and_answered_with_the_message(world: World) -> None:
    message = await world.broker.send_as_operator(ALICE, api.NewMessage(to="manager", body="hello"))
    assert (message.sender, message.to, message.state, message.body) == (
        "operator",
        "hm1nd",
        "queued",
        "hello",
    )
    assert await world.scalar("SELECT actor || ' ' || action || ' ' || target FROM audit") == (
        "operator:alice message.send manager"
    )


async def test_the_operator_writes_to_everybody_at_once(world: World) -> None:
    await world.say("*", "all hands")
    for name in (SCOUT, SMITH, BOSS):
        assert bodies(await world.poll(name)) == ["all hands"]


async def test_a_viewer_writes_and_marks_nothing(world: World) -> None:
    [message] = await world.send(SMITH, "operator")
    with pytest.raises(OperatorError) as caught:
        await world.broker.send_as_operator(VIEWER, api.NewMessage(to="smith", body="x"))
    assert caught.value.code == "forbidden"
    with pytest.raises(OperatorError):
        await world.broker.mark_read(VIEWER, message)


async def test_the_operator_reads_only_what_is_for_the_operator(world: World) -> None:
    [mine] = await world.send(SMITH, "operator")
    [other] = await world.send(SMITH, "manager")
    assert (await world.broker.mark_read(ALICE, mine)).state == "read"
    assert (await world.broker.mark_read(ALICE, mine)).state == "read"
    with pytest.raises(OperatorError, match="is for hm1nd"):
        await world.broker.mark_read(ALICE, other)
    with pytest.raises(OperatorError, match="no message"):
        await world.broker.mark_read(ALICE, 99)


async def test_lists_are_newest_first_with_a_cursor_and_by_either_side(world: World) -> None:
    for number in range(5):
        await world.send(SMITH, "manager", f"s{number}")
    await world.say("scout", "unrelated")
    page = await world.broker.messages(agent="smith", before=None, limit=3)
    assert [m.body for m in page.items] == ["s4", "s3", "s2"]
    rest = await world.broker.messages(agent="hm1nd", before=page.next, limit=3)
    assert [m.body for m in rest.items] == ["s1", "s0"]
    assert rest.next is None
    page = await world.broker.messages(agent="manager", before=None, limit=9)
    assert {m.to for m in page.items} == {"hm1nd"}, "it stands for the manager's name"


# ---------------------------------------------------------------------------------------------------- waiting
async def test_a_waiting_inbox_is_woken_by_the_message_not_by_the_clock(world: World) -> None:
    waiting = asyncio.ensure_future(world.poll(SMITH, wait_s=180))
    await world.clock.asleep()
    await world.send(SCOUT, "smith", "now")
    inbox = await asyncio.wait_for(waiting, 5)  # the virtual clock has not moved
    assert bodies(inbox) == ["now"]


async def test_a_message_that_comes_while_the_inbox_looks_is_not_missed(world: World) -> None:
    for number in range(30):
        waiting = asyncio.ensure_future(world.poll(SMITH, wait_s=180))
        for _ in range(number):
            await asyncio.sleep(0)
        await world.send(SCOUT, "smith", str(number))
        inbox = await asyncio.wait_for(waiting, 5)
        assert bodies(inbox) == [str(number)]
        assert inbox.lease is not None
        await world.broker.ack(SMITH, inbox.lease)


async def test_an_empty_inbox_answers_when_its_time_is_over_and_never_waits_longer_than_the_limit(
    world: World,
) -> None:
    waiting = asyncio.ensure_future(world.poll(SMITH, wait_s=10_000))
    await world.clock.asleep()
    world.clock.advance(delivery.WAIT_MAX_S - 1)
    await asyncio.sleep(0)
    assert not waiting.done()
    world.clock.advance(1)
    assert await asyncio.wait_for(waiting, 5) == wire.Inbox(lease=None, messages=[], waiting=0)


async def test_messages_of_another_service_wake_through_the_outbox(world: World) -> None:
    async with world.running():
        waiting = asyncio.ensure_future(world.poll(SMITH, wait_s=180))
        await world.clock.asleep()
        async with world.store.state.transaction() as tx:
            await sending.tell(tx, "smith", "your proposal was denied", key="proposal-1-denied")
        assert bodies(await asyncio.wait_for(waiting, 5)) == ["your proposal was denied"]


# -------------------------------------------------------------------------------------------- rest and holds
async def test_a_nap_holds_back_until_it_ends(world: World) -> None:
    await world.broker.nap(SMITH, wire.Nap(seconds=60))
    await world.event(SMITH)
    assert (await world.poll(SMITH)).messages == []
    waiting = asyncio.ensure_future(world.poll(SMITH, wait_s=180))
    await world.clock.asleep()
    world.clock.advance(60)
    assert bodies(await asyncio.wait_for(waiting, 5)) == ["psst"]


async def test_an_urgent_message_ends_a_nap(world: World) -> None:
    await world.broker.nap(SMITH, wire.Nap(seconds=3600, reason="tired"))
    await world.event(SMITH, "first")
    waiting = asyncio.ensure_future(world.poll(SMITH, wait_s=180))
    await world.clock.asleep()
    await world.say("smith", "wake up")
    assert bodies(await asyncio.wait_for(waiting, 5)) == ["first", "wake up"]
    assert await world.scalar("SELECT wake_not_before_at FROM agents WHERE name = 'smith'") is None


async def test_who_has_something_urgent_waiting_does_not_fall_asleep(world: World) -> None:
    await world.say("smith")
    await world.broker.nap(SMITH, wire.Nap(seconds=3600))
    assert bodies(await world.poll(SMITH)) == ["hi"]


async def test_an_urgent_message_that_comes_back_ends_a_nap_too(world: World) -> None:
    await world.say("smith")
    turn, _ = await world.turn(SMITH)
    await world.broker.nap(SMITH, wire.Nap(seconds=3600))
    await world.broker.harness_gone(SMITH)
    await world.hello(SMITH, OTHER_BOOT)
    assert bodies(await world.poll(SMITH, OTHER_BOOT)) == ["hi"]
    assert turn


@pytest.mark.parametrize("urgent", [False, True])
async def test_parking_holds_back_even_what_is_urgent(world: World, urgent: bool) -> None:
    until = int((world.clock.now() + 60) * 1_000_000)
    await world.set("smith", parked_until_at=until, parked_reason="rate limited")
    await (world.say("smith", "psst") if urgent else world.event(SMITH))
    assert (await world.poll(SMITH)).messages == []
    world.clock.advance(60)
    assert bodies(await world.poll(SMITH)) == ["psst"]


@pytest.mark.parametrize(
    "columns",
    [{}, {"desired": "stopped"}, {"parked_reason": "poison", "parked_until_at": None}],
    ids=["held", "stopped", "parked without end"],
)
async def test_who_is_not_to_run_gets_nothing(world: World, columns: dict[str, object]) -> None:
    await world.set("smith", **columns)
    if not columns:
        await world.hold("smith")
    await world.say("smith")
    assert await world.poll(SMITH) == wire.Inbox(lease=None, messages=[], waiting=1)


async def test_draining_holds_messages_and_turns_until_a_new_harness_comes(world: World) -> None:
    await world.event(SMITH)
    lease = (await world.poll(SMITH)).lease
    world.broker.drain(SMITH, on=True)
    with pytest.raises(Exception, match="about to be restarted"):
        await world.begin(SMITH, lease)
    assert (await world.poll(SMITH)).messages == []
    await world.broker.harness_gone(SMITH)
    await world.hello(SMITH, OTHER_BOOT)
    inbox = await world.poll(SMITH, OTHER_BOOT)
    assert [m.redelivered for m in inbox.messages] == [True]
    world.broker.drain(SMITH, on=True)
    world.broker.drain(SMITH, on=False)
    await world.begin(SMITH, inbox.lease, OTHER_BOOT)


# ----------------------------------------------------------------------------------------------------- leases
async def test_a_lease_whose_answer_was_lost_is_handed_out_again_as_it_was(world: World) -> None:
    await world.event(SMITH, "one")
    first = await world.poll(SMITH)
    await world.event(SMITH, "two")
    again = await world.poll(SMITH)
    assert again.lease == first.lease
    assert again.messages == first.messages
    assert again.waiting == 1


async def test_a_poll_whose_asker_has_gone_does_not_keep_the_message_from_the_next(world: World) -> None:
    """The first poll's client vanished unnoticed; the message that it is given reaches the second."""
    polls = [asyncio.ensure_future(world.poll(SMITH, wait_s=180)) for _ in range(2)]
    await world.clock.asleep(2)
    await world.event(SMITH, "one")
    first, second = await asyncio.wait_for(asyncio.gather(*polls), 5)
    assert first == second


async def test_an_acked_lease_is_over_and_a_returned_one_comes_again_marked(world: World) -> None:
    await world.event(SMITH, "one")
    lease = (await world.poll(SMITH)).lease
    assert lease is not None
    await world.broker.return_lease(SMITH, lease)
    await world.broker.return_lease(SMITH, lease)
    with pytest.raises(AgentError, match="was returned before"):
        await world.broker.ack(SMITH, lease)
    inbox = await world.poll(SMITH)
    assert [(m.body, m.redelivered) for m in inbox.messages] == [("one", True)]
    assert inbox.lease is not None
    await world.broker.ack(SMITH, inbox.lease)
    await world.broker.ack(SMITH, inbox.lease)
    with pytest.raises(AgentError, match="was acked before"):
        await world.broker.return_lease(SMITH, inbox.lease)
    assert (await world.poll(SMITH)).messages == []


async def test_nobody_touches_the_lease_of_another_agent(world: World) -> None:
    await world.event(SMITH)
    lease = (await world.poll(SMITH)).lease
    assert lease is not None
    for act in (world.broker.ack, world.broker.return_lease):
        with pytest.raises(AgentError, match="no lease"):
            await act(SCOUT, lease)
    with pytest.raises(AgentError, match="no lease"):
        await world.begin(SCOUT, lease)


async def test_a_new_harness_gets_what_the_old_one_held_and_the_old_one_gets_nothing(world: World) -> None:
    await world.event(SMITH)
    await world.poll(SMITH)
    await world.hello(SMITH, OTHER_BOOT)
    inbox = await world.poll(SMITH, OTHER_BOOT)
    assert [m.redelivered for m in inbox.messages] == [True]
    with pytest.raises(AgentError) as caught:
        await world.poll(SMITH, BOOT)
    assert caught.value.code == "hello-first"


async def test_the_waiting_poll_of_an_old_harness_ends_when_a_new_one_greets(world: World) -> None:
    old = asyncio.ensure_future(world.poll(SMITH, wait_s=180))
    await world.clock.asleep()
    await world.hello(SMITH, OTHER_BOOT)
    with pytest.raises(AgentError, match="does not know your harness"):
        await asyncio.wait_for(old, 5)


async def test_after_a_restart_of_hived_the_same_harness_finds_its_lease(world: World) -> None:
    await world.event(SMITH)
    before = await world.poll(SMITH)
    await world.restart()
    with pytest.raises(AgentError) as caught:
        await world.poll(SMITH)
    assert caught.value.code == "hello-first"
    await world.hello(SMITH)
    assert await world.poll(SMITH) == before


async def test_an_answer_is_bounded_in_number_and_bytes(world: World) -> None:
    for number in range(12):
        await world.send(SCOUT, "smith", str(number % 10) * 60_000)
    inbox = await world.poll(SMITH, limit=3)
    assert len(inbox.messages) == 3
    assert inbox.waiting == 9
    assert inbox.lease is not None
    await world.broker.ack(SMITH, inbox.lease)
    inbox = await world.poll(SMITH, limit=50)
    assert len(inbox.messages) == delivery.BATCH_MAX_BYTES // 60_000
    assert inbox.waiting == 9 - len(inbox.messages)


# ---------------------------------------------------------------------------------------- what the hive tells
async def test_the_system_tells_each_key_once_and_the_operator_when_there_is_no_manager(world: World) -> None:
    for _ in range(2):
        await world.broker.notify(AgentName("manager"), "crash", key="crash-1")
    assert bodies(await world.poll(BOSS)) == ["crash"]
    await world.set("hm1nd", desired="destroyed")
    await world.broker.notify(AgentName("manager"), "crash again", key="crash-2")
    await world.broker.notify(AgentName("nobody"), "lost", key="crash-3")
    page = await world.broker.messages(agent="operator", before=None, limit=10)
    assert [(m.sender, m.kind, m.body) for m in page.items] == [("system", "event", "crash again")]


async def test_what_the_system_tells_is_made_to_fit(world: World) -> None:
    await world.broker.notify(SMITH, "\udcff\x00" + "€" * 40_000, key="long")
    [message] = (await world.poll(SMITH)).messages
    assert message.body.startswith("?␀€")
    assert message.body.endswith("[cut]")
    assert len(message.body.encode()) <= 65_536


@pytest.mark.parametrize("to", ["smith", "scout", "manager", "hm1nd", "nobody", "old", "operator"])
@pytest.mark.parametrize("allow", [("*",), ("manager",), ("smith", "operator"), ()])
async def test_who_is_looked_up_by_name_is_who_stands_in_the_roster(
    world: World, to: str, allow: tuple[str, ...]
) -> None:
    """The few rows that a message reads decide as all of them would."""
    await world.agent("old")
    await world.set("old", desired="destroyed")
    state, policy = world.store.state, Policy("scout", allow)

    async def resolved(few: bool) -> object:
        try:
            return policy.resolve(to, await (core.roster(state, to) if few else core.roster(state)))
        except AgentError as error:
            return error.code

    assert await resolved(True) == await resolved(False)


async def test_a_message_reads_no_more_of_agents_however_many_there_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a refusal, and a message to all, read them all."""
    asked: list[Reader] = []
    before = agents.existing

    async def existing(reader: Reader) -> Sequence[Row]:
        asked.append(reader)
        return await before(reader)

    monkeypatch.setattr(agents, "existing", existing)
    await world.send(SCOUT, "smith")
    await world.send(SCOUT, "manager")
    await world.send(SCOUT, "operator")
    assert asked == []
    with pytest.raises(AgentError, match="nobody"):
        await world.send(SCOUT, "nobody")
    await world.send(BOSS, "*")
    assert len(asked) == 2
    sql = "EXPLAIN QUERY PLAN " + EXISTING_OF
    steps = [row["detail"] for row in await world.store.state.all(sql, "smith")]
    assert not [step for step in steps if step.startswith("SCAN agents")], steps
