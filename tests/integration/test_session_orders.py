"""`compact` and `new-session`: what is written, when it takes effect, what is shown until then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from harness import wire
from reconciler.app import Hived
from reconciler.broker import outcomes
from reconciler.control import models as api
from reconciler.errors import OperatorError
from reconciler.model.names import AgentName
from reconciler.model.states import UserRole
from reconciler.services import Actor
from tests.support.fleets import fleet, name_of

pytestmark = pytest.mark.asyncio

BOOT = "b" * 32
ALICE = Actor("operator:alice", UserRole.OPERATOR)
VIEWER = Actor("viewer:victor", UserRole.VIEWER)
NAME = name_of(0)


@dataclass
class World:
    """One agent of a hived, and its harness's side."""

    hived: Hived

    async def hello(self, turn: int | None = None) -> wire.Welcome:
        request = wire.Hello(wire=wire.WIRE_VERSION, boot=BOOT, turn=turn, resident=True)
        return await self.hived.broker.hello(NAME, request)

    async def begin(self, purpose: wire.Purpose = "messages") -> int:
        request = wire.BeginTurn(lease=None, key=f"{purpose}-turn", purpose=purpose)
        return (await self.hived.broker.begin_turn(NAME, BOOT, request)).turn

    async def end(self, turn: int, outcome: wire.Outcome = "ok") -> None:
        await self.hived.broker.end_turn(NAME, turn, wire.EndTurn(outcome=outcome))

    async def orders(self) -> list[str]:
        found = await self.hived.broker.directives(NAME, wait_s=0, after=0)
        return [order.kind for order in found.directives]

    async def heard(self) -> None:
        """The harness has all orders."""
        found = await self.hived.broker.directives(NAME, wait_s=0, after=0)
        await self.hived.broker.directives(NAME, wait_s=0, after=found.directives[-1].id)

    async def agent(self) -> api.Agent:
        return await self.hived.agents.get(NAME)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with fleet(tmp_path, 1) as made:
        hived = made.hived()
        await hived.broker.start()
        try:
            world = World(hived)
            await world.hello()
            yield world
        finally:
            await hived.builds.close()
            await hived.approvals.close()
            await hived.sites.close()


async def test_a_compaction_waits_for_the_turn_and_is_shown_until_it_begins(world: World) -> None:
    turn = await world.begin()
    found = await world.hived.agents.compact(ALICE, NAME, api.Act(note="too long"))
    assert found.queued == ["compact"]
    assert await world.orders() == ["compact"]
    await world.heard()
    await world.end(turn)
    assert (await world.agent()).queued == ["compact"]
    compacting = await world.begin("compaction")
    assert (await world.agent()).queued == []
    await world.end(compacting, "api_error")
    assert (await world.agent()).queued == [], "one that failed is told, not repeated for ever"


async def test_a_compaction_that_its_harness_took_to_the_grave_is_ordered_again(world: World) -> None:
    await world.hived.agents.compact(ALICE, NAME, api.Act())
    await world.heard()
    await world.hived.broker.harness_gone(NAME)
    assert await world.orders() == []
    await world.hello()
    assert await world.orders() == ["compact"]
    await world.hello()
    assert await world.orders() == ["compact"], "once"


async def test_a_fresh_session_takes_effect_after_the_turn_and_forgets_what_was_over_the_old_one(
    world: World,
) -> None:
    before = (await world.hello()).session_id
    await world.hived.agents.compact(ALICE, NAME, api.Act())
    turn = await world.begin()
    found = await world.hived.agents.new_session(ALICE, NAME, api.Act())
    assert found.queued == ["new-session"]
    welcome = await world.hello(turn)
    assert (welcome.session_id != before, welcome.resume) == (True, False)
    await world.end(turn)
    assert (await world.agent()).queued == []
    assert (await world.hello()).resume is False, "the turn that ended was of the old one"


@pytest.mark.parametrize(
    ("reason", "until", "left"),
    [
        (outcomes.RULES["prompt_too_long"].reason, 2**50, ""),
        ("a message failed 5 turns", None, ""),
        ("rate limited", 2**50, "rate limited"),
    ],
)
async def test_a_fresh_session_ends_a_rest_that_was_over_the_old_one(
    world: World, reason: str, until: int | None, left: str
) -> None:
    async with world.hived.store.state.transaction() as tx:
        await tx.run(
            "UPDATE agents SET parked_reason = ?, parked_until_at = ? WHERE name = ?", reason, until, NAME
        )
    await world.hived.agents.new_session(ALICE, NAME, api.Act())
    row = await world.hived.store.state.one("SELECT parked_reason FROM agents WHERE name = ?", NAME)
    assert row is not None
    assert row["parked_reason"] == left


@pytest.mark.parametrize("verb", ["compact", "new_session"])
async def test_a_dry_run_changes_nothing_and_a_viewer_may_not_at_all(world: World, verb: str) -> None:
    act = getattr(world.hived.agents, verb)
    before = await world.hello()
    await act(ALICE, NAME, api.Act(dry_run=True))
    assert await world.orders() == []
    assert (await world.hello()).session_id == before.session_id
    with pytest.raises(OperatorError) as refused:
        await act(VIEWER, NAME, api.Act())
    assert refused.value.code == "forbidden"
    async with world.hived.store.state.transaction() as tx:
        await tx.run("UPDATE agents SET desired = 'destroyed' WHERE name = ?", NAME)
    with pytest.raises(OperatorError, match="is destroyed"):
        await act(ALICE, AgentName(NAME), api.Act())
