"""Whether a unit is as this version would have set it up; mends it without touching processes.

Mended: the unit file (unless it is managed elsewhere, as on NixOS), what systemd has not read yet, the
limits, and drop-ins below /run. Only reported: drop-ins that an administrator keeps elsewhere.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from reconciler.config import Config
from reconciler.effects.bus import Typed
from reconciler.effects.containers import unitfile
from reconciler.effects.containers.record import Order
from reconciler.effects.containers.units import UnitFacts, Units
from reconciler.errors import PermanentError

_FILE = Path("/etc/systemd/system") / unitfile.TEMPLATE
_RUNTIME = Path("/run")
_CONTROL = _RUNTIME / "systemd/system.control"
_OWN = frozenset({"50-MemoryMax.conf", "50-MemorySwapMax.conf", "50-TasksMax.conf", "50-CPUQuota.conf"})


def properties(order: Order) -> dict[str, Typed]:
    """The limits of an order as properties of its unit."""
    limits = _limits(order)
    return {
        "MemoryMax": Typed("t", limits["memory_max"]),
        "MemorySwapMax": Typed("t", limits["swap_max"]),
        "TasksMax": Typed("t", limits["tasks_max"]),
        "CPUQuotaPerSecUSec": Typed("t", limits["cpu_us"]),
    }


def forget(unit: str) -> None:
    """Remove the limits of a unit that is gone."""
    shutil.rmtree(_CONTROL / f"{unit}.d", ignore_errors=True)


class Drift:
    """Compares units with what `config` and their orders say."""

    def __init__(self, config: Config, units: Units) -> None:
        self._wanted = unitfile.text(config)
        self._units = units

    def of(self, unit: str, facts: UnitFacts | None, order: Order | None) -> tuple[str, ...]:
        """What differs, in words; empty if nothing does or there is nothing to compare."""
        found = self._of_file(facts)
        if facts is None or order is None:
            return tuple(found)
        if facts.needs_reload:
            found.append("systemd has not read the changed unit file")
        found += [f"drop-in {path}" for path in _foreign(unit, facts)]
        if facts.is_alive:
            for key, value in _limits(order).items():
                if getattr(facts, key) != value:
                    found.append(f"{key} is {getattr(facts, key)} instead of {value}")
        return tuple(found)

    async def mend(self, unit: str, order: Order | None) -> None:
        """Mend what `of` says; `PermanentError` code `drift-stays` for what is left to an administrator."""
        await self.mend_file()
        facts = await self._units.find(unit)
        if facts is None:
            return
        foreign = _foreign(unit, facts)
        runtime = [path for path in foreign if path.is_relative_to(_RUNTIME)]
        for path in runtime:
            path.unlink(missing_ok=True)
        if runtime or facts.needs_reload:
            await self._units.reload()
        if order is not None and facts.is_alive:
            await self._units.set_properties(unit, properties(order))
        left = [str(path) for path in foreign if path not in runtime]
        if left:
            raise PermanentError(
                f"{unit} is changed by {', '.join(left)}", code="drift-stays",
                hint="remove the drop-in and run `systemctl daemon-reload`",
            )  # fmt: skip

    async def mend_file(self) -> None:
        """Bring the template on disk up to date, and let systemd read it."""
        found = _read(_FILE)
        if found is not None and not unitfile.differences(self._wanted, found):
            return
        if found is not None and _is_managed(_FILE):
            raise PermanentError(
                f"{_FILE} is managed elsewhere and not of this version", code="drift-stays",
                hint="switch the host to a configuration with this version of hyperhive",
            )  # fmt: skip
        temporary = _FILE.with_name(f".{_FILE.name}.new")
        try:
            temporary.write_text(self._wanted)
            temporary.chmod(0o644)
            temporary.replace(_FILE)
        except OSError as error:
            raise PermanentError(
                f"cannot write {_FILE}: {error.strerror}", code="drift-stays", hint="run `hive install-units`"
            ) from error
        await self._units.reload()

    def _of_file(self, facts: UnitFacts | None) -> list[str]:
        path = Path(facts.fragment) if facts is not None and facts.fragment else _FILE
        text = _read(path)
        found = [] if path == _FILE else [f"its unit file is {path} instead of {_FILE}"]
        if text is None:
            return [*found, f"{path} is missing"]
        if settings := unitfile.differences(self._wanted, text):
            found.append(f"{path} differs in {' '.join(settings)}")
        return found


def _limits(order: Order) -> dict[str, int]:
    """By the names of `UnitFacts`."""
    return {
        "memory_max": order.memory_bytes,
        "swap_max": 0,
        "tasks_max": order.tasks,
        "cpu_us": order.cpu_percent * 10_000,
    }


def _foreign(unit: str, facts: UnitFacts) -> list[Path]:
    """Drop-ins that are neither ours nor for all services."""
    own = {str(_CONTROL / f"{unit}.d" / name) for name in _OWN}
    paths = [Path(path) for path in facts.drop_ins if path not in own]
    return [path for path in paths if path.parent.name != "service.d"]


def _is_managed(path: Path) -> bool:
    return path.is_symlink() or not os.access(path.parent, os.W_OK)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None
