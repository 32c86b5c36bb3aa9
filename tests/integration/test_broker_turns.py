"""Turns from hello to the end, orders, and transcripts as containers tell them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from harness import wire
from reconciler.broker import claims, outcomes
from reconciler.broker.troubles import Sign
from reconciler.control import models as api
from reconciler.errors import AgentError, OperatorError, PermanentError, TemporaryError
from reconciler.store import turns as turn_rows
from tests.support.brokers import (
    ALICE,
    BOOT,
    BOSS,
    OTHER_BOOT,
    SCOUT,
    SMITH,
    VIEWER,
    World,
    event,
    events,
)

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path)
    await world.agent(SMITH, spec={"model": "haiku"})
    await world.agent(BOSS, role="manager", allow=("*",))
    for name in (SMITH, BOSS):
        await world.hello(name)
        await world.runs(name)
    yield world
    await world.close()


async def states(world: World) -> list[tuple[str, int, int]]:
    rows = await world.store.state.all("SELECT state, redelivered, failures FROM messages ORDER BY id")
    return [(row["state"], row["redelivered"], row["failures"]) for row in rows]


async def told(world: World, kind: str) -> list[dict[str, Any]]:
    rows = await world.store.state.all(
        "SELECT data FROM outbox WHERE json_extract(data, '$.kind') = ? ORDER BY id", kind
    )
    return [json.loads(row["data"])["data"] for row in rows]


# ------------------------------------------------------------------------------------------------------ hello
async def test_hello_is_answered_with_what_is_approved(world: World) -> None:
    await world.generation(
        SMITH, 2, {"model": "opus", "send": {"allow": ["manager"]}}, deployed=True, prompt="be brief"
    )
    welcome = await world.hello(SMITH)
    assert welcome.generation == 2
    assert welcome.spec == {"model": "opus", "send": {"allow": ["manager"]}}
    assert (welcome.prompt, welcome.model, welcome.role) == ("be brief", "opus", "agent")
    assert (welcome.session_id, welcome.resume) == ("session-smith", False)
    assert welcome.peers == ["manager", "hm1nd"]
    assert welcome.hive_drafts == []


async def test_while_a_candidate_is_probed_hello_speaks_of_the_candidate(world: World) -> None:
    await world.generation(SMITH, 2, {"model": "opus"}, deployed=False)
    assert (await world.hello(SMITH)).generation == 2
    async with world.store.state.transaction() as tx:
        await tx.run("UPDATE proposals SET state = 'failed' WHERE agent = 'smith' AND generation = 2")
    assert (await world.hello(SMITH)).generation == 1


async def test_the_first_generation_is_served_while_it_is_probed_and_none_before(world: World) -> None:
    async with world.store.state.transaction() as tx:
        await tx.run(
            "INSERT INTO agents (name, role, uid_base, desired, session_id, created_at) "
            "VALUES ('scribe', 'agent', 6553600, 'running', 's', 1)"
        )
    scribe = type(SMITH)("scribe")
    with pytest.raises(TemporaryError, match="no approved generation"):
        await world.hello(scribe)
    await world.generation("scribe", 1, {"send": {"allow": ["operator"]}}, deployed=False)
    welcome = await world.hello(scribe)
    assert (welcome.generation, welcome.peers) == (1, ["operator"])
    assert await world.send(scribe, "operator")


async def test_an_override_of_the_model_holds_as_far_as_the_spec_allows_it(world: World) -> None:
    await world.set("smith", model_override="opus")
    assert (await world.hello(SMITH)).model == "opus"
    await world.generation(SMITH, 2, {"model": "haiku", "models": ["sonnet"]}, deployed=True)
    assert (await world.hello(SMITH)).model == "haiku"
    await world.set("smith", model_override="sonnet")
    assert (await world.hello(SMITH)).model == "sonnet"


async def test_the_manager_learns_of_drafts_and_nobody_else(world: World) -> None:
    async with world.store.state.transaction() as tx:
        await tx.run("INSERT INTO drafts VALUES ('scribe', 'hm1nd', 'abc', NULL, 1)")
    assert (await world.hello(BOSS)).hive_drafts == ["scribe"]
    assert (await world.hello(SMITH)).hive_drafts == []


async def test_hello_is_not_answered_before_the_container_is_closed(world: World) -> None:
    world.greeted.clear()
    world.refusal = TemporaryError("its user namespace is not ready")
    with pytest.raises(TemporaryError, match="not ready"):
        await world.hello(SMITH, OTHER_BOOT)
    assert world.presence.boot_of(SMITH) == BOOT, "a hello that was not answered did not happen"
    world.refusal = None
    await world.hello(SMITH, OTHER_BOOT)
    assert world.greeted == ["smith"]
    assert "smith" in world.woken
    assert world.broker.hello_of(SMITH) == world.clock.now()


async def test_a_harness_of_another_release_is_refused(world: World) -> None:
    with pytest.raises(AgentError) as caught:
        await world.broker.hello(SMITH, wire.Hello(wire=99, boot=BOOT))
    assert caught.value.code == "wire-version"


# ------------------------------------------------------------------------------------------------------ turns
async def test_a_good_turn_acks_its_messages_in_the_same_commit(world: World) -> None:
    message = await world.say("smith")
    turn, _ = await world.turn(SMITH)
    assert world.broker.has_live_turn(SMITH)
    await world.end(SMITH, turn)
    assert not world.broker.has_live_turn(SMITH)
    assert await states(world) == [("acked", 0, 0)]
    [begun] = await told(world, "turn.begun")
    assert begun == {
        "turn": turn, "model": "haiku", "messages": [message], "purpose": "messages", "inbox_depth": 0
    }  # fmt: skip
    [ended] = await told(world, "turn.ended")
    assert (ended["outcome"], ended["inbox_depth"]) == ("ok", 0)


async def test_a_cancelled_turn_acks_too(world: World) -> None:
    await world.say("smith")
    turn, _ = await world.turn(SMITH)
    await world.end(SMITH, turn, "cancelled")
    assert await states(world) == [("acked", 0, 0)]


async def test_begin_and_end_can_be_repeated(world: World) -> None:
    await world.say("smith")
    lease = (await world.poll(SMITH)).lease
    turn = await world.begin(SMITH, lease, key="k" * 8)
    assert await world.begin(SMITH, lease, key="k" * 8) == turn
    await world.end(SMITH, turn)
    await world.end(SMITH, turn)
    with pytest.raises(AgentError, match="ended already: ok"):
        await world.end(SMITH, turn, "crashed")
    with pytest.raises(AgentError, match="of that key has ended"):
        await world.begin(SMITH, None, key="k" * 8)


async def test_one_turn_at_a_time(world: World) -> None:
    turn = await world.begin(SMITH, None)
    with pytest.raises(AgentError, match=f"turn {turn} is still open"):
        await world.begin(SMITH, None)
    await world.event(SMITH)
    assert (await world.poll(SMITH)).messages == []


async def test_what_is_received_within_a_turn_belongs_to_it(world: World) -> None:
    await world.event(SMITH, "one")
    turn, _ = await world.turn(SMITH)
    await world.event(SMITH, "two")
    second = await world.poll(SMITH, turn=turn)
    assert [m.body for m in second.messages] == ["two"]
    await world.end(SMITH, turn, "stalled")
    assert await states(world) == [("queued", 1, 1), ("queued", 1, 1)]


async def test_what_did_not_arrive_within_a_good_turn_comes_again(world: World) -> None:
    await world.event(SMITH, "one")
    turn, _ = await world.turn(SMITH)
    await world.event(SMITH, "lost on the way")
    await world.poll(SMITH, turn=turn)
    await world.event(SMITH, "arrived")
    arrived = (await world.poll(SMITH, turn=turn)).lease
    assert arrived is not None
    await world.end(SMITH, turn, "ok", leases=[arrived])
    assert await states(world) == [("acked", 0, 0), ("queued", 1, 0), ("acked", 0, 0)]


async def test_within_a_turn_nap_and_parking_do_not_hold_back_but_a_hold_does(world: World) -> None:
    turn = await world.begin(SMITH, None)
    await world.broker.nap(SMITH, wire.Nap(seconds=60))
    await world.event(SMITH)
    assert (await world.poll(SMITH, turn=turn)).messages
    await world.event(SMITH)
    await world.hold("smith")
    assert (await world.poll(SMITH, turn=turn)).messages == []


async def test_the_turn_of_somebody_else_is_none_of_ones_business(world: World) -> None:
    await world.event(BOSS)
    turn, _ = await world.turn(BOSS)
    await world.event(SMITH)
    with pytest.raises(AgentError, match="no turn"):
        await world.poll(SMITH, turn=turn)
    with pytest.raises(AgentError, match="no turn"):
        await world.end(SMITH, turn)
    with pytest.raises(AgentError, match="no turn"):
        await world.broker.turn_events(SMITH, turn, events(event(1)))


async def test_a_lease_that_was_returned_begins_no_turn(world: World) -> None:
    await world.event(SMITH)
    lease = (await world.poll(SMITH)).lease
    assert lease is not None
    await world.broker.return_lease(SMITH, lease)
    with pytest.raises(AgentError, match="ask for the inbox again"):
        await world.begin(SMITH, lease)
    with pytest.raises(AgentError, match="no lease"):
        await world.begin(SMITH, 999)


# ----------------------------------------------------------------------------------------- vanished harnesses
async def test_the_end_of_the_container_ends_its_turn_and_returns_everything(world: World) -> None:
    await world.event(SMITH)
    turn, _ = await world.turn(SMITH)
    for _ in range(2):
        await world.broker.harness_gone(SMITH)
    assert await states(world) == [("queued", 1, 1)]
    [ended] = await told(world, "turn.ended")
    assert (ended["turn"], ended["outcome"], ended["error"]) == (turn, "crashed", "its container ended")
    assert world.broker.hello_of(SMITH) is None
    with pytest.raises(AgentError, match="ended already"):
        await world.end(SMITH, turn)
    assert await world.scalar("SELECT parked_reason FROM agents WHERE name = 'smith'") == ""


async def test_a_new_harness_process_ends_the_turn_of_the_old_one(world: World) -> None:
    await world.event(SMITH)
    turn, _ = await world.turn(SMITH)
    await world.hello(SMITH, OTHER_BOOT, turn=turn)
    assert await states(world) == [("queued", 1, 1)]
    assert not world.broker.has_live_turn(SMITH)


async def test_a_harness_that_greets_again_in_the_middle_of_its_turn_keeps_it(world: World) -> None:
    await world.event(SMITH)
    turn, _ = await world.turn(SMITH)
    await world.restart()
    assert world.broker.has_live_turn(SMITH), "known from the rows before the harness is back"
    assert world.broker.hello_of(SMITH) is None
    await world.hello(SMITH, turn=turn)
    await world.end(SMITH, turn)
    assert await states(world) == [("acked", 0, 0)]


async def test_a_harness_that_forgot_its_turn_loses_it(world: World) -> None:
    await world.event(SMITH)
    turn, _ = await world.turn(SMITH)
    await world.hello(SMITH)
    assert await states(world) == [("queued", 1, 1)]
    assert turn


# ----------------------------------------------------------------------------------------------- after a turn
@pytest.mark.parametrize(
    ("outcome", "retry_after_s", "parked_s", "failures"),
    [
        ("rate_limited", 300.0, 300, 0),
        ("rate_limited", None, 30, 0),
        ("rate_limited", 9000.0, 3600, 0),
        ("auth", None, 60, 0),
        ("credit", None, 60, 0),
        ("unavailable", None, 5, 0),
        ("model_refused", None, 60, 0),
        ("budget", None, 900, 0),
        ("crashed", None, 1, 1),
        ("api_error", None, 1, 1),
    ],
)
async def test_after_a_failed_turn_the_agent_rests(
    world: World, outcome: wire.Outcome, retry_after_s: float | None, parked_s: int, failures: int
) -> None:
    await world.say("smith")
    turn, _ = await world.turn(SMITH)
    await world.end(SMITH, turn, outcome, retry_after_s=retry_after_s)
    assert await states(world) == [("queued", 1, failures)]
    assert (await world.poll(SMITH)).messages == []
    world.clock.advance(parked_s - 0.5)
    assert (await world.poll(SMITH)).messages == []
    world.clock.advance(0.5)
    assert (await world.poll(SMITH)).messages


async def fail_turns(world: World, times: int) -> list[list[str]]:
    """Fail every turn; the bodies that each one got."""
    seen = []
    for _ in range(times):
        world.clock.advance(100)
        turn, inbox = await world.turn(SMITH)
        seen.append([m.body for m in inbox.messages])
        await world.end(SMITH, turn, "crashed", error="segmentation fault")
    return seen


async def to_operator(world: World) -> list[str]:
    """What the operator was told, oldest first."""
    found = (await world.broker.messages(agent="operator", before=None, limit=50)).items
    return [message.body for message in reversed(found)]


async def test_a_message_that_keeps_failing_goes_alone_and_is_set_aside_and_people_are_told(
    world: World,
) -> None:
    await world.event(SMITH, "poison")
    await world.event(SMITH, "harmless")
    seen = await fail_turns(world, outcomes.FAILURES_MAX)
    assert seen == [["poison", "harmless"]] * 2 + [["poison"]] * 3
    assert await states(world) == [("acked", 1, 5), ("queued", 1, 2), ("queued", 0, 0), ("queued", 0, 0)]
    world.clock.advance(100)
    turn, inbox = await world.turn(SMITH)
    assert [m.body for m in inbox.messages] == ["harmless"], "the agent goes on with the next"
    await world.end(SMITH, turn)

    [told] = await to_operator(world)
    assert "Message 1 from system to smith was set aside: 5 turns over it failed" in told
    assert "Its container says: segmentation fault" in told
    assert "hive redeliver 1" in told
    [manager] = (await world.poll(BOSS)).messages
    assert "Message 1 from system to smith was set aside" in manager.body
    assert "segmentation" not in manager.body, "a container's words are not the host's"
    [shown] = (await world.broker.messages(agent="smith", before=2, limit=5)).items
    assert shown.state == "set_aside"


async def test_what_was_set_aside_comes_again_when_the_operator_wants_it(world: World) -> None:
    await world.event(SMITH, "poison")
    await fail_turns(world, outcomes.FAILURES_MAX)
    rehearsed = await world.broker.redeliver(ALICE, 1, dry_run=True)
    assert rehearsed.state == "queued"
    assert (await world.poll(SMITH)).messages == []
    await world.broker.redeliver(ALICE, 1)
    turn, inbox = await world.turn(SMITH)
    assert [(m.body, m.redelivered) for m in inbox.messages] == [("poison", True)]
    await world.end(SMITH, turn)
    for number, code in ((1, "conflict"), (99, "not-found")):
        with pytest.raises(OperatorError) as caught:
            await world.broker.redeliver(ALICE, number)
        assert caught.value.code == code
    with pytest.raises(OperatorError, match="viewer"):
        await world.broker.redeliver(VIEWER, 1)


async def test_when_message_after_message_fails_the_agent_is_parked_and_loses_no_more(world: World) -> None:
    for number in range(5):
        await world.event(SMITH, f"task {number}")
    tries = 0
    while "in a row" not in (await world.presence.now(SMITH)).reason:
        await fail_turns(world, 1)
        tries += 1
        assert tries < 40
    left = [state for state, _, _ in await states(world)][:5]
    assert left == ["acked"] * outcomes.ASIDE_MAX + ["queued"] * 2
    world.clock.advance(10**6)
    assert (await world.poll(SMITH)).messages == []
    now = await world.presence.now(SMITH)
    assert (now.state, now.until) == ("parked", None)
    assert "3 messages in a row failed" in now.reason
    told = await to_operator(world)
    assert len(told) == outcomes.ASIDE_MAX + 1
    assert "smith is parked: 3 messages in a row failed" in told[-1]
    assert "hive wake smith" in told[-1]

    await world.set("smith", parked_reason="", parked_until_at=None)  # as `hive wake` does
    turn, _ = await world.turn(SMITH)
    await world.end(SMITH, turn)


async def test_a_turn_that_hived_itself_ends_counts_against_nothing(world: World) -> None:
    await world.event(SMITH)
    for restarts in range(1, outcomes.FAILURES_MAX + 3):
        world.clock.advance(100)
        turn, _ = await world.turn(SMITH)
        await world.set("smith", restart_wanted=restarts)
        await world.end(SMITH, turn, "crashed", error="the container was stopped during the turn")
        await world.set("smith", restart_done=restarts)
    assert await states(world) == [("queued", 1, 0)]


async def test_without_an_answer_from_the_api_nothing_is_set_aside_and_others_get_their_try(
    world: World,
) -> None:
    await world.event(SMITH, "first")
    seen: list[str] = []
    for number in range(20):
        if number == outcomes.DEFER_AFTER:
            await world.event(SMITH, "second")
        world.clock.advance(1000)
        turn, inbox = await world.turn(SMITH)
        seen.append(inbox.messages[0].body)
        await world.end(SMITH, turn, "unavailable")
    assert [state for state, _, _ in await states(world)] == ["queued", "queued"]
    assert seen[: outcomes.DEFER_AFTER] == ["first"] * outcomes.DEFER_AFTER
    assert seen[outcomes.DEFER_AFTER] == "second"
    assert await to_operator(world) == []


async def test_a_message_that_fails_although_others_are_answered_is_to_blame(world: World) -> None:
    await world.event(SMITH, "poison")
    tries = 0
    while (await states(world))[0][0] == "queued":
        world.clock.advance(1000)
        turn, _ = await world.turn(SMITH)
        world.clock.advance(10)
        await world.end(SMITH, turn, "unavailable")
        world.clock.advance(10)
        world.broker.troubles.heard(Sign("ok", "hm1nd", "opus"))
        tries += 1
        assert tries < 20
    assert tries == outcomes.FAILURES_MAX + 1, "the first failure proves nothing"


async def test_what_an_agent_is_makes_turns_fail_and_people_are_told_once(world: World) -> None:
    await world.event(SMITH)
    for _ in range(outcomes.TELL_AFTER + 3):
        world.clock.advance(1000)
        turn, _ = await world.turn(SMITH)
        await world.end(SMITH, turn, "model_refused", error="no such model")
    [told] = await to_operator(world)
    assert "smith is parked: 3 turns failed: the model may not be used" in told
    assert "hive model smith MODEL" in told
    assert (await states(world))[0] == ("queued", 1, 0)


async def test_a_turn_beyond_its_own_budget_counts_against_its_messages(world: World) -> None:
    await world.event(SMITH)
    turn, _ = await world.turn(SMITH)
    world.broker.troubles.heard(Sign("turn_budget", "smith", turn=turn))
    await world.end(SMITH, turn, "budget")
    assert (await states(world))[0] == ("queued", 1, 1)
    world.clock.advance(1000)
    turn, _ = await world.turn(SMITH)
    await world.end(SMITH, turn, "budget")
    assert (await states(world))[0] == ("queued", 1, 1), "another turn, another reason"


async def test_the_faults_of_the_world_never_count_against_a_message(world: World) -> None:
    await world.event(SMITH)
    for _ in range(outcomes.FAILURES_MAX + 2):
        world.clock.advance(1000)
        turn, _ = await world.turn(SMITH)
        await world.end(SMITH, turn, "rate_limited")
    assert await states(world) == [("queued", 1, 0)]


# ------------------------------------------------------------------------------------------------ transcripts
async def lines(world: World) -> list[tuple[int, str, dict[str, Any]]]:
    page = await world.broker.transcript("smith", before=None, after=None, limit=1000)
    return [(line.seq, line.kind, line.data) for line in page.items]


async def test_a_turn_is_told_from_begin_to_end_once_however_often_it_is_sent(world: World) -> None:
    await world.event(SMITH)
    turn, inbox = await world.turn(SMITH)
    batch = events(event(1, "prompt", text="hello"), event(2))
    assert (await world.broker.turn_events(SMITH, turn, batch)).seq == 2
    assert (await world.broker.turn_events(SMITH, turn, batch)).seq == 2
    more = events(event(2), event(3, "tool_call", id="t", name="Bash", input={"command": "ls"}))
    assert (await world.broker.turn_events(SMITH, turn, more)).seq == 3
    world.clock.advance(2)
    await world.end(SMITH, turn)
    assert await lines(world) == [
        (0, "turn_begin", {"model": "haiku", "messages": [inbox.messages[0].id]}),
        (1, "prompt", {"text": "hello"}),
        (2, "text", {"text": "line 2"}),
        (3, "tool_call", {"id": "t", "name": "Bash", "input": {"command": "ls"}}),
        (2_000_000_000, "turn_end", {"outcome": "ok", "error": "", "duration_ms": 2000}),
    ]
    assert (await world.broker.turn_events(SMITH, turn, batch)).seq == 3, "a late repeat is no error"
    with pytest.raises(AgentError, match="has ended"):
        await world.broker.turn_events(SMITH, turn, events(event(4)))


async def test_the_first_and_last_line_of_a_turn_survive_a_death_right_after_the_commit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: object) -> None:
        raise RuntimeError("killed")

    turns = world.broker._turns
    monkeypatch.setattr(turns, "_record", die)
    await world.event(SMITH)
    lease = (await world.poll(SMITH)).lease
    with pytest.raises(RuntimeError):
        await world.begin(SMITH, lease, key="k" * 8)
    await world.restart()
    await world.hello(SMITH)
    kinds = [kind for _, kind, _ in await lines(world)]
    assert kinds == ["turn_begin", "turn_end"]


async def test_transcripts_are_read_in_pages_both_ways(world: World) -> None:
    turn = await world.begin(SMITH, None)
    await world.broker.turn_events(SMITH, turn, events(*(event(n) for n in range(1, 10))))
    newest = await world.broker.transcript("smith", before=None, after=None, limit=4)
    assert [line.seq for line in newest.items] == [6, 7, 8, 9]
    assert newest.before == newest.items[0].id
    older = await world.broker.transcript("smith", before=newest.before, after=None, limit=100)
    assert [line.seq for line in older.items] == [0, 1, 2, 3, 4, 5]
    assert older.before is None
    following = await world.broker.transcript("smith", before=None, after=older.items[-1].id, limit=2)
    assert [line.seq for line in following.items] == [6, 7]
    nothing = await world.broker.transcript("smith", before=None, after=newest.items[-1].id, limit=2)
    assert nothing.items == []
    with pytest.raises(OperatorError, match="no agent 'nobody'"):
        await world.broker.transcript("nobody", before=None, after=None, limit=1)


async def test_the_context_and_the_session_are_learnt_and_remembered(world: World) -> None:
    turn = await world.begin(SMITH, None)
    batch = events(event(1, "context", used_tokens=1234, window_tokens=200_000), event(2))
    await world.broker.turn_events(SMITH, turn, batch)
    now = await world.presence.now(SMITH)
    assert (now.context_used, now.context_window, now.active_model) == (1234, 200_000, "haiku")
    assert (await world.hello(SMITH, turn=turn)).resume
    await world.restart()
    now = await world.presence.now(SMITH)
    assert (now.context_used, now.context_window) == (1234, 200_000)


async def test_a_session_that_was_replaced_during_the_turn_stays_unused(world: World) -> None:
    turn = await world.begin(SMITH, None)
    await world.set("smith", session_id="fresh")
    await world.broker.turn_events(SMITH, turn, events(event(1)))
    await world.end(SMITH, turn)
    assert not (await world.hello(SMITH)).resume


async def test_malformed_events_become_notes_and_hold_up_nothing(world: World) -> None:
    turn = await world.begin(SMITH, None)
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    batch = events(
        event(1, "text", text=["no", "text"]),
        event(2, "tool_result", id="t", text="x" * 300_000, is_error=False, junk="y"),
        event(3, "context", used_tokens=-5, window_tokens=True),
        event(4, "tool_call", id="t", name="Bash", input={"blob": "z" * 400_000}),
        event(5, "tool_call", id="t", name="Bash", input={"x": float("nan")}),
        event(6, "compaction"),
    )
    assert (await world.broker.turn_events(SMITH, turn, batch)).seq == 6
    kinds = {seq: (kind, data) for seq, kind, data in await lines(world)}
    assert kinds[1] == ("note", {"text": "left out, malformed: text: text is not a text"})
    assert len(kinds[2][1]["text"]) < 200_100
    assert "junk" not in kinds[2][1]
    assert kinds[3][0] == "note"
    assert "bytes" in kinds[4][1]["input"]["cut"]
    assert "cut" in kinds[5][1]["input"]
    assert kinds[6][0] == "note"


async def test_what_one_turn_may_tell_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LINES_PER_TURN", 5)
    turn = await world.begin(SMITH, None)
    for number in range(10):
        batch = events(event(2 * number + 1), event(2 * number + 2))
        assert (await world.broker.turn_events(SMITH, turn, batch)).seq == 2 * number + 2
    kinds = [kind for _, kind, _ in await lines(world)]
    assert kinds[:5] == ["turn_begin", "text", "text", "text", "text"]
    assert set(kinds[5:]) == {"note"}
    assert len(kinds) <= 8


async def test_a_number_that_belongs_to_the_host_is_refused(world: World) -> None:
    turn = await world.begin(SMITH, None)
    with pytest.raises(AgentError, match="too large"):
        await world.broker.turn_events(SMITH, turn, events(event(2_000_000_000)))


async def test_many_lines_are_announced_by_few_events_and_the_last_line_always(world: World) -> None:
    turn = await world.begin(SMITH, None)
    async with world.running():
        for number in range(1, 101):
            await world.broker.turn_events(SMITH, turn, events(event(number)))
        last = await world.scalar("SELECT MAX(id) FROM transcript", events=True)
        announced: list[dict[str, Any]] = []
        stream = world.events.stream(after=0)
        while not announced or announced[-1]["line"] != last:
            world.clock.advance(0.05)
            found = await asyncio.wait_for(anext(stream), 5)
            if found.kind == "turn.event":
                announced.append(found.data)
        await stream.aclose()
    assert len(announced) < 10
    assert announced[-1] == {"turn": turn, "line": last}


# ----------------------------------------------------------------------------------------------------- orders
async def orders(world: World, after: int = 0, wait_s: float = 0) -> list[tuple[int, str, dict[str, Any]]]:
    found = await world.broker.directives(SMITH, wait_s=wait_s, after=after)
    return [(d.id, d.kind, d.data) for d in found.directives]


async def test_an_order_wakes_the_harness_and_is_kept_until_it_is_acknowledged(world: World) -> None:
    waiting = asyncio.ensure_future(orders(world, wait_s=180))
    await world.clock.asleep()
    await world.broker.direct(SMITH, "model", model="opus")
    [(first, kind, data)] = await asyncio.wait_for(waiting, 5)
    assert (kind, data) == ("model", {"model": "opus"})
    assert await orders(world) == [(first, "model", {"model": "opus"})]
    assert await orders(world, after=first) == []
    assert await world.scalar("SELECT COUNT(*) FROM directives") == 0


async def test_orders_outlive_restarts_of_both_sides(world: World) -> None:
    await world.broker.direct(SMITH, "compact")
    [(first, _, _)] = await orders(world)
    await orders(world, after=first)
    await world.broker.direct(SMITH, "session", session_id="fresh")
    await world.restart()
    welcome = await world.hello(SMITH, OTHER_BOOT)
    found = await orders(world, after=welcome.directives_after)
    assert [kind for _, kind, _ in found] == ["session"]
    await orders(world, after=found[0][0])
    assert (await world.hello(SMITH, OTHER_BOOT)).directives_after == found[0][0]


async def test_a_cancel_is_for_the_live_turn_and_dies_with_its_harness(world: World) -> None:
    await world.broker.direct(SMITH, "cancel")
    assert await orders(world) == []
    turn = await world.begin(SMITH, None)
    await world.broker.direct(SMITH, "cancel")
    assert [(kind, data) for _, kind, data in await orders(world)] == [("cancel", {"turn": turn})]
    await world.hello(SMITH, OTHER_BOOT)
    assert await orders(world) == []


async def test_orders_are_bounded_and_unknown_ones_are_a_fault_of_ours(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_rows, "DIRECTIVES_KEPT", 3)
    for _ in range(5):
        await world.broker.direct(SMITH, "repos")
    assert len(await orders(world)) == 3
    with pytest.raises(PermanentError, match="no order"):
        await world.broker.direct(SMITH, "dance")
    await world.broker.direct(SCOUT, "repos")  # nobody of that name: nothing to order


async def test_the_last_line_of_a_failed_turn_says_what_followed_and_what_helps(world: World) -> None:
    await world.event(SMITH, "poison")
    await fail_turns(world, outcomes.FAILURES_MAX)
    ends = [data for _, kind, data in await lines(world) if kind == "turn_end"]
    assert [("until" in data, data.get("set_aside")) for data in ends] == [(True, None)] * 4 + [(False, [1])]
    assert all("`hive logs smith`" in data["hint"] for data in ends)


async def test_which_mcp_servers_run_is_shown_and_a_change_of_it_is_an_event(world: World) -> None:
    async with world.running():
        turn = await world.begin(SMITH, None)
        failed = [{"name": "docs", "status": "failed", "tools": 0, "error": "no such file"}]
        for seq, servers in enumerate(([], failed, failed), start=1):
            told = events(event(seq, "mcp", servers=servers))
            await world.broker.turn_events(SMITH, turn, told)
        assert list((await world.presence.now(SMITH)).servers) == failed
        found: list[api.Event] = []
        async with asyncio.timeout(30):
            while not found:
                world.clock.advance(0.1)  # hints are let through with a pause in between
                found = (await world.events.list(after=0, agent="smith", kind="agent.mcp", limit=9)).items
        assert [one.data["servers"] for one in found] == [failed], "told once"
