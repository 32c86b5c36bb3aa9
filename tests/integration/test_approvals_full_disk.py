"""A full disk while somebody proposes: what stays in `examining` is taken up when there is room again, also
if nobody asks for it any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from harness import wire
from reconciler.approvals import resuming
from reconciler.control import models as api
from reconciler.errors import DiskFullError
from reconciler.model.names import AgentName, Commit
from reconciler.model.states import ProposalState, Role
from reconciler.store import proposals
from tests.support.approvals import ALICE, BOSS, SCRIBE, SMITH, World, agent_nix

pytestmark = pytest.mark.asyncio
OPUS = {"agent.nix": agent_nix(model='"opus"')}
SCAN_S = 10.0


@contextlib.asynccontextmanager
async def _world(directory: Path) -> AsyncIterator[World]:
    """A hive that looks for what it has to do, whenever time passes."""
    async with await World.open(directory) as world:
        await world.agent(BOSS, Role.MANAGER)
        await world.agent(SMITH)
        looking = asyncio.create_task(world.service.run())
        try:
            yield world
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


async def _pass(world: World, seconds: float) -> None:
    """Time passes, and everything that was due is done."""
    for _ in range(int(seconds / SCAN_S)):
        await world.clock.asleep(at_least_s=SCAN_S)
        world.clock.advance(SCAN_S)
        await world.clock.asleep(at_least_s=SCAN_S)
        await world.settled()


async def _state(world: World, agent: AgentName) -> tuple[int, str]:
    """Of the newest proposal; not through the service, whose looks may change something."""
    row = (await proposals.listing(world.store.state, state=None, agent=agent, before=None, limit=1))[0]
    return row.id, str(row.state)


async def _new_agent(world: World) -> None:
    await world.service.new_agent(ALICE, api.NewAgent(name=SCRIBE))


async def _new_agent_at_once(world: World) -> None:
    await world.service.new_agent(ALICE, api.NewAgent(name=SCRIBE, approve=True))


async def _spawn(world: World) -> None:
    await world.service.request_spawn(BOSS, wire.Spawn(name=SCRIBE))


@pytest.mark.parametrize("act", [_new_agent, _new_agent_at_once, _spawn])
async def test_what_hived_has_already_is_examined_when_there_is_room(
    tmp_path: Path, act: Callable[[World], Awaitable[None]]
) -> None:
    async with _world(tmp_path) as world:
        world.faults.watch({"git.pin"})
        made = len(world.faults.calls)
        world.faults.at(made + 2, "fail", DiskFullError("no room"))  # after that of the template
        with pytest.raises(DiskFullError):
            await act(world)
        number, state = await _state(world, SCRIBE)
        assert state == ProposalState.EXAMINING
        world.faults.at(made + 3, "fail", DiskFullError("still none"))
        await _pass(world, 2 * SCAN_S)
        assert await _state(world, SCRIBE) == (number, "examining")
        await _pass(world, SCAN_S)
        assert await _state(world, SCRIBE) == (number, "pending")


async def _own_commit(world: World) -> None:
    main = await world.git.main(SMITH)
    assert main is not None
    commit = await world.git.commit(SMITH, OPUS, parent=main, author="a", message="m")
    await world.service.propose(ALICE, api.Propose(agent=SMITH, commit=commit))


@pytest.mark.parametrize(
    ("act", "agent", "pins"),
    [(_own_commit, SMITH, 1), (_new_agent, SCRIBE, 2), (_new_agent_at_once, SCRIBE, 2)],
)
async def test_an_operator_who_asks_again_is_served_at_once(
    tmp_path: Path, act: Callable[[World], Awaitable[None]], agent: AgentName, pins: int
) -> None:
    async with _world(tmp_path) as world:
        world.faults.watch({"git.pin"})
        world.faults.at(len(world.faults.calls) + pins, "fail", DiskFullError("no room"))
        with pytest.raises(DiskFullError):
            await act(world)
        number, _ = await _state(world, agent)
        await act(world)
        await world.settled()
        found, state = await _state(world, agent)
        assert found == number
        assert state in {"pending", "approved"}
        assert f"proposal/{number}" in await world.git.tags(agent)


async def test_a_push_that_found_no_room_is_examined_later(tmp_path: Path) -> None:
    async with _world(tmp_path) as world:
        main = await world.git.main(SMITH)
        assert main is not None
        pushed = await world.git.commit(SMITH, OPUS, parent=main, author="a", message="m")
        await world.git.set_main(SMITH, pushed, expected=main)
        world.faults.watch({"git.pin"})
        world.faults.at(len(world.faults.calls) + 1, "fail", DiskFullError("no room"))
        await _pass(world, SCAN_S)
        number, state = await _state(world, SMITH)
        assert state == "examining"
        await _pass(world, 2 * SCAN_S)
        assert await _state(world, SMITH) == (number, "pending")


async def _offer(world: World) -> tuple[Path, Commit]:
    """An agent's commit that finds no room."""
    path, commit = await world.bundle(SMITH, OPUS)
    world.faults.watch({"git.import_bundle"})
    world.faults.at(len(world.faults.calls) + 1, "fail", DiskFullError("no room"))
    with pytest.raises(DiskFullError):
        await world.service.propose_bundle(SMITH, SMITH, commit, "", path)
    return path, commit


