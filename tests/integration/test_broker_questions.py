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
