"""hived dies at any call of an effect while it proposes or decides: nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from harness import wire
from reconciler.approvals.projection import project_meta, project_tag
from reconciler.control import models as api
from reconciler.effects.protocols import Git
from reconciler.errors import HiveError, OperatorError, TemporaryError
from reconciler.model.names import AgentName, Commit
from reconciler.model.states import ProposalState, Role
from tests.fakes.faults import Died, Kind
from tests.fakes.git import FakeGit
from tests.support.approvals import ALICE, BOSS, SCRIBE, SMITH, World, agent_nix

pytestmark = pytest.mark.asyncio

OPUS = {"agent.nix": agent_nix(model='"opus"')}
EVERY = frozenset({
    "git.create", "git.commit", "git.import_bundle", "git.check_tree", "git.pin", "git.set_main",
    "git.extract", "hostfiles.freeze_state", "nix.evaluate",
})  # fmt: skip

Act = Callable[[World], Awaitable[None]]


async def _propose(world: World) -> None:
    path, commit = await world.bundle(SMITH, OPUS)
    await world.service.propose_bundle(SMITH, SMITH, commit, "", path)


async def _draft(world: World) -> None:
    await world.service.start_draft(BOSS, wire.SpawnDraft(name="scribe"))
    path, commit = await world.bundle(SCRIBE, OPUS)
    await world.service.propose_draft(BOSS, "scribe", commit, "", path, world.tar(notes="n"))


async def _spawn(world: World) -> None:
    await world.service.request_spawn(BOSS, wire.Spawn(name="scribe"))


async def _new_agent(world: World) -> None:
    await world.service.new_agent(ALICE, api.NewAgent(name="scribe", approve=True))


# What is done, for whom, and in which states its proposal may end once all is over.
ACTS: dict[str, tuple[Act, AgentName, set[str]]] = {
    "an agent's proposal": (_propose, SMITH, {"pending"}),
    "a draft": (_draft, SCRIBE, {"pending"}),
    "a spawn": (_spawn, SCRIBE, {"pending"}),
    "the operator's new agent": (_new_agent, SCRIBE, {"pending", "approved"}),
}


async def _world(directory: Path) -> World:
    world = await World.open(directory)
    await world.agent(BOSS, Role.MANAGER)
    await world.agent(SMITH)
    world.faults.watch(EVERY)
    world.faults.calls.clear()
    return world


async def _die(world: World, act: Act) -> None:
    """Run the act until hived is dead: whatever still runs then ends with it."""
    world.nix.gate = None
    with contextlib.suppress(Died):
        await act(world)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if task.get_name().startswith("examine-"):
            with contextlib.suppress(Died):
                await task


@pytest.mark.parametrize("kind", ["die-before", "die-after"])
@pytest.mark.parametrize("name", ACTS)
async def test_dying_at_any_call_leaves_one_proposal_that_goes_on(
    tmp_path: Path, name: str, kind: Kind
) -> None:
    act, agent, ends = ACTS[name]
    async with await _world(tmp_path / "count") as world:
        await _die(world, act)
        calls = len(world.faults.calls)
    assert calls >= 4
    for n in range(1, calls + 1):
        async with await _world(tmp_path / str(n)) as world:
            world.faults.at(n, kind)
            await _die(world, act)
            (tmp_path / str(n) / "state/trees/examine-99-left").mkdir(parents=True)
            await world.restart()
            await world.settled()
            found = await world.service.list(state=None, agent=agent, before=None, limit=10)
            for item in found.items:
                if item.state is ProposalState.INVALID:
                    assert "restarted before the commit had arrived" in item.error, f"call {n}"
            # whoever asked asks again, for the answer was lost; or finds that it was done
            with contextlib.suppress(OperatorError):
                await act(world)
            await world.settled()
            items = (await world.service.list(state=None, agent=agent, before=None, limit=10)).items
            alive = [item.state for item in items if item.state not in {"invalid", "deployed"}]
            assert len(alive) == 1, f"call {n} ({world.faults.calls[n - 1]}): {alive}"
            assert alive[0] in ends
            assert list((tmp_path / str(n) / "state/trees").glob("*")) == []


async def test_an_approval_is_whole_or_not_at_all(tmp_path: Path) -> None:
    async with await _world(tmp_path) as world:
        made = await world.service.request_spawn(BOSS, wire.Spawn(name="scribe"))
        await world.settled()
        digest = (await world.get(made.proposal)).digest or ""
        async with world.store.state.transaction() as tx:
            await tx.run(
                "CREATE TRIGGER t BEFORE INSERT ON agents BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
            )
        with pytest.raises(Exception, match="the disk is full"):
            await world.service.approve(ALICE, made.proposal, api.Approve(digest=digest))
        async with world.store.state.transaction() as tx:
            await tx.run("DROP TRIGGER t")
        await world.restart()
        assert (await world.get(made.proposal)).state is ProposalState.PENDING
        assert await world.count("audit WHERE action = 'proposal.approved' AND target = 'proposal:3'") == 0
        await world.service.approve(ALICE, made.proposal, api.Approve(digest=digest))


async def test_trouble_of_the_moment_is_tried_again_and_trouble_that_stays_ends(tmp_path: Path) -> None:
    async with await _world(tmp_path) as world:
        world.faults.watch({"nix.evaluate"})
        world.faults.at(1, "fail", TemporaryError("busy", after_s=0))
        one = await world.propose(SMITH, SMITH, OPUS)
        assert (await world.get(one)).state is ProposalState.PENDING
        for n in (3, 4, 5):
            world.faults.at(n, "fail", TemporaryError("busy", after_s=0))
        two = await world.propose(SMITH, SMITH, {"x": "y"})
        assert (await world.get(two)).error == "busy"
        world.faults.at(6, "fail", RuntimeError("a bug"))
        three = await world.propose(SMITH, SMITH, {"x": "z"})
        shown = await world.get(three)
        assert shown.state is ProposalState.INVALID
        assert "failed inside hived (RuntimeError)" in shown.error


# ------------------------------------------------------------------------------- projections
async def _project(world: World, git: Git) -> None:
    for row in await world.outbox("tag"):
        await project_tag(git, row)
    for row in await world.outbox("meta"):
        await project_meta(git, row)


async def test_projections_can_be_made_again_and_anew(tmp_path: Path) -> None:
    async with await _world(tmp_path) as world:
        number = await world.propose(SMITH, SMITH, OPUS)
        await world.approve(number)
        await world.deploy(number)
        denied = await world.propose(SMITH, SMITH, {"x": "y"})
        await world.service.deny(ALICE, denied, api.Decide(note="no, thanks"))
        with pytest.raises(HiveError):
            await world.service.propose_bundle(SMITH, SMITH, "d" * 40, "", world.tar())
        await _project(world, world.git)
        repository = world.fake.repositories[SMITH]
        tags, meta = dict(repository.tags), world.fake.repositories[AgentName("meta")].main
        commit = (await world.get(number)).commit
        assert {tag for tag, at in tags.items() if at == commit} == {
            f"{state}/{number}"
            for state in ("proposal", "pending", "approved", "building", "activating", "deployed")
        }
        assert repository.messages[f"denied/{denied}"] == "no, thanks"
        assert repository.main == commit
        assert await world.service.scan(SMITH) is None
        await _project(world, world.git)
        assert repository.tags == tags
        for tag in [tag for tag in tags if not tag.startswith(("proposal/", "template/"))]:
            del repository.tags[tag]
        await _project(world, world.git)
        assert repository.tags == tags
        log = AgentName("meta")
        assert meta is not None
        assert sorted(entry.path for entry in await world.git.check_tree(log, meta)) == [
            "agents/hm1nd.json", "agents/smith.json", "flake.nix",
        ]  # fmt: skip
        assert f'"commit": "{commit}"' in (await world.git.read(log, meta, "agents/smith.json", 1000) or "")


async def test_main_follows_approvals_but_never_goes_back_behind_the_operator() -> None:
    git = FakeGit()
    first = await git.create(SMITH, {"agent.nix": "1"}, author="a", message="m")
    approved = await git.commit(SMITH, {"agent.nix": "2"}, parent=first, author="a", message="m")
    pushed = await git.commit(SMITH, {"agent.nix": "3"}, parent=approved, author="a", message="m")
    other = await git.commit(SMITH, {"agent.nix": "4"}, parent=first, author="a", message="m")

    async def approve(commit: Commit, number: int) -> Commit | None:
        row = {"agent": "smith", "tag": f"approved/{number}", "commit": commit, "message": ""}
        await project_tag(git, row)
        return await git.main(SMITH)

    assert await approve(approved, 1) == approved
    await git.set_main(SMITH, pushed, expected=approved)
    assert await approve(approved, 2) == pushed
    assert await approve(other, 3) == other
