"""Owners and modes on the disk, and what a hostile tree that is already there can do: nothing."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from reconciler.config import Config
from reconciler.effects.hostfiles import RealHostFiles
from reconciler.errors import CommandError, PermanentError
from reconciler.model.names import AgentName
from tests.support.needs import needs_root

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.integration,
    needs_root,
]
SCOUT = AgentName("scout")
BASE = 65536 * 4000
OWNER = BASE + 1000


@pytest.fixture
def files(tmp_path: Path) -> RealHostFiles:
    return RealHostFiles(Config(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run")))


def staged(tmp_path: Path) -> Path:
    tar = tmp_path / "state.tar"
    with tarfile.open(tar, "w") as archive:
        for name, mode in (("notes.md", 0o644), ("deep/er/run.sh", 0o6755)):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = 5, mode, 0
            archive.addfile(info, io.BytesIO(b"hello"))
    return tar


def shape(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


async def test_owners_and_modes_are_those_of_the_design(files: RealHostFiles, tmp_path: Path) -> None:
    await files.ensure_agent(SCOUT, BASE, manager=True)
    agent = tmp_path / "state/agents/scout"
    assert shape(agent) == (0, 0, 0o700)
    assert shape(agent / "home") == (OWNER, OWNER, 0o700)
    for part in ("state", "config", "agents"):
        assert shape(agent / part) == (OWNER, OWNER, 0o755)
    assert shape(tmp_path / "run/agents/scout") == (BASE, BASE, 0o700)


async def test_a_directory_that_somebody_gave_away_is_given_back(
    files: RealHostFiles, tmp_path: Path
) -> None:
    await files.ensure_agent(SCOUT, BASE, manager=False)
    state = tmp_path / "state/agents/scout/state"
    for stranger in (0, 33, OWNER + 65536):
        os.chown(state, stranger, stranger)
        assert not await files.agent_is_ready(SCOUT, BASE, manager=False)
        assert await files.ensure_agent(SCOUT, BASE, manager=False)
        assert shape(state) == (OWNER, OWNER, 0o755)


async def test_a_kill_between_making_and_owning_is_repaired(files: RealHostFiles, tmp_path: Path) -> None:
    (tmp_path / "state/agents/scout/state").mkdir(parents=True)
    assert not await files.agent_is_ready(SCOUT, BASE, manager=False)
    assert await files.ensure_agent(SCOUT, BASE, manager=False)
    assert shape(tmp_path / "state/agents/scout/state") == (OWNER, OWNER, 0o755)


async def test_a_directory_of_another_range_is_not_taken_over(files: RealHostFiles) -> None:
    await files.ensure_agent(SCOUT, BASE, manager=False)
    with pytest.raises(PermanentError, match="were made for"):
        await files.ensure_agent(SCOUT, BASE + 65536, manager=False)


async def test_unpacked_files_belong_to_the_agent_and_have_no_special_modes(
    files: RealHostFiles, tmp_path: Path
) -> None:
    await files.ensure_agent(SCOUT, BASE, manager=False)
    tar = staged(tmp_path)
    digest, _ = await files.freeze_state(tar)
    await files.unpack_state(SCOUT, BASE, tar, digest)
    state = tmp_path / "state/agents/scout/state"
    assert shape(state / "notes.md") == (OWNER, OWNER, 0o644)
    assert shape(state / "deep/er/run.sh") == (OWNER, OWNER, 0o755)
    assert shape(state / "deep") == (OWNER, OWNER, 0o755)


async def test_unpacking_again_after_a_kill_repairs_what_was_half_done(
    files: RealHostFiles, tmp_path: Path
) -> None:
    await files.ensure_agent(SCOUT, BASE, manager=False)
    tar = staged(tmp_path)
    digest, _ = await files.freeze_state(tar)
    half = tmp_path / "state/agents/scout/state/notes.md"
    half.write_text("he")
    os.chown(half, OWNER, OWNER)
    await files.unpack_state(SCOUT, BASE, tar, digest)
    assert half.read_text() == "hello"


async def test_a_link_in_the_way_is_replaced_or_refused_but_never_followed(
    files: RealHostFiles, tmp_path: Path
) -> None:
    await files.ensure_agent(SCOUT, BASE, manager=False)
    state, outside = tmp_path / "state/agents/scout/state", tmp_path / "outside"
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    (outside / "file").write_text("precious")
    (outside / "file").chmod(0o666)
    tar = staged(tmp_path)
    digest, _ = await files.freeze_state(tar)
    (state / "notes.md").symlink_to(outside / "file")
    (state / "deep").symlink_to(outside)
    for link in ("notes.md", "deep"):
        os.lchown(state / link, OWNER, OWNER)
    with pytest.raises(CommandError):
        await files.unpack_state(SCOUT, BASE, tar, digest)
    assert (outside / "file").read_text() == "precious"
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (state / "notes.md").read_text() == "hello"


async def test_a_tree_of_any_depth_can_be_removed_and_links_out_of_it_are_not_followed(
    files: RealHostFiles, tmp_path: Path
) -> None:
    await files.ensure_agent(SCOUT, BASE, manager=False)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    (tmp_path / "state/agents/scout/state/link").symlink_to(outside)
    here = os.open(tmp_path / "state/agents/scout/state", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    await files.remove_agent(SCOUT)
    assert not (tmp_path / "state/agents/scout").exists()
    assert (outside / "file").read_text() == "precious"
