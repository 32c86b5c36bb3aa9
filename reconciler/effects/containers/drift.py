"""Whether a unit is as this version would have set it up; mends it without touching processes.

Mended are the unit file, what systemd has not read yet, the limits, and drop-ins: those below /run are
removed, an administrator's below /etc are kept under another name. What cannot be written here (as on NixOS,
where the host's own configuration is the place to change it) is no drift; it is logged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from reconciler.config import Config
from reconciler.effects.bus import Typed
from reconciler.effects.containers import unitfile
from reconciler.effects.containers.record import START, Order
from reconciler.effects.containers.units import UnitFacts, Units, UnitSetup
from reconciler.errors import PermanentError
from reconciler.model.names import AgentName

log = structlog.get_logger("units")

_FILE = Path("/etc/systemd/system") / unitfile.TEMPLATE
_RUNTIME, _ADMIN = Path("/run"), Path("/etc")
_CONTROL = _RUNTIME / "systemd/system.control"
_OWN = frozenset({"50-MemoryMax.conf", "50-MemorySwapMax.conf", "50-TasksMax.conf", "50-CPUQuota.conf"})
_SAVED = ".hive-saved"
_FOLDERS = tuple(
    f"{root}/systemd/{kind}" for root in (_RUNTIME, _ADMIN) for kind in ("system", "system.control")
)
_TRUST_S = 60.0

Folders = Mapping[str, Collection[object]]
"""The names in each folder of unit files; under the empty name, what the template is like."""


def properties(order: Order) -> dict[str, Typed]:
    """The limits of an order as properties of its unit."""
    limits = _limits(order)
    return {
        "MemoryMax": Typed("t", limits["memory_max"]),
        "MemorySwapMax": Typed("t", limits["swap_max"]),
        "TasksMax": Typed("t", limits["tasks_max"]),
        "CPUQuotaPerSecUSec": Typed("t", limits["cpu_us"]),
    }


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a look at a unit found, and what the files were like then."""

    files: tuple[object, ...]
    until: float
    differs: tuple[str, ...]


