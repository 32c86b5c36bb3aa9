"""A hive over real containers, a real Nix and real git, whose hived is killed; and what there is of it on the
machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from reconciler.effects.containers.driver import ShimContainers
from reconciler.effects.containers.record import Record, read_record
from reconciler.effects.nix.profiles import Profiles
from reconciler.model.names import AgentName
from tests.integration.nix_kit import PrivateNix
from tests.support.crash import greeter
from tests.support.crash.forks import Forks
from tests.support.crash.hived import real_of
from tests.support.crash.points import Fault
from tests.support.crash.world import World


def lay_out(directory: Path, nix: PrivateNix) -> None:
    """All that a hive over real effects needs, below a new directory that other users can pass through."""
    directory.mkdir(mode=0o755)
    for folder in ("package", "venv/bin", "run"):
        (directory / folder).mkdir(parents=True)
    shutil.copyfile(greeter.__file__, directory / "package/__main__.py")
    (directory / "venv/bin/python").symlink_to("/usr/bin/python3")
    where = {"modules": str(nix.path / "modules"), "environment": nix.environment}
    (directory / "real.json").write_text(json.dumps(where))


class RealWorld(World):
    """One hive; `begin` starts its hived anew with other faults."""

    def _effects(self) -> tuple[Any, Any]:
        real = real_of(self.directory)
        assert real is not None
        config, environment = real
        return ShimContainers(config), Profiles(Path(config.state_dir) / "profiles", environment)

    async def _keep_harnesses(self) -> None:
        await asyncio.Event().wait()  # they are in their containers

    async def rest_in_peace(self) -> None:
        """Kill hived, and start it no more before `begin`."""
        self._keeping[0].cancel()
        await asyncio.gather(self._keeping[0], return_exceptions=True)

    async def begin(self, faults: Sequence[Fault]) -> None:
        """Start hived anew with these faults, whose points count from now on."""
        await self.rest_in_peace()
        for name in ("trace", "hived.log"):
            (self.directory / name).unlink(missing_ok=True)
        self.arm()
        self.starts = self.kills = 0
        self._keeping = [asyncio.create_task(self._keep_hived(faults)), *self._keeping[1:]]
        await self._guarded(self.up())

    # ------------------------------------------------------------------------------------------- looking
    def records(self) -> dict[AgentName, Record]:
        """What the driver knows of each container."""
        found = {}
        for name in self.containers._names():
            record = read_record(self.directory / "state/containers" / name)
            if record is not None:
                found[name] = record
        return found

    def roots(self) -> dict[AgentName, str]:
        statuses = self.containers._statuses()
        return {name: status.toplevel for name, status in statuses.items() if status.phase == "running"}

    def ended_are_cleared(self) -> bool:
        return all(status.phase == "running" for status in self.containers._statuses().values())

    def outside(self) -> dict[str, Any]:
        pins = {str(name): paths for name, paths in sorted(self.pins()[0].items())}
        return {"containers": sorted(self.roots().items()), "profiles": pins, "starts": self._starts()}

    def _starts(self) -> list[str]:
        """As the containers themselves counted them."""
        found = sorted((self.directory / "state/agents").glob("*/state/starts"))
        return [f"{path.parent.parent.name} {len(path.read_text().splitlines())}" for path in found]

    def pins(self) -> tuple[dict[AgentName, dict[int, str]], list[str]]:
        folders = sorted((self.directory / "state/profiles").glob("*"))
        held = [str(folder) for folder in folders if (folder / "building").is_symlink()]
        return {AgentName(folder.name): self.nix._pinned(folder.name) for folder in folders}, held

    def leader(self, name: str) -> int:
        """The first process of a container."""
        record = self.records()[AgentName(name)]
        assert record.leader is not None
        return record.leader.pid

    # ------------------------------------------------------------------------------------------- traces
    def leftovers(self) -> list[str]:
        """What is on the machine of this hive beside what its running containers need."""
        records = self.records().values()
        wanted = {ref.pid for record in records for ref in (record.shim, record.nspawn) if ref is not None}
        wanted |= _below(wanted)
        found = [f"process {pid}: {words}" for pid, words in self._processes() if pid not in wanted]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [f"mount {line}" for line in mounts if str(self.directory) in line]
        running = {_mark(record.invocation) for record in records}
        found += [f"group {path}" for path in self._groups() if path.name.rpartition(".")[2] not in running]
        for part in ("trees", "staged", "incoming", "quarantine", "clients"):
            found += [f"file {path}" for path in (self.directory / "state" / part).glob("*")]
        return found

    def _processes(self) -> list[tuple[int, str]]:
        """All whose words or working directory name this hive, but its hived and what serves the test."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.directory) in words or str(self.directory) in str((path / "cwd").readlink()):
                    found.append((int(path.name), words))
        return found

    def _groups(self) -> list[Path]:
        """Control groups of any container that this hive ever started."""
        with contextlib.closing(self.rows("events.db")) as db:
            events = db.execute("SELECT data FROM events WHERE kind = 'agent.started'").fetchall()
        told = {_mark(json.loads(row[0])["invocation"]) for row in events}
        top = Path("/sys/fs/cgroup")
        groups = [*top.glob("hyperhive/*"), *top.glob("*/hyperhive/*")]
        return [path for path in groups if path.name.rpartition(".")[2] in told]

    async def remove(self) -> None:
        """End its containers, whatever became of the test."""
        for name in self.containers._names():
            await self.containers.stop(name, timeout_s=0)
        shutil.rmtree(self.directory)


def _mark(invocation: str) -> str:
    """What the names of a start's control groups end with."""
    return invocation[:8]


def _below(pids: set[int]) -> set[int]:
    found, new = set[int](), set(pids)
    while new:
        children = {
            int(child)
            for pid in new
            for path in Path(f"/proc/{pid}/task").glob("*/children")
            for child in _read(path).split()
        }
        new = children - found
        found |= new
    return found


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


@contextlib.asynccontextmanager
async def real_world(directory: Path, nix: PrivateNix, forks: Forks) -> AsyncIterator[RealWorld]:
    """A new hive without agents; nothing of it is left afterwards."""
    lay_out(directory, nix)
    try:
        async with RealWorld.running(directory, forks) as world:
            yield world
    finally:
        await RealWorld(directory, forks).remove()
