"""The whole way of a proposal with real git: an agent's clone, its bundle, the sandbox, tags and main."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.approvals.projection import project_meta, project_tag
from reconciler.control import models as api
from reconciler.effects.git import GitRepositories
from reconciler.effects.git.quarantine import Quarantine
from reconciler.errors import InvalidError
from reconciler.model.names import AgentName, Commit
from reconciler.model.states import ProposalState, Risk, Role
from tests.integration.hostile import NOBODY, Agent
from tests.support.approvals import ALICE, BOSS, SMITH, World
from tests.support.needs import needs_root

pytestmark = [
    pytest.mark.asyncio,
    needs_root,
]


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hive-approvals-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture
async def world(place: Path) -> AsyncIterator[World]:
    state = place / "state"
    state.mkdir(mode=0o711)
    real = GitRepositories(state, Quarantine(state / "quarantine", NOBODY))
    async with await World.open(place, real) as world:
        await world.agent(BOSS, Role.MANAGER)
        await world.agent(SMITH)
        yield world
    real.close()


async def cloned(world: World, place: Path, name: AgentName) -> tuple[Agent, Commit, dict[str, bytes]]:
    """The agent's own repository after `GET repos/{name}/bundle`: its head and its files."""
    bundle = place / "main.bundle"
    bundle.write_bytes(await world.service.repository_bundle(name, name))
    agent = Agent(place / f"{name}-clone")
    agent.git("fetch", "--quiet", str(bundle), "refs/heads/main:refs/heads/main")
    head = Commit(agent.git("rev-parse", "main"))
    paths = agent.git("ls-tree", "-r", "--name-only", head).split()
    return agent, head, {path: agent.git("show", f"{head}:{path}").encode() + b"\n" for path in paths}


async def test_from_an_agents_clone_to_main(world: World, place: Path) -> None:
    agent, head, files = await cloned(world, place, SMITH)
    text = files["agent.nix"].replace(b'model = "haiku"', b'model = "opus"')
    assert text != files["agent.nix"]
    commit = agent.files({**files, "agent.nix": text}, head)
    bundle = agent.bundle(commit)
    made = await world.service.propose_bundle(SMITH, "smith", commit, "a better model", bundle)
    bundle.unlink()
    await world.settled()
    shown = await world.get(made.proposal)
    assert (shown.state, shown.risk, shown.error) == (ProposalState.PENDING, Risk.ELEVATED, "")
    assert [(c.option, c.before, c.after) for c in shown.changes] == [("model", '"haiku"', '"opus"')]
    diff = await world.service.diff(made.proposal, "running")
    (file,) = diff.files
    assert (file.path, file.added, file.deleted) == ("agent.nix", 1, 1)
    assert diff.base_commit == shown.base == head
    await world.approve(made.proposal)
    await world.deploy(made.proposal)
    for row in await world.outbox("tag"):
        await project_tag(world.git, row)
    for row in await world.outbox("meta"):
        await project_meta(world.git, row)
    assert await world.git.main(SMITH) == commit
    tags = await world.git.tags(SMITH)
    assert tags[f"proposal/{made.proposal}"] == tags[f"deployed/{made.proposal}"] == commit
    assert await world.service.scan(SMITH) is None
    log = AgentName("meta")
    main = await world.git.main(log)
    assert main is not None
    assert commit in (await world.git.read(log, main, "agents/smith.json", 4096) or "")


async def test_a_hostile_bundle_ends_as_invalid_with_the_path(world: World, place: Path) -> None:
    agent, head, files = await cloned(world, place, SMITH)
    commit = agent.files({**files, "lib/.gitattributes": b"* export-ignore\n"}, head)
    with pytest.raises(InvalidError, match=r"lib/\.gitattributes"):
        await world.service.propose_bundle(SMITH, "smith", commit, "", agent.bundle(commit))
    (found,) = (await world.service.list(state="invalid", agent="smith", before=None, limit=5)).items
    assert "lib/.gitattributes: attributes change what git and Nix take from a tree" in found.error
    assert not await world.git.exists(SMITH, commit)


async def test_a_push_is_examined_like_everything_else(world: World, place: Path) -> None:
    agent, head, files = await cloned(world, place, SMITH)
    commit = agent.files({**files, "agent.nix": b"{ hyperhive.model = 7; }\n"}, head)
    agent.git("push", "--quiet", str(place / "state/repos/smith.git"), f"{commit}:refs/heads/main")
    number = await world.service.scan(SMITH)
    assert number is not None
    await world.settled()
    assert (await world.get(number)).state is ProposalState.INVALID
    proposed = await world.service.propose(ALICE, api.Propose(agent="smith", commit=head))
    await world.settled()
    assert (await world.get(proposed.id)).changes == []
