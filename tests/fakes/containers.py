"""A world of containers in memory, with the contract of the drivers (`tests/contract/test_containers.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from reconciler.effects.protocols import ContainerSpec, ContainerStatus
from reconciler.errors import TemporaryError
from reconciler.model.names import AgentName
from tests.fakes.faults import Faults


@dataclass(slots=True)
class Start:
    """One start of a container and what became of it."""

    spec: ContainerSpec
    status: ContainerStatus
    lines: list[str] = field(default_factory=list)
    user_namespaces_forbidden: bool = False


class FakeContainers:
    """Containers that do what the test says; survives the death of the daemon, as the real ones do.

    `refuse_start[name]`: a sentence on the console with which starts end at once. `deaf`: names that
    ignore SIGTERM. `history`: every start, in order. `on_start`: called with each start (a test's harness
    says hello).
    """

    driver: Literal["shim", "systemd"] = "shim"

    def __init__(self, faults: Faults | None = None, *, now: Callable[[], float] = lambda: 1_000.0) -> None:
        self.faults = faults or Faults()
        self.refuse_start: dict[AgentName, str] = {}
        self.deaf: set[AgentName] = set()
        self.history: list[Start] = []
        self.on_start: Callable[[Start], None] = lambda start: None
        self._now = now
        self._last: dict[AgentName, Start] = {}
        self._watchers: list[asyncio.Queue[AgentName]] = []

    # ------------------------------------------------------------------------------------------- the protocol
    async def status(self, name: AgentName) -> ContainerStatus:
        async with self.faults.call("containers.status", name, changes=False):
            return self._status(name)

    async def statuses(self) -> Mapping[AgentName, ContainerStatus]:
        async with self.faults.call("containers.statuses", changes=False):
            return {name: self._status(name) for name in sorted(self._last)}

    async def list(self) -> Sequence[AgentName]:
        async with self.faults.call("containers.list", changes=False):
            return sorted(self._last)

    async def start(self, spec: ContainerSpec) -> ContainerStatus:
        async with self.faults.call("containers.start", spec.name):
            if self._status(spec.name).phase == "running":
                return self._status(spec.name)
            number = len(self.history) + 1
            status = ContainerStatus(
                phase="running",
                toplevel=spec.toplevel,
                invocation=f"{number:032x}",
                unit=f"hive-{spec.name}",
                leader_pid=100_000 + number,
                started_at=self._now(),
                limits_enforced=("cpu", "memory", "tasks"),
            )
            start = Start(spec, status)
            self._last[spec.name] = start
            self.history.append(start)
            if spec.name in self.refuse_start:
                start.status = replace(
                    status, phase="exited", leader_pid=None, exit_code=1, result="exit-code",
                    ended_at=self._now(),
                )  # fmt: skip
                start.lines.append(self.refuse_start[spec.name])
            self._hint(spec.name)
            if start.status.phase == "exited":
                return start.status
        self.on_start(start)
        return start.status

    async def stop(self, name: AgentName, *, timeout_s: float = 10.0) -> None:
        async with self.faults.call("containers.stop", name):
            if self._status(name).phase == "running":
                killed = name in self.deaf or timeout_s <= 0
                self._end(name, exit_code=None if killed else 0, signal=9 if killed else None)

    async def clear(self, name: AgentName) -> None:
        async with self.faults.call("containers.clear", name):
            if self._status(name).phase == "running":
                raise TemporaryError(f"the container of {name} runs", code="still-running")
            if self._last.pop(name, None) is not None:
                self._hint(name)

    async def freeze(self, name: AgentName) -> None:
        async with self.faults.call("containers.freeze", name):
            if self._status(name).phase != "running":
                raise TemporaryError(f"the container of {name} does not run", code="not-running")
            self._change(name, frozen=True)

    async def thaw(self, name: AgentName) -> None:
        async with self.faults.call("containers.thaw", name):
            if self._status(name).frozen:
                self._change(name, frozen=False)

    async def refresh(self, name: AgentName) -> None:
        async with self.faults.call("containers.refresh", name):
            if name in self._last:
                self._change(name, drift=())

    async def forbid_user_namespaces(self, name: AgentName) -> None:
        async with self.faults.call("containers.forbid_user_namespaces", name):
            if self._status(name).phase != "running":
                raise TemporaryError(f"the container of {name} does not run", code="not-running")
            self._last[name].user_namespaces_forbidden = True

    async def logs(self, name: AgentName, lines: int) -> Sequence[str]:
        async with self.faults.call("containers.logs", name, changes=False):
            found = self._last.get(name)
            return [line[:2000] for line in found.lines[-lines:]] if found is not None and lines > 0 else []

    async def changes(self) -> AsyncIterator[AgentName]:
        queue: asyncio.Queue[AgentName] = asyncio.Queue(maxsize=1000)
        self._watchers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.remove(queue)

    # ------------------------------------------------------------------------------------------- for tests
    def crash(
        self, name: AgentName, *, exit_code: int | None = 1, signal: int | None = None, oom: bool = False
    ) -> None:
        """The container ends by itself."""
        self._end(name, exit_code=exit_code, signal=signal, oom=oom)

    def stop_by_hand(self, name: AgentName) -> None:
        """Somebody else stops it, as with systemctl."""
        self._end(name, exit_code=0, signal=None, stop_asked=True)

    def tamper(self, name: AgentName, what: str) -> None:
        """Somebody changes its unit."""
        self._change(name, drift=(what,))

    def reboot(self) -> None:
        """All processes are gone, the records are not."""
        for name in list(self._last):
            if self._status(name).phase == "running":
                self._end(name, exit_code=None, signal=None)

    def say(self, name: AgentName, line: str) -> None:
        """A line on the container's console."""
        self._last[name].lines.append(line)

    def current(self, name: AgentName) -> Start:
        """The last start of that name."""
        return self._last[name]

    def running(self) -> dict[AgentName, str]:
        """Running containers: name → toplevel."""
        return {name: s.spec.toplevel for name, s in self._last.items() if s.status.phase == "running"}

    def _status(self, name: AgentName) -> ContainerStatus:
        found = self._last.get(name)
        return ContainerStatus(phase="absent") if found is None else found.status

    def _change(self, name: AgentName, **changes: Any) -> None:
        start = self._last[name]
        start.status = replace(start.status, **changes)
        self._hint(name)

    def _end(
        self,
        name: AgentName,
        *,
        exit_code: int | None,
        signal: int | None,
        oom: bool = False,
        stop_asked: bool = False,
    ) -> None:
        word = "signal" if signal is not None else "exit-code" if exit_code else "success"
        self._change(
            name,
            phase="exited",
            leader_pid=None,
            exit_code=exit_code,
            signal=signal,
            oom=oom,
            result="oom-kill" if oom else word if (signal, exit_code) != (None, None) else "",
            ended_at=self._now(),
            stop_asked=stop_asked,
            frozen=False,
        )

    def _hint(self, name: AgentName) -> None:
        for queue in self._watchers:
            if not queue.full():
                queue.put_nowait(name)