async def test_an_agent_that_asks_no_more_is_told_that_its_commit_never_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _world(tmp_path) as world:
        await _offer(world)
        number, state = await _state(world, SMITH)
        assert state == "examining"
        invalidate = world.service.examiner.invalidate

        async def full(*_: object, **__: object) -> None:
            raise DiskFullError("there is no room to say so, either")

        monkeypatch.setattr(world.service.examiner, "invalidate", full)
        await _pass(world, resuming.ASK_AGAIN_S + 2 * SCAN_S)
        assert await _state(world, SMITH) == (number, "examining")
        monkeypatch.setattr(world.service.examiner, "invalidate", invalidate)
        await _pass(world, SCAN_S)
        assert await _state(world, SMITH) == (number, "invalid")
        assert "there was no room for the commit" in (await world.get(number)).error
        told = await world.told(SMITH)
        assert len(told) == 1
        assert "propose it again" in told[0]


async def test_an_agent_that_asks_again_goes_on_with_its_proposal(tmp_path: Path) -> None:
    async with _world(tmp_path) as world:
        path, commit = await _offer(world)
        number, _ = await _state(world, SMITH)
        await _pass(world, resuming.ASK_AGAIN_S - 2 * SCAN_S)
        assert (await world.service.propose_bundle(SMITH, SMITH, commit, "", path)).proposal == number
        await _pass(world, 3 * SCAN_S)
        assert await _state(world, SMITH) == (number, "pending")


async def test_an_examination_that_nobody_works_on_is_begun_again(tmp_path: Path) -> None:
    async with _world(tmp_path) as world:
        world.nix.gate = asyncio.Event()
        path, commit = await world.bundle(SMITH, OPUS)
        number = (await world.service.propose_bundle(SMITH, SMITH, commit, "", path)).proposal
        await _pass_while_examining(world)
        assert world.nix.most == 1, "what is worked on is left alone"
        for task in world.service.examiner._tasks.values():
            task.cancel()
        await world.settled()
        world.nix.gate = None
        await _pass(world, 2 * SCAN_S)
        assert await _state(world, SMITH) == (number, "pending")


async def _pass_while_examining(world: World) -> None:
    for _ in range(4):
        await world.clock.asleep(at_least_s=SCAN_S)
        world.clock.advance(SCAN_S)
        await world.clock.asleep(at_least_s=SCAN_S)


async def test_a_staged_state_for_which_there_was_no_room_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _world(tmp_path) as world:
        await world.service.start_draft(BOSS, wire.SpawnDraft(name=SCRIBE))
        path, commit = await world.bundle(SCRIBE, OPUS)

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("reconciler.approvals.proposing.os.fsync", full)
        with pytest.raises(DiskFullError):
            await world.service.propose_draft(BOSS, SCRIBE, commit, "", path, world.tar(notes="n"))
        assert list((tmp_path / "state/staged").iterdir()) == []
