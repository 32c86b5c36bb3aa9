"""systemd's manager over a `Bus`: the few calls that the driver needs, with typed results.

Reading never loads a unit: that would announce a new unit, and two watchers could wake each other for ever.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from reconciler.effects.bus import Bus, Call, Signal, Typed
from reconciler.errors import HiveError, PermanentError

_SYSTEMD = "org.freedesktop.systemd1"
_ROOT = "/org/freedesktop/systemd1"
_MANAGER = f"{_SYSTEMD}.Manager"
_UNIT, _SERVICE = f"{_SYSTEMD}.Unit", f"{_SYSTEMD}.Service"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_RELOAD_S = 30.0
_LOOK_S = 0.25  # signals may be lost: how often a wait looks by itself

# What a bus for `Units` subscribes to on each connection.
GREETING = (Call(_SYSTEMD, _ROOT, _MANAGER, "Subscribe"),)
MATCHES = (
    f"type='signal',sender='{_SYSTEMD}',interface='{_PROPERTIES}',path_namespace='{_ROOT}/unit',arg0='{_UNIT}'",
    *(
        f"type='signal',sender='{_SYSTEMD}',interface='{_MANAGER}',member='{member}'"
        for member in ("JobRemoved", "UnitRemoved", "Reloading")
    ),
)

_T = TypeVar("_T")
ALIVE = frozenset({"activating", "active", "reloading", "deactivating"})


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """A loaded unit as systemd tells it. `invocation` is empty if it was never started, `main_pid` 0 without
    a main process; `job` is the id of its pending job, 0 without. Of its end: `main_status` is an exit code
    or a signal, by `killed`; times are epoch seconds, 0 if there is none."""

    active: str
    invocation: str
    main_pid: int = 0
    freezer: str = "running"
    job: int = 0
    result: str = ""
    killed: bool = False
    main_status: int = 0
    main_exited_at: float = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether systemd has processes of it, or is about to."""
        return self.active in ALIVE


@dataclass(frozen=True, slots=True)
class UnitSetup:
    """How a loaded unit is set up: its file, its drop-ins, whether systemd has yet to read them, and its
    limits (bytes, tasks, processor microseconds per second; None: no limit)."""

    fragment: str
    drop_ins: tuple[str, ...]
    needs_reload: bool
    memory_max: int | None
    swap_max: int | None
    tasks_max: int | None
    cpu_us: int | None


