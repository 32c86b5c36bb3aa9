"""Questions to the operator: asked once, ended once, and the agent always learns how."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from harness import wire
from reconciler.broker import questions
from reconciler.control import models as api
from reconciler.errors import AgentError, OperatorError
from tests.support.brokers import ALICE, SMITH, VIEWER, World

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path)
    await world.agent(SMITH)
    await world.hello(SMITH)
    await world.runs(SMITH)
    yield world
    await world.close()


async def ask(world: World, **more: Any) -> int:
    request = wire.AskOperator(
        question=more.pop("question", "tea?"), key=more.pop("key", None) or world.key(), **more
    )
    return (await world.broker.ask(SMITH, request)).id


async def test_the_answer_is_a_message_of_the_same_commit_and_wakes_the_agent(world: World) -> None:
    question = await ask(world, options=["yes", "no"], multi=True)
    await world.broker.nap(SMITH, wire.Nap(seconds=3600))
    waiting = asyncio.ensure_future(world.poll(SMITH, wait_s=180))
    await world.clock.asleep()
    answered = await world.broker.answer(ALICE, question, api.Answer(text="yes"))
    assert (answered.state, answered.answer, answered.answered_by) == ("answered", "yes", "operator:alice")
    [message] = (await asyncio.wait_for(waiting, 5)).messages
    assert (message.kind, message.sender) == ("answer", "operator")
    assert message.body == f"Answer to your question {question} (tea?):\nyes"
    assert await world.scalar("SELECT action FROM audit") == "question.answer"


async def test_a_question_is_asked_once_per_key(world: World) -> None:
    question = await ask(world, key="k" * 8)
    assert await ask(world, key="k" * 8) == question
    with pytest.raises(AgentError, match="another question"):
        await ask(world, key="k" * 8, question="coffee?")


async def test_a_question_ends_once(world: World) -> None:
    question = await ask(world)
    await world.broker.answer(ALICE, question, api.Answer(text="no"))
    with pytest.raises(OperatorError, match="is answered already") as caught:
        await world.broker.answer(ALICE, question, api.Answer(text="yes"))
    assert caught.value.code == "conflict"
    with pytest.raises(OperatorError, match="is answered already"):
        await world.broker.cancel_question(ALICE, question)
    assert len((await world.poll(SMITH)).messages) == 1


async def test_bad_answers_change_nothing(world: World) -> None:
    question = await ask(world)
    for actor, number, text in ((VIEWER, question, "x"), (ALICE, 99, "x"), (ALICE, question, " ")):
        with pytest.raises(OperatorError):
            await world.broker.answer(actor, number, api.Answer(text=text))
    assert (await world.broker.questions()).items[0].state == "open"
    assert (await world.poll(SMITH)).messages == []


async def test_a_cancelled_question_is_told_to_the_agent(world: World) -> None:
    question = await ask(world)
    assert (await world.broker.cancel_question(ALICE, question)).state == "cancelled"
    [message] = (await world.poll(SMITH)).messages
    assert (message.kind, message.sender) == ("answer", "system")
    assert "cancelled" in message.body


async def test_a_question_expires_when_its_time_comes_and_not_before(world: World) -> None:
    async with world.running():
        question = await ask(world, ttl_seconds=60)
        forever = await ask(world)
        waiting = asyncio.ensure_future(world.poll(SMITH, wait_s=180))
        await world.clock.asleep(2, at_least_s=60)
        world.clock.advance(59)
        assert await world.broker._questions.expire() == 0
        assert {q.state for q in (await world.broker.questions()).items} == {"open"}
        world.clock.advance(1)
        [message] = (await asyncio.wait_for(waiting, 5)).messages
    assert "nobody answered in time" in message.body
    assert {q.id: q.state for q in (await world.broker.questions()).items} == {
        forever: "open",
        question: "expired",
    }


async def test_what_expired_while_hived_was_away_is_ended_at_its_start(world: World) -> None:
    await ask(world, ttl_seconds=60)
    world.clock.advance(61)
    await world.restart()
    await world.hello(SMITH)
    async with world.running():
        inbox = await asyncio.wait_for(world.poll(SMITH, wait_s=180), 5)
    assert [m.kind for m in inbox.messages] == ["answer"]


async def test_open_questions_are_bounded_and_listed_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "OPEN_MAX", 2)
    first, second = await ask(world), await ask(world)
    with pytest.raises(AgentError, match="2 of your questions") as caught:
        await ask(world)
    assert caught.value.code == "queue-full"
    await world.broker.answer(ALICE, second, api.Answer(text="x"))
    third = await ask(world)
    assert [q.id for q in (await world.broker.questions()).items] == [third, first, second]


# ------------------------------------------------------------------------------------------------- options
async def test_options_are_chosen_by_number_and_go_with_words(world: World) -> None:
    question = await ask(world, options=["tea", "café", "water"], multi=True)
    answered = await world.broker.answer(ALICE, question, api.Answer(options=[3, 1, 3], text="with ice"))
    assert answered.answer == "tea\nwater\nwith ice"


@pytest.mark.parametrize(
    ("offered", "multi", "chosen", "why"),
    [
        (["a", "b"], True, [3], "has options 1 to 2, not 3"),
        ([], False, [1], "has no options"),
        (["a", "b"], False, [1, 2], "takes one option, not 2"),
        (["a"], False, [], "is empty"),
    ],
)
async def test_a_choice_that_is_not_offered_changes_nothing(
    world: World, offered: list[str], multi: bool, chosen: list[int], why: str
) -> None:
    question = await ask(world, options=offered, multi=multi)
    with pytest.raises(OperatorError, match=why):
        await world.broker.answer(ALICE, question, api.Answer(options=chosen))
    assert (await world.broker.question(question)).state == "open"


# ------------------------------------------------------------------------------------------------ too late
async def test_who_answers_too_late_learns_who_was_first_and_what_they_said(world: World) -> None:
    question = await ask(world)
    await world.broker.answer(ALICE, question, api.Answer(text="yes\nplease"))
    with pytest.raises(OperatorError, match=r"answered already, by alice.* at .*'yes please'") as late:
        await world.broker.answer(ALICE, question, api.Answer(text="no"))
    assert (late.value.code, "smith" in late.value.hint) == ("conflict", True)


async def test_who_answers_after_the_end_learns_that_the_agent_was_told(world: World) -> None:
    question = await ask(world, ttl_seconds=60)
    world.clock.advance(61)
    await world.broker._questions.expire()
    with pytest.raises(OperatorError, match="was told that nobody answered"):
        await world.broker.answer(ALICE, question, api.Answer(text="no"))
    other = await ask(world)
    await world.broker.cancel_question(ALICE, other)
    with pytest.raises(OperatorError, match="cancelled already, by alice"):
        await world.broker.answer(ALICE, other, api.Answer(text="no"))


async def test_questions_of_a_destroyed_agent_end_and_are_told_if_it_is_revived(world: World) -> None:
    question = await ask(world)
    other = await world.agent("scout")
    await world.hello(other)
    asked = await world.broker.ask(other, wire.AskOperator(question="mine?", key=world.key()))
    await world.set("smith", desired="destroyed")
    assert await world.broker._questions.expire() == 1
    ended = await world.broker.question(question)
    assert (ended.state, ended.answered_by) == ("cancelled", "system")
    assert (await world.broker.question(asked.id)).state == "open"
    await world.set("smith", desired="running")
    assert "destroyed before it was answered" in (await world.poll(SMITH)).messages[0].body


# ------------------------------------------------------------------------------------------------- history
async def test_questions_are_found_by_agent_state_and_words(world: World) -> None:
    scout = await world.agent("scout")
    first = await ask(world, question="Which MIRROR?", options=["Élan", "50%_off"])
    second = await ask(world, question="a door?")
    await world.broker.answer(ALICE, second, api.Answer(text="through the mirror"))
    third = (await world.broker.ask(scout, wire.AskOperator(question="tea?", key=world.key()))).id

    async def found(**asked: Any) -> list[int]:
        return [q.id for q in (await world.broker.questions(**asked)).items]

    assert await found(words="mirror") == [first, second]
    assert await found(words="Élan") == [first]
    assert await found(words="%_off") == [first]
    assert await found(words="' OR 1=1 --") == []
    assert await found(agent="scout") == [third]
    assert await found(agent="smith", state="ended") == [second]
    assert await found(state="open") == [third, first]


async def test_the_history_goes_on_page_by_page_without_open_ones(world: World) -> None:
    ids = []
    for _ in range(5):
        ids.append(await ask(world))
        await world.broker.answer(ALICE, ids[-1], api.Answer(text="yes"))
    waits = await ask(world)
    page = await world.broker.questions(limit=3)
    assert ([q.id for q in page.items], page.next) == ([waits, ids[4], ids[3]], ids[3])
    page = await world.broker.questions(limit=3, before=page.next)
    assert ([q.id for q in page.items], page.next) == ([ids[2], ids[1], ids[0]], ids[0])
    assert (await world.broker.questions(limit=3, before=page.next)).items == []
