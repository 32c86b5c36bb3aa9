"""The `shim` driver: containers on hosts without systemd, each under a small process that outlives the
daemon.

The driver keeps nothing in memory that matters: what is true is read from the records and from /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from reconciler.config import Config
from reconciler.effects import process
from reconciler.effects.containers import cgroups, console, proc, record, suspend, userns
from reconciler.effects.containers.arguments import container_command
from reconciler.effects.containers.proc import ProcessRef
from reconciler.effects.protocols import ContainerSpec, ContainerStatus
from reconciler.errors import CommandError, TemporaryError
from reconciler.model.names import AgentName

_START_S = 20.0
_CLEANUP_S = 12.0  # the shim's own bounds for killing and removing, and some
_RESCAN_S = 1.0
_FREEZE_S = 0.8
_SOURCE_ROOT = Path(__file__).resolve().parents[3]


class ShimContainers:
    """`Containers` over `reconciler.effects.containers.shim`; records below `state_dir/containers`."""

    driver: Literal["shim", "systemd"] = "shim"

    def __init__(self, config: Config) -> None:
        self._config = config
        self._root = Path(config.state_dir) / "containers"
        self._locks: defaultdict[AgentName, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._moved = asyncio.Event()

    async def status(self, name: AgentName) -> ContainerStatus:
        """From the record and /proc."""
        return self._status(name)

    async def statuses(self) -> Mapping[AgentName, ContainerStatus]:
        """All records, and /proc for each."""
        return self._statuses()

    async def list(self) -> Sequence[AgentName]:
        """Names with a record, sorted."""
        return self._names()

    async def start(self, spec: ContainerSpec) -> ContainerStatus:
        """Start through a new shim. One that ends before its leader is known comes back as exited, with the
        reason on its console; `TemporaryError` if there is no shim, or another container lives."""
        async with self._locks[spec.name]:
            now = self._status(spec.name)
            if now.phase == "running":
                return now
            directory = self._directory(spec.name)
            if now.phase == "starting":  # a daemon before us began it: wait for its end or its leader
                return await self._started(spec.name)
            await asyncio.to_thread(self._bury, directory)
            command = container_command(spec, self._config)
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.mkdir(mode=0o700, exist_ok=True)
            order = record.Order(
                name=spec.name,
                invocation=uuid.uuid4().hex,
                toplevel=spec.toplevel,
                argv=command.argv,
                env=command.env,
                hardened=command.hardened,
                memory_bytes=command.memory_bytes,
                cpu_percent=command.cpu_percent,
                tasks=command.tasks,
                start_timeout_s=_START_S,
            )
            record.write_order(directory, order)
            await self._launch(spec.name, directory)
            self._moved.set()
            return self._status(spec.name)

    async def stop(self, name: AgentName, *, timeout_s: float = 10.0) -> None:
        """SIGTERM to nspawn, SIGKILL to all after `timeout_s`; returns when nothing is left."""
        async with self._locks[name]:
            directory = self._directory(name)
            found = record.read_record(directory)
            if found is None or self._phase(found) in {"absent", "exited"}:
                await asyncio.to_thread(self._bury, directory)
                return
            await self._terminate(found, timeout_s)
            found = record.read_record(directory) or found
            # The shim cleans up and writes down how it ended; a shim that is gone or stuck is done for here.
            if found.shim is not None and not await _ended(
                [found.shim], 0.0 if timeout_s <= 0 else _CLEANUP_S
            ):
                _signal(found, signal.SIGKILL)
                if not await _ended([found.shim], _CLEANUP_S):
                    found.shim.send(signal.SIGKILL)
                    await _ended([found.shim], 1.0)
            await asyncio.to_thread(self._bury, directory)
            self._moved.set()
            if self._status(name).phase in {"starting", "running"}:
                raise TemporaryError(
                    f"the container of {name} could not be killed", after_s=5.0, code="still-running"
                )

    async def clear(self, name: AgentName) -> None:
        """Remove the record; `TemporaryError` code `still-running` while the container runs."""
        async with self._locks[name]:
            if self._status(name).phase in {"starting", "running"}:
                raise TemporaryError(f"the container of {name} runs", code="still-running")
            directory = self._directory(name)
            await asyncio.to_thread(self._bury, directory)
            with record.locked(directory) as mine:
                if mine:
                    await asyncio.to_thread(shutil.rmtree, directory)
            self._moved.set()

    async def freeze(self, name: AgentName) -> None:
        """Suspend it; `TemporaryError` code `not-frozen` if a part of it could not be in time."""
        async with self._locks[name]:
            found = self._alive(name)
            if not await asyncio.to_thread(suspend.suspend, found, _FREEZE_S):
                raise TemporaryError(
                    f"the container of {name} could not be suspended", after_s=0.2, code="not-frozen"
                )
            self._moved.set()

    async def thaw(self, name: AgentName) -> None:
        """Let it go on."""
        async with self._locks[name]:
            with contextlib.suppress(TemporaryError):
                await asyncio.to_thread(suspend.resume, self._alive(name))
            self._moved.set()

    async def refresh(self, name: AgentName) -> None:
        """Nothing to mend: a shim carries all its settings itself."""

    def _alive(self, name: AgentName) -> record.Record:
        found = record.read_record(self._directory(name))
        if found is None or found.leader is None or self._phase(found) != "running":
            raise TemporaryError(f"the container of {name} does not run", code="not-running")
        return found

    async def forbid_user_namespaces(self, name: AgentName) -> None:
        """Close clone(CLONE_NEWUSER) for the container; `TemporaryError` code `not-running` without a
        leader."""
        found = record.read_record(self._directory(name))
        leader = None if found is None or found.world != proc.world_id() else found.leader
        await userns.forbid(name, leader)

    async def logs(self, name: AgentName, lines: int) -> Sequence[str]:
        """The console's last lines."""
        return await asyncio.to_thread(console.last_lines, self._directory(name), lines)

    async def changes(self) -> AsyncIterator[AgentName]:
        """A name soon after its start or stop by this driver, at once when its processes end by
        themselves."""
        seen: dict[AgentName, ContainerStatus] = {}
        first = True
        while True:
            self._moved.clear()
            now = self._statuses()
            for name in sorted(seen.keys() | now.keys()):
                if not first and seen.get(name) != now.get(name):
                    yield name
            seen, first = now, False
            await self._any_end(
                [name for name, status in now.items() if status.phase in {"starting", "running"}]
            )

    # ------------------------------------------------------------------------------------------- inside
    def _directory(self, name: AgentName) -> Path:
        return self._root / name

    def _names(self) -> Sequence[AgentName]:
        found = sorted(self._root.glob(f"*/{record.RECORD}"))
        return [AgentName(path.parent.name) for path in found]

    def _statuses(self) -> dict[AgentName, ContainerStatus]:
        world = proc.world_id()
        return {name: self._status(name, world) for name in self._names()}

    def _status(self, name: AgentName, world: str | None = None) -> ContainerStatus:
        """`world`: that of now, if it is known already."""
        found = record.read_record(self._directory(name))
        if found is None:
            return ContainerStatus(phase="absent")
        world = world or proc.world_id()
        phase = self._phase(found, world)
        over = phase == "exited"
        frozen = phase == "running" and suspend.is_suspended(found)
        return ContainerStatus(
            phase=phase,
            toplevel=found.toplevel,
            invocation=found.invocation,
            unit=f"hive-{name}",
            leader_pid=None if over or found.leader is None else found.leader.pid,
            exit_code=found.exit_code if over else None,
            signal=found.signal if over else None,
            oom=found.oom and over,
            started_at=found.started_at,
            limits_enforced=found.limits_enforced,
            host_restarted=found.world != world,
            result=_result(found) if over else "",
            ended_at=found.ended_at if over else None,
            stop_asked=found.stop_asked,
            frozen=frozen,
            restless=frozen and suspend.is_restless(found),
        )

    def _phase(
        self, found: record.Record, world: str | None = None
    ) -> Literal["absent", "starting", "running", "exited"]:
        """While the shim lives its word counts; after it, the container runs as long as a process of it
        does."""
        if found.phase == "exited" or found.world != (world or proc.world_id()):
            return "exited"
        if found.shim is not None and found.shim.is_alive():
            return "running" if found.phase == "running" else "starting"
        return "running" if any(process.is_alive() for process in _container(found)) else "exited"

    def _shim_environment(self) -> dict[str, str]:
        """Where the product's files cannot be written, compiled ones are kept in the state: each start would
        compile the shim anew."""
        environment = {"PYTHONPATH": str(_SOURCE_ROOT)}
        if not os.access(_SOURCE_ROOT, os.W_OK):
            environment["PYTHONPYCACHEPREFIX"] = str(self._root / ".compiled")
        return environment

    async def _launch(self, name: AgentName, directory: Path) -> None:
        command = [sys.executable, "-S", "-P", "-m", "reconciler.effects.containers.shim", str(directory)]
        try:
            done = await process.run(
                command,
                timeout_s=_START_S + _CLEANUP_S,
                env=self._shim_environment(),
                accept=(0, 1, 3),
            )
        except CommandError as error:
            raise TemporaryError(f"the shim of {name} did not start: {error}", code="start-failed") from error
        word = done.text.strip().partition(" ")[0]
        if word == "busy":
            raise TemporaryError(f"another container of {name} lives", code="still-running")
        if word not in {"running", "failed"} or self._status(name).phase == "absent":
            reason = done.stderr.decode("utf-8", "replace").strip()[-1000:]
            raise TemporaryError(f"the shim of {name} did not start: {reason}", code="start-failed")

    async def _started(self, name: AgentName) -> ContainerStatus:
        """Poll a start that another daemon made (ours died): its launcher is not ours to wait for."""
        async with asyncio.timeout(_START_S + _CLEANUP_S):
            while (now := self._status(name)).phase == "starting":  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.02)
        return now

    async def _terminate(self, found: record.Record, timeout_s: float) -> None:
        """Ask nspawn (or an orphaned leader) to end; SIGKILL everything of it when the time is over."""
        # What is suspended hears nothing.
        await asyncio.to_thread(suspend.resume, found)
        leader_was_deaf = found.leader is not None and not found.leader.catches(signal.SIGTERM)
        target = next((process for process in _container(found) if process.is_alive()), None)
        if target is not None and timeout_s > 0:
            target.send(signal.SIGTERM)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while loop.time() < deadline:
            left = deadline - loop.time()
            if await _ended(_container(found), min(left, 0.05) if leader_was_deaf else left):
                return
            if leader_was_deaf and found.leader is not None and found.leader.catches(signal.SIGTERM):
                # PID 1 loses signals that it has no handler for yet. Once more, to the leader: a second
                # SIGTERM to nspawn would mean "kill".
                found.leader.send(signal.SIGTERM)
                leader_was_deaf = False
        _signal(found, signal.SIGKILL)
        await asyncio.to_thread(cgroups.kill, found.cgroups)

    def _bury(self, directory: Path) -> None:
        """Clean up after a shim that did not live to do it; nothing to do in any other case."""
        found = record.read_record(directory)
        if found is None or found.phase == "exited":
            return
        with record.locked(directory) as mine:
            if not mine:
                return
            if found.world == proc.world_id():
                _signal(found, signal.SIGKILL)
                cgroups.kill(found.cgroups)
                if not all(process.wait(_CLEANUP_S) for process in _container(found)):
                    return
            cgroups.remove(found.cgroups)
            record.write_record(directory, _ended_unseen(found))

    async def _any_end(self, names: Sequence[AgentName]) -> None:
        """Until a process of these containers ends, a start or stop was made here, or a second is over."""
        loop = asyncio.get_running_loop()
        pidfds: list[int] = []
        try:
            for name in names:
                found = record.read_record(self._directory(name))
                for watched in [] if found is None else _watched(found):
                    pidfd = watched.open()
                    if pidfd is None:
                        return
                    pidfds.append(pidfd)
                    loop.add_reader(pidfd, self._moved.set)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RESCAN_S):
                    await self._moved.wait()
        finally:
            for pidfd in pidfds:
                loop.remove_reader(pidfd)
                os.close(pidfd)


