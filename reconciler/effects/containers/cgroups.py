"""A control group per container, in v2 where its controllers are, else in v1, else not at all (and it says
so).

Standard library only, as the shim and the unit's helper import it. The shim's groups are
`hyperhive/<name>.<invocation>` below each hierarchy; those of units are systemd's, and only read here.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

PARENT = "hyperhive"
_ROOT = Path("/sys/fs/cgroup")
_CPU_PERIOD_US = 100_000
_UNLIMITED = 1 << 62  # what v1 says for no memory limit is the largest multiple of a page


class Group(NamedTuple):
    """The control groups of one container: their directories, and which limits they hold (memory, tasks,
    cpu)."""

    paths: tuple[str, ...]
    enforced: tuple[str, ...]


def unified_root(root: Path = _ROOT) -> Path | None:
    """Where the v2 hierarchy is mounted, or None."""
    return next((p for p in (root, root / "unified") if (p / "cgroup.controllers").exists()), None)


def create(name: str, *, memory_bytes: int, cpu_percent: int, tasks: int, root: Path = _ROOT) -> Group:
    """Make groups of that name with as many of the limits as can be had; never fails, tells what is
    enforced."""
    paths: list[str] = []
    enforced: list[str] = []
    unified = unified_root(root)
    if unified is not None:
        group = _make(unified, name, controllers=("memory", "pids", "cpu"))
        if group is not None:
            paths.append(str(group))
            if _set(group, {"memory.max": memory_bytes}):
                _set(group, {"memory.swap.max": 0})
                enforced.append("memory")
            if _set(group, {"pids.max": tasks}):
                enforced.append("tasks")
            if _set(group, {"cpu.max": f"{cpu_percent * _CPU_PERIOD_US // 100} {_CPU_PERIOD_US}"}):
                enforced.append("cpu")
    # nspawn mirrors its v2 group into the v1 hierarchy that has no controller; known here, it is removed
    # here.
    mirror = _make(root / "systemd", name) if (root / "systemd/cgroup.procs").exists() else None
    if mirror is not None:
        paths.append(str(mirror))
    legacy: dict[str, tuple[str, list[dict[str, int]]]] = {
        "memory": (
            "memory",
            [{"memory.limit_in_bytes": memory_bytes}, {"memory.memsw.limit_in_bytes": memory_bytes}],
        ),
        "tasks": ("pids", [{"pids.max": tasks}]),
        "cpu": (
            "cpu",
            [
                {"cpu.cfs_period_us": _CPU_PERIOD_US},
                {"cpu.cfs_quota_us": cpu_percent * _CPU_PERIOD_US // 100},
            ],
        ),
    }
    for limit, (controller, settings) in legacy.items():
        if limit in enforced or not (root / controller / "cgroup.procs").exists():
            continue
        group = _make(root / controller, name)
        if group is None:
            continue
        done = [_set(group, setting) for setting in settings]
        if done[0] and (limit != "cpu" or all(done)):  # memsw exists only with swap accounting
            paths.append(str(group))
            enforced.append(limit)
        else:
            remove((str(group),))
    return Group(tuple(paths), tuple(sorted(enforced)))


def of_unit(pid: int | str, unit: str, root: Path = _ROOT) -> tuple[str, ...]:
    """The control groups of a systemd unit, in every hierarchy where `pid` (or `self`) is in them; empty if
    it is gone."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ()
    found: list[str] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        above, mark, _ = path.partition(f"/{unit}")
        hierarchy = root / controllers.removeprefix("name=") if controllers else unified_root(root)
        if mark and hierarchy is not None and (group := Path(f"{hierarchy}{above}{mark}")).is_dir():
            found.append(str(group))
    return tuple(found)


