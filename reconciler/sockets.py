"""Unix sockets of the hive: bound so that nobody sees a half-made one, accepted only from the right peer.

`bind` makes a listening socket under a temporary name, gives it owner and mode, and renames it over the old
one: a client finds either the old socket or the finished new one. `Listener` accepts: it reads the peer's
credentials from the kernel before a byte of the connection is parsed, and bounds how many there are.
`inherited` takes the sockets that a supervisor holds for us (socket activation): they stay while we are away,
and who connects meanwhile waits. Used by the control server, the agent server and the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import secrets
import socket
import stat
import struct
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from reconciler.errors import PermanentError, disk_full

log = structlog.get_logger("sockets")

BACKLOG = 64
_FIRST_INHERITED_FD = 3  # sd_listen_fds(3)
ACCEPT_PAUSE_S = 0.1
_SO_PEERGROUPS = 59  # not in Python's socket module; Linux 4.13
_CREDENTIALS = struct.Struct("3i")
_OPTION_MAX_BYTES = 1024  # what Python's getsockopt allows: 256 groups


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected, as the kernel recorded it at connect(): ids as this process's user namespace sees them.

    `groups` are the supplementary ones and `gid`; of a process in more than 256 groups only `gid` is known.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class Bound:
    """A listening socket and the file it answers at; `identity` is (device, inode) of that file.

    `inherited`: a supervisor holds it, too; its file is the supervisor's and stays.
    """

    sock: socket.socket
    path: Path
    identity: tuple[int, int]
    inherited: bool = False

    def is_in_place(self) -> bool:
        """Whether the file at `path` is still this socket (not removed, not replaced)."""
        try:
            found = self.path.lstat()
        except OSError:
            return False
        return stat.S_ISSOCK(found.st_mode) and (found.st_dev, found.st_ino) == self.identity

    def unlink(self) -> None:
        """Remove the file, if it is still ours: nobody new can connect."""
        if not self.inherited and self.is_in_place():
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    def close(self, *, unlink: bool) -> None:
        """Stop listening; `unlink` also removes the file, if it is still ours."""
        if unlink:
            self.unlink()
        self.sock.close()


def peer_of(connection: socket.socket) -> Peer:
    """The credentials of the process at the other end of a connected unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _OPTION_MAX_BYTES)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        groups = b""
    supplementary = struct.unpack(f"{len(groups) // 4}I", groups)
    return Peer(pid, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, frozenset(supplementary) | {gid & 0xFFFFFFFF})


def bind(path: Path, *, mode: int, uid: int, gid: int, kind: int = socket.SOCK_STREAM) -> Bound:
    """A non-blocking listening socket (a stream, or another `kind`) at `path` with that owner and mode, in
    place of whatever was there.

    The folder must exist. It may belong to somebody hostile: nothing is followed, and owner and mode are set
    on the inode that was bound. Safe to repeat; the old socket's listener is not told. `PermanentError` if
    the folder is missing or not writable.
    """
    temporary = f".{path.name}.{secrets.token_hex(4)}"
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    folder = -1
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        _sweep(folder, path.name)
        # Until listen() nobody can connect, so the file's first mode and owner do not matter. The detour over
        # /proc lifts the limit of 108 bytes on paths.
        sock.bind(f"/proc/self/fd/{folder}/{temporary}")
        try:
            identity = _own(folder, temporary, mode=mode, uid=uid, gid=gid)
            sock.listen(BACKLOG)
            os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(temporary, dir_fd=folder)
            raise
    except OSError as error:
        sock.close()
        if full := disk_full(error):
            raise full from error
        raise PermanentError(f"cannot make the socket {path}: {error.strerror}", code="socket") from error
    finally:
        if folder >= 0:
            os.close(folder)
    return Bound(sock, path, identity)


def _sweep(folder: int, name: str) -> None:
    """Remove what a process left that was killed while it made this socket."""
    left = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}")
    with contextlib.suppress(OSError):  # a folder that may only be passed through
        for entry in os.listdir(f"/proc/self/fd/{folder}"):  # noqa: PTH208 - as bind(): whatever the path is now
            if left.fullmatch(entry):
                os.unlink(entry, dir_fd=folder)


def inherited(environment: MutableMapping[str, str]) -> dict[str, Bound]:
    """The listening unix sockets that the supervisor passed to this process, by their names.

    Follows sd_listen_fds(3) with names; the variables are removed from `environment`. What is no listening
    unix stream socket, or has no name of its own, is closed and told: it would be served by nobody.
    """
    count, meant = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, Bound] = {}
    if not count.isdecimal() or meant != str(os.getpid()):
        return found
    for number in range(int(count)):
        name = names[number] if number < len(names) else ""
        try:
            sock = socket.socket(fileno=_FIRST_INHERITED_FD + number)
        except OSError as error:
            log.warning("socket.not_inherited", name=name, error=error.strerror)
            continue
        bound = _listening(sock)
        if bound is None or not name or name in found:
            log.warning("socket.not_inherited", name=name, error="no listening unix socket of its own name")
            sock.close()
            continue
        found[name] = bound
    return found


