"""Unpack the members of a backup below one directory that nobody else can enter.

Every step goes from directory to directory by descriptor without following links, nothing that exists is
written over, and ids are the agent's own or root's: an archive can put nothing anywhere else, whatever it
holds.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from reconciler.backup import format as form
from reconciler.backup.format import Header, Place, damaged

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Unpacking:
    """The sink that unpacks below `top`, an empty directory of root's."""

    def __init__(self, top: Path) -> None:
        self._top = os.open(top, _DIRECTORY)
        self._header: Header | None = None
        # Directories that are being filled, outermost first: name, descriptor, instant to set at their end.
        self._open: list[tuple[str, int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(0)
        os.close(self._top)

    def begin(self, header: Header) -> None:
        """Ids come from the header."""
        self._header = header

    def member(self, info: tarfile.TarInfo, place: Place, chunks: Iterator[bytes]) -> None:
        """Make one entry."""
        parts = info.name.split("/")
        parent = self._enter(parts[:-1])
        owner = self._owner(info, place)
        mode = info.mode & {"tree": 0o7777, "database": 0o600}.get(place.kind, 0o777)
        try:
            if info.isdir():
                self._make(parts, owner, mode, int(info.mtime))
                for _ in chunks:
                    pass
                return
            if info.islnk():
                self._link(info, parent, parts[-1])
            elif info.issym():
                os.symlink(info.linkname, parts[-1], dir_fd=parent)
                os.chown(parts[-1], *owner, dir_fd=parent, follow_symlinks=False)
                _set_time(parts[-1], parent, int(info.mtime))
            else:
                _write(info, parent, parts[-1], owner, mode, chunks)
                return
        except FileExistsError as error:
            raise damaged(f"{info.name!r:.200} is in it twice") from error
        except (NotADirectoryError, FileNotFoundError) as error:
            raise damaged(f"{info.name!r:.200} lies nowhere") from error
        for _ in chunks:
            pass

    # ------------------------------------------------------------------------------------------- inside
    def _owner(self, info: tarfile.TarInfo, place: Place) -> tuple[int, int]:
        if place.kind != "tree":
            return 0, 0
        assert self._header is not None, "the header comes first"
        base = self._header.base_of(place.agent)
        own = info.pax_headers.get(form.PAX_OWNER) is None
        if own and base is None:
            raise damaged(f"no row speaks of {place.agent}, whose tree is in it")
        if max(info.uid, info.gid) >= 65536 and (own or base is not None):
            raise damaged(f"{info.name!r:.200} belongs to uid {info.uid}, which is not the agent's")
        return (info.uid + (base or 0), info.gid + (base or 0)) if own else (info.uid, info.gid)

    def _enter(self, parts: list[str]) -> int:
        """The directory of the next member, made (root's alone) as far as it is missing."""
        common = 0
        while common < min(len(parts), len(self._open)) and self._open[common][0] == parts[common]:
            common += 1
        self._leave(common)
        while len(self._open) < len(parts):
            self._push(parts[len(self._open)], -1)
        return self._open[-1][1] if self._open else self._top

    def _push(self, name: str, mtime: int) -> None:
        here = self._open[-1][1] if self._open else self._top
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=here)
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=here)
        except OSError as error:
            raise damaged(f"{name!r:.200} is no directory, and something lies below it") from error
        self._open.append((name, fd, mtime))

    def _make(self, parts: list[str], owner: tuple[int, int], mode: int, mtime: int) -> None:
        self._push(parts[-1], mtime)
        fd = self._open[-1][1]
        os.fchown(fd, *owner)
        os.fchmod(fd, mode)

    def _leave(self, depth: int) -> None:
        while len(self._open) > depth:
            _, fd, mtime = self._open.pop()
            if mtime >= 0:
                with contextlib.suppress(OverflowError, OSError):
                    os.utime(fd, (mtime, mtime))
            os.close(fd)

    def _link(self, info: tarfile.TarInfo, parent: int, name: str) -> None:
        here = os.dup(self._top)
        *folders, last = info.linkname.split("/")
        try:
            for folder in folders:
                deeper = os.open(folder, _DIRECTORY, dir_fd=here)
                os.close(here)
                here = deeper
            os.link(last, name, src_dir_fd=here, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(here)


def _write(
    info: tarfile.TarInfo, parent: int, name: str, owner: tuple[int, int], mode: int, chunks: Iterator[bytes]
) -> None:
    sparse = form.sparse_map(info)
    extents, size = sparse if sparse is not None else ([(0, info.size)], info.size)
    with os.fdopen(os.open(name, _NEW, 0o600, dir_fd=parent), "wb", buffering=0) as file:
        fd = file.fileno()
        os.ftruncate(fd, size)
        where = iter(extents)
        at, left = next(where, (0, 0))
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                while not left:
                    at, left = next(where)
                written = os.pwrite(fd, view[:left], at)
                at, left, view = at + written, left - written, view[written:]
        os.fchown(fd, *owner)
        os.fchmod(fd, mode)
        with contextlib.suppress(OverflowError, OSError):
            os.utime(fd, (int(info.mtime), int(info.mtime)))


def _set_time(name: str, parent: int, mtime: int) -> None:
    with contextlib.suppress(OverflowError, OSError):
        os.utime(name, (mtime, mtime), dir_fd=parent, follow_symlinks=False)
