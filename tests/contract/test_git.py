"""What the rest may rely on in repositories: the same suite on real git and on the fake."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.effects.git import GitRepositories
from reconciler.effects.git.quarantine import Quarantine
from reconciler.effects.protocols import Git
from reconciler.errors import InvalidError, OperatorError, PermanentError, TemporaryError
from reconciler.model.names import AgentName, Commit
from tests.fakes.git import FakeCommit, FakeGit, write_bundle
from tests.integration.hostile import NOBODY, Agent

pytestmark = pytest.mark.asyncio

SMITH, SCOUT, META = AgentName("smith"), AgentName("scout"), AgentName("meta")
FIRST = {"agent.nix": "{ }\n", "prompt.md": "be kind\n"}
UNKNOWN = Commit("d" * 40)

Chain = list[dict[str, bytes]]


@dataclass(frozen=True)
class World:
    """A git, and what writes bundles for it: contents of a chain of commits → file and id of the last."""

    git: Git
    bundle: Callable[[Chain], tuple[Path, Commit]]
    place: Path


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hive-git-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture(params=["fake", "real"])
async def world(request: pytest.FixtureRequest, place: Path) -> AsyncIterator[World]:
    if request.param == "fake":

        def fake_bundle(chain: Chain) -> tuple[Path, Commit]:
            commits: list[FakeCommit] = []
            for files in chain:
                commits.append(FakeCommit(files, commits[-1].id if commits else None))
            path = place / f"{len(chain)}.bundle"
            return path, write_bundle(path, commits)

        yield World(FakeGit(), fake_bundle, place)
        return
    if os.geteuid() != 0:
        pytest.skip("dropping to another user needs root")
    agent = Agent(place / "agent")

    def bundle(chain: Chain) -> tuple[Path, Commit]:
        parents: list[str] = []
        for files in chain:
            parents = [agent.files(files, *parents)]
        return agent.bundle(parents[0]), Commit(parents[0])

    real = GitRepositories(place, Quarantine(place / "trees", NOBODY), now=lambda: 1_700_000_000)
    yield World(real, bundle, place)
    real.close()


async def first(world: World, name: AgentName = SMITH) -> Commit:
    return await world.git.create(name, FIRST, author="operator", message="first")


async def test_creating_twice_gives_the_same_first_commit(world: World) -> None:
    commit = await first(world)
    assert await world.git.create(SMITH, {"other": "x"}, author="x", message="x") == commit
    assert await world.git.main(SMITH) == commit
    assert [entry.path for entry in await world.git.check_tree(SMITH, commit)] == ["agent.nix", "prompt.md"]


async def test_nothing_is_there_without_a_repository(world: World) -> None:
    assert await world.git.main(SMITH) is None
    assert await world.git.tags(SMITH) == {}
    assert not await world.git.exists(SMITH, UNKNOWN)
    with pytest.raises(OperatorError, match="no repository"):
        await world.git.bundle(SMITH)
    with pytest.raises(OperatorError, match="no repository"):
        await world.git.pin(SMITH, "proposal/1", UNKNOWN)


async def test_own_commits_hold_exactly_their_files_and_move_no_branch(world: World) -> None:
    begin = await first(world, META)
    files = {"agents/smith.json": "{}\n", "flake.nix": "{ }\n"}
    commit = await world.git.commit(
        META, files, parent=begin, author="hyperhive", message="smith: generation 1"
    )
    assert [entry.path for entry in await world.git.check_tree(META, commit)] == sorted(files)
    assert await world.git.main(META) == begin
    assert await world.git.is_ancestor(META, begin, commit)
    other = await world.git.commit(META, {"flake.nix": "{ }\n"}, parent=None, author="x", message="x")
    assert not await world.git.is_ancestor(META, begin, other)


async def test_a_bundle_brings_its_commit_and_its_history(world: World) -> None:
    await first(world)
    path, commit = world.bundle([{"agent.nix": b"{ }\n"}, {"agent.nix": b"{ a = 1; }\n"}])
    await world.git.import_bundle(SMITH, path, commit)
    await world.git.import_bundle(SMITH, path, commit)
    assert await world.git.exists(SMITH, commit)
    assert await world.git.read(SMITH, commit, "agent.nix", 100) == "{ a = 1; }\n"
    assert await world.git.tags(SMITH) == {}


async def test_bad_bundles_are_refused_with_reasons(world: World) -> None:
    await first(world)
    path, commit = world.bundle([{"agent.nix": b"{ }\n"}])
    with pytest.raises(InvalidError) as caught:
        await world.git.import_bundle(SMITH, path, UNKNOWN)
    assert caught.value.refusals
    path.write_bytes(b"junk")
    with pytest.raises(InvalidError):
        await world.git.import_bundle(SMITH, path, commit)
    assert not await world.git.exists(SMITH, commit)
    path, commit = world.bundle([{"sub/.gitattributes": b"x\n"}])
    with pytest.raises(InvalidError, match=r"sub/\.gitattributes"):
        await world.git.import_bundle(SMITH, path, commit)
    assert not await world.git.exists(SMITH, commit)


async def test_a_pin_never_moves(world: World) -> None:
    one = await first(world)
    other = await world.git.commit(SMITH, {"a": "b"}, parent=one, author="x", message="x")
    await world.git.pin(SMITH, "proposal/1", one)
    await world.git.pin(SMITH, "proposal/1", one)
    await world.git.pin(SMITH, "denied/2", other, "no, because\nof you")
    await world.git.pin(SMITH, "denied/2", other, "said otherwise")
    with pytest.raises(PermanentError):
        await world.git.pin(SMITH, "proposal/1", other)
    assert await world.git.tags(SMITH) == {"proposal/1": one, "denied/2": other}


async def test_a_tag_is_put_back_wherever_it_went(world: World) -> None:
    one = await first(world)
    other = await world.git.commit(SMITH, {"a": "b"}, parent=one, author="x", message="x")
    await world.git.pin(SMITH, "denied/2", other, "no")
    await world.git.repin(SMITH, "denied/2", one, "no")
    assert await world.git.tags(SMITH) == {"denied/2": one}
    for _ in range(2):
        await world.git.repin(SMITH, "proposal/1", one)
    assert await world.git.tags(SMITH) == {"denied/2": one, "proposal/1": one}
    with pytest.raises(OperatorError, match="no repository"):
        await world.git.repin(SCOUT, "proposal/1", one)


async def test_main_moves_by_compare_and_swap(world: World) -> None:
    one = await first(world)
    two = await world.git.commit(SMITH, {"a": "2"}, parent=one, author="x", message="x")
    three = await world.git.commit(SMITH, {"a": "3"}, parent=one, author="x", message="x")
    await world.git.set_main(SMITH, two, expected=one)
    await world.git.set_main(SMITH, two, expected=one)
    with pytest.raises(TemporaryError):
        await world.git.set_main(SMITH, three, expected=one)
    with pytest.raises(TemporaryError):
        await world.git.set_main(SMITH, three, expected=None)
    assert await world.git.main(SMITH) == two


async def test_a_commit_is_extracted_for_others_to_read(world: World) -> None:
    await first(world)
    path, commit = world.bundle([{"agent.nix": b"{ }\n", "lib/deep/x": b"\0\xff"}])
    await world.git.import_bundle(SMITH, path, commit)
    into = world.place / "into"
    into.mkdir(mode=0o700)
    await world.git.extract(SMITH, commit, into)
    found = {str(p.relative_to(into)): p.read_bytes() for p in into.rglob("*") if p.is_file()}
    assert found == {"agent.nix": b"{ }\n", "lib/deep/x": b"\0\xff"}
    assert all(p.stat().st_mode & 0o004 for p in [into, *into.rglob("*")])


async def test_reading_is_bounded_and_text(world: World) -> None:
    await first(world)
    path, commit = world.bundle([{"a": b"0123456789", "b": b"\xff", "d/c": b"c"}])
    await world.git.import_bundle(SMITH, path, commit)
    assert await world.git.read(SMITH, commit, "a", 4) == "0123"
    assert await world.git.read(SMITH, commit, "b", 4) == "\ufffd"
    assert await world.git.read(SMITH, commit, "d/c", 4) == "c"
    for absent in ("x", "d", "a/b", "../a", "d/../a"):
        assert await world.git.read(SMITH, commit, absent, 4) is None
    with pytest.raises(OperatorError):
        await world.git.read(SMITH, UNKNOWN, "a", 4)


async def test_a_diff_tells_each_file_once(world: World) -> None:
    await first(world)
    path, commit = world.bundle([{"agent.nix": b"{ b }\n", "new": b"n\n"}])
    await world.git.import_bundle(SMITH, path, commit)
    base = await world.git.main(SMITH)
    found = await world.git.diff(SMITH, base, commit)
    assert [(one.path, one.status) for one in found] == [
        ("agent.nix", "modified"),
        ("new", "added"),
        ("prompt.md", "deleted"),
    ]
    assert "-{ }\n+{ b }\n" in found[0].patch
    assert [one.status for one in await world.git.diff(SMITH, None, commit)] == ["added", "added"]
    assert await world.git.diff(SMITH, commit, commit) == []


async def test_mains_bundle_can_be_taken_in_elsewhere(world: World) -> None:
    commit = await first(world)
    await world.git.create(SCOUT, {"a": "b"}, author="x", message="x")
    bundle = world.place / "main.bundle"
    bundle.write_bytes(await world.git.bundle(SMITH))
    await world.git.import_bundle(SCOUT, bundle, commit)
    assert await world.git.exists(SCOUT, commit)
