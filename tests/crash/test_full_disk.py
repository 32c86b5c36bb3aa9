"""A disk without room, for real: hived says so, holds, and goes on by itself when there is room again."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.control import models as api
from reconciler.control.client import ControlClient
from reconciler.effects.process import run
from reconciler.errors import DiskFullError, TemporaryError
from tests.support.crash.scenarios import SMITH
from tests.support.crash.walk import Ground, ground
from tests.support.crash.world import World, copy_world
from tests.support.needs import needs_root

pytestmark = needs_root
ROOM = "24m"


@pytest.fixture(scope="module")
def place() -> Iterator[Ground]:
    with ground() as found:
        yield found


@pytest.fixture
def small(place: Ground) -> Iterator[Path]:
    """A hive whose state lies on a small file system."""
    directory = place.path / "small"
    copy_world(place.base, directory)
    state = directory / "state"
    whole = directory / "whole"
    state.rename(whole)
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=711", "small", state], check=True)
    try:
        copy_world(whole, state / "copy")
        for part in (state / "copy").iterdir():
            part.rename(state / part.name)
        (state / "copy").rmdir()
        yield directory
    finally:
        subprocess.run(["umount", "-l", state], check=True)
        shutil.rmtree(directory)


def fill(path: Path) -> None:
    """Take all the room that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass


async def ask(world: World, number: int) -> None:
    request = api.NewMessage(to=SMITH, body=f"{number} " + "x" * 60_000, key=f"message-{number:03}")
    async with ControlClient(world.directory / "run/control.sock") as client:
        await client.send(request)


async def status(world: World) -> api.HiveStatus:
    async with ControlClient(world.directory / "run/control.sock") as client:
        return await client.status()


async def _hold_and_recover(directory: Path, place: Ground) -> None:
    async with World.running(directory, place.forks) as world:
        await world.at_rest()
        filler = directory / "state/filler"
        fill(filler)
        number = -1

        async def go_on() -> None:
            nonlocal number
            while number < 100:
                number += 1
                await ask(world, number)

        with pytest.raises(TemporaryError) as refused:
            await go_on()
        assert refused.value.code == "disk-full"
        assert "make room" in refused.value.hint
        assert [line for line in (await status(world)).troubles if "the disk is full" in line]
        filler.unlink()
        async with asyncio.timeout(20):
            while (await status(world)).troubles:  # noqa: ASYNC110 - it tries by itself, every two seconds
                await asyncio.sleep(0.05)
        for again in range(number + 1):
            await ask(world, again)
        await world.at_rest(lambda db: db.execute("SELECT COUNT(*) FROM messages").fetchone()[0] > number)
        assert world.starts == 1, world.log()
        async with ControlClient(directory / "run/control.sock") as client:
            told = await client.events(kind="disk.recovered")
        assert told.items
        bodies = [row[0].split()[0] for row in world.rows().execute("SELECT body FROM messages ORDER BY id")]
        assert sorted(bodies, key=int) == [str(n) for n in range(number + 1)], "each once"


def test_hived_holds_while_its_disk_is_full_and_goes_on_by_itself(small: Path, place: Ground) -> None:
    asyncio.run(_hold_and_recover(small, place))


@pytest.mark.asyncio
async def test_a_program_that_found_no_room_is_no_failure_of_its_input() -> None:
    with pytest.raises(DiskFullError, match="No space left on device"):
        await run(["dd", "if=/dev/zero", "of=/dev/full", "bs=1k", "count=1"], timeout_s=10)
