"""The `systemd` driver: each container is an instance of `hive-agent@.service`, driven over D-Bus.

Nothing that matters is in memory: what is true is read from systemd, from /proc, and from the record that
the unit's own helper writes (`reconciler.effects.containers.unit`), which knows of ends that nobody saw.

Containers are not registered with machined. Their payload is no systemd, so `machinectl` could do nothing
with them but end them; and a machine that is still registered, or a machined that does not answer, would keep
nspawn from starting. The unit is the one handle, and there is no registration that could be left over.

A container that the shim started lives on under its shim: it is asked, stopped and cleared through that
driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reconciler.config import Config
from reconciler.effects.bus import Bus, SystemBus
from reconciler.effects.containers import drift, journal, proc, record, standing, suspend, unitfile, userns
from reconciler.effects.containers.arguments import container_command
from reconciler.effects.containers.driver import ShimContainers
from reconciler.effects.containers.units import GREETING, MATCHES, UnitFacts, Units, changed, unit_of
from reconciler.effects.protocols import ContainerSpec, ContainerStatus
from reconciler.errors import HiveError, PermanentError, TemporaryError
from reconciler.model.names import AgentName

_START_S = unitfile.START_S + 10.0
_CLEANUP_S = 12.0
_FREEZE_S = 2.0
_RETRY_S = 0.2
_SEEN_LIMIT = 10_000
_AGENT_UNIT = re.compile(r"hive-agent@([a-z][a-z0-9-]{0,30})\.service")
_ALL = "hive-agent@*.service"
_FOREIGN = "container@*.service"
_FOREIGN_UNIT = re.compile(r"container@.+\.service")


@dataclass(frozen=True, slots=True)
class ForeignEnd:
    """A container of the host, not of the hive, that is not active any more: its unit, the state it is in
    now (inactive, failed), and systemd's word for how it ended (empty if that is forgotten)."""

    unit: str
    active_state: str
    result: str