def enforced(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Which limits the kernel has for these groups: memory, tasks, cpu; sorted."""
    found: set[str] = set()
    for limit, file in (
        ("memory", "memory.max"), ("memory", "memory.limit_in_bytes"), ("tasks", "pids.max"),
        ("cpu", "cpu.max"), ("cpu", "cpu.cfs_quota_us"),
    ):  # fmt: skip
        for path in paths:
            with contextlib.suppress(OSError, ValueError), open(f"{path}/{file}") as values:  # noqa: PTH123
                word = values.readline().split()[0]
                if word != "max" and 0 < int(word) < _UNLIMITED:
                    found.add(limit)
    return tuple(sorted(found))


def enter(paths: tuple[str, ...]) -> None:
    """Move the calling process into the groups; one that refuses is an error, as its limit would be a lie."""
    for path in paths:
        Path(path, "cgroup.procs").write_text("0")


def kill(paths: tuple[str, ...], *, timeout_s: float = 5.0) -> bool:
    """SIGKILL all processes of the groups until none is left; False if some are left after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        left = False
        for path in paths:
            with contextlib.suppress(OSError):
                Path(path, "cgroup.kill").write_text("1")
            for pid in _members(path):
                left = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        if not left:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


def freeze(paths: tuple[str, ...], *, frozen: bool) -> bool:
    """Suspend (or let go on) all processes of the groups; False if no group of them can (v1 has no file for
    it). The kernel does it in a moment: `is_frozen` tells when."""
    done = False
    for path in paths:
        with contextlib.suppress(OSError):
            file = Path(path, "cgroup.freeze")
            if file.exists():
                file.write_text("1" if frozen else "0")
                done = True
    return done


def is_frozen(paths: tuple[str, ...]) -> bool | None:
    """Whether the kernel has suspended all processes of the groups; None if no group can be frozen."""
    for path in paths:
        with contextlib.suppress(OSError), open(f"{path}/cgroup.events", "rb") as events:  # noqa: PTH123
            return b"frozen 1" in events.read().splitlines()
    return None


def oom_kills(paths: tuple[str, ...]) -> int:
    """How many processes the kernel killed because the memory limit was reached."""
    counts = [0]
    for path in paths:
        for file in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                lines = Path(path, file).read_text().splitlines()
                counts += [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return max(counts)


def remove(paths: tuple[str, ...], *, timeout_s: float = 2.0) -> None:
    """Remove the groups, and their parent if it is empty. A group may be busy a moment after its last
    process."""
    deadline = time.monotonic() + timeout_s
    left = [path for path in paths if Path(path).is_dir()]
    while left and time.monotonic() < deadline:
        for path in left:
            for directory, _, _ in os.walk(path, topdown=False):
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()
        left = [path for path in left if Path(path).is_dir()]
        if left:
            time.sleep(0.01)
    for path in paths:
        with contextlib.suppress(OSError):
            Path(path).parent.rmdir()


def _make(hierarchy: Path, name: str, controllers: tuple[str, ...] = ()) -> Path | None:
    group = hierarchy / PARENT / name
    try:
        group.parent.mkdir(exist_ok=True)
        for parent in (hierarchy, group.parent):
            for controller in controllers:
                with contextlib.suppress(OSError):  # not there, or processes in the parent: no limit then
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        group.mkdir(parents=True, exist_ok=True)  # another container's end may just have removed the parent
        if os.access(group / "cgroup.procs", os.W_OK):
            return group
    except OSError:
        pass
    with contextlib.suppress(OSError):
        group.rmdir()
    return None


def _set(group: Path, values: dict[str, int] | dict[str, str]) -> bool:
    try:
        for file, value in values.items():
            if not (group / file).exists():
                return False
            (group / file).write_text(str(value))
    except OSError:
        return False
    return True


def _members(path: str) -> list[int]:
    members: list[int] = []
    for directory, _, _ in os.walk(path):
        with contextlib.suppress(OSError, ValueError):
            members += [int(pid) for pid in Path(directory, "cgroup.procs").read_text().split()]
    return [pid for pid in members if pid > 0]
