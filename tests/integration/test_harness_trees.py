"""The agent's clones and what is packed from them, with real git and tar (without the change of user)."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from harness.config import Config, agent_environment
from harness.programs import AgentPrograms, ProgramError
from harness.trees import TreeError, Trees

pytestmark = pytest.mark.asyncio


class Repository:
    """A repository that the test works in."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def git(self, *arguments: str) -> str:
        where = ["-C", str(self.path)] if self.path.exists() else []
        argv = ["git", *where, "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, name: str, text: str) -> str:
        (self.path / name).write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "change")
        return self.git("rev-parse", "HEAD")

    def bundle(self) -> bytes:
        argv = ["git", "-C", str(self.path), "bundle", "create", "-q", "-", "main"]
        return subprocess.run(argv, check=True, capture_output=True).stdout


def heads_of(bundle: bytes, folder: Path) -> str:
    """What git says is in a bundle."""
    (folder / "bundle").write_bytes(bundle)
    argv = ["git", "bundle", "list-heads", str(folder / "bundle")]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


class Place:
    """Trees of an agent `hm1nd` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.origin = Repository(folder / "origin")
        self.origin.git("init", "-q", "-b", "main", str(self.origin.path))
        self.origin.commit("agent.nix", "{ }\n")
        self.bundle = self.origin.bundle  # what the host answers
        self.clone = Repository(folder / "config")
        self.config = folder / "config"
        self.agents = folder / "agents"
        self.config.mkdir()
        environment = {**agent_environment("hm1nd", Config()), "HOME": str(folder)}
        programs = AgentPrograms(environment, prefix=())
        self.trees = Trees("hm1nd", self.config, self.agents, programs, self._fetch)

    async def _fetch(self, _name: str) -> bytes:
        return self.bundle()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_first_refresh_clones_and_a_later_one_follows(place: Place) -> None:
    assert "cloned" in await place.trees.refresh("hm1nd")
    assert (place.config / "agent.nix").read_text() == "{ }\n"
    place.origin.commit("agent.nix", "{ a = 1; }\n")
    assert "up to date" in await place.trees.refresh("hm1nd")
    assert (place.config / "agent.nix").read_text() == "{ a = 1; }\n"


async def test_a_tree_with_changes_or_commits_of_its_own_is_left_alone_but_fetched(place: Place) -> None:
    await place.trees.refresh("hm1nd")
    (place.config / "agent.nix").write_text("mine\n")
    newest = place.origin.commit("agent.nix", "theirs\n")
    assert "uncommitted changes" in await place.trees.refresh("hm1nd")
    assert (place.config / "agent.nix").read_text() == "mine\n"
    assert place.clone.git("rev-parse", "refs/remotes/hive/main") == newest

    place.clone.git("commit", "-q", "-a", "-m", "mine")
    assert "commits of its own" in await place.trees.refresh("hm1nd")
    place.clone.git("checkout", "-q", "-b", "side")
    assert "main is not checked out" in await place.trees.refresh("hm1nd")


async def test_a_history_that_was_rewound_on_the_host_is_fetched_all_the_same(place: Place) -> None:
    place.origin.commit("agent.nix", "two\n")
    await place.trees.refresh("hm1nd")
    place.origin.git("reset", "-q", "--hard", "HEAD~1")
    place.origin.commit("agent.nix", "another two\n")
    assert "commits of its own" in await place.trees.refresh("hm1nd")


async def test_a_broken_bundle_leaves_the_tree_as_it_was(place: Place) -> None:
    await place.trees.refresh("hm1nd")
    place.origin.commit("agent.nix", "two\n")
    whole = place.origin.bundle()
    place.bundle = lambda: whole[:-40]
    with pytest.raises(ProgramError):
        await place.trees.refresh("hm1nd")
    assert (place.config / "agent.nix").read_text() == "{ }\n"


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "A", "ümlaut", "x" * 40, "smith\n"])
async def test_what_is_no_agent_name_never_becomes_a_path(place: Place, name: str) -> None:
    with pytest.raises(TreeError, match="no agent name"):
        await place.trees.refresh(name)


async def test_a_commit_is_packed_alone_with_its_history(place: Place, tmp_path: Path) -> None:
    await place.trees.refresh("hm1nd")
    wanted = place.clone.commit("agent.nix", "wanted\n")
    place.clone.commit("agent.nix", "not wanted\n")
    bundle = await place.trees.pack("hm1nd", wanted)
    assert bundle.commit == wanted
    assert heads_of(bundle.data, tmp_path) == f"{wanted} refs/hive/propose\n"
    assert (await place.trees.pack("hm1nd", "HEAD")).commit == place.clone.git("rev-parse", "HEAD")


@pytest.mark.parametrize("commit", ["main", "abc1234", "HEAD~1", "--all", "", "g" * 40, "A" * 40])
async def test_what_is_no_full_commit_id_is_refused_with_a_hint(place: Place, commit: str) -> None:
    await place.trees.refresh("hm1nd")
    with pytest.raises(TreeError, match="git rev-parse HEAD"):
        await place.trees.pack("hm1nd", commit)


async def test_an_unknown_commit_and_a_missing_tree_are_named(place: Place) -> None:
    with pytest.raises(TreeError, match="no commit"):
        await place.trees.pack("smith", "0" * 40)
    await place.trees.refresh("hm1nd")
    with pytest.raises(TreeError, match="no commit"):
        await place.trees.pack("hm1nd", "0" * 40)
    with pytest.raises(TreeError, match="no commit"):
        await place.trees.pack("hm1nd", place.clone.git("rev-parse", "HEAD:agent.nix"))


async def test_a_repository_that_is_a_trap_runs_nothing(place: Place, tmp_path: Path) -> None:
    await place.trees.refresh("hm1nd")
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    for hook in ("reference-transaction", "post-merge", "pre-commit", "post-checkout"):
        (place.config / ".git/hooks" / hook).write_text(trap.read_text())
        (place.config / ".git/hooks" / hook).chmod(0o755)
    for key in ("core.fsmonitor", "core.pager", "core.editor", "core.sshCommand"):
        place.clone.git("-c", "core.hooksPath=/dev/null", "config", key, str(trap))
    place.origin.commit("agent.nix", "{ b = 2; }\n")
    await place.trees.refresh("hm1nd")
    await place.trees.pack("hm1nd", "HEAD")
    assert not (tmp_path / "sprung").exists()


async def test_a_draft_has_a_repository_and_an_empty_state(place: Place) -> None:
    await place.trees.make_draft("scribe")
    assert (place.agents / "scribe/config/agent.nix").exists()
    assert list((place.agents / "scribe/state").iterdir()) == []
    with pytest.raises(TreeError, match="itself"):
        await place.trees.make_draft("hm1nd")


async def test_state_is_packed_as_files_and_folders_and_anything_else_is_refused_by_name(
    place: Place,
) -> None:
    state = place.agents / "scribe/state"
    (state / "deep").mkdir(parents=True)
    (state / "notes.md").write_text("# Notes\n")
    os.link(state / "notes.md", state / "deep/same.md")
    (state / "-rf").write_text("an odd name")
    with tarfile.open(fileobj=io.BytesIO(await place.trees.pack_state("scribe"))) as tar:
        members = tar.getmembers()
        assert {member.name for member in members} == {".", "./deep", "./notes.md", "./deep/same.md", "./-rf"}
        assert all(member.isfile() or member.isdir() for member in members)
        assert {(member.uid, member.gid) for member in members} == {(0, 0)}
    (state / "link").symlink_to("/etc/passwd")
    with pytest.raises(TreeError, match=r"'\./link', which is neither"):
        await place.trees.pack_state("scribe")


# ------------------------------------------------------------------------------------------- the programs


async def test_a_program_is_bounded_in_time_and_output_and_its_errors_are_told() -> None:
    programs = AgentPrograms({"PATH": "/usr/bin:/bin"}, prefix=())
    with pytest.raises(ProgramError, match="did not end within"):
        await programs.run(["sleep", "60"], deadline_s=0.1)
    with pytest.raises(ProgramError, match="wrote more than 10 bytes"):
        await programs.run(["seq", "1000"], output_max=10)
    with pytest.raises(ProgramError, match=r"sh failed \(3\): no way"):
        await programs.run(["sh", "-c", "echo no way >&2; exit 3"])
    assert await programs.run(["pwd"], cwd="/usr") == b"/usr\n"
    assert await programs.run(["env"]) == b"PATH=/usr/bin:/bin\n"


async def test_a_cancelled_program_is_killed(tmp_path: Path) -> None:
    programs = AgentPrograms({"PATH": "/usr/bin:/bin"}, prefix=())
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    task = asyncio.create_task(programs.run(["sh", "-c", f"echo $$ > {fifo}; exec sleep 60"]))
    pid = int(await asyncio.to_thread(fifo.read_text))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not Path(f"/proc/{pid}").exists()
