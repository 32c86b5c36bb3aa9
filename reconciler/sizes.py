"""How much room trees take, within bounds: what agents made may have any number of files, however deep."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ENTRIES_MAX = 100_000
BUSY_MAX_S = 1.0


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes on the disk of what was seen; `whole`: that was all."""

    used: int
    whole: bool


def size_of(roots: Iterable[Path], *, entries_max: int = ENTRIES_MAX, busy_max_s: float = BUSY_MAX_S) -> Size:
    """Of these directories together. Follows no links, counts a file of several names once; what cannot be
    read, or comes after the bounds, is missing and said so. Blocks: call it in a thread."""
    ends = time.monotonic() + busy_max_s
    folders = [os.fspath(root) for root in roots]
    used, seen, whole = 0, 0, True
    known: set[tuple[int, int]] = set()
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > entries_max or time.monotonic() > ends:
                        return Size(used, whole=False)
                    found = entry.stat(follow_symlinks=False)
                    if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        if (found.st_dev, found.st_ino) in known:
                            continue
                        known.add((found.st_dev, found.st_ino))
                    used += found.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except FileNotFoundError:
            continue  # there is none, or it went just now
        except OSError:
            whole = False  # a path too long, a file system that fails
    return Size(used, whole)
