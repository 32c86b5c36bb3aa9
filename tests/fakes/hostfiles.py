"""Agents' directories in memory, with the contract of the real effect
(`tests/contract/test_hostfiles.py`)."""

from __future__ import annotations

import tarfile
from pathlib import Path

from reconciler.effects.statetar import examine
from reconciler.errors import InvalidError, PermanentError
from reconciler.model.names import AgentName
from tests.fakes.faults import Faults


class FakeHostFiles:
    """`agents[name]`: (uid base, is manager). `state[name]`: path → bytes of unpacked files.
    `unpacked[name]`: digest."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.agents: dict[AgentName, tuple[int, bool]] = {}
        self.state: dict[AgentName, dict[str, bytes]] = {}
        self.unpacked: dict[AgentName, str] = {}

    async def ensure_agent(self, name: AgentName, uid_base: int, *, manager: bool) -> bool:
        async with self.faults.call("hostfiles.ensure_agent", name):
            before = self.agents.get(name)
            if before is not None and before[0] != uid_base:
                raise PermanentError(f"the directories of {name} were made for {before[0]}", code="uid-range")
            now = (uid_base, manager or (before is not None and before[1]))
            self.agents[name] = now
            self.state.setdefault(name, {})
            return before != now

    async def agent_is_ready(self, name: AgentName, uid_base: int, *, manager: bool) -> bool:
        async with self.faults.call("hostfiles.agent_is_ready", name, changes=False):
            found = self.agents.get(name)
            return found is not None and found[0] == uid_base and (found[1] or not manager)

    async def freeze_state(self, tar: Path) -> tuple[str, list[str]]:
        async with self.faults.call("hostfiles.freeze_state", changes=False):
            return examine(tar)

    async def unpack_state(self, name: AgentName, uid_base: int, tar: Path, digest: str) -> None:
        async with self.faults.call("hostfiles.unpack_state", name):
            if self.unpacked.get(name) == digest:
                return
            found, _ = examine(tar)
            if found != digest:
                raise InvalidError(f"the staged state of {name} is not the one that was frozen")
            if name not in self.agents:
                raise PermanentError(f"the directories of {name} do not exist")
            with tarfile.open(tar) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None:
                        self.state[name][member.name.removeprefix("./")] = file.read()
            self.unpacked[name] = digest

    async def remove_agent(self, name: AgentName) -> None:
        async with self.faults.call("hostfiles.remove_agent", name):
            for table in (self.agents, self.state, self.unpacked):
                table.pop(name, None)
