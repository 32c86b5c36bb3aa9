"""Who waits for a day's end, what the operator is told, and what raising a budget does: over real rows, with
what a gateway counted and closed given by hand."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.broker.outcomes import RULES
from reconciler.budgets import BudgetService
from reconciler.config import Budget, Config
from reconciler.control import models as api
from reconciler.errors import OperatorError
from reconciler.gateway.messages import ClosureRow
from reconciler.gatewaysync import GatewaySync
from reconciler.model.days import local_day, next_midnight
from reconciler.model.instants import parse_stamp
from reconciler.model.money import MICRO
from reconciler.model.states import AgentState
from tests.fakes.clock import VirtualClock
from tests.integration.gateway_kit import body, lab_folder
from tests.integration.gateway_kit import until as reached
from tests.support.brokers import ALICE, SCOUT, SMITH, VIEWER, World

pytestmark = [pytest.mark.asyncio, pytest.mark.integration]


@dataclass
class Counted:
    """What the gateway told."""

    known: bool = True
    closures: dict[str, ClosureRow] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)

    def spent_micro(self, day: str) -> Mapping[str, int]:
        return self.spent


class Money:
    """The service over the rows of a world with two agents, of which scout has a budget of 2 dollars."""

    def __init__(self, world: World, budget: Budget) -> None:
        self.world = world
        self.counted = Counted()
        self.synced = 0
        self.service = BudgetService(
            store=world.store,
            config=Config(budget=budget),
            clock=world.clock,
            counted=self.counted,
            nudge=world.broker.nudge,
            sync=self._sync,
        )

    def _sync(self) -> None:
        self.synced += 1

    @property
    def day(self) -> str:
        return local_day(self.world.clock.now())

    def close(self, agent: str, whose: Any = "agent", *, ceiling: float = 2, spent: float = 1.97) -> None:
        self.counted.spent[agent] = round(spent * MICRO)
        self.counted.closures[agent] = ClosureRow(
            agent=agent,
            day=self.day,
            budget=whose,
            ceiling_usd_micro=round(ceiling * MICRO),
            spent_usd_micro=round(spent * MICRO),
            needed_usd_micro=50_000,
        )

    async def state(self, agent: Any) -> tuple[AgentState, str]:
        now = await self.world.presence.now(agent)
        return now.state, now.reason

    async def told(self) -> list[str]:
        rows = await self.world.store.state.all(
            "SELECT body FROM messages WHERE sender = 'system' ORDER BY id"
        )
        return [row["body"] for row in rows]

    async def kinds(self) -> list[str]:
        await self.world.events.drain()
        rows = await self.world.store.events.all(
            "SELECT kind FROM events WHERE kind LIKE 'budget.%' ORDER BY id"
        )
        return [row["kind"] for row in rows]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.open(tmp_path)
    await made.agent("scout", spec={"budget": {"usdPerDay": 2.0, "tokensPerTurn": 5000}})
    await made.agent("smith")
    for agent in (SCOUT, SMITH):
        await made.hello(agent)
        await made.runs(agent)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def money(world: World) -> Money:
    return Money(world, Budget(usd_per_day=10.0))


# ------------------------------------------------------------------------------------------- the hard limit
async def test_an_agent_whose_day_is_used_up_is_parked_until_midnight_with_the_reason(money: Money) -> None:
    await money.world.say("scout")
    money.close("scout")
    await money.service.look()
    now = await money.world.presence.now(SCOUT)
    assert now.state is AgentState.PARKED
    assert now.until == pytest.approx(next_midnight(money.world.clock.now()), abs=0.01)
    assert now.reason.startswith("budget: $1.97 of $2.00 for today are spent")
    assert (await money.world.poll(SCOUT)).lease is None
    assert (await money.state(SMITH))[0] is AgentState.IDLE
    view = await money.service.of("scout")
    assert (view.state, view.waits, view.reason) == ("reached", True, now.reason)
    assert now.until is not None
    assert parse_stamp(view.resets_at) == int(now.until * MICRO)


async def test_it_goes_on_by_itself_when_the_day_is_over_even_if_nobody_looks(money: Money) -> None:
    await money.world.say("scout")
    money.close("scout")
    await money.service.look()
    money.world.clock.advance(next_midnight(money.world.clock.now()) - money.world.clock.now() + 1)
    assert (await money.state(SCOUT))[0] is AgentState.IDLE
    assert (await money.world.poll(SCOUT)).lease is not None
    await money.service.look()
    assert await money.world.scalar("SELECT budget_until_at FROM agents WHERE name = 'scout'") is None


async def test_people_are_told_once_however_often_is_looked(money: Money) -> None:
    money.close("scout")
    for _ in range(3):
        await money.service.look()
    # more than the share at which they are warned was spent, too
    assert len(await money.told()) == 2
    assert any("`hive budget scout --raise-today USD`" in body for body in await money.told())
    assert sorted(await money.kinds()) == ["budget.reached", "budget.warned"]


async def test_of_the_hives_budget_people_are_told_once_for_all_agents(money: Money) -> None:
    for agent in ("scout", "smith"):
        money.close(agent, "hive", ceiling=10, spent=3)
    await money.service.look()
    assert [(await money.state(agent))[0] for agent in (SCOUT, SMITH)] == [AgentState.PARKED] * 2
    assert (await money.state(SMITH))[1].startswith("the hive's budget: $3.00 of $10.00")
    reached = [body for body in await money.told() if "waits until" in body and "budget --hive" in body]
    assert len(reached) == 1
    assert (await money.service.of("*")).state == "reached"
    assert (await money.service.of("scout")).waits_for == "hive"


async def test_the_rest_after_a_turn_that_the_budget_ended_does_not_outlast_the_wait(money: Money) -> None:
    await money.world.say("scout")
    turn, _ = await money.world.turn(SCOUT)
    money.close("scout")
    await money.service.look()
    await money.world.end(SCOUT, turn, "budget", error="refused by budget")
    await money.service.raise_today(ALICE, "scout", api.RaiseBudget(usd=1))
    await money.service.look()
    assert (await money.state(SCOUT))[0] is AgentState.IDLE
    assert (await money.world.poll(SCOUT)).messages[0].redelivered


async def test_a_turn_that_ends_after_the_raise_does_not_park_it_again(money: Money) -> None:
    await money.world.say("scout")
    turn, _ = await money.world.turn(SCOUT)
    money.close("scout")
    await money.service.raise_today(ALICE, "scout", api.RaiseBudget(usd=1))
    await money.world.end(SCOUT, turn, "budget", error="refused by budget")
    await money.service.look()
    assert (await money.world.poll(SCOUT)).lease is not None


async def test_until_the_gateway_was_asked_nobody_is_let_go(money: Money) -> None:
    money.close("scout")
    await money.service.look()
    later = Money(money.world, Budget())
    later.counted.known = False
    await later.service.look()
    assert (await later.state(SCOUT))[0] is AgentState.PARKED
    later.counted.known = True
    await later.service.look()
    assert (await later.state(SCOUT))[0] is AgentState.IDLE


async def test_a_larger_budget_in_an_approved_spec_lets_it_go_on(money: Money) -> None:
    money.close("scout")
    await money.service.look()
    await money.world.generation("scout", 2, {"budget": {"usdPerDay": 3.0}}, deployed=True)
    await money.service.look()
    assert (await money.state(SCOUT))[0] is AgentState.IDLE


# ------------------------------------------------------------------------------------------- the soft limit
async def test_the_operator_is_warned_once_a_day_and_nothing_changes_for_the_agent(money: Money) -> None:
    money.counted.spent["scout"] = 1_599_999
    await money.service.look()
    assert await money.told() == []
    money.counted.spent["scout"] = 1_600_000
    for _ in range(2):
        await money.service.look()
    [body] = await money.told()
    assert body.startswith("scout has spent $1.60 of $2.00 for today (80 %)")
    assert (await money.state(SCOUT))[0] is AgentState.IDLE
    view = await money.service.of("scout")
    assert (view.state, round(view.share or 0, 6)) == ("warned", 0.8)
    money.world.clock.advance(86_400)
    await money.service.look()
    assert len(await money.told()) == 2


async def test_the_hive_is_warned_of_at_the_share_of_its_own(world: World) -> None:
    money = Money(world, Budget(usd_per_day=4.0, warn_at=0.5))
    money.counted.spent = {"scout": 900_000, "smith": 1_100_000}
    await money.service.look()
    assert [body.split(" for today")[0] for body in await money.told()] == [
        "the hive has spent $2.00 of $4.00"
    ]


# ------------------------------------------------------------------------------------------- raising
async def test_what_is_added_counts_today_only_is_audited_and_reaches_the_gateway(money: Money) -> None:
    money.close("scout")
    await money.service.look()
    view = await money.service.raise_today(ALICE, "scout", api.RaiseBudget(usd=0.5, note="deadline"))
    assert (view.limit_today_usd, view.added_today_usd, view.waits) == (2.5, 0.5, False)
    assert (await money.state(SCOUT))[0] is AgentState.IDLE
    assert money.synced == 1
    row = await money.world.store.state.one("SELECT * FROM audit ORDER BY id DESC")
    assert row is not None
    assert (row["actor"], row["action"], row["target"]) == ("operator:alice", "budget.raise", "scout")
    again = await money.service.raise_today(ALICE, "scout", api.RaiseBudget(usd=0.25))
    assert again.limit_today_usd == 2.75
    money.world.clock.advance(86_400)
    assert (await money.service.of("scout")).limit_today_usd == 2.0


async def test_a_rest_after_a_request_that_no_day_had_room_for_ends_with_the_raise(money: Money) -> None:
    for agent in ("scout", "smith"):
        reason = RULES["turn_budget"].reason
        await money.world.set(agent, parked_reason=reason, parked_until_at=2**60)
    await money.service.raise_today(ALICE, "scout", api.RaiseBudget(usd=1))
    assert (await money.state(SCOUT))[0] is AgentState.IDLE
    assert (await money.state(SMITH))[0] is AgentState.PARKED


async def test_a_dry_run_of_it_answers_the_same_and_changes_nothing(money: Money) -> None:
    money.close("scout")
    await money.service.look()
    view = await money.service.raise_today(ALICE, "scout", api.RaiseBudget(usd=1, dry_run=True))
    assert (view.limit_today_usd, view.waits) == (3.0, False)
    assert (await money.service.of("scout")).limit_today_usd == 2.0
    assert (await money.state(SCOUT))[0] is AgentState.PARKED
    assert money.synced == 0
    assert await money.world.scalar("SELECT COUNT(*) FROM audit WHERE action = 'budget.raise'") == 0


async def test_more_for_the_hive_frees_who_waits_for_the_hive_and_nobody_else(money: Money) -> None:
    money.close("smith", "hive", ceiling=10)
    money.close("scout")
    await money.service.look()
    assert (await money.service.raise_today(ALICE, "*", api.RaiseBudget(usd=5))).limit_today_usd == 15.0
    assert (await money.state(SMITH))[0] is AgentState.IDLE
    assert (await money.state(SCOUT))[0] is AgentState.PARKED


@pytest.mark.parametrize(("scope", "actor", "usd", "code"), [
    ("smith", ALICE, 1, "conflict"), ("nobody", ALICE, 1, "not-found"), ("scout", VIEWER, 1, "forbidden"),
    ("scout", ALICE, 99_999, "invalid"),
])  # fmt: skip
async def test_it_is_refused(money: Money, scope: str, actor: Any, usd: float, code: str) -> None:
    with pytest.raises(OperatorError) as refused:
        await money.service.raise_today(actor, scope, api.RaiseBudget(usd=usd))
    assert refused.value.code == code


# ---------------------------------------------------------------------------------------- a restored ledger
async def test_on_the_day_of_a_restore_only_what_is_added_afterwards_counts(money: Money) -> None:
    await money.service.raise_today(ALICE, "scout", api.RaiseBudget(usd=1))
    money.world.clock.advance(60)
    money.counted.unknown = {money.day: int(money.world.clock.now() * MICRO)}
    view = await money.service.of("scout")
    assert (view.added_today_usd, view.state) == (0.0, "reached")
    money.world.clock.advance(60)
    await money.service.raise_today(ALICE, "scout", api.RaiseBudget(usd=0.5))
    assert (await money.service.of("scout")).limit_today_usd == 2.5


async def test_all_budgets_are_listed_the_hives_first(money: Money) -> None:
    items = (await money.service.all()).items
    assert [(item.scope, item.limit_today_usd, item.tokens_per_turn) for item in items] == [
        ("*", 10.0, None), ("scout", 2.0, 5000), ("smith", None, None),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------- with a real gateway
async def test_with_a_real_gateway_an_agent_is_parked_raised_and_served_again(tmp_path: Path) -> None:
    """A turn is announced, spends its day, is refused; the raise reaches the gateway; a restart changes
    nothing."""
    world = World(tmp_path, "OFF")
    world.clock = VirtualClock(time.time())
    await world._start()
    await world.agent("scout", spec={"model": "haiku", "budget": {"usdPerDay": 0.0015}})
    await world.set("scout", uid_base=os.geteuid())
    await world.hello(SCOUT)
    await world.runs(SCOUT)
    answer = {"text": "hi", "usage": {"input_tokens": 10, "output_tokens": 2000}}
    with lab_folder() as lab:
        async with lab.scripted(answer), lab.gateway(), lab.client() as client:
            sync = GatewaySync(world.store, client, world.clock, Budget())
            service = BudgetService(
                store=world.store, config=Config(), clock=world.clock, counted=client,
                nudge=world.broker.nudge, sync=sync.poke,
            )  # fmt: skip
            world.broker._turns._on_turn = sync.turn_begun
            await client.configure(await sync._policies({}))
            await world.say("scout")
            turn, _ = await world.turn(SCOUT)
            payload = body(max_tokens=2000)
            assert [(await lab.ask(payload)).status for _ in range(2)] == [200, 403]
            assert lab.usage[0].turn == turn
            await reached(lambda: "scout" in client.closures)
            await world.end(SCOUT, turn, "budget", error="refused by budget")
            await service.look()
            assert (await world.presence.now(SCOUT)).state is AgentState.PARKED
            await service.raise_today(ALICE, "scout", api.RaiseBudget(usd=0.001))
            assert (await world.presence.now(SCOUT)).state is AgentState.IDLE
            again, inbox = await world.turn(SCOUT)  # which tells the gateway of what was added, too
            assert inbox.messages[0].redelivered
            assert [(await lab.ask(payload)).status for _ in range(2)] == [200, 403]
            assert lab.usage[1].turn == again
    await world.close()
