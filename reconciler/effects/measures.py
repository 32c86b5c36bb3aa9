"""Measures of a container from outside: how much memory its processes have, how large its notes are.

Nothing inside is asked, and no name that an agent can choose is followed: what it cannot measure it leaves
out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from reconciler.effects.containers import cgroups
from reconciler.model.names import AgentName

NOTES = "notes.md"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STAT_MAX = 64 * 1024


class RealMeasures:
    """`Measures` on this machine. `state_dir`: the hive's."""

    def __init__(self, state_dir: Path) -> None:
        self._agents = state_dir / "agents"

    async def notes_bytes(self, name: AgentName) -> int | None:
        """The size of the agent's notes; None without any, or if that is no regular file."""
        return await asyncio.to_thread(_notes, self._agents / name / "state")

    async def memory_bytes(self, leaders: Mapping[AgentName, int]) -> Mapping[AgentName, int]:
        """Memory of the containers whose first processes are `leaders` (pids): of their control group, files
        in the cache left out; where there is none that counts, the sum of what their processes have
        resident."""
        return await asyncio.to_thread(_memory, dict(leaders))


def _notes(state: Path) -> int | None:
    # The directory's own name lies in one of root; what is in it belongs to the agent, so it is looked at
    # through a descriptor and no link is followed.
    try:
        directory = os.open(state, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.stat(NOTES, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    finally:
        os.close(directory)
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _memory(leaders: dict[AgentName, int]) -> dict[AgentName, int]:
    found = {name: of_group(pid, name) for name, pid in leaders.items()}
    left = {name: leaders[name] for name, size in found.items() if size is None}
    known = {name: size for name, size in found.items() if size is not None}
    return known | (_resident(left) if left else {})


def of_group(
    pid: int, name: str, root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")
) -> int | None:
    """Anonymous memory of the container's control group, in bytes; None if no group of it counts memory."""
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / str(pid) / "cgroup").read_text("utf-8", "replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            hierarchy = root / "memory" if controllers else cgroups.unified_root(root)
            group = _own(hierarchy, path, name) if hierarchy is not None else None
            if group is not None and (size := _anonymous(group / "memory.stat")) is not None:
                return size
    return None


def _own(hierarchy: Path, path: str, name: str) -> Path | None:
    """The group of the whole container, of which `path` may be a part."""
    group = hierarchy
    for part in path.strip("/").split("/"):
        group = group / part
        if part.startswith(f"{name}.") or part == f"hive-agent@{name}.service":
            return group
    return None


def _anonymous(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError), file.open("rb") as lines:
        values = dict(line.split() for line in lines.read(_STAT_MAX).decode("ascii").splitlines())
        for word in ("anon", "total_rss"):  # of v2, and of v1 with what lies below
            if word in values:
                return int(values[word])
    return None


def _resident(leaders: dict[AgentName, int]) -> dict[AgentName, int]:
    """One look at all processes for all containers; a page that two of them share counts twice."""
    spaces = {}
    for name, pid in leaders.items():
        with contextlib.suppress(OSError):
            spaces[os.readlink(f"/proc/{pid}/ns/pid")] = name  # noqa: PTH115 - a name, no path
    own = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    spaces.pop(own, None)
    sums: dict[AgentName, int] = dict.fromkeys(spaces.values(), 0)
    for entry in os.scandir("/proc") if spaces else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                owner = spaces.get(os.readlink(f"{entry.path}/ns/pid"))  # noqa: PTH115
                if owner is not None:
                    sums[owner] += int(Path(entry.path, "statm").read_text("ascii").split()[1]) * _PAGE
    return sums
