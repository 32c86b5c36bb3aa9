"""Tags of one of our repositories: read without asking git while its refs lie as they lay, made, put back."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.effects.git.command import git
from reconciler.model.names import Commit

ZERO = "0" * 40
TAG = re.compile(r"[a-z0-9][a-z0-9-]{0,40}(/[a-z0-9][a-z0-9-]{0,40})?")

# A file that changes twice within one tick of the file system's clock looks the same afterwards: what was
# read that soon after a change is read again (the same as git's own racy index).
_RACY_NS = 2_000_000_000
_LOOSE_MAX = 512
_OBJECT = re.compile(rb"[0-9a-f]{40}\n?")

Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Read:
    stamp: Stamp
    settled: bool
    tags: dict[str, Commit]


class Tags:
    """Tags by repository; `read` costs a `stat` per loose ref when nothing changed since the last one."""

    def __init__(self) -> None:
        self._known: dict[Path, _Read] = {}

    async def read(self, repository: Path) -> dict[str, Commit]:
        """Tag → commit, peeled. One that is broken, or whose commit is gone, is not there."""
        stamp = _stamp(repository)
        known = self._known.get(repository)
        if known is None or not known.settled or known.stamp != stamp:
            newest = max((entry[1] for entry in stamp), default=0)
            known = _Read(stamp, time.time_ns() - newest > _RACY_NS, await _ask(repository))
            self._known[repository] = known
        return dict(known.tags)

    async def write(
        self, repository: Path, tag: str, commit: Commit, message: str | None, now: float, *, create: bool
    ) -> None:
        """Make the tag, annotated if there is a `message`. `create`: only if there is none; else whatever is
        there is replaced."""
        target: str = commit
        if message is not None:
            text = (
                f"object {commit}\ntype commit\ntag {tag}\n"
                f"tagger hyperhive <hyperhive@localhost> {int(now)} +0000\n\n{clean(message)}\n"
            )
            target = (await git(repository, "mktag", stdin=text.encode())).text.strip()
        if not create:
            _remove_broken(repository / "refs/tags" / tag)
        old = (ZERO,) if create else ()
        await git(
            repository, "update-ref", "--no-deref", "--end-of-options", f"refs/tags/{tag}", target, *old
        )
        if len(_stamp(repository)) > _LOOSE_MAX:
            await git(repository, "pack-refs", "--all")


def _remove_broken(ref: Path) -> None:
    """Git neither replaces nor deletes a ref that it cannot read."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        if ref.is_symlink() or not _OBJECT.fullmatch(ref.read_bytes()[:64]):
            ref.unlink()


def clean(message: str) -> str:
    """A message for a tag or commit: bounded, without NUL."""
    return message.replace("\0", "").strip()[:8192] or "-"


async def _ask(repository: Path) -> dict[str, Commit]:
    listed = await git(repository, "for-each-ref", "--format=%(refname) %(objectname)", "refs/tags/")
    refs = [line.split() for line in listed.text.splitlines()]
    asked = "".join(f"{target}^{{commit}}\n" for _, target in refs).encode()
    peeled = await git(repository, "cat-file", "--batch-check=%(objectname) %(objecttype)", stdin=asked)
    return {
        name.removeprefix("refs/tags/"): Commit(found)
        for (name, _), (found, kind) in zip(
            refs, (line.rsplit(" ", 1) for line in peeled.text.splitlines()), strict=True
        )
        if kind == "commit"
    }


def _stamp(repository: Path) -> Stamp:
    """Name, time of change, inode and size of everything that tags are read from."""
    return tuple(sorted(_entries(repository)))


def _entries(repository: Path) -> Iterator[tuple[str, int, int, int]]:
    with contextlib.suppress(FileNotFoundError):
        yield _entry("packed-refs", (repository / "packed-refs").stat())
    folders = [repository / "refs/tags"]
    while folders:
        folder = folders.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                yield _entry(entry.path, entry.stat(follow_symlinks=False))
                if entry.is_dir(follow_symlinks=False):
                    folders.append(folder / entry.name)


def _entry(name: str, found: os.stat_result) -> tuple[str, int, int, int]:
    return name, found.st_mtime_ns, found.st_ino, found.st_size