class Units:
    """Calls to systemd. Every method raises what `Bus.call` raises."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    # ------------------------------------------------------------------------------------------- reading
    async def find(self, unit: str) -> UnitFacts | None:
        """The unit if it is loaded; else None: it does not run, and nothing is known of an earlier run."""
        return await self._of_loaded(unit, self._facts)

    async def setup(self, unit: str) -> UnitSetup | None:
        """How it is set up, if it is loaded."""
        return await self._of_loaded(unit, self._setup)

    async def _of_loaded(self, unit: str, read: Callable[[str], Awaitable[_T]]) -> _T | None:
        path = await self.path(unit)
        if path is None:
            return None
        try:
            return await read(path)
        except PermanentError as error:
            if error.code in {"no-such-unit", "no-such-object", "bus-unknown"}:
                return None  # unloaded meanwhile
            raise

    async def path(self, unit: str) -> str | None:
        """The object of a loaded unit."""
        try:
            (path,) = await self._manager("GetUnit", "s", unit)
        except PermanentError as error:
            if error.code == "no-such-unit":
                return None
            raise
        return str(path)

    async def listed(self, pattern: str) -> dict[str, tuple[str, str]]:
        """Loaded units of a pattern: name → active state and sub state."""
        (rows,) = await self._manager("ListUnitsByPatterns", "asas", (), (pattern,))
        return {str(row[0]): (str(row[3]), str(row[4])) for row in rows}

    async def result(self, unit: str) -> str:
        """How a loaded service ended, in systemd's word; empty if it is not loaded."""
        path = await self.path(unit)
        return "" if path is None else str(await self._get(path, _SERVICE, "Result"))

    async def _facts(self, path: str) -> UnitFacts:
        found = await self._values(path, _STATE_KEYS)
        facts = UnitFacts(
            active=found["ActiveState"],
            invocation=bytes(found["InvocationID"]).hex(),
            main_pid=found["MainPID"],
            freezer=found["FreezerState"],
            job=found["Job"][0],
        )
        if facts.is_alive:
            return facts
        found = await self._values(path, _END_KEYS)
        return replace(
            facts,
            result=found["Result"],
            killed=found["ExecMainCode"] in _KILLED,
            main_status=found["ExecMainStatus"],
            main_exited_at=found["ExecMainExitTimestamp"] / 1e6,
        )

    async def _setup(self, path: str) -> UnitSetup:
        found = await self._values(path, _SETUP_KEYS)
        return UnitSetup(
            fragment=found["FragmentPath"],
            drop_ins=tuple(found["DropInPaths"]),
            needs_reload=found["NeedDaemonReload"],
            memory_max=_limit(found["MemoryMax"]),
            swap_max=_limit(found["MemorySwapMax"]),
            tasks_max=_limit(found["TasksMax"]),
            cpu_us=_limit(found["CPUQuotaPerSecUSec"]),
        )

    async def _values(self, path: str, keys: Sequence[str]) -> dict[str, Any]:
        values = await asyncio.gather(
            *(self._get(path, _UNIT if key in _OF_UNIT else _SERVICE, key) for key in keys)
        )
        return dict(zip(keys, values, strict=True))

    async def _get(self, path: str, interface: str, key: str) -> Any:
        (value,) = await self._bus.call(Call(_SYSTEMD, path, _PROPERTIES, "Get", "ss", (interface, key)))
        return value

    # ------------------------------------------------------------------------------------------- acting
    async def start(self, unit: str, timeout_s: float) -> bool:
        """Start it, and wait until its job is over; False if it is not after `timeout_s` seconds."""
        return await self._run_job("StartUnit", unit, timeout_s)

    async def stop(self, unit: str, timeout_s: float) -> bool:
        """Stop it, and wait until its job is over; False if it is not after `timeout_s` seconds."""
        return await self._run_job("StopUnit", unit, timeout_s)

    async def kill(self, unit: str, timeout_s: float) -> bool:
        """SIGKILL to all its processes, and wait until it has no job and is not alive; False if it is after
        `timeout_s` seconds."""
        if await self.path(unit) is None:
            return True
        with self._bus.watch() as watch:
            await self._ignoring({"no-such-unit", "bus-failed"}, "KillUnit", "ssi", unit, "all", 9)
            return await self._until(watch.next, unit, _is_over, timeout_s)

    async def wait(self, unit: str, timeout_s: float) -> bool:
        """Wait until it has no job; False if it has one after `timeout_s` seconds."""
        with self._bus.watch() as watch:
            return await self._until(watch.next, unit, _has_no_job, timeout_s)

    async def set_properties(self, unit: str, properties: Mapping[str, Typed]) -> None:
        """Set them until the next reboot, for this start and later ones; loads the unit."""
        pairs = tuple(properties.items())
        await self._manager("SetUnitProperties", "sba(sv)", unit, True, pairs)

    async def freeze(self, unit: str) -> bool:
        """Returns when all its processes stand still; False if this kernel cannot."""
        try:
            await self._manager("FreezeUnit", "s", unit)
        except PermanentError as error:
            if error.code == "not-supported":
                return False
            raise
        return True

    async def thaw(self, unit: str) -> None:
        """Nothing to do if it is not frozen or not loaded."""
        await self._ignoring({"no-such-unit", "bus-failed", "not-supported"}, "ThawUnit", "s", unit)

    async def forget(self, unit: str) -> None:
        """Let systemd forget that it failed, and with that the whole unit."""
        await self._ignoring({"no-such-unit"}, "ResetFailedUnit", "s", unit)

    async def reload(self) -> None:
        """Read all unit files anew."""
        await self._bus.call(Call(_SYSTEMD, _ROOT, _MANAGER, "Reload"), timeout_s=_RELOAD_S)

    # ------------------------------------------------------------------------------------------- inside
    async def _manager(self, member: str, signature: str, *body: Any) -> tuple[Any, ...]:
        return await self._bus.call(Call(_SYSTEMD, _ROOT, _MANAGER, member, signature, body))

    async def _ignoring(self, codes: set[str], member: str, signature: str, *body: Any) -> None:
        try:
            await self._manager(member, signature, *body)
        except HiveError as error:
            if error.code not in codes:
                raise

    async def _run_job(self, member: str, unit: str, timeout_s: float) -> bool:
        with self._bus.watch() as watch:
            await self._manager(member, "ss", unit, "replace")
            return await self._until(watch.next, unit, _has_no_job, timeout_s)

    async def _until(
        self,
        news: Callable[[float], Any],
        unit: str,
        condition: Callable[[UnitFacts], bool],
        timeout_s: float,
    ) -> bool:
        """Look at the unit after each signal of it until the condition holds (always, if it is not
        loaded)."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        look = True
        while True:
            if look:
                found = await self.find(unit)
                if found is None or condition(found):
                    return True
            left = deadline - loop.time()
            if left <= 0:
                return False
            try:
                signal = await news(min(left, _LOOK_S))
                look = signal is None or unit_of(signal) == unit
            except TimeoutError:
                look = True


_OF_UNIT = frozenset({
    "ActiveState", "InvocationID", "FreezerState", "Job", "FragmentPath", "DropInPaths", "NeedDaemonReload",
})  # fmt: skip
_STATE_KEYS = ("ActiveState", "InvocationID", "FreezerState", "Job", "MainPID")
_END_KEYS = ("Result", "ExecMainCode", "ExecMainStatus", "ExecMainExitTimestamp")
_SETUP_KEYS = (
    "FragmentPath", "DropInPaths", "NeedDaemonReload", "MemoryMax", "MemorySwapMax", "TasksMax",
    "CPUQuotaPerSecUSec",
)  # fmt: skip
_KILLED = {2, 3}  # CLD_KILLED, CLD_DUMPED
_NO_LIMIT = (1 << 64) - 1


def unit_of(signal: Signal) -> str | None:
    """The unit that a signal of `MATCHES` speaks of; None if of none."""
    match signal:
        case Signal(member="JobRemoved", body=(_, _, str(unit), _)):
            return unit
        case Signal(member="UnitRemoved", body=(str(unit), _)):
            return unit
        case Signal(member="PropertiesChanged", path=path):
            return re.sub("_([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), path.rpartition("/")[2])
    return None


def changed(signal: Signal) -> Mapping[str, Any]:
    """The new values that a PropertiesChanged tells; of any other signal none."""
    match signal:
        case Signal(member="PropertiesChanged", body=(_, dict(values), _)):
            return values
    return {}


def _has_no_job(found: UnitFacts) -> bool:
    return found.job == 0


def _is_over(found: UnitFacts) -> bool:
    return found.job == 0 and not found.is_alive


def _limit(value: int) -> int | None:
    return None if value >= _NO_LIMIT else value


__all__ = ["ALIVE", "GREETING", "MATCHES", "UnitFacts", "UnitSetup", "Units", "changed", "unit_of"]
