"""Agents' directories and the unpacking of staged state, on this machine and in memory."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.config import Config
from reconciler.effects.hostfiles import RealHostFiles
from reconciler.effects.protocols import HostFiles
from reconciler.errors import InvalidError, PermanentError
from reconciler.model.names import AgentName
from tests.fakes.hostfiles import FakeHostFiles
from tests.support.needs import needs_root

pytestmark = pytest.mark.asyncio
SCOUT = AgentName("scout")
BASE = 65536 * 4000


@dataclass(slots=True)
class World:
    files: HostFiles
    state: Callable[[], dict[str, bytes]]


@pytest.fixture(
    params=[
        "fake",
        pytest.param("real", marks=needs_root),
    ]
)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    if request.param == "fake":
        fake = FakeHostFiles()
        return World(fake, lambda: fake.state.get(SCOUT, {}))
    state = tmp_path / "state/agents/scout/state"

    def read() -> dict[str, bytes]:
        return {str(p.relative_to(state)): p.read_bytes() for p in state.rglob("*") if p.is_file()}

    return World(
        RealHostFiles(Config(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run"))), read
    )


def entry(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar_of(path: Path, *entries: tuple[tarfile.TarInfo, bytes], format_: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format_) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return path


GOOD = (
    entry("./", kind=tarfile.DIRTYPE),
    entry("./notes.md", b"# Notes\n"),
    entry("./src", kind=tarfile.DIRTYPE),
    entry("./src/run.sh", b"#!/bin/sh\n", mode=0o4755, uid=0, gid=0, uname="root"),
)


async def test_directories_are_made_once(world: World) -> None:
    assert not await world.files.agent_is_ready(SCOUT, BASE, manager=False)
    assert await world.files.ensure_agent(SCOUT, BASE, manager=False)
    assert await world.files.agent_is_ready(SCOUT, BASE, manager=False)
    assert not await world.files.ensure_agent(SCOUT, BASE, manager=False)


async def test_becoming_manager_adds_a_directory(world: World) -> None:
    await world.files.ensure_agent(SCOUT, BASE, manager=False)
    assert not await world.files.agent_is_ready(SCOUT, BASE, manager=True)
    assert await world.files.ensure_agent(SCOUT, BASE, manager=True)
    assert await world.files.agent_is_ready(SCOUT, BASE, manager=False)


async def test_the_range_of_an_agent_never_changes(world: World) -> None:
    await world.files.ensure_agent(SCOUT, BASE, manager=False)
    other = BASE + 65536
    assert not await world.files.agent_is_ready(SCOUT, other, manager=False)
    with pytest.raises(PermanentError) as refused:
        await world.files.ensure_agent(SCOUT, other, manager=False)
    assert refused.value.code == "uid-range"
    assert await world.files.agent_is_ready(SCOUT, BASE, manager=False)


async def test_frozen_state_is_unpacked_once(world: World, tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "state.tar", *GOOD)
    digest, names = await world.files.freeze_state(tar)
    assert names == ["notes.md", "src/run.sh"]
    await world.files.ensure_agent(SCOUT, BASE, manager=False)
    await world.files.unpack_state(SCOUT, BASE, tar, digest)
    assert world.state() == {"notes.md": b"# Notes\n", "src/run.sh": b"#!/bin/sh\n"}
    tar.unlink()
    await world.files.unpack_state(SCOUT, BASE, tar, digest)


async def test_a_tar_that_changed_after_it_was_frozen_is_refused(world: World, tmp_path: Path) -> None:
    digest, _ = await world.files.freeze_state(tar_of(tmp_path / "state.tar", *GOOD))
    await world.files.ensure_agent(SCOUT, BASE, manager=False)
    other = tar_of(tmp_path / "state.tar", entry("evil", b"x"))
    with pytest.raises(InvalidError, match="not the one"):
        await world.files.unpack_state(SCOUT, BASE, other, digest)
    assert world.state() == {}


async def test_state_is_not_unpacked_for_an_agent_without_directories(world: World, tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "state.tar", *GOOD)
    digest, _ = await world.files.freeze_state(tar)
    with pytest.raises(PermanentError):
        await world.files.unpack_state(SCOUT, BASE, tar, digest)


async def test_removed_agents_leave_nothing_and_may_be_removed_again(world: World, tmp_path: Path) -> None:
    await world.files.ensure_agent(SCOUT, BASE, manager=True)
    await world.files.remove_agent(SCOUT)
    await world.files.remove_agent(SCOUT)
    assert not await world.files.agent_is_ready(SCOUT, BASE, manager=False)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (entry("../../etc/passwd", b"x"), "plain relative"),
        (entry("/etc/passwd", b"x"), "plain relative"),
        (entry("a/../../b", b"x"), "plain relative"),
        (entry("a//b", b"x"), "plain relative"),
        (entry("a\nb", b"x"), "plain relative"),
        (entry("a\x7f", b"x"), "plain relative"),
        (entry("link", kind=tarfile.SYMTYPE, linkname="/etc/passwd"), "neither a regular"),
        (entry("hard", kind=tarfile.LNKTYPE, linkname="notes.md"), "neither a regular"),
        (entry("pipe", kind=tarfile.FIFOTYPE), "neither a regular"),
        (entry("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3), "neither a regular"),
        (entry("x" * 401, b"x"), "too long"),
        (entry("/".join("d" * 40), b"x"), "too long"),
        (entry("notes.md/below", b"x"), "below a regular file"),
        (entry("notes.md", b"again"), "twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[0].name)[:20],
)
async def test_entries_that_are_no_plain_files_are_refused(
    world: World, tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes], why: str
) -> None:
    tar = tar_of(tmp_path / "state.tar", entry("notes.md", b"x"), bad)
    with pytest.raises(InvalidError) as refused:
        await world.files.freeze_state(tar)
    assert any(why in refusal.why for refusal in refused.value.refusals)


async def test_every_wrong_entry_is_named(world: World, tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "state.tar", entry("/a", b"x"), entry("../b", b"x"))
    with pytest.raises(InvalidError) as refused:
        await world.files.freeze_state(tar)
    assert [refusal.where for refusal in refused.value.refusals] == ["'/a'", "'../b'"]


async def test_what_is_no_tar_or_a_cut_one_is_refused(world: World, tmp_path: Path) -> None:
    tar = tmp_path / "state.tar"
    tar.write_bytes(os.urandom(4096))
    with pytest.raises(InvalidError, match="no readable tar"):
        await world.files.freeze_state(tar)
    whole = tar_of(tmp_path / "whole.tar", entry("big", b"x" * 100_000)).read_bytes()
    tar.write_bytes(whole[:50_000])
    with pytest.raises(InvalidError, match="no readable tar"):
        await world.files.freeze_state(tar)


async def test_a_compressed_bomb_is_not_unpacked(world: World, tmp_path: Path) -> None:
    tar = tmp_path / "state.tar"
    with tarfile.open(tar, "w:gz") as archive:
        info, zeros = entry("zeros", b"\0" * 1_000_000)
        archive.addfile(info, io.BytesIO(zeros))
    with pytest.raises(InvalidError):
        await world.files.freeze_state(tar)


async def test_a_sparse_file_is_refused(world: World, tmp_path: Path) -> None:
    """A few bytes of tar can claim any size: old GNU sparse header of a 1 TiB hole."""
    info = entry("hole", kind=tarfile.GNUTYPE_SPARSE)[0]
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    tar = tmp_path / "state.tar"
    tar.write_bytes(bytes(block) + b"\0" * 1024)
    with pytest.raises(InvalidError):
        await world.files.freeze_state(tar)


async def test_too_many_and_too_large_are_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.effects.statetar.MAX_ENTRIES", 5)
    monkeypatch.setattr("reconciler.effects.statetar.MAX_FILE_BYTES", 1000)
    with pytest.raises(InvalidError, match="too many"):
        await world.files.freeze_state(tar_of(tmp_path / "a.tar", *(entry(f"f{n}", b"x") for n in range(9))))
    with pytest.raises(InvalidError, match="1001 bytes"):
        await world.files.freeze_state(tar_of(tmp_path / "b.tar", entry("f", b"x" * 1001)))
    monkeypatch.setattr("reconciler.effects.statetar.MAX_TAR_BYTES", 1000)
    with pytest.raises(InvalidError, match="are allowed"):
        await world.files.freeze_state(tar_of(tmp_path / "c.tar", entry("f", b"x")))
