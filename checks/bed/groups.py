"""Control groups of a bed: one of its own, so that the systemds of two beds never meet in the same group.

On a hybrid machine nspawn uses two hierarchies (version 2 and systemd's own), else only version 2.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_REMOVE_S = 5.0
# Shell: joins the groups whose member files are its arguments up to `--`, which it drops with them.
JOIN = """
while [ "$1" != -- ]; do echo 0 > "$1"; shift; done; shift
"""


def make(name: str) -> tuple[Path, ...]:
    """New groups below those that this process is in; the directories."""
    made = named(name)
    for group in made:
        group.mkdir(exist_ok=True)
    return made


def named(name: str) -> tuple[Path, ...]:
    """Where groups of that name are, or would be."""
    return tuple(hierarchy / own.lstrip("/") / name for hierarchy, own in _hierarchies())


def files(made: tuple[Path, ...]) -> list[str]:
    """What a process writes 0 to in order to join."""
    return [str(group / "cgroup.procs") for group in made]


def members(group: Path) -> list[int]:
    """Every process in the group or below it; none once it is gone."""
    found = []
    for folder, _, names in os.walk(group):
        if "cgroup.procs" in names:
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split()]
    return found


def remove(made: tuple[Path, ...]) -> None:
    """Remove the groups, waiting a little for the last processes to be gone; what stays busy stays."""
    deadline = time.monotonic() + _REMOVE_S
    for group in made:
        while group.is_dir() and time.monotonic() < deadline:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            if group.is_dir():
                time.sleep(0.01)


def _hierarchies() -> list[tuple[Path, str]]:
    """Mount point and this process's own group, of version 2 and of systemd's named hierarchy."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            pure = (_ROOT / "cgroup.controllers").exists()
            found.append((_ROOT if pure else _ROOT / "unified", path))
        elif controllers == "name=systemd":
            found.append((_ROOT / "systemd", path))
    return [(hierarchy, path) for hierarchy, path in found if hierarchy.is_dir()]