def _container(found: record.Record) -> tuple[ProcessRef, ...]:
    """The container's processes that are known by name: nspawn, then the leader."""
    return tuple(process for process in (found.nspawn, found.leader) if process is not None)


def _result(found: record.Record) -> str:
    """How it ended, in a word of systemd; empty if nobody saw it."""
    if found.oom:
        return "oom-kill"
    if found.signal is not None:
        return "signal"
    if found.exit_code is None:
        return ""
    return "exit-code" if found.exit_code else "success"


def _watched(found: record.Record) -> tuple[ProcessRef, ...]:
    """Whose end is the container's: the shim's, which follows the record; without it nspawn's, then the
    leader's."""
    alive = [
        process for process in (found.shim, found.nspawn, found.leader) if process and process.is_alive()
    ]
    return tuple(alive[:1])


def _signal(found: record.Record, number: signal.Signals) -> None:
    for target in reversed(_container(found)):
        target.send(number)


async def _ended(processes: Sequence[ProcessRef], timeout_s: float) -> bool:
    """Whether all have ended within the time."""
    try:
        async with asyncio.timeout(max(timeout_s, 0.001)):
            for waited in processes:
                pidfd = waited.open()
                if pidfd is None:
                    continue
                try:
                    await process.readable(pidfd)
                finally:
                    os.close(pidfd)
    except TimeoutError:
        return False
    return True


def _ended_unseen(found: record.Record) -> record.Record:
    """The record of a container whose end nobody saw: no status, and the time is unknown, too."""
    return found._replace(phase="exited", exit_code=None, signal=None)


__all__ = ["ShimContainers"]
