"""Control groups of the demo's world: one of its own in each hierarchy, which the world sees as the root.

So containers' groups lie below it, two demos never meet, and what remains is removed with it. The groups are
made below the ones that `make demo` runs in, whose limits keep holding. Where a hierarchy cannot be written,
the world sees the host's own, and limits are "not enforced" as on any such host.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.demo import syscalls

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "hyperhive-demo-"
_LEAF = "services"
_CONTROLLERS = "+memory +pids +cpu"
_REMOVE_S = 5.0


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted hierarchy of the host, and a group in it: this process's own, or the one made for the
    world."""

    mount_point: Path
    is_unified: bool
    group: Path


def join(pid: int) -> tuple[Hierarchy, ...]:
    """Moves this process, `pid` by the host's count, into new groups and makes them its cgroup namespace's
    root."""
    joined = tuple(_join(hierarchy, f"{_PREFIX}{pid}") for hierarchy in _current())
    syscalls.unshare_cgroups()
    for hierarchy in joined:
        if hierarchy.is_unified and hierarchy.group.name.startswith(_PREFIX):
            # v2 gives controllers only to the children of a group without processes.
            with contextlib.suppress(OSError):
                leaf = hierarchy.group / _LEAF
                leaf.mkdir()
                (leaf / "cgroup.procs").write_text("0")
    return joined


def show(joined: tuple[Hierarchy, ...], sys_root: Path) -> None:
    """Mounts the world's groups below its /sys (`sys_root`), at the places of the host's hierarchies."""
    target = sys_root / "fs/cgroup"
    if not any(hierarchy.mount_point == _ROOT for hierarchy in joined):
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("cgroup", target, "tmpfs", flags, "size=1m,mode=0755")
        for link in (entry for entry in _ROOT.iterdir() if entry.is_symlink()):
            (target / link.name).symlink_to(link.readlink())
    for hierarchy in joined:
        place = target / hierarchy.mount_point.relative_to(_ROOT)
        place.mkdir(exist_ok=True)
        syscalls.bind(hierarchy.group, place)


def remove(pid: int) -> None:
    """Removes the groups of the world whose first process was `pid`, waiting a little for the kernel's
    tidying."""
    until = time.monotonic() + _REMOVE_S
    for group in _made(f"{_PREFIX}{pid}"):
        while group.exists():
            _remove_tree(group)
            if time.monotonic() > until:
                break
            if group.exists():
                time.sleep(0.01)


def remove_stale() -> None:
    """Removes groups of worlds whose `make demo` was killed before it could."""
    for group in _made(f"{_PREFIX}*"):
        pid = group.name.removeprefix(_PREFIX)
        if pid.isdigit() and not Path("/proc", pid).exists():
            _remove_tree(group)


def _join(own: Hierarchy, name: str) -> Hierarchy:
    """Into a new group below our own; where v2 gives that no controllers, into one below the hierarchy's
    top."""
    parents = [own.group]
    if own.is_unified and own.group != own.mount_point and not _delegates(own.group):
        parents.insert(0, own.mount_point)
    for parent in parents:
        group = parent / name
        try:
            group.mkdir()
            if own.is_unified:
                _delegates(parent)
            for file in ("cpuset.cpus", "cpuset.mems"):  # v1 lets nobody into a set without them
                if not own.is_unified and (group / file).exists():
                    (group / file).write_text((parent / file).read_text())
            (group / "cgroup.procs").write_text("0")
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        return Hierarchy(own.mount_point, own.is_unified, group)
    return own


def _delegates(group: Path) -> bool:
    """Whether the children of a v2 group get the controllers; asks for them."""
    try:
        (group / "cgroup.subtree_control").write_text(_CONTROLLERS)
    except OSError:
        return False
    return True


def _made(pattern: str) -> Iterator[Path]:
    for hierarchy in _current():
        for parent in {hierarchy.mount_point, hierarchy.group}:
            yield from parent.glob(pattern)


def _remove_tree(group: Path) -> None:
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):  # still busy: the caller tries again
            Path(folder).rmdir()


def _current() -> tuple[Hierarchy, ...]:
    """Every hierarchy that is mounted at or below /sys/fs/cgroup, with the group that this process is in."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[frozenset(controllers.split(","))] = path
    found: dict[Path, Hierarchy] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, where = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        mount_point = Path(where)
        if kind not in {"cgroup", "cgroup2"} or not mount_point.is_relative_to(_ROOT):
            continue
        given = set(options.split(","))
        keys = [key for key in own if key <= given] if kind == "cgroup" else [frozenset({""})]
        here = Path(own.get(keys[0], "/")) if keys else Path("/")
        inner = here.relative_to(root) if here.is_relative_to(root) and ".." not in here.parts else Path()
        found[mount_point] = Hierarchy(mount_point, kind == "cgroup2", mount_point / inner)
    return tuple(found[mount_point] for mount_point in sorted(found))
