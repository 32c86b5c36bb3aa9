"""Models of agents: who switched them, what their requests named, what the gateway is told of a turn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.config import Budget
from reconciler.gateway.messages import AgentPolicy, ModelEvent, SetHive
from reconciler.gatewaysync import GatewaySync
from reconciler.model.days import local_day
from reconciler.model.names import AgentName
from reconciler.othermodels import OtherModels
from reconciler.store import budgets, deployments, fleet
from reconciler.store.db import Store
from tests.support.brokers import SCOUT, SMITH, World, until

pytestmark = [pytest.mark.asyncio, pytest.mark.integration]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.open(tmp_path)
    await made.agent("scout", spec={"model": "haiku", "budget": {"usdPerDay": 2.0, "tokensPerTurn": 5000}})
    await made.agent("smith", spec={"model": "haiku"})
    for agent in (SCOUT, SMITH):
        await made.hello(agent)
        await made.runs(agent)
    yield made
    await made.close()


# ---------------------------------------------------------------------------------------- other models
async def test_a_model_that_requests_named_is_kept_with_the_turn_and_told_as_an_event(world: World) -> None:
    await world.say("scout")
    turn, _ = await world.turn(SCOUT)
    nudged: list[str] = []
    models = OtherModels(world.store, nudged.append)
    running = asyncio.create_task(models.run())
    for agent, answered in (("scout", None), ("smith", "claude-haiku-6")):
        models.heard(
            ModelEvent(
                agent=agent,
                turn=turn,
                asked="claude-opus-4-1",
                requested="claude-opus-5-5",
                answered=answered,
            )
        )
    await until(lambda: nudged == ["scout", "smith"])
    running.cancel()
    row = await fleet.agent(world.store.state, "scout")
    assert row["last_other_model"] == "claude-opus-5-5"
    assert (await fleet.agent(world.store.state, "smith"))["last_other_model"] is None  # not its turn
    await world.events.drain()
    told = await world.store.events.all("SELECT data FROM events WHERE kind = 'gateway.model' ORDER BY id")
    assert [json.loads(row["data"])["requested"] for row in told] == ["claude-opus-5-5"] * 2
    await world.end(SCOUT, turn)
    await world.say("scout")
    await world.turn(SCOUT)
    assert (await fleet.agent(world.store.state, "scout"))["last_other_model"] is None  # a turn of its own


# ------------------------------------------------------------------------------------------- who switched
async def _approve(store: Store, model: str) -> None:
    """What a deployment of another model does with the rows."""
    async with store.state.transaction() as tx:
        made = await tx.run(
            "INSERT INTO proposals (kind, agent, commit_id, state, requested_by, decided_by, generation, "
            "spec, spec_digest, store_path, created_at) VALUES ('apply', 'scout', ?, 'building', 'hm1nd', "
            "'operator:alice', 2, ?, 'd', '/nix/store/x', 1)",
            "2" * 40,
            json.dumps({"model": model}),
        )
    for step in (deployments.activate, deployments.confirm):
        facts = await deployments.read(store.state, SCOUT, now=0, building=lambda _: False)
        assert facts is not None
        assert facts.candidate is not None
        assert facts.candidate.proposal == made.row_id
        more: tuple[Any, ...] = (2, "") if step is deployments.activate else ()
        async with store.state.transaction() as tx:
            await step(tx, facts.candidate, *more)


@pytest.mark.parametrize(("model", "override", "by"), [
    ("opus", None, "operator:alice"), ("haiku", None, None), ("opus", "sonnet", "unix:root"),
])  # fmt: skip
async def test_whoever_approves_another_model_has_switched_it_unless_it_is_overridden(
    world: World, model: str, override: str | None, by: str | None
) -> None:
    if override is not None:
        async with world.store.state.transaction() as tx:
            await fleet.set_model(tx, "scout", override, "unix:root")
    await _approve(world.store, model)
    row = await fleet.agent(world.store.state, "scout")
    assert (row["generation"], row["model_switched_by"]) == (2, by)
    assert (row["model_switched_at"] is None) is (by is None)


# ------------------------------------------------------------------------------------- what the gateway knows
class Client:
    """What a gateway was told."""

    def __init__(self) -> None:
        self.policies: list[AgentPolicy] = []
        self.hive: SetHive | None = None
        self.unknown: dict[str, int] = {}
        self.problems: dict[str, str] = {}

    async def configure(self, policies: list[AgentPolicy]) -> None:
        self.policies += policies

    async def configure_one(self, policy: AgentPolicy) -> None:
        self.policies.append(policy)

    async def configure_hive(self, hive: SetHive) -> None:
        self.hive = hive


async def test_a_turn_is_told_to_the_gateway_before_its_first_request(tmp_path: Path) -> None:
    world = await World.open(tmp_path)
    await world.agent("scout", spec={"model": "haiku", "budget": {"usdPerDay": 2.0, "tokensPerTurn": 5000}})
    client = Client()
    sync = GatewaySync(world.store, client, world.clock, Budget(usd_per_day=9.0))  # type: ignore[arg-type]
    world.broker._turns._on_turn = sync.turn_begun
    await world.hello(SCOUT)
    await world.runs(SCOUT)
    async with world.store.state.transaction() as tx:
        await budgets.add(tx, "scout", local_day(world.clock.now()), 250_000, "unix:root", "")
        await budgets.add(tx, "scout", "2001-01-01", 999, "unix:root", "")
    await world.say("scout")
    turn, _ = await world.turn(SCOUT)
    told = client.policies[-1]  # `begin_turn` has returned: the harness may ask from now on
    assert (told.turn, told.asked_model, told.budget_tokens_turn, told.budget_usd_day) == (
        turn,
        "haiku",
        5000,
        2.0,
    )
    assert told.added is not None
    assert (told.added.usd_micro, told.added.day) == (250_000, local_day(world.clock.now()))
    await world.close()


async def test_a_turn_begins_although_the_gateway_cannot_be_told(world: World) -> None:
    async def never(_: AgentName) -> None:
        await asyncio.Event().wait()

    world.broker._turns._on_turn = never
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("reconciler.broker.turns.ON_TURN_S", 0.01)
        await world.say("scout")
        turn, _ = await world.turn(SCOUT)
    assert turn > 0
