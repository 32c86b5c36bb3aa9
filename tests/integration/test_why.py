"""Why an agent is as it is: the whole chain from rows, who told what, and why it rests now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler import causes
from reconciler.control import models as api
from reconciler.lifecycle import LifecycleService
from reconciler.model.people import person
from reconciler.model.states import AgentState, Desired, Role, UserRole
from reconciler.services import Actor
from reconciler.store import events as history
from tests.fakes.objects import an_agent
from tests.fakes.services import FakeAgents
from tests.support.approvals import ALICE, BOSS, SMITH, World, agent_nix

pytestmark = pytest.mark.asyncio
OPUS = {"agent.nix": agent_nix(model='"opus"')}
ROOT = Actor("unix:root", UserRole.OPERATOR)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with await World.open(tmp_path) as world:
        await world.agent(BOSS, Role.MANAGER)
        await world.agent(SMITH)
        yield world


async def asked_in_a_turn(world: World) -> int:
    """A proposal of the manager for smith, made in turn 7 after a message of the operator."""
    async with world.store.state.transaction() as tx:
        await tx.run("INSERT INTO leases (id, agent, boot, turn_id, state, created_at) VALUES (1, ?, 'b', 7, "
                     "'open', ?)", BOSS, tx.now)  # fmt: skip
        await tx.run("INSERT INTO messages (sender, recipient, body, state, lease_id, sent_at) VALUES "
                     "('operator', ?, 'give smith opus', 'leased', 1, ?)", BOSS, tx.now)  # fmt: skip
        await tx.run("INSERT INTO turns (id, agent, boot, start_key, model, session_id, state, begun_at) "
                     "VALUES (7, ?, 'b', 'k', 'haiku', 's', 'open', ?)", BOSS, tx.now)  # fmt: skip
    world.clock.advance(1)
    number = await world.propose(BOSS, SMITH, OPUS, "as asked")
    told = [
        ("tool_call", {"id": "a", "name": "mcp__hyperhive__send", "input": {"to": "smith"}}, 0),
        ("tool_call", {"id": "b", "name": "mcp__hyperhive__propose", "input": {"why": "\x1b[31mopus"}}, 0),
        ("tool_call", {"id": "c", "name": "mcp__hyperhive__propose", "input": {"why": "later"}}, 60),
    ]
    async with world.store.events.transaction() as tx:
        lines = [
            history.Line(seq, tx.now + after * 1_000_000, kind, data)
            for seq, (kind, data, after) in enumerate(told, 1)
        ]
        await history.add_lines(tx, BOSS, 7, lines)
    return number


async def happened(world: World, kind: str, **data: Any) -> None:
    world.clock.advance(1)
    async with world.store.events.transaction() as tx:
        await history.insert(tx, ts=tx.now, agent=SMITH, kind=kind, data=data)


def kinds(chain: list[api.Cause]) -> list[str]:
    return [cause.kind for cause in chain]


async def test_the_chain_goes_from_the_message_to_the_last_start(world: World) -> None:
    number = await asked_in_a_turn(world)
    world.clock.advance(1)
    await world.approve(number, note="fine")
    await world.deploy(number)
    await happened(world, "agent.started", generation=2, reason="activating proposal 3", invocation="i")
    await happened(world, "agent.crashed", how="killed by signal 9", count=1, invocation="i")
    await happened(world, "turn.event", turn=1)
    await happened(world, "agent.started", generation=2, reason="generation 2 should run", invocation="j")
    chain = await causes.of_agent(world.store, SMITH)
    assert kinds(chain) == ["start", "crash", "start", "deployment", "approval", "proposal", "tool call",
                            "turn", "message"]  # fmt: skip
    texts = {cause.kind: cause.text for cause in chain}
    assert texts["crash"].endswith("killed by signal 9 (crash 1 in a row)")
    assert texts["deployment"] == "generation 2 came up: its harness takes messages"
    assert texts["approval"] == "alice (operator) approved it: fine"
    assert texts["turn"] == "hm1nd ran turn 7 with haiku"
    assert texts["message"] == "the operator wrote: give smith opus"
    assert [cause.at for cause in chain] == sorted((cause.at for cause in chain), reverse=True)


async def test_the_tool_call_is_the_containers_word_and_says_so(world: World) -> None:
    chain = (await world.service.why(await asked_in_a_turn(world))).chain
    assert kinds(chain) == ["proposal", "tool call", "turn", "message"]
    assert [cause.told_by for cause in chain] == ["host", "container", "host", "host"]
    call = chain[1]
    assert call.text.startswith('propose {"why": ')
    assert "\x1b" not in call.text
    assert call.ref == "turn 7"


async def test_a_container_cannot_put_its_call_after_what_it_caused(world: World) -> None:
    number = await asked_in_a_turn(world)
    async with world.store.events.transaction() as tx:
        await tx.run("UPDATE transcript SET at = at + 1000000000000")
    chain = (await world.service.why(number)).chain
    assert kinds(chain) == ["proposal", "tool call", "turn", "message"]


async def test_a_rollback_names_who_did_it_and_keeps_the_chain_of_what_runs(world: World) -> None:
    first = (await world.service.list(state=None, agent=SMITH, before=None, limit=1)).items[0]
    number = await world.propose(SMITH, SMITH, OPUS)
    await world.approve(number)
    await world.deploy(number)
    world.clock.advance(1)
    service = LifecycleService(
        store=world.store, agents=FakeAgents(), approvals=world.service, wake=world.wake, now=world.clock.now
    )
    back = await service.rollback(ROOT, SMITH, api.Rollback(note="worse"))
    await world.deploy(back.id)
    chain = await causes.of_agent(world.store, SMITH)
    newest = [(cause.kind, cause.text) for cause in chain if cause.ref == f"proposal {back.id}"]
    assert newest == [
        ("deployment", "generation 3 came up: its harness takes messages"),
        ("approval", "root (on the host) rolled back to generation 1: worse"),
    ]
    assert f"proposal {first.id}" in {cause.ref for cause in chain}


async def test_holds_repairs_and_acts_of_people_are_in_it(world: World) -> None:
    service = LifecycleService(
        store=world.store, agents=FakeAgents(), approvals=world.service, wake=world.wake, now=world.clock.now
    )
    world.clock.advance(1)
    await service.hold(ALICE, SMITH, api.Act(note="odd"))
    world.clock.advance(1)
    await service.hold(ROOT, "*", api.Act())
    await happened(world, "agent.repaired", step="restore_tags", reason="tags are missing")
    await happened(world, "agent.trouble", error="no space left")
    chain = await causes.of_agent(world.store, SMITH)
    assert [(cause.kind, cause.text) for cause in chain[:4]] == [
        ("trouble", "a pass failed: no space left"),
        ("repair", "restore tags: tags are missing"),
        ("hold", "root (on the host) asked for: hold (the whole hive)"),
        ("hold", "alice (operator) asked for: hold: odd"),
    ]


async def test_the_chain_is_bounded_and_its_foundation_stays(world: World) -> None:
    for number in range(100):
        await happened(world, "agent.started", generation=1, reason=f"start {number}", invocation=str(number))
    chain = await causes.of_agent(world.store, SMITH)
    assert kinds(chain).count("start") == causes.LIFE_MAX
    assert chain[0].text.endswith("start 99")
    assert kinds(chain)[causes.LIFE_MAX :] == ["deployment", "approval", "proposal"]


async def test_the_newest_failure_is_told_until_something_else_comes_up(world: World) -> None:
    number = await world.propose(SMITH, SMITH, OPUS)
    await world.approve(number)
    async with world.store.state.transaction() as tx:
        await tx.move_proposal(number, "building")  # type: ignore[arg-type]
        await tx.move_proposal(number, "failed", error="no hello within 20 s\nlast lines")  # type: ignore[arg-type]
    chain = await causes.of_agent(world.store, SMITH)
    assert ("failure", "no hello within 20 s") in {(cause.kind, cause.text) for cause in chain}
    after = await world.propose(SMITH, SMITH, {"x": "1"})
    await world.approve(after)
    await world.deploy(after)
    assert "failure" not in kinds(await causes.of_agent(world.store, SMITH))


# ------------------------------------------------------------------------------------------------ right now
def a_plan(outcome: str = "settled", *steps: api.Step) -> api.Plan:
    return api.Plan(agent="smith", steps=list(steps), outcome=outcome)


@pytest.mark.parametrize(
    ("changes", "plan", "words"),
    [
        ({"state": AgentState.IDLE, "inbox_depth": 0}, a_plan(), ["inbox is empty"]),
        (
            {"state": AgentState.HELD, "reason": "looks odd", "inbox_depth": 2},
            a_plan("waiting for the operator to release it"),
            ["it is held: looks odd", "2 messages wait", "waiting for the operator to release it"],
        ),
        (
            {"state": AgentState.NAPPING, "reason": "until noon", "until": "2026-11-23T12:00:00.000Z"},
            a_plan(),
            ["it is napping: until noon, until 2026-11-23T12:00:00.000Z"],
        ),
        (
            {"state": AgentState.HELD, "turn": 41},
            a_plan(),
            ["turn 41 is frozen in the middle, and goes on from there once it is released"],
        ),
        ({"state": AgentState.STOPPED, "desired": Desired.STOPPED}, a_plan(), ["meant to be stopped"]),
        (
            {"state": AgentState.STARTING},
            a_plan(
                "failed: no space left", api.Step(kind="make_directories", cost="in_place", reason="gone")
            ),
            ["the next step is to make directories: gone", "the last pass ended as failed: no space left"],
        ),
    ],
)
async def test_it_says_why_the_agent_rests(changes: dict[str, Any], plan: api.Plan, words: list[str]) -> None:
    agent = an_agent("smith").model_copy(update={"inbox_depth": 0, "until": None, "reason": "", **changes})
    said = "\n".join(causes.at_rest(agent, plan))
    for part in words:
        assert part in said


async def test_people_are_named_in_words() -> None:
    named = {
        "operator": "the operator", "operator:operator": "the operator", "operator:alice": "alice (operator)",
        "viewer:vera": "vera (viewer)", "unix:root": "root (on the host)",
        "uid:1003": "uid 1003 (on the host)", "agent:smith": "smith", "smith": "smith", "system": "the hive",
    }  # fmt: skip
    assert {actor: person(actor) for actor in named} == named
