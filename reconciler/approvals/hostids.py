"""Uids and gids of the host that belong to others: passwd, group, subuid, subgid.

The files are read as they are, not through NSS: a directory service must not be able to hang a decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reconciler.approvals.rules import RANGE, Reserved


def reserved(etc: Path = Path("/etc")) -> tuple[Reserved, ...]:
    """Ranges that no agent may get, in order. Lines that cannot be read are passed over: they reserve
    nothing."""
    return tuple(sorted((*_ranges(etc), *_singles(etc)), key=lambda found: (found.first, found.source)))


def _lines(path: Path) -> Iterator[list[str]]:
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return
    for line in text.splitlines():
        yield line.strip().split(":")


def _ranges(etc: Path) -> Iterator[Reserved]:
    for name in ("subuid", "subgid"):
        for fields in _lines(etc / name):
            if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
                yield Reserved(int(fields[1]), int(fields[2]), f"{etc / name} ({fields[0]})")


def _singles(etc: Path) -> Iterator[Reserved]:
    for name in ("passwd", "group"):
        for fields in _lines(etc / name):
            # agents' ranges begin above the first 65536 ids
            if len(fields) > 2 and fields[2].isdecimal() and int(fields[2]) >= RANGE:
                yield Reserved(int(fields[2]), 1, f"{etc / name} ({fields[0]})")
