"""Tags of one of our repositories: read without asking git while its refs lie as they lay, made, put back."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.effects.git.command import git
from reconciler.model.names import Commit

ZERO = "0" * 40
TAG = re.compile(r"[a-z0-9][a-z0-9-]{0,40}(/[a-z0-9][a-z0-9-]{0,40})?")

# A file that changes twice within one tick of the file system's clock looks the same afterwards: what was
# read that soon after a change is read again (the same as git's own racy index).
_RACY_NS = 2_000_000_000
# A file that is overwritten in its place does not change its directory: so often, each of them is looked at.
_EACH_FILE_S = 60.0
_LOOSE_MAX = 512
_OBJECT = re.compile(rb"[0-9a-f]{40}\n?")

Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(slots=True)
class _Read:
    """`folders`: stamp of the directories, `files`: of everything, looked at last at `at` (monotonic)."""

    folders: Stamp
    files: Stamp
    at: float
    settled: bool
    tags: dict[str, Commit]


class Tags:
    """Tags by repository; `read` costs a `stat` per directory of tags when nothing changed since the last."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._known: dict[Path, _Read] = {}

    async def read(self, repository: Path) -> dict[str, Commit]:
        """Tag → commit, peeled. One that is broken, or whose commit is gone, is not there. One whose file
        was overwritten in its place is seen within a minute."""
        known, folders, now = self._known.get(repository), _stamp(repository, files=False), self._now()
        if known is not None and known.settled and known.folders == folders:
            if now - known.at < _EACH_FILE_S:
                return dict(known.tags)
            if known.files == _stamp(repository, files=True):
                known.at = now
                return dict(known.tags)
        files = _stamp(repository, files=True)
        newest = max((entry[1] for entry in files), default=0)
        settled = time.time_ns() - newest > _RACY_NS
        known = _Read(folders, files, now, settled, await _ask(repository))
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
        if len(_stamp(repository, files=True)) > _LOOSE_MAX:
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


def _stamp(repository: Path, *, files: bool) -> Stamp:
    """Name, time of change, inode and size of what tags are read from: the packed ones, directories and, if
    asked for, each file."""
    return tuple(sorted(_entries(str(repository), files=files)))


def _entries(repository: str, *, files: bool) -> Iterator[tuple[str, int, int, int]]:
    folders = [f"{repository}/refs/tags"]
    for place in (f"{repository}/packed-refs", *folders):
        with contextlib.suppress(FileNotFoundError):
            yield _entry(place, os.stat(place))  # noqa: PTH116 - asked for each agent in each pass
    while folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder:
                    folders.append(entry.path)
                if files or is_folder:
                    yield _entry(entry.path, entry.stat(follow_symlinks=False))


def _entry(name: str, found: os.stat_result) -> tuple[str, int, int, int]:
    return name, found.st_mtime_ns, found.st_ino, found.st_size
