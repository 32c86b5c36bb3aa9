"""The operator's acts on an agent as a whole, over a real store: what is written, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.agents import AgentService
from reconciler.control import models as api
from reconciler.errors import OperatorError
from reconciler.lifecycle import ATTACHMENT_S, LifecycleService
from reconciler.model.states import UserRole
from reconciler.services import Actor
from reconciler.store import fleet
from reconciler.store.db import Store
from tests.fakes.services import FakeAgents, FakeApprovals

pytestmark = pytest.mark.asyncio
OPERATOR = Actor("unix:root", UserRole.OPERATOR)
VIEWER = Actor("operator:vera", UserRole.VIEWER)
PATHS = {n: f"/nix/store/{n}" for n in range(1, 9)}


@dataclass
class World:
    """A service over a store; both live by the clock `at`."""

    at: float = 1_000_000.0
    woken: list[str] = field(default_factory=list)
    approvals: FakeApprovals = field(default_factory=FakeApprovals)
    store: Store = field(init=False)
    service: LifecycleService = field(init=False)

    def make(self) -> None:
        self.service = LifecycleService(
            store=self.store,
            agents=FakeAgents(),
            approvals=self.approvals,
            wake=self.woken.append,
            now=lambda: self.at,
        )

    async def agent(
        self, name: str, *, role: str = "agent", generations: dict[int, str] | None = None
    ) -> None:
        """An agent whose last deployed generation runs."""
        generations = {1: "deployed"} if generations is None else generations
        async with self.store.state.transaction() as tx:
            base = 1 << 20
            row = await tx.one("SELECT COUNT(*) AS n FROM agents")
            assert row is not None
            good = [number for number, state in generations.items() if state == "deployed"]
            await tx.run(
                "INSERT INTO agents (name, role, uid_base, desired, generation, session_id, created_at) "
                "VALUES (?, ?, ?, 'running', ?, 's', 1)",
                *(name, role, base + 65536 * row["n"], good[-1] if good else None),
            )
            for number, state in generations.items():
                made = await tx.run(
                    "INSERT INTO proposals (kind, agent, commit_id, state, spec, requested_by, created_at) "
                    "VALUES ('apply', ?, ?, 'deployed', '{}', 'operator', 1)",
                    *(name, f"{number:040x}"),
                )
                await tx.run(
                    "INSERT INTO generations (agent, number, proposal_id, commit_id, store_path, spec, "
                    "spec_digest, state, created_at) VALUES (?, ?, ?, ?, ?, '{}', 'd', ?, 1)",
                    *(name, number, made.row_id, f"{number:040x}", PATHS[number], state),
                )

    async def all(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.store.state.all(sql, *values)]

    async def destroy(self, name: str) -> None:
        async with self.store.state.transaction() as tx:
            await tx.run("UPDATE agents SET desired = 'destroyed' WHERE name = ?", name)
            await tx.audit("unix:root", "agent.destroy", name)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World()
    world.store = await Store.open(tmp_path, now=lambda: world.at)
    world.make()
    yield world
    await world.store.close()


# ------------------------------------------------------------------------------------------------ holds
async def test_a_hold_is_written_once_and_tells_passes(world: World) -> None:
    await world.agent("scout")
    await world.service.hold(OPERATOR, "scout", api.Act(note="odd"))
    held = await world.service.hold(OPERATOR, "scout", api.Act(note="odd"))
    assert [(h.scope, h.by, h.reason) for h in held.items] == [("scout", "unix:root", "odd")]
    assert await world.all("SELECT action, target FROM audit") == [("agent.hold", "scout")]
    assert set(world.woken) == {"scout"}
    assert (await world.service.release(OPERATOR, "scout", api.Act())).items == []


async def test_a_second_reason_takes_the_place_of_the_first(world: World) -> None:
    await world.agent("scout")
    await world.service.hold(OPERATOR, "scout", api.Act(note="odd"))
    held = await world.service.hold(OPERATOR, "scout", api.Act(note="it wrote to smith at night"))
    assert [h.reason for h in held.items] == ["it wrote to smith at night"]
    assert [h.reason for h in (await world.service.hold(OPERATOR, "scout", api.Act())).items] == [
        "it wrote to smith at night"
    ]
    assert len(await world.all("SELECT 1 FROM audit")) == 2


async def test_the_hives_hold_and_an_agents_own_are_lifted_each_alone(world: World) -> None:
    await world.agent("scout")
    await world.agent("smith")
    await world.service.hold(OPERATOR, "scout", api.Act(note="odd"))
    await world.service.hold(OPERATOR, "*", api.Act(note="fire drill"))
    assert set(world.woken) == {"scout", "smith"}
    with pytest.raises(OperatorError, match="whole hive is held") as refused:
        await world.service.release(OPERATOR, "smith", api.Act())
    assert "hive release --all" in (refused.value.hint or "")
    left = await world.service.release(OPERATOR, "*", api.Act())
    assert [(h.scope, h.reason) for h in left.items] == [("scout", "odd")]
    released = await world.all("SELECT data FROM outbox WHERE data LIKE '%agent.released%'")
    assert len(released) == 1, "scout is held still"
    assert (await world.service.release(OPERATOR, "scout", api.Act())).items == []


async def test_what_is_destroyed_cannot_be_held(world: World) -> None:
    await world.agent("scout")
    await world.destroy("scout")
    with pytest.raises(OperatorError, match="is destroyed"):
        await world.service.hold(OPERATOR, "scout", api.Act())


async def test_a_dry_run_changes_nothing_and_a_viewer_may_not(world: World) -> None:
    await world.agent("scout")
    would = await world.service.hold(OPERATOR, "scout", api.Act(dry_run=True))
    assert [hold.scope for hold in would.items] == ["scout"]
    assert (await world.service.holds()).items == []
    assert world.woken == []
    for act in (world.service.hold, world.service.release):
        with pytest.raises(OperatorError) as refused:
            await act(VIEWER, "scout", api.Act())
        assert refused.value.code == "forbidden"
    with pytest.raises(OperatorError, match="no agent"):
        await world.service.hold(OPERATOR, "nobody", api.Act())


async def test_held_are_those_with_a_hold_of_their_own_and_crashed_those_that_should_run(
    world: World,
) -> None:
    for name in ("scout", "smith", "tmp"):
        await world.agent(name)
        await world.service.hold(OPERATOR, name, api.Act())
    await world.agent("herald")
    await world.service.hold(OPERATOR, "*", api.Act())
    await world.destroy("tmp")
    async with world.store.state.transaction() as tx:
        await tx.run("UPDATE agents SET desired = 'stopped' WHERE name = 'smith'")
        await tx.run("UPDATE agents SET crashes = 2")
    assert await fleet.held(world.store.state) == {"scout", "smith"}
    assert await fleet.crashed(world.store.state) == {"scout", "herald"}


# ------------------------------------------------------------------------------------------------ rollback
async def test_a_rollback_is_an_approved_proposal_of_an_earlier_path(world: World) -> None:
    await world.agent("scout", generations={1: "deployed", 2: "failed", 3: "deployed"})
    world.approvals.known.clear()
    with pytest.raises(OperatorError):  # the fake does not know the new number; the rows do
        await world.service.rollback(OPERATOR, "scout", api.Rollback(note="worse"))
    rows = await world.all(
        "SELECT state, store_path, commit_id, base_commit, rollback_of, decided_by, note FROM proposals "
        "WHERE rollback_of IS NOT NULL"
    )
    assert rows == [("approved", PATHS[1], f"{1:040x}", f"{3:040x}", 1, "unix:root", "worse")]
    assert await world.all("SELECT action FROM audit") == [("agent.rollback",)]
    assert world.woken == ["scout"]


@pytest.mark.parametrize(
    ("generations", "wanted", "why"),
    [
        ({1: "deployed"}, None, "no earlier generation"),
        ({}, None, "never deployed"),
        ({1: "deployed"}, 7, "no generation 7"),
        ({1: "failed", 2: "deployed"}, 1, "never came up"),
        ({1: "deployed", 2: "deployed"}, 2, "runs now"),
    ],
)
async def test_a_rollback_that_makes_no_sense_is_refused(
    world: World, generations: dict[int, str], wanted: int | None, why: str
) -> None:
    await world.agent("scout", generations=generations)
    with pytest.raises(OperatorError, match=why):
        await world.service.rollback(OPERATOR, "scout", api.Rollback(generation=wanted))
    assert await world.all("SELECT 1 FROM audit") == []


async def test_a_rollback_ends_what_was_approved_and_has_not_come_up(world: World) -> None:
    await world.agent("scout", generations={1: "deployed", 2: "deployed"})
    async with world.store.state.transaction() as tx:
        made = await tx.run(
            "INSERT INTO proposals (kind, agent, commit_id, state, spec, requested_by, created_at) "
            "VALUES ('apply', 'scout', 'c', 'building', '{}', 'operator', 1)"
        )
    with pytest.raises(OperatorError):
        await world.service.rollback(OPERATOR, "scout", api.Rollback())
    rival = await world.all("SELECT state, note FROM proposals WHERE id = ?", made.row_id)
    assert rival == [("superseded", "the operator rolled back to generation 1 instead")]


# ------------------------------------------------------------------------------------------------ kept state
async def test_what_is_kept_can_be_revived(world: World) -> None:
    await world.agent("scout")
    assert (await world.service.kept()).items == []
    with pytest.raises(OperatorError, match="not destroyed"):
        await world.service.revive(OPERATOR, "scout", api.Act())
    await world.destroy("scout")
    (kept,) = (await world.service.kept()).items
    assert (kept.name, kept.generation, kept.purging) == ("scout", 1, False)
    assert kept.destroyed_at is not None
    await world.service.revive(OPERATOR, "scout", api.Act(dry_run=True))
    assert len((await world.service.kept()).items) == 1
    await world.service.revive(OPERATOR, "scout", api.Act())
    assert await world.all("SELECT desired FROM agents") == [("running",)]


async def test_a_manager_is_revived_only_if_there_is_no_other(world: World) -> None:
    await world.agent("scout", role="manager")
    await world.destroy("scout")
    await world.agent("smith", role="manager")
    with pytest.raises(OperatorError, match="smith is now"):
        await world.service.revive(OPERATOR, "scout", api.Act())


async def test_a_purge_needs_a_destroyed_agent_and_its_name(world: World) -> None:
    await world.agent("scout")
    with pytest.raises(OperatorError, match="not destroyed"):
        await world.service.purge(OPERATOR, "scout", api.Purge(confirm="scout"))
    await world.destroy("scout")
    with pytest.raises(OperatorError, match="confirmation"):
        await world.service.purge(OPERATOR, "scout", api.Purge(confirm="Scout"))
    await world.service.purge(OPERATOR, "scout", api.Purge(confirm="scout", dry_run=True))
    assert await world.all("SELECT purge_wanted FROM agents") == [(0,)]
    await world.service.purge(OPERATOR, "scout", api.Purge(confirm="scout"))
    assert await world.all("SELECT purge_wanted FROM agents") == [(1,)]
    with pytest.raises(OperatorError, match="being purged"):
        await world.service.revive(OPERATOR, "scout", api.Act())


async def together(world: World, *acts: Coroutine[Any, Any, object]) -> list[object]:
    """What becomes of acts that come in this order while somebody else writes."""
    tasks = []
    async with world.store.state.transaction(), asyncio.timeout(10):
        for number, act in enumerate(acts, 1):
            tasks.append(asyncio.create_task(act))
            while len(world.store.state._lock._waiters or ()) < number:  # noqa: ASYNC110 - no other tells
                await asyncio.sleep(0.001)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_is_purged_in_the_same_moment_is_not_revived(world: World) -> None:
    await world.agent("scout")
    await world.destroy("scout")
    done, refused = await together(
        world,
        world.service.purge(OPERATOR, "scout", api.Purge(confirm="scout")),
        world.service.revive(OPERATOR, "scout", api.Act()),
    )
    assert isinstance(done, api.Done)
    assert isinstance(refused, OperatorError)
    assert await world.all("SELECT desired, purge_wanted FROM agents") == [("destroyed", 1)]


def refusing_agents(world: World) -> AgentService:
    """What is refused needs nobody but the store."""
    others: dict[str, Any] = dict.fromkeys(
        (
            "config", "containers", "look", "look_all", "presence", "voice", "approvals", "spending", "wake",
            "models", "last_event_id", "storage", "trouble", "troubled",
        ),
        None,
    )  # fmt: skip
    return AgentService(store=world.store, **others)


async def test_the_manager_may_not_end_what_the_operator_holds(world: World) -> None:
    await world.agent("scout")
    await world.service.hold(OPERATOR, "scout", api.Act())
    agents, manager = refusing_agents(world), Actor("agent:hm1nd", UserRole.OPERATOR)
    for act in (agents.stop, agents.restart, agents.start):
        with pytest.raises(OperatorError, match="the operator holds scout"):
            await act(manager, "scout", api.Act())
    assert await world.all("SELECT desired FROM agents") == [("running",)]


async def test_what_is_destroyed_in_the_same_moment_is_neither_started_nor_rolled_back(world: World) -> None:
    await world.agent("scout", generations={1: "deployed", 2: "deployed"})
    agents = refusing_agents(world)
    destroyed, *refused = await together(
        world,
        world.destroy("scout"),
        agents.start(OPERATOR, "scout", api.Act()),
        agents.restart(OPERATOR, "scout", api.Act()),
        world.service.rollback(OPERATOR, "scout", api.Rollback()),
        world.service.attach(OPERATOR, "scout"),
    )
    assert destroyed is None
    assert [type(error) for error in refused] == [OperatorError] * 4
    assert await world.all("SELECT desired FROM agents") == [("destroyed",)]
    assert await world.all("SELECT id FROM proposals WHERE state = 'approved'") == []
    assert await world.all("SELECT id FROM attachments") == []


# ------------------------------------------------------------------------------------------------ attachments
async def test_an_attachment_lasts_as_long_as_it_is_renewed(world: World) -> None:
    await world.agent("scout")
    made = await world.service.attach(OPERATOR, "scout")
    world.at += ATTACHMENT_S - 1
    await world.service.renew(OPERATOR, "scout", made.id)
    world.at += ATTACHMENT_S - 1
    assert [a.id for a in (await world.service.attached("scout")).items] == [made.id]
    world.at += 2
    assert (await world.service.attached("scout")).items == []
    with pytest.raises(OperatorError, match="is over"):
        await world.service.renew(OPERATOR, "scout", made.id)


async def test_leaving_twice_is_leaving_once(world: World) -> None:
    await world.agent("scout")
    made = await world.service.attach(OPERATOR, "scout")
    for _ in range(2):
        await world.service.detach(OPERATOR, "scout", made.id)
    assert [row[0] for row in await world.all("SELECT action FROM audit")] == ["agent.attach", "agent.detach"]


async def test_nobody_goes_into_a_destroyed_agent(world: World) -> None:
    await world.agent("scout", role="agent")
    await world.destroy("scout")
    with pytest.raises(OperatorError, match="is destroyed"):
        await world.service.attach(OPERATOR, "scout")
