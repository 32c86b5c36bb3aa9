"""What the kernel tells of this host. Standard library only: the demo asks before anything is installed."""

from __future__ import annotations

from pathlib import Path

# Containers see their root through an id-mapped mount, which these file systems cannot do (or did late).
NO_ID_MAPS = frozenset({"9p", "cifs", "exfat", "fuse", "fuseblk", "nfs", "nfs4", "ntfs3", "overlay", "vfat"})


def file_system(path: Path) -> str:
    """The type of the file system that a path lies on, from the innermost mount above it."""
    best, kind = "", ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        where = before.split()[4].replace("\\040", " ")
        if len(where) >= len(best) and path.is_relative_to(where):
            best, kind = where, after.split()[0]
    return kind


def number(path: str) -> int | None:
    """A setting of /proc/sys; None if this kernel has none of that name."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None
