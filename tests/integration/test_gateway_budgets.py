"""Budgets of a day in the gateway: nothing gets past them, and what they end is said and remembered."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from reconciler.gateway.deadlines import Deadlines
from reconciler.gateway.messages import Added, SetHive
from reconciler.model.days import local_day
from reconciler.store import ledgercopy
from reconciler.store.ledger import Ledger
from tests.integration.gateway_kit import MODEL, Lab, body, lab_folder, policy, until

pytestmark = [pytest.mark.asyncio, pytest.mark.integration]

# At the prices of haiku: an answer of 2000 tokens costs 1000 µ$, its input of a few tokens next to nothing.
ANSWER = {"text": "hi", "usage": {"input_tokens": 10, "output_tokens": 2000}}
PAYLOAD = body(max_tokens=2000)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with lab_folder() as made:
        yield made


def today() -> str:
    return local_day(time.time())


def added(usd_micro: int) -> Added:
    return Added(day=today(), usd_micro=usd_micro)


async def spend(lab: Lab, agent: str = "scout", **more: Any) -> int:
    return (await lab.ask({**PAYLOAD, **more}, agent=agent)).status


async def test_a_day_that_is_used_up_closes_the_agent_until_it_is_raised(lab: Lab) -> None:
    """Three answers fit into 3500 µ$; a request that could cost 4 µ$ would still, but the day is over."""
    small = policy(budget_usd_day=0.0035)
    async with lab.scripted(ANSWER), lab.served(small) as client:
        assert [await spend(lab) for _ in range(4)] == [200, 200, 200, 403]
        [refusal] = lab.refusals
        closure = refusal.closure
        assert closure is not None
        assert (closure.day, closure.budget, closure.ceiling_usd_micro) == (today(), "agent", 3500)
        assert (closure.spent_usd_micro, client.closures["scout"]) == (3003, closure)
        asked = len(lab.seen)
        assert await spend(lab, max_tokens=1) == 403
        assert len(lab.seen) == asked  # not even to be counted
        await client.configure([small.model_copy(update={"added": added(1000)})])
        assert [await spend(lab) for _ in range(2)] == [200, 403]
        assert lab.refusals[-1].closure is not None
        assert lab.refusals[-1].closure.ceiling_usd_micro == 4500


async def test_what_was_added_for_another_day_does_not_count(lab: Lab) -> None:
    yesterday = Added(day="2026-01-01", usd_micro=1_000_000)
    async with lab.scripted(ANSWER), lab.served(policy(budget_usd_day=0.0015, added=yesterday)):
        assert [await spend(lab) for _ in range(2)] == [200, 403]


async def test_a_restart_of_the_gateway_opens_nothing(lab: Lab) -> None:
    small = policy(budget_usd_day=0.0015)
    async with lab.scripted(ANSWER):
        async with lab.served(small):
            assert [await spend(lab) for _ in range(2)] == [200, 403]
        async with lab.served(small) as client:
            await until(lambda: "scout" in client.closures)
            assert await spend(lab, max_tokens=1) == 403


async def test_a_request_that_no_day_has_room_for_is_refused_and_closes_nothing(lab: Lab) -> None:
    async with lab.scripted(ANSWER), lab.served(policy(budget_usd_day=0.0015)) as client:
        refused = await lab.ask(body("x" * 200_000, max_tokens=2000))
        assert refused.status == 403
        assert "this request alone may cost" in refused.error[1]
        assert lab.refusals[0].closure is None
        assert client.closures == {}
        assert await spend(lab) == 200


async def test_the_hives_budget_holds_for_all_agents_together_and_closes_who_needs_more(lab: Lab) -> None:
    agents = ["scout", "smith", "scribe"]
    for agent in agents:
        lab.agent_folder(agent)
    async with lab.scripted(ANSWER), lab.served(*map(policy, agents)) as client:
        await client.configure_hive(SetHive(id=0, budget_usd_day=0.0035))
        statuses = [await spend(lab, agent) for agent in (*agents, *agents)]
        assert statuses == [200, 200, 200, 403, 403, 403]
        assert {refusal.closure.budget for refusal in lab.refusals if refusal.closure} == {"hive"}
        await client.configure_hive(SetHive(id=0, budget_usd_day=0.0035, added=added(1000)))
        assert [await spend(lab, agent) for agent in agents] == [200, 403, 403]


async def test_the_hives_budget_holds_for_requests_of_many_agents_at_once(lab: Lab) -> None:
    agents = [f"a{n}" for n in range(6)]
    for agent in agents:
        lab.agent_folder(agent)
    async with lab.scripted({**ANSWER, "delay": 0.05}), lab.served(*map(policy, agents)) as client:
        await client.configure_hive(SetHive(id=0, budget_usd_day=0.0045))
        statuses = await asyncio.gather(*(spend(lab, agent) for agent in agents for _ in range(2)))
        assert sorted(statuses) == [200] * 4 + [403] * 8
        assert sum(client.spent_micro(today()).values()) <= 4500


async def test_room_that_a_request_under_way_holds_is_waited_for(lab: Lab) -> None:
    """The first reserves 2000 tokens and uses 10: the second fits only once that is known."""
    first, seen = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        if not seen.is_set():
            seen.set()
            await first.wait()
        return web.json_response({"model": MODEL, "usage": {"input_tokens": 1, "output_tokens": 10}})

    async def count(_: web.Request) -> web.Response:
        return web.json_response({"input_tokens": 10})

    app = web.Application()
    app.router.add_post("/v1/messages", slow)
    app.router.add_post("/v1/messages/count_tokens", count)
    async with lab.upstream(app), lab.served(policy(budget_usd_day=0.0015)):
        one = asyncio.create_task(spend(lab))
        await seen.wait()
        two = asyncio.create_task(spend(lab))
        await until(lambda: any("count_tokens" in request.path for request in lab.seen))
        first.set()
        assert (await one, await two) == (200, 200)
        assert lab.refusals == []


async def test_who_waits_too_long_for_room_is_told_to_try_again_and_is_not_closed(lab: Lab) -> None:
    seen = asyncio.Event()

    async def silent(_: web.Request) -> web.Response:
        seen.set()
        await asyncio.Event().wait()
        raise AssertionError

    app = web.Application()
    app.router.add_post("/v1/messages", silent)
    deadlines = Deadlines(place_s=0.2, drain_s=0)
    async with lab.upstream(app), lab.served(policy(budget_usd_day=0.0015), deadlines=deadlines) as client:
        one = asyncio.create_task(spend(lab))
        await seen.wait()
        assert await spend(lab) == 529
        assert (lab.refusals[0].reason, client.closures) == ("busy", {})
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)


async def test_the_hives_bound_on_a_turn_holds_for_agents_without_one(lab: Lab) -> None:
    async with lab.scripted(ANSWER), lab.served(policy(turn=1)) as client:
        await client.configure_hive(SetHive(id=0, budget_tokens_turn=4100))
        assert [await spend(lab) for _ in range(3)] == [200, 200, 403]
        assert "of 4100 tokens for this turn are left" in lab.refusals[0].message
        assert lab.refusals[0].closure is None
        await client.configure_one(policy(turn=2))
        assert await spend(lab) == 200


async def test_a_ledger_out_of_a_backup_counts_the_day_of_its_restore_as_spent(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the day of a restore nobody knows what was spent after the backup was made."""
    small, file = policy(budget_usd_day=0.0035), lab.root / "state/gateway/ledger.db"
    async with lab.scripted(ANSWER):
        async with lab.served(small):
            assert await spend(lab) == 200
        monkeypatch.setattr("sys.argv", ["ledgercopy", str(file), str(lab.root / "copy.db"), "99"])
        ledgercopy.main()
        for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
            (file.parent / name).unlink(missing_ok=True)
        (lab.root / "copy.db").rename(file)
        async with lab.served(small) as client:
            assert list(client.unknown) == [today()]
            assert await spend(lab) == 403
            await client.configure([small.model_copy(update={"added": added(1500)})])
            assert [await spend(lab) for _ in range(2)] == [200, 403]
        async with lab.served(small.model_copy(update={"added": added(1500)})):
            assert await spend(lab) == 403  # still the same day
    tomorrow = await Ledger.open(file.parent, now=lambda: time.time() + 86_400)
    assert await tomorrow.unknown() == {}
    await tomorrow.close()


