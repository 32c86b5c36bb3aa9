"""Our own repositories with real git: nothing in them runs, diffs are bounded and show everything."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.effects.git import GitRepositories, tags
from reconciler.effects.git.quarantine import Quarantine
from reconciler.effects.protocols import RawFileDiff
from reconciler.errors import CommandError, InvalidError, PermanentError
from reconciler.model.names import AgentName, Commit
from tests.integration.hostile import NOBODY, Agent
from tests.support.needs import needs_root

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio,
    needs_root,
]

SMITH = AgentName("smith")


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hive-git-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture
async def repositories(place: Path) -> AsyncIterator[GitRepositories]:
    found = GitRepositories(place, Quarantine(place / "trees", NOBODY))
    yield found
    found.close()


@pytest_asyncio.fixture
async def first(repositories: GitRepositories) -> Commit:
    return await repositories.create(SMITH, {"agent.nix": "{ }\n"}, author="a <b>\n", message="first")


@pytest.fixture
def agent(place: Path) -> Agent:
    return Agent(place / "agent")


async def test_what_a_killed_git_left_stops_nobody(
    repositories: GitRepositories, first: Commit, place: Path
) -> None:
    repository = place / "repos/smith.git"
    left = [
        "packed-refs.lock", "refs/tags/proposal/1.lock", "refs/heads/main.lock", "objects/pack/tmp_pack_x",
        "objects/tmp_objdir-incoming-x/y", "../.new-smith-abc.git/HEAD", "../../.new-meta-abc.git/HEAD",
    ]  # fmt: skip
    for name in left:
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).touch()
    with pytest.raises(CommandError, match="remove the file manually"):
        await repositories.pin(SMITH, "proposal/1", first)
    again = GitRepositories(place, Quarantine(place / "trees", NOBODY))
    await again.pin(SMITH, "proposal/1", first)
    assert await again.tags(SMITH) == {"proposal/1": first}
    assert [name for name in left if (repository / name).exists()] == []
    again.close()


async def bring(
    repositories: GitRepositories, agent: Agent, files: dict[str, bytes], *parents: str
) -> Commit:
    commit = agent.files(files, *parents)
    await repositories.import_bundle(SMITH, agent.bundle(commit), commit)
    return commit


def by_path(found: list[RawFileDiff]) -> dict[str, RawFileDiff]:
    return {one.path: one for one in found}


async def test_a_repository_is_hiveds_alone(first: Commit, place: Path) -> None:
    repository = place / "repos/smith.git"
    assert [repository.stat().st_uid, repository.stat().st_mode & 0o077] == [0, 0]
    assert not (repository / "hooks").exists()


async def test_hooks_filters_and_replacements_do_not_take_effect(
    repositories: GitRepositories, first: Commit, place: Path, agent: Agent
) -> None:
    repository = place / "repos/smith.git"
    ran = place / "ran"
    (repository / "hooks").mkdir()
    hook = repository / "hooks/reference-transaction"
    hook.write_text(f"#!/bin/sh\ntouch {ran}\n")
    hook.chmod(0o755)
    (repository / "info").mkdir(exist_ok=True)
    (repository / "info/attributes").write_text("* diff=evil -text\n")
    with (repository / "config").open("a") as config:
        config.write(f'[diff "evil"]\n\ttextconv = touch {ran};\n\tcommand = touch {ran};\n')
    second = await bring(repositories, agent, {"agent.nix": b"{ a }\n"})
    agent.git(f"--git-dir={repository}", "update-ref", f"refs/replace/{second}", first)
    await repositories.pin(SMITH, "proposal/1", second, "x")
    assert "+{ a }" in (await repositories.diff(SMITH, first, second))[0].patch
    assert await repositories.read(SMITH, second, "agent.nix", 100) == "{ a }\n"
    assert not ran.exists()
    hooks = ("-c", f"core.hooksPath={repository}/hooks")
    agent.git(*hooks, f"--git-dir={repository}", "update-ref", "-d", f"refs/replace/{second}")
    assert ran.exists(), "the hook of this test works when somebody asks for it"


async def test_bundles_are_taken_apart_by_the_unprivileged_user(
    first: Commit, place: Path, agent: Agent
) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    repositories = GitRepositories(place, Quarantine(closed / "trees", NOBODY))
    commit = agent.files({"agent.nix": b"{ a }\n"})
    with pytest.raises(InvalidError, match="Permission denied"):
        await repositories.import_bundle(SMITH, agent.bundle(commit), commit)
    repositories.close()


async def test_what_a_killed_creation_left_is_no_repository(
    repositories: GitRepositories, place: Path
) -> None:
    (place / "repos" / ".new-smith-0123456789abcdef.git").mkdir(parents=True)
    assert await repositories.main(SMITH) is None
    await repositories.create(SMITH, {"agent.nix": "{ }\n"}, author="a", message="m")
    assert await repositories.main(SMITH) is not None


async def test_the_same_pin_at_the_same_time_is_made_once(
    repositories: GitRepositories, first: Commit
) -> None:
    await asyncio.gather(*[repositories.pin(SMITH, "deployed/7", first, "up") for _ in range(5)])
    assert await repositories.tags(SMITH) == {"deployed/7": first}


async def test_names_and_tags_that_are_not_ours_are_bugs(
    repositories: GitRepositories, first: Commit
) -> None:
    for name in ("../x", "a/b", "", "-x", "A", "x" * 32):
        with pytest.raises(ValueError, match="not a name"):
            await repositories.main(AgentName(name))
    for tag in ("../x", "a b", "-x", "a/b/c", ""):
        with pytest.raises(ValueError, match="not a tag"):
            await repositories.pin(SMITH, tag, first)
    with pytest.raises(ValueError, match="not a path"):
        await repositories.commit(SMITH, {"a\nb": ""}, parent=None, author="a", message="m")


async def test_an_annotated_pin_carries_its_reason(
    repositories: GitRepositories, first: Commit, place: Path, agent: Agent
) -> None:
    await repositories.pin(SMITH, "failed/3", first, "no hello within 20 s\n\0last line")
    text = agent.git(f"--git-dir={place}/repos/smith.git", "cat-file", "-p", "refs/tags/failed/3")
    assert "no hello within 20 s\nlast line" in text
    with pytest.raises(PermanentError):
        await repositories.pin(SMITH, "failed/3", await repositories.commit(
            SMITH, {"x": "y"}, parent=None, author="a", message="m"))  # fmt: skip


# ------------------------------------------------------------------------------------------------ tags
REF = "repos/smith.git/refs/tags/failed/3"


def remove(place: Path, agent: Agent) -> None:
    (place / REF).unlink()


def overwrite(place: Path, agent: Agent) -> None:
    (place / REF).write_text("what is this\n")


def empty(place: Path, agent: Agent) -> None:
    (place / REF).write_text("")


def to_nothing(place: Path, agent: Agent) -> None:
    (place / REF).write_text("d" * 40 + "\n")


def by_git(place: Path, agent: Agent) -> None:
    agent.git(f"--git-dir={place}/repos/smith.git", "update-ref", "-d", "refs/tags/failed/3")


def from_the_pack(place: Path, agent: Agent) -> None:
    agent.git(f"--git-dir={place}/repos/smith.git", "pack-refs", "--all")
    packed = place / "repos/smith.git/packed-refs"
    lines = packed.read_text().splitlines(keepends=True)
    packed.write_text("".join(line for line in lines if "refs/tags/" not in line and line[0] != "^"))


@pytest.mark.parametrize("damage", [remove, overwrite, empty, to_nothing, by_git, from_the_pack])
async def test_a_damaged_tag_is_missing_at_once_and_can_be_put_back(
    repositories: GitRepositories,
    first: Commit,
    place: Path,
    agent: Agent,
    damage: Callable[[Path, Agent], None],
) -> None:
    await repositories.pin(SMITH, "failed/3", first, "no hello")
    await repositories.pin(SMITH, "proposal/3", first)
    back = time.time_ns() - 60_000_000_000  # made a minute ago, so that what is read now may be remembered
    for path in (place / "repos/smith.git/refs/tags").rglob("*"):
        os.utime(path, ns=(back, back))
    assert await repositories.tags(SMITH) == {"failed/3": first, "proposal/3": first}
    damage(place, agent)
    if damage in {overwrite, empty, to_nothing}:
        repositories._tags._now = lambda: time.monotonic() + 61  # each file is looked at once a minute
    left = {} if damage is from_the_pack else {"proposal/3": first}
    assert await repositories.tags(SMITH) == left
    await repositories.repin(SMITH, "failed/3", first, "no hello")
    assert await repositories.tags(SMITH) == {"failed/3": first, **left}
    text = agent.git(f"--git-dir={place}/repos/smith.git", "cat-file", "-p", "refs/tags/failed/3")
    assert "no hello" in text


async def test_tags_that_nobody_touched_are_read_without_git(
    repositories: GitRepositories, first: Commit, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await repositories.pin(SMITH, "proposal/3", first)
    back = time.time_ns() - 60_000_000_000
    for path in (place / "repos/smith.git/refs").rglob("*"):
        os.utime(path, ns=(back, back))
    before = await repositories.tags(SMITH)
    with monkeypatch.context() as patch:
        patch.setattr(tags, "git", None)
        assert await repositories.tags(SMITH) == before == {"proposal/3": first}
    await repositories.pin(SMITH, "pending/3", first)
    assert await repositories.tags(SMITH) == {"proposal/3": first, "pending/3": first}


async def test_thousands_of_tags_do_not_stay_as_many_files(
    repositories: GitRepositories, first: Commit, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags, "_LOOSE_MAX", 8)
    for number in range(20):
        await repositories.pin(SMITH, f"proposal/{number}", first)
    assert len(list((place / "repos/smith.git/refs/tags").rglob("*"))) <= 10
    assert await repositories.tags(SMITH) == {f"proposal/{number}": first for number in range(20)}


# ------------------------------------------------------------------------------------------------ diffs
async def test_large_files_are_named_but_not_shown(
    repositories: GitRepositories, first: Commit, agent: Agent
) -> None:
    files = {"agent.nix": b"{ }\n", "big": b"x\n" * 150_000, "small": b"x\n"}
    found = by_path(await repositories.diff(SMITH, first, await bring(repositories, agent, files)))
    assert (found["big"].too_large, found["big"].patch) == (True, "")
    assert "+x" in found["small"].patch


async def test_all_together_is_bounded(repositories: GitRepositories, first: Commit, agent: Agent) -> None:
    files = {f"f{number:02}": os.urandom(100_000).hex().encode() for number in range(15)}
    found = await repositories.diff(SMITH, first, await bring(repositories, agent, files))
    assert sum(len(one.patch) for one in found) < 2_200_000
    assert [one.too_large for one in found if one.path != "agent.nix"] == [False] * 10 + [True] * 5


async def test_a_moved_file_is_told_as_moved(
    repositories: GitRepositories, first: Commit, agent: Agent
) -> None:
    before = await bring(repositories, agent, {"agent.nix": b"{ }\n", "old": b"text\n"})
    after = await bring(repositories, agent, {"agent.nix": b"{ }\n", "new": b"text\n"})
    (found,) = await repositories.diff(SMITH, before, after)
    assert (found.path, found.old_path, found.status, found.patch) == ("new", "old", "renamed", "")


async def test_nothing_that_nix_reads_hides_as_binary(
    repositories: GitRepositories, first: Commit, agent: Agent
) -> None:
    junk = b"\0\xff\xfe evil\n"
    files = {"agent.nix": b"{ } # " + junk, "picture": junk, "latin": b"\xe9\n", "nul": b"a\0b\n"}
    found = by_path(await repositories.diff(SMITH, first, await bring(repositories, agent, files)))
    assert "evil" in found["agent.nix"].patch
    assert not found["agent.nix"].binary
    assert (found["picture"].binary, found["picture"].patch) == (True, "")
    assert not found["latin"].binary
    assert not found["nul"].binary


async def test_content_that_looks_like_a_diff_stays_content(
    repositories: GitRepositories, first: Commit, agent: Agent
) -> None:
    fake = b"diff --git a/other b/other\n--- a/other\n+++ b/other\n@@ -1 +1 @@\n-x\n+y\n"
    commit = await bring(repositories, agent, {"agent.nix": b"{ }\n", "a b/c d": fake})
    (found,) = await repositories.diff(SMITH, first, commit)
    assert found.path == "a b/c d"
    assert "+diff --git a/other b/other\n+--- a/other" in found.patch


async def test_a_file_that_becomes_a_link_is_shown_as_both(
    repositories: GitRepositories, first: Commit, agent: Agent
) -> None:
    tree = agent.tree(
        [("120000", b"agent.nix", agent.blob(b"real.nix")), ("100644", b"real.nix", agent.blob(b"{}"))]
    )
    commit = agent.commit(tree)
    await repositories.import_bundle(SMITH, agent.bundle(commit), commit)
    found = by_path(await repositories.diff(SMITH, first, commit))
    assert "deleted file mode 100644" in found["agent.nix"].patch
    assert "new file mode 120000" in found["agent.nix"].patch
    assert await repositories.read(SMITH, commit, "agent.nix", 100) is None