class SystemdContainers:
    """`Containers` over systemd; orders and records below `state_dir/containers`."""

    driver: Literal["shim", "systemd"] = "systemd"

    def __init__(self, config: Config, bus: Bus | None = None) -> None:
        self._config = config
        self._root = Path(config.state_dir) / "containers"
        self._bus = bus or SystemBus(matches=MATCHES, greeting=GREETING)
        self._units = Units(self._bus)
        self._shim = ShimContainers(config)
        self._drift = drift.Drift(config, self._units)
        self._bodies = standing.Bodies()
        self._records = record.Records(self._root)
        self._locks: defaultdict[AgentName, asyncio.Lock] = defaultdict(asyncio.Lock)

    def close(self) -> None:
        """Hang up; containers go on."""
        self._bus.close()

    # ------------------------------------------------------------------------------------------- reading
    async def status(self, name: AgentName) -> ContainerStatus:
        """From systemd, the record and /proc; the record last, as its writer is done before systemd is."""
        if self._is_of_shim(name):
            return await self._shim.status(name)
        facts = await self._units.find(unitfile.unit_name(name))
        return await self._status(name, facts, record.read_record(self._directory(name)), proc.world_id())

    async def statuses(self) -> Mapping[AgentName, ContainerStatus]:
        """One list of systemd's for all; what runs as its record says is not asked for one by one."""
        listed, world = await self._units.listed(_ALL), proc.world_id()
        folders = self._drift.folders()
        statuses: dict[AgentName, ContainerStatus] = {}
        for name in self._names(listed):
            state = listed.get(unitfile.unit_name(name))
            found = self._records.read(name)
            steady = standing.steady(state, found, world)
            if (found is not None and found.shim is not None) or (steady is None and state is not None):
                statuses[name] = await self.status(name)
            else:
                statuses[name] = await self._status(name, steady, found, world, folders)
        return statuses

    async def _status(
        self,
        name: AgentName,
        facts: UnitFacts | None,
        found: record.Record | None,
        world: str,
        folders: drift.Folders | None = None,
    ) -> ContainerStatus:
        unit = unitfile.unit_name(name)
        if facts is not None and facts.is_alive:
            differs = await self._drift.of(name, facts, self._order, folders)
            mine = found if found is not None and found.invocation == facts.invocation else None
            order = self._order(name) if mine is None else None
            toplevel = mine.toplevel if mine is not None else order.toplevel if order is not None else None
            return standing.living(unit, facts, mine, toplevel, differs, self._bodies)
        if facts is not None and facts.invocation and (not found or found.invocation != facts.invocation):
            return standing.unrecorded(unit, facts, self._order(name))
        if found is None:
            return ContainerStatus(phase="absent")
        return standing.ended(
            unit, facts, found, world, await self._drift.of(name, None, self._order, folders)
        )

    async def list(self) -> Sequence[AgentName]:
        """Names with a record or a living unit, sorted."""
        return self._names(await self._units.listed(_ALL))

    def _names(self, listed: Mapping[str, tuple[str, str]]) -> Sequence[AgentName]:
        names = set(self._records.names())
        for unit, (active, _) in listed.items():
            if (found := _AGENT_UNIT.fullmatch(unit)) and active not in {"inactive", "failed"}:
                names.add(found[1])
        return [AgentName(name) for name in sorted(names)]

    async def logs(self, name: AgentName, lines: int) -> Sequence[str]:
        """From the journal, of the last start."""
        if self._is_of_shim(name):
            return await self._shim.logs(name, lines)
        facts = await self._units.find(unitfile.unit_name(name))
        found = record.read_record(self._directory(name))
        invocation = facts.invocation if facts is not None else ""
        if not invocation and found is not None:
            invocation = found.invocation
        over = facts is None or not facts.is_alive
        return await journal.last_lines(invocation, lines, over=over) if invocation else []

    # ------------------------------------------------------------------------------------------- acting
    async def start(self, spec: ContainerSpec) -> ContainerStatus:
        """Start the unit and wait for nspawn's readiness. One that ends before comes back as exited, with
        the reason in its journal; `PermanentError` if there is no unit and none can be installed."""
        async with self._locks[spec.name]:
            unit = unitfile.unit_name(spec.name)
            now = await self.status(spec.name)
            if now.phase == "starting":
                await self._units.wait(unit, _START_S)
                now = await self.status(spec.name)
            if now.phase == "running":
                return now
            command = container_command(spec, self._config)
            directory = self._directory(spec.name)
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.mkdir(mode=0o700, exist_ok=True)
            order = record.Order(
                name=spec.name,
                invocation="",
                toplevel=spec.toplevel,
                argv=command.argv,
                env=command.env,
                hardened=command.hardened,
                memory_bytes=command.memory_bytes,
                cpu_percent=command.cpu_percent,
                tasks=command.tasks,
                start_timeout_s=unitfile.START_S,
            )
            record.write_order(directory, order)
            await self._drift.mend_file()
            try:
                await self._units.set_properties(unit, drift.properties(order))
                await self._units.start(unit, _START_S)
            except PermanentError as error:
                if error.code == "no-such-unit":
                    raise PermanentError(
                        f"the unit {unitfile.TEMPLATE} is not installed", code="no-such-unit",
                        hint="run `hive install-units`",
                    ) from error  # fmt: skip
                raise
            return await self.status(spec.name)

    async def stop(self, name: AgentName, *, timeout_s: float = 10.0) -> None:
        """A stop job; SIGKILL to all of the unit after `timeout_s`. Returns when nothing is left."""
        async with self._locks[name]:
            if self._is_of_shim(name):
                await self._shim.stop(name, timeout_s=timeout_s)
                return
            unit = unitfile.unit_name(name)
            facts = await self._units.find(unit)
            if facts is None or not facts.is_alive:
                return
            await self._resume(unit, facts)
            if timeout_s > 0 and await self._units.stop(unit, timeout_s):
                return
            if not await self._units.kill(unit, _CLEANUP_S):
                raise TemporaryError(
                    f"the container of {name} could not be killed", after_s=5.0, code="still-running"
                )

    async def clear(self, name: AgentName) -> None:
        """Remove the record and let systemd forget the unit; `TemporaryError` code `still-running` while the
        container runs."""
        async with self._locks[name]:
            if self._is_of_shim(name):
                await self._shim.clear(name)
                return
            unit = unitfile.unit_name(name)
            facts = await self._units.find(unit)
            if facts is not None and facts.is_alive:
                raise TemporaryError(f"the container of {name} runs", code="still-running")
            if facts is not None:
                await self._units.forget(unit)
            self._bodies.forget(unit)
            await asyncio.to_thread(self._drift.forget, name)
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(shutil.rmtree, self._directory(name))

    async def freeze(self, name: AgentName) -> None:
        """By the unit's control group, or by signals where the kernel has no freezer."""
        async with self._locks[name]:
            if self._is_of_shim(name):
                await self._shim.freeze(name)
                return
            facts = await self._running(name)
            if await self._units.freeze(unitfile.unit_name(name)):
                return
            if not await asyncio.to_thread(suspend.suspend, standing.members(facts), _FREEZE_S):
                raise TemporaryError(
                    f"the container of {name} could not be suspended", after_s=0.2, code="not-frozen"
                )

    async def thaw(self, name: AgentName) -> None:
        """Let it go on."""
        async with self._locks[name]:
            if self._is_of_shim(name):
                await self._shim.thaw(name)
                return
            unit = unitfile.unit_name(name)
            facts = await self._units.find(unit)
            if facts is not None and facts.is_alive:
                await self._resume(unit, facts)

    async def refresh(self, name: AgentName) -> None:
        """Mend the unit file, drop-ins and limits; see `drift`."""
        async with self._locks[name]:
            if not self._is_of_shim(name):
                self._bodies.forget(unitfile.unit_name(name))
                await self._drift.mend(name, self._order(name))

    async def forbid_user_namespaces(self, name: AgentName) -> None:
        """See `userns.forbid`."""
        if self._is_of_shim(name):
            await self._shim.forbid_user_namespaces(name)
            return
        facts = await self._running(name)
        leader = standing.leader_of(facts)
        await userns.forbid(name, None if leader is None else proc.ref(leader))

    # ------------------------------------------------------------------------------------------- watching
    async def changes(self) -> AsyncIterator[AgentName]:
        """A name when its unit changes state, is unloaded, or a job of it is over; all names after whatever
        may have hidden such a thing."""
        seen: dict[str, tuple[object, ...]] = {}
        first = True
        with self._bus.watch() as watch:
            while True:
                signal = await watch.next()
                if signal is None or signal.member == "Reloading":
                    if not first and (signal is None or signal.body == (False,)):
                        seen.clear()
                        self._drift.doubt()
                        for name in await self._patient_list():
                            yield name
                    first = False
                    continue
                found = _AGENT_UNIT.fullmatch(unit_of(signal) or "")
                if found is None:
                    continue
                if values := changed(signal):
                    if values.get("ActiveState") == "deactivating":
                        continue  # there is nothing to do before it is over
                    state = tuple(values.get(key) for key in _TELLING)
                    if seen.get(found[1]) == state:
                        continue
                    if len(seen) >= _SEEN_LIMIT:  # anybody on the bus can make names up
                        seen.clear()
                    seen[found[1]] = state
                yield AgentName(found[1])

    async def foreign(self) -> AsyncIterator[ForeignEnd]:
        """Containers of the host itself (`container@*.service`) that leave `active`. They are only looked
        at; what a signal says is asked again."""
        active: set[str] = set()
        with self._bus.watch() as watch:
            while True:
                signal = await watch.next()
                if signal is not None and not _FOREIGN_UNIT.fullmatch(unit_of(signal) or ""):
                    continue
                try:
                    now = await self._units.listed(_FOREIGN)
                    ended = {
                        unit: await self._units.result(unit)
                        for unit in active
                        if now.get(unit, ("inactive", ""))[0] in {"inactive", "failed"}
                    }
                except HiveError:  # the bus went: the watch says so next, and then all is read anew
                    continue
                for unit, result in sorted(ended.items()):
                    yield ForeignEnd(unit, now.get(unit, ("inactive", ""))[0], result)
                active -= ended.keys()
                active |= {unit for unit, (state, _) in now.items() if state == "active"}

    # ------------------------------------------------------------------------------------------- inside
    def _directory(self, name: AgentName) -> Path:
        return self._root / name

    def _order(self, name: AgentName) -> record.Order | None:
        try:
            return record.read_order(self._directory(name))
        except ValueError:
            return None

    def _is_of_shim(self, name: AgentName) -> bool:
        found = record.read_record(self._directory(name))
        return found is not None and found.shim is not None

    async def _running(self, name: AgentName) -> UnitFacts:
        facts = await self._units.find(unitfile.unit_name(name))
        if facts is None or facts.active != "active" or standing.leader_of(facts) is None:
            raise TemporaryError(f"the container of {name} does not run", code="not-running")
        return facts

    async def _resume(self, unit: str, facts: UnitFacts) -> None:
        if facts.freezer != "running":
            await self._units.thaw(unit)
        members = standing.members(facts)
        if suspend.is_suspended(members):
            await asyncio.to_thread(suspend.resume, members)

    async def _patient_list(self) -> Sequence[AgentName]:
        """All names, as soon as the bus tells."""
        while True:
            try:
                return await self.list()
            except TemporaryError:
                await asyncio.sleep(_RETRY_S)


_TELLING = ("ActiveState", "SubState", "InvocationID", "FreezerState", "NeedDaemonReload")


__all__ = ["ForeignEnd", "SystemdContainers"]