async def test_what_was_under_way_when_the_gateway_died_costs_its_worst_case(lab: Lab) -> None:
    seen = asyncio.Event()

    async def silent(_: web.Request) -> web.Response:
        seen.set()
        await asyncio.Event().wait()
        raise AssertionError

    app = web.Application()
    app.router.add_post("/v1/messages", silent)
    copy = lab.root / "died.db"
    async with lab.upstream(app), lab.served(policy(budget_usd_day=0.0015)):
        one = asyncio.create_task(spend(lab))
        await seen.wait()
        with sqlite3.connect(lab.root / "state/gateway/ledger.db") as live, sqlite3.connect(copy) as target:
            live.backup(target)  # what a SIGKILL in this moment leaves
        live.close()
        target.close()
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
    copy.rename(lab.root / "state/gateway/ledger.db")
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (lab.root / "state/gateway" / name).unlink(missing_ok=True)
    async with lab.scripted(ANSWER), lab.served(policy(budget_usd_day=0.0015)):
        assert await spend(lab) == 403


# ------------------------------------------------------------------------------------------- other models
async def test_a_request_for_another_model_than_the_turn_was_given_is_told_once(lab: Lab) -> None:
    asked = policy(models=("haiku", "sonnet"), turn=1, asked_model="haiku")
    async with lab.scripted(ANSWER), lab.served(asked) as client:
        assert await spend(lab) == 200
        for _ in range(2):
            assert await spend(lab, model="claude-sonnet-5-5") == 200
        await until(lambda: len(lab.models) == 1)
        assert (lab.models[0].asked, lab.models[0].requested) == ("haiku", "claude-sonnet-5-5")
        await client.configure_one(asked.model_copy(update={"turn": 2, "asked_model": "claude-opus-4-1"}))
        refused = await lab.ask({**PAYLOAD, "model": "claude-opus-5-5"})
        assert refused.status == 403
        assert "this turn was given 'claude-opus-4-1'" in refused.error[1]
        await until(lambda: len(lab.models) == 2)
        assert (lab.models[1].turn, lab.models[1].requested) == (2, "claude-opus-5-5")