def _listening(sock: socket.socket) -> Bound | None:
    """The socket as a `Bound`, if it listens at a path."""
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM or not listens:
        return None
    name = sock.getsockname()
    if not isinstance(name, str) or not name.startswith("/"):
        return None
    sock.setblocking(False)
    sock.set_inheritable(False)
    path = Path(name)
    try:
        file = path.lstat()
    except OSError:  # somebody removed it: it still serves those who are connected to it already
        return Bound(sock, path, (0, 0), inherited=True)
    return Bound(sock, path, (file.st_dev, file.st_ino), inherited=True)


def _own(folder: int, name: str, *, mode: int, uid: int, gid: int) -> tuple[int, int]:
    """Set owner and mode of the socket `name` itself; its (device, inode)."""
    inode = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(inode)
        if not stat.S_ISSOCK(found.st_mode):
            raise PermanentError("somebody replaced the socket while it was being made", code="socket")
        if (found.st_uid, found.st_gid) != (uid, gid):  # else it needs no right, which not all who bind have
            os.chown(f"/proc/self/fd/{inode}", uid, gid)
        Path(f"/proc/self/fd/{inode}").chmod(mode)
        return found.st_dev, found.st_ino
    finally:
        os.close(inode)


class Listener:
    """Accepts connections of a bound socket for a protocol factory (`aiohttp.web.Server` is one).

    `admits` decides by the peer; a refused peer, or one connection more than `limit`, is closed unread and
    counted. Connections made stay open after `close`: they belong to the protocol's owner.
    """

    def __init__(
        self,
        bound: Bound,
        factory: Callable[[], asyncio.Protocol],
        *,
        admits: Callable[[Peer], bool],
        open_connections: Callable[[], int],
        limit: int,
    ) -> None:
        self.bound = bound
        self.refused = 0
        self.overflowed = 0
        self._factory = factory
        self._admits = admits
        self._open = open_connections
        self._limit = limit
        self._idle = False
        self._closing = False
        self._task = asyncio.create_task(self._accept(), name=f"accept {bound.path}")

    @property
    def alive(self) -> bool:
        """Whether it still accepts and its file is in place."""
        return not self._task.done() and self.bound.is_in_place()

    async def close(self, *, unlink: bool = True) -> None:
        """Stop accepting; with `unlink` the file goes, too. Safe to repeat.

        Who has connected to a socket of our own is accepted first, as it would be cut off with the socket; at
        an inherited one it waits for the next process.
        """
        self._closing = True
        if self._idle:  # else it is about a connection, which a cancellation would cut off
            self._task.cancel()
        await asyncio.wait({self._task})
        if unlink and not self.bound.inherited and self.bound.sock.fileno() >= 0:
            self.bound.unlink()
            with contextlib.suppress(OSError):
                while await self._accept_one():
                    pass
        self.bound.close(unlink=unlink)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closing:
            self._idle = True
            await _readable(loop, self.bound.sock)
            self._idle = False
            try:
                await self._accept_one()
            except OSError as error:  # out of descriptors, or the peer has gone: neither ends the server
                log.warning("socket.accept_failed", path=str(self.bound.path), error=error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_S)

    async def _accept_one(self) -> bool:
        """Accept a connection and hand it on, in one go: a cancellation cannot lose it in between. False if
        nobody waits."""
        try:
            connection, _ = self.bound.sock.accept()
        except BlockingIOError:
            return False
        try:
            connection.setblocking(False)
            await self._take(asyncio.get_running_loop(), connection)
        except OSError as error:
            connection.close()
            log.warning("socket.connection_lost", path=str(self.bound.path), error=error.strerror)
        return True

    async def _take(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        peer = peer_of(connection)
        if not self._admits(peer):
            connection.close()
            self.refused += 1
            self._tell("socket.peer_refused", self.refused, uid=peer.uid, pid=peer.pid)
        elif self._open() >= self._limit:
            connection.close()
            self.overflowed += 1
            self._tell("socket.too_many_connections", self.overflowed, limit=self._limit)
        else:
            await loop.connect_accepted_socket(self._factory, connection)

    def _tell(self, event: str, count: int, **fields: int) -> None:
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th …: a hostile peer must not fill the journal
            log.warning(event, path=str(self.bound.path), count=count, **fields)


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Wait until something can be read (a connection be accepted)."""
    ready = loop.create_future()

    def is_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, is_ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


__all__ = ["Bound", "Listener", "Peer", "bind", "inherited", "peer_of"]
