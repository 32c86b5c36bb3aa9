"""A message bus with a small systemd on it, for tests of what the driver asks and makes of the answers.

Whether systemd is really like that is a matter of `tests/system/`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from reconciler.effects.bus import Call, Signal, Watch
from reconciler.errors import HiveError, PermanentError

_LOADED: dict[str, Any] = {
    "ActiveState": "inactive", "InvocationID": b"", "FreezerState": "running", "Job": [0, "/"], "MainPID": 0,
    "Result": "success", "ExecMainCode": 0, "ExecMainStatus": 0, "ExecMainExitTimestamp": 0,
    "FragmentPath": "", "DropInPaths": [], "NeedDaemonReload": False, "MemoryMax": (1 << 64) - 1,
    "MemorySwapMax": (1 << 64) - 1, "TasksMax": (1 << 64) - 1, "CPUQuotaPerSecUSec": (1 << 64) - 1,
}  # fmt: skip


class FakeBus:
    """`units`: loaded units and their properties. `asked`: the members called, in order. `refuse[member]`: an
    error instead of an answer. `on_start`, `on_stop`, `on_kill`: what becomes of a unit's properties; signals
    are never sent."""

    def __init__(self) -> None:
        self.units: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.refuse: dict[str, HiveError] = {}
        self.on_start: Callable[[dict[str, Any]], None] = lambda unit: unit.update(ActiveState="active")
        self.on_stop: Callable[[dict[str, Any]], None] = lambda unit: unit.update(ActiveState="inactive")
        self.on_kill: Callable[[dict[str, Any]], None] = lambda unit: unit.update(ActiveState="failed")

    def load(self, name: str, **properties: Any) -> dict[str, Any]:
        """A unit that systemd has loaded."""
        self.units[name] = {**_LOADED, **properties}
        return self.units[name]

    async def call(self, call: Call, *, timeout_s: float = 5.0) -> tuple[Any, ...]:
        self.asked.append(call.member)
        await asyncio.sleep(0)
        if call.member in self.refuse:
            raise self.refuse[call.member]
        match call.member, call.body:
            case "GetUnit", (str(name),):
                self._loaded(name)
                return (f"/unit/{name}",)
            case "Get", (_, str(key)):
                return (self._loaded(call.path.removeprefix("/unit/"))[key],)
            case "ListUnitsByPatterns", _:
                rows = [[n, "", "loaded", u["ActiveState"], _sub(u)] for n, u in self.units.items()]
                return (rows,)
            case "SetUnitProperties", (str(name), True, pairs):
                unit = self.units.get(name) or self.load(name)
                unit.update({key: value.value for key, value in pairs})
            case "StartUnit", (str(name), "replace"):
                self.on_start(self._loaded(name))
            case "StopUnit", (str(name), "replace"):
                self.on_stop(self._loaded(name))
            case "KillUnit", (str(name), "all", 9):
                self.on_kill(self._loaded(name))
            case (("FreezeUnit" | "ThawUnit"), (str(name),)):
                frozen = call.member == "FreezeUnit"
                self._loaded(name).update(FreezerState="frozen" if frozen else "running")
            case (("ResetFailedUnit" | "Reload"), _):
                pass
            case unknown:
                raise AssertionError(f"nobody said what to do about {unknown}")
        return ()

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watch]:
        yield _Silence()

    def close(self) -> None:
        """Nothing to close."""

    def _loaded(self, name: str) -> dict[str, Any]:
        if name not in self.units:
            raise PermanentError(f"unit {name} is not loaded", code="no-such-unit")
        return self.units[name]


class _Silence:
    async def next(self, timeout_s: float | None = None) -> Signal | None:
        await asyncio.sleep(min(timeout_s or 0.0, 0.01))
        raise TimeoutError


def _sub(unit: dict[str, Any]) -> str:
    return "running" if unit["ActiveState"] == "active" else "dead"