class Drift:
    """Compares units with what `config` and their orders say. How systemd has set a unit up changes only when
    files change, so it is asked again when they did, and once a minute."""

    def __init__(self, config: Config, units: Units) -> None:
        self._wanted = unitfile.text(config)
        self._orders = Path(config.state_dir) / "containers"
        self._units = units
        self._told: set[str] = set()
        self._seen: dict[AgentName, _Seen] = {}

    @staticmethod
    def folders() -> Folders:
        """What lies in the folders of unit files now; a full read looks once for all units."""
        return {folder: _names_in(folder) for folder in _FOLDERS} | {"": (_stamp(str(_FILE)),)}

    async def of(
        self,
        name: AgentName,
        facts: UnitFacts | None,
        order_of: Callable[[AgentName], Order | None],
        folders: Folders | None = None,
    ) -> tuple[str, ...]:
        """What differs and can be mended, in words; empty if nothing does. `facts`: of a unit that lives;
        `folders`: as they were a moment ago."""
        unit = unitfile.unit_name(name)
        invocation = "" if facts is None else facts.invocation
        found = self.folders() if folders is None else folders
        files = (
            invocation,
            *found[""],
            *((place, _stamp(place)) for place in self._places(name, unit, found)),
        )
        seen, now = self._seen.get(name), time.monotonic()
        if seen is None or seen.files != files or now > seen.until:
            order = None if facts is None else order_of(name)
            setup = None if order is None else await self._units.setup(unit)
            if order is None or setup is None:
                differs = tuple(self._of_file())
            else:
                differs = self._differs(unit, setup, order)
            seen = self._seen[name] = _Seen(files, now + _TRUST_S, differs)
        return seen.differs

    def _places(self, name: str, unit: str, folders: Folders) -> Iterator[str]:
        """What changes, comes or goes when somebody changes the unit's files, its drop-ins or its order."""
        yield f"{self._orders}/{name}/{START}"
        for folder in _FOLDERS:
            for entry in (unit, f"{unit}.d", f"{unitfile.TEMPLATE}.d"):
                if entry in folders[folder]:
                    yield f"{folder}/{entry}"

    def _differs(self, unit: str, setup: UnitSetup, order: Order) -> tuple[str, ...]:
        found = self._of_file()
        if setup.needs_reload:
            found.append("systemd has not read what changed on disk")
        for path in _foreign(unit, setup):
            what = f"{path} is not the hive's"
            if self._can_mend(path, what):
                found.append(what)
        for key, value in _limits(order).items():
            if getattr(setup, key) != value:
                found.append(f"{key} is {getattr(setup, key)} instead of {value}")
        return tuple(found)

    async def mend(self, name: AgentName, order: Order | None) -> None:
        """Mend what `of` says; nothing to do if it says nothing."""
        unit = unitfile.unit_name(name)
        await self.mend_file()
        self._seen.pop(name, None)
        facts, setup = await self._units.find(unit), await self._units.setup(unit)
        if facts is None or setup is None:
            return
        foreign = [path for path in _foreign(unit, setup) if self._can_mend(path)]
        for path in foreign:
            with contextlib.suppress(FileNotFoundError):
                if path.is_relative_to(_RUNTIME):
                    path.unlink()
                else:
                    path.rename(path.with_name(path.name + _SAVED))
        if foreign or setup.needs_reload:
            await self._units.reload()
        if order is not None and facts.is_alive:
            await self._units.set_properties(unit, properties(order))

    def doubt(self) -> None:
        """Ask systemd anew about every unit: it has read their files."""
        self._seen.clear()

    def forget(self, name: AgentName) -> None:
        """Remove the limits of a unit that is gone."""
        self._seen.pop(name, None)
        shutil.rmtree(_CONTROL / f"{unitfile.unit_name(name)}.d", ignore_errors=True)

    async def mend_file(self) -> None:
        """Bring the template on disk up to date, and let systemd read it. `PermanentError` if it is missing
        and cannot be written."""
        if not self._of_file():
            return
        temporary = _FILE.with_name(f".{_FILE.name}.new")
        try:
            temporary.write_text(self._wanted)
            temporary.chmod(0o644)
            temporary.replace(_FILE)
        except OSError as error:
            raise PermanentError(
                f"cannot write {_FILE}: {error.strerror}",
                code="no-unit-file",
                hint="run `hive install-units`",
            ) from error
        await self._units.reload()

    def _of_file(self) -> list[str]:
        try:
            found = _FILE.read_text("utf-8", "replace")
        except OSError:
            return [f"{_FILE} is missing"]
        settings = unitfile.differences(self._wanted, found)
        what = f"{_FILE} differs in {' '.join(settings)}"
        return [what] if settings and self._can_mend(_FILE, what) else []

    def _can_mend(self, path: Path, what: str = "") -> bool:
        """Whether a file is this host's to change; if not, `what` is logged once."""
        in_place = path.is_relative_to(_RUNTIME) or path.is_relative_to(_ADMIN)
        if in_place and not path.is_symlink() and os.access(path.parent, os.W_OK):
            return True
        if what and what not in self._told:
            self._told.add(what)
            log.warning("unit.managed-elsewhere", what=what)
        return False


def _limits(order: Order) -> dict[str, int]:
    """By the names of `UnitFacts`."""
    return {
        "memory_max": order.memory_bytes,
        "swap_max": 0,
        "tasks_max": order.tasks,
        "cpu_us": order.cpu_percent * 10_000,
    }


def _foreign(unit: str, setup: UnitSetup) -> list[Path]:
    """Files that shape the unit besides its template and limits; not those for all services."""
    own = {str(_CONTROL / f"{unit}.d" / name) for name in _OWN} | {str(_FILE), ""}
    paths = [Path(path) for path in (setup.fragment, *setup.drop_ins) if path not in own]
    return [path for path in paths if path.parent.name != "service.d"]


def _names_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 - names, not paths
    except OSError:
        return frozenset()


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - thousands are asked for in each full read
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
