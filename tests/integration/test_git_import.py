"""Bundles of agents, with real git: what is taken in, and what is refused with which reason."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.effects.git import GitRepositories, quarantine
from reconciler.effects.git.quarantine import Quarantine
from reconciler.errors import DiskFullError, InvalidError, OperatorError, TemporaryError
from reconciler.model.names import AgentName, Commit
from tests.fakes.unixhttp import until
from tests.integration.hostile import EMPTY, NOBODY, Agent
from tests.support.needs import needs_root

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio,
    needs_root,
]

SMITH = AgentName("smith")
FILES = {"agent.nix": b"{ }\n", "flake.nix": b"{ }\n"}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the unprivileged user can pass through."""
    path = Path(tempfile.mkdtemp(prefix="hive-git-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture
async def repositories(place: Path) -> AsyncIterator[GitRepositories]:
    found = GitRepositories(place, Quarantine(place / "trees", NOBODY))
    await found.create(SMITH, {"agent.nix": "{ }\n"}, author="test", message="first")
    yield found
    found.close()


@pytest.fixture
def agent(place: Path) -> Agent:
    return Agent(place / "agent")


async def refused(repositories: GitRepositories, bundle: Path, commit: str) -> str:
    """Why the bundle was refused; nothing of it is in the repository afterwards, and no trace beside it."""
    with pytest.raises(InvalidError) as caught:
        await repositories.import_bundle(SMITH, bundle, Commit(commit))
    assert caught.value.refusals
    assert not await repositories.exists(SMITH, Commit(commit))
    return "\n".join([caught.value.message, *(f"{r.where}: {r.why}" for r in caught.value.refusals)])


async def test_a_commit_with_its_history_is_taken(
    repositories: GitRepositories, agent: Agent, place: Path
) -> None:
    first = agent.files(FILES)
    second = agent.files({**FILES, "lib/x.nix": b"1\n"}, first)
    await repositories.import_bundle(SMITH, agent.bundle(second), second)
    assert await repositories.exists(SMITH, first)
    paths = [entry.path for entry in await repositories.check_tree(SMITH, second)]
    assert paths == ["agent.nix", "flake.nix", "lib/x.nix"]
    assert await repositories.is_ancestor(SMITH, first, second)
    await repositories.import_bundle(SMITH, place / "not-needed-any-more", second)
    assert list((place / "trees").iterdir()) == []


async def test_what_a_killed_import_left_is_cleared_away(
    repositories: GitRepositories, agent: Agent, place: Path
) -> None:
    (place / "trees/import-left/work").mkdir(parents=True)
    Quarantine(place / "trees", NOBODY)
    assert list((place / "trees").iterdir()) == []
    commit = agent.files(FILES)
    await repositories.import_bundle(SMITH, agent.bundle(commit), commit)
    assert list((place / "trees").iterdir()) == []


async def test_a_bundle_of_version_3_is_taken(repositories: GitRepositories, agent: Agent) -> None:
    commit = agent.files(FILES)
    await repositories.import_bundle(SMITH, agent.bundle(commit, arguments=["--version=3"]), commit)
    assert await repositories.exists(SMITH, commit)


async def test_what_the_agent_offers_beside_the_commit_does_not_enter(
    repositories: GitRepositories, agent: Agent
) -> None:
    other = agent.files({"secret": b"x"})
    commit = agent.files(FILES)
    bundle = agent.bundle(commit)
    names = agent.git("rev-list", "--objects", commit, other).split()
    ids = "".join(f"{name}\n" for name in names if len(name) == 40)
    head = bundle.read_bytes().split(b"\n\n")[0] + b"\n\n"
    (pack,) = agent.git("pack-objects", "extra", stdin=ids.encode()).split()
    bundle.write_bytes(head + (agent.path / f"extra-{pack}.pack").read_bytes())
    await repositories.import_bundle(SMITH, bundle, commit)
    assert not await repositories.exists(SMITH, other)


async def test_an_old_mode_of_a_file_is_read_as_git_reads_it(
    repositories: GitRepositories, agent: Agent
) -> None:
    commit = agent.commit(_one("100664", b"old")(agent))
    await repositories.import_bundle(SMITH, agent.bundle(commit), commit)
    assert {e.mode for e in await repositories.check_tree(SMITH, commit)} == {"100644"}


async def test_truncated_bundles_are_refused(repositories: GitRepositories, agent: Agent) -> None:
    commit = agent.files({**FILES, "noise": os.urandom(5000)})
    whole = agent.bundle(commit).read_bytes()
    cut = agent.path / "cut.bundle"
    for length in (0, 20, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        assert "the bundle is refused" in await refused(repositories, cut, commit)


async def test_a_flipped_bit_is_refused(repositories: GitRepositories, agent: Agent) -> None:
    commit = agent.files({**FILES, "noise": os.urandom(5000)})
    bundle = agent.bundle(commit)
    content = bytearray(bundle.read_bytes())
    content[-100] ^= 1
    bundle.write_bytes(content)
    assert "cannot be unpacked" in await refused(repositories, bundle, commit)


async def test_two_refs_are_refused(repositories: GitRepositories, agent: Agent) -> None:
    one, other = agent.files(FILES), agent.files({**FILES, "x": b"x"})
    assert "2 refs" in await refused(repositories, agent.bundle(one, other), one)


async def test_a_hundred_thousand_refs_are_refused(repositories: GitRepositories, agent: Agent) -> None:
    commit = agent.files(FILES)
    head, pack = agent.bundle(commit).read_bytes().split(b"\n\n", 1)
    refs = b"".join(f"{commit} refs/heads/x{number}\n".encode() for number in range(100_000))
    (agent.path / "many.bundle").write_bytes(head + b"\n" + refs + b"\n" + pack)
    assert "longer than 4096" in await refused(repositories, agent.path / "many.bundle", commit)


async def test_a_part_of_the_history_is_refused(repositories: GitRepositories, agent: Agent) -> None:
    first = agent.files(FILES)
    second = agent.files({**FILES, "x": b"x"}, first)
    agent.git("update-ref", "refs/heads/new", second)
    agent.git("bundle", "create", "part.bundle", f"{first}..refs/heads/new")
    assert "prerequisites" in await refused(repositories, agent.path / "part.bundle", second)


async def test_a_commit_that_the_bundle_does_not_hold_is_refused(
    repositories: GitRepositories, agent: Agent
) -> None:
    one, other = agent.files(FILES), agent.files({**FILES, "x": b"x"})
    assert "not the commit" in await refused(repositories, agent.bundle(one), other)
    lying = agent.path / "lying.bundle"
    lying.write_bytes(agent.bundle(one).read_bytes().replace(one.encode(), other.encode(), 1))
    assert "is no commit in it" in await refused(repositories, lying, other)


async def test_a_tag_or_a_tree_is_no_commit(repositories: GitRepositories, agent: Agent) -> None:
    agent.git("tag", "-a", "-m", "x", "v1", agent.files(FILES))
    tag = agent.git("rev-parse", "v1")
    agent.git("bundle", "create", "tag.bundle", "refs/tags/v1")
    assert "is no commit in it" in await refused(repositories, agent.path / "tag.bundle", tag)


async def test_missing_objects_are_refused(repositories: GitRepositories, agent: Agent) -> None:
    commit = agent.files(FILES)
    bundle = agent.bundle(commit)
    (pack,) = agent.git("pack-objects", "lone", stdin=f"{commit}\n".encode()).split()
    head = bundle.read_bytes().split(b"\n\n")[0] + b"\n\n"
    bundle.write_bytes(head + (agent.path / f"lone-{pack}.pack").read_bytes())
    assert "could not" in await refused(repositories, bundle, commit)


async def test_more_than_the_limit_is_refused(repositories: GitRepositories, agent: Agent) -> None:
    big = agent.path / "big.bundle"
    with big.open("wb") as file:
        file.truncate(33 * 1024 * 1024)
    assert "are allowed" in await refused(repositories, big, "a" * 40)
    commit = agent.files({**FILES, "big": b"x" * (1024 * 1024 + 1)})
    assert "1048577 bytes, 1048576 are allowed" in await refused(repositories, agent.bundle(commit), commit)


async def test_300_mb_of_zeros_in_a_small_bundle_are_refused(
    repositories: GitRepositories, agent: Agent
) -> None:
    with (agent.path / "zeros").open("wb") as file:
        file.truncate(300_000_000)
    blob = agent.git(
        "-c", "core.bigFileThreshold=1m", "-c", "core.compression=1", "hash-object", "-w", "zeros"
    )
    commit = agent.commit(agent.tree([("100644", b"zeros", blob)]))
    bundle = agent.bundle(commit)
    assert bundle.stat().st_size < 3_000_000
    assert "300000000 bytes" in await refused(repositories, bundle, commit)


async def test_a_tree_that_unfolds_without_end_is_refused(
    repositories: GitRepositories, agent: Agent
) -> None:
    tree = agent.tree([("100644", b"f%d" % n, agent.blob(b"x")) for n in range(10)])
    for _ in range(9):
        tree = agent.tree([("40000", b"d%d" % n, tree) for n in range(10)])
    assert "more than 5000 files" in await refused(
        repositories, agent.bundle(commit := agent.commit(tree)), commit
    )


def _one(mode: str, name: bytes, content: bytes = b"x") -> Callable[[Agent], str]:
    def make(agent: Agent) -> str:
        items = [("100644", b"agent.nix", agent.blob(b"{ }")), (mode, name, agent.blob(content))]
        return agent.tree(sorted(items, key=lambda item: item[1]))

    return make


def _inside(name: bytes, *items: bytes) -> Callable[[Agent], str]:
    def make(agent: Agent) -> str:
        inner = agent.tree([("100644", item, agent.blob(b"x")) for item in items])
        return agent.tree([("40000", name, inner)])

    return make


BAD_TREES: dict[str, tuple[Callable[[Agent], str], str]] = {
    "a path that climbs": (_one("100644", b"../../etc/passwd"), "../../etc/passwd: '..' is not a name"),
    "a directory named dot dot": (_inside(b"..", b"etc"), "../etc: '..' is not a name"),
    "a directory named .git": (_inside(b".git", b"config"), ".git/config: a repository's own directory"),
    "a directory named .GIT": (_inside(b".GIT", b"config"), "own directory"),
    "a short name of .git": (_inside(b"git~1", b"config"), "own directory"),
    "an ignorable character in .git": (_inside(".g\u200cit".encode(), b"config"), "own directory"),
    "attributes": (_one("100644", b".gitattributes", b"* export-ignore\n"), ".gitattributes: attributes"),
    "attributes below": (_inside(b"sub", b".gitattributes"), "sub/.gitattributes: attributes"),
    "a submodule": (lambda agent: agent.tree([("160000", b"sub", "c" * 40)]), "submodules are not allowed"),
    "modules": (_one("100644", b".gitmodules", b"[x]\n"), "submodules are not allowed"),
    "an absolute link": (_one("120000", b"link", b"/etc/shadow"), "link: a symbolic link out of the tree"),
    "a climbing link": (_one("120000", b"link", b"../../etc"), "link: a symbolic link out of the tree"),
    "two names that differ in case": (_one("100644", b"Agent.nix"), "only in case"),
    "control characters": (_one("100644", b"a\x1b[31m"), "a␛[31m: its name has control"),
    "a name that is not UTF-8": (_one("100644", b"\xff\xfe"), "not UTF-8"),
    "a name twice": (_one("100644", b"agent.nix"), "duplicateEntries"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TREES)
async def test_bad_trees_are_refused_by_name(repositories: GitRepositories, agent: Agent, case: str) -> None:
    make, why = BAD_TREES[case]
    commit = agent.commit(make(agent))
    assert why in await refused(repositories, agent.bundle(commit), commit)


async def test_the_rules_hold_for_pushed_commits_too(
    repositories: GitRepositories, agent: Agent, place: Path
) -> None:
    commit = agent.commit(agent.tree([("120000", b"link", agent.blob(b"/etc/shadow"))]))
    agent.git("push", "--quiet", str(place / "repos/smith.git"), f"{commit}:refs/heads/wild", SUDO_UID="")
    with pytest.raises(InvalidError, match="out of the tree"):
        await repositories.check_tree(SMITH, commit)
    into = place / "into"
    into.mkdir()
    with pytest.raises(InvalidError, match="out of the tree"):
        await repositories.extract(SMITH, commit, into)
    assert list(into.iterdir()) == []


async def test_a_commit_of_another_repository_is_not_known(
    repositories: GitRepositories, agent: Agent
) -> None:
    scout = AgentName("scout")
    other = await repositories.create(scout, {"agent.nix": "{ }"}, author="test", message="scout's")
    assert not await repositories.exists(SMITH, other)
    with pytest.raises(OperatorError, match="there is no commit"):
        await repositories.check_tree(SMITH, other)
    empty = agent.commit(EMPTY)
    assert not await repositories.exists(SMITH, empty)


async def test_bundles_that_take_long_keep_their_own_agent_waiting_and_nobody_else(
    repositories: GitRepositories, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    scout = AgentName("scout")
    await repositories.create(scout, {"agent.nix": "{ }"}, author="test", message="scout's")
    looked_at: list[str] = []
    go = asyncio.Event()

    async def slow(self: Quarantine, place: Path, bundle: Path, commit: Commit) -> None:
        looked_at.append(commit)
        await go.wait()
        raise InvalidError("it took long")

    monkeypatch.setattr(Quarantine, "_check", slow)
    commits = [Commit(digit * 40) for digit in "123"]
    imports = [
        asyncio.create_task(repositories.import_bundle(SMITH, agent.path, commit)) for commit in commits
    ]
    await until(lambda: looked_at == commits[:1])
    other = Commit("4" * 40)
    imports.append(asyncio.create_task(repositories.import_bundle(scout, agent.path, other)))
    await until(lambda: looked_at == [commits[0], other])
    monkeypatch.setattr(quarantine, "QUEUE_S", 0.0)
    with pytest.raises(TemporaryError, match="propose it again"):
        await repositories.import_bundle(SMITH, agent.path, Commit("5" * 40))
    monkeypatch.undo()
    monkeypatch.setattr(Quarantine, "_check", slow)
    go.set()
    ends = await asyncio.gather(*imports, return_exceptions=True)
    assert [str(end) for end in ends] == ["it took long"] * 4
    assert sorted(looked_at) == sorted([*commits, other])


@pytest.fixture
def small(place: Path) -> Iterator[Path]:
    """A file system with little room."""
    path = place / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=711", "small", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize("is_full", [True, False])
async def test_git_found_no_room_is_believed_only_where_there_is_none(
    place: Path, small: Path, agent: Agent, is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that finds no room is offered again; one that only makes git say so is refused."""
    trees = small if is_full else place / "trees"
    if not is_full:
        lie = ["/bin/sh", "-c", "echo 'fatal: write error: No space left on device' >&2; exit 128"]
        monkeypatch.setattr(quarantine._Case, "_confined", lambda case, argv: lie)
    found = GitRepositories(place, Quarantine(trees, NOBODY))
    await found.create(SMITH, {"agent.nix": "{ }\n"}, author="test", message="first")
    commit = agent.files({**FILES, "noise": os.urandom(300_000)})
    bundle = agent.bundle(commit)
    with pytest.raises(DiskFullError if is_full else InvalidError, match="No space left on device"):
        await found.import_bundle(SMITH, bundle, Commit(commit))
    assert list(trees.iterdir()) == []
    found.close()