@pytest.mark.parametrize(("answers", "told"), [
    ("claude-haiku-5-5", None), ("claude-haiku-5-5-20261001", None), ("claude-haiku-6", "claude-haiku-6"),
])  # fmt: skip
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_of_another_model_than_was_requested_is_told(
    lab: Lab, answers: str, told: str | None, stream: bool
) -> None:
    message = {"model": answers, "usage": {"input_tokens": 1, "output_tokens": 1}}
    events = [
        {"type": "message_start", "message": message},
        {"type": "message_delta", "usage": {"output_tokens": 1}}, {"type": "message_stop"},
    ]  # fmt: skip

    async def answer(_: web.Request) -> web.Response:
        if not stream:
            return web.json_response(message)
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        return web.Response(text=text, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/messages", answer)
    async with lab.upstream(app), lab.served(policy(turn=1, asked_model="haiku")):
        assert await spend(lab, stream=stream) == 200
        await until(lambda: len(lab.usage) == 1)
        assert [event.answered for event in lab.models] == ([told] if told else [])


async def test_the_ledger_forgets_closures_of_long_ago(lab: Lab) -> None:
    async with lab.scripted(ANSWER), lab.served(policy(budget_usd_day=0.0015)):
        assert [await spend(lab) for _ in range(2)] == [200, 403]
    ledger = await Ledger.open(lab.root / "state/gateway", now=lambda: time.time() + 3 * 86_400)
    assert await ledger.closure("scout") is None
    await ledger.close()
