"""Read a tree that belongs to an agent: hostile, alive, and perhaps built to break who reads it.

No link is followed and no name is looked up twice: each entry is opened without effect (O_PATH), looked at,
and only what is a regular file is opened for reading. Neither depth, number, length of sparse files nor what
the agent does meanwhile can make it endless: everything has a bound, and what is beyond it is told and left
out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

DEPTH_MAX = 100
ENTRIES_MAX = 5_000_000
LISTED_MAX = 1_000_000
LINKED_MAX = 200_000
EXTENTS_MAX = 10_000
_HOLE_MIN = 64 * 1024
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing of the tree. `path` is relative to the tree ("" for its top), undecodable bytes as
    surrogates.

    `target`: of a symbolic link, or the path of the entry that a hard link equals. `fd`: of a regular file,
    open for reading until the next entry is asked for. `extents`: where it holds data, None if it is not
    sparse.
    """

    path: str
    status: os.stat_result
    target: str | None = None
    fd: int | None = None
    extents: tuple[tuple[int, int], ...] | None = None

    @property
    def is_directory(self) -> bool:
        """Whether entries may follow that lie below it."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_symlink(self) -> bool:
        """Whether `target` is the text of a symbolic link."""
        return stat.S_ISLNK(self.status.st_mode)

    @property
    def data_bytes(self) -> int:
        """Bytes of data that are to be read."""
        if self.fd is None:
            return 0
        if self.extents is None:
            return self.status.st_size
        return sum(length for _, length in self.extents)


@dataclass(slots=True)
class _Walk:
    """One walk under way: what it has passed, and how much more it may."""

    device: int
    skip: Callable[[str, str], None]
    bytes_left: int
    entries_left: int
    listed: int = 0  # names in memory
    linked: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Level:
    """A directory that is being walked: open, its path with a slash, names that are still to come."""

    fd: int
    prefix: str
    names: list[str]


def walk(top: Path, skip: Callable[[str, str], None]) -> Iterator[Entry]:
    """Every entry of the tree, directories before what is in them; nothing if there is no such directory.

    `skip(path, why)` is told of what is left out.
    """
    try:
        fd = os.open(top, _LIST)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if error.errno == errno.ELOOP:
            skip("", "it is a symbolic link")
            return
        raise
    room = os.fstatvfs(fd)
    state = _Walk(
        os.fstat(fd).st_dev, skip, bytes_left=room.f_blocks * room.f_frsize, entries_left=ENTRIES_MAX
    )
    stack: list[_Level] = []
    try:
        stack.append(_Level(fd, "", _names(state, fd, "")))
        yield Entry("", os.fstat(fd))
        while stack:
            here, prefix, names = stack[-1].fd, stack[-1].prefix, stack[-1].names
            if not names:
                os.close(stack.pop().fd)
                continue
            name = names.pop()
            state.listed -= 1
            if state.entries_left <= 0:
                skip(prefix, f"the tree has more than {ENTRIES_MAX} entries; the rest is left out")
                return
            state.entries_left -= 1
            path = f"{prefix}{name}"
            with contextlib.ExitStack() as opened:
                entry = _look(state, here, name, path, opened)
                if entry is None:
                    continue
                yield entry
            if entry.is_directory:
                _descend(stack, state, here, name, path)
    finally:
        for level in stack:
            os.close(level.fd)


def _descend(stack: list[_Level], state: _Walk, here: int, name: str, path: str) -> None:
    if len(stack) >= DEPTH_MAX:
        state.skip(path, f"what is in it lies deeper than {DEPTH_MAX} levels")
        return
    try:
        fd = os.open(name, _LIST, dir_fd=here)
    except OSError as error:
        state.skip(path, f"it changed while it was read ({error.strerror})")
        return
    stack.append(_Level(fd, f"{path}/", _names(state, fd, path)))


def _names(state: _Walk, fd: int, path: str) -> list[str]:
    """The directory as it is now, last first: what is added later is not seen, so that a walk ends."""
    names: list[str] = []
    with os.scandir(fd) as found:
        for one in found:
            if state.listed >= LISTED_MAX:
                state.skip(path, f"there are more than {LISTED_MAX} entries; the rest of it is left out")
                break
            names.append(one.name)
            state.listed += 1
    names.sort(reverse=True)
    return names


def _look(state: _Walk, here: int, name: str, path: str, opened: contextlib.ExitStack) -> Entry | None:
    """The entry, or None if it has gone or is left out. `opened` closes its descriptors."""
    try:
        fd = os.open(name, _LOOK, dir_fd=here)
    except FileNotFoundError:
        return None  # it has gone since the directory was read, as if it had gone before
    except OSError as error:
        state.skip(path, f"it cannot be opened ({error.strerror})")
        return None
    opened.callback(os.close, fd)
    status = os.fstat(fd)
    if status.st_dev != state.device:
        state.skip(path, "it lies on another file system")
        return None
    match stat.S_IFMT(status.st_mode):
        case stat.S_IFDIR:
            return Entry(path, status)
        case stat.S_IFLNK:
            return Entry(path, status, target=os.readlink("", dir_fd=fd))
        case stat.S_IFREG:
            return _file(state, fd, path, status, opened)
        case _:
            state.skip(path, "it is a socket, a pipe or a device")
            return None


def _file(
    state: _Walk, fd: int, path: str, status: os.stat_result, opened: contextlib.ExitStack
) -> Entry | None:
    if status.st_nlink > 1:
        if (first := state.linked.get(status.st_ino)) is not None:
            return Entry(path, status, target=first)
        if len(state.linked) >= LINKED_MAX:
            state.skip(path, f"the tree has more than {LINKED_MAX} files with several names")
            return None
    try:
        reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except BlockingIOError:  # fcntl(2), F_SETLEASE: the owner of a file may let who opens it wait
        state.skip(path, "a program of the agent's holds a lease on it")
        return None
    opened.callback(os.close, reading)
    status = os.fstat(reading)
    extents = None
    if status.st_blocks * 512 < status.st_size:
        extents = _extents(reading, status.st_size)
        if extents is None:
            state.skip(path, f"it is a sparse file of more than {EXTENTS_MAX} pieces")
            return None
    entry = Entry(path, status, fd=reading, extents=extents)
    if entry.data_bytes > state.bytes_left:
        state.skip(path, "the tree has given more bytes than its file system has")
        return None
    state.bytes_left -= entry.data_bytes
    if status.st_nlink > 1:
        state.linked[status.st_ino] = path
    return entry


def _extents(fd: int, size: int) -> tuple[tuple[int, int], ...] | None:
    """Where a sparse file holds data, small holes counted as data; None if it is too fragmented."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            end = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end, or what was there was cut off meanwhile
                break
            raise
        if begin >= size:
            break
        if found and begin - sum(found[-1]) < _HOLE_MIN:
            found[-1] = (found[-1][0], end - found[-1][0])
        elif len(found) >= EXTENTS_MAX:
            return None
        else:
            found.append((begin, end - begin))
        at = end
    return tuple(found)
