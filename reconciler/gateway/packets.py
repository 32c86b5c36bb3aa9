"""A connected pair of ends of a SOCK_SEQPACKET unix socket: one JSON text and at most a few descriptors
per packet.

The kernel keeps the packets apart and the descriptors with their packet; there is no framing to get wrong.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Self

PACKET_LIMIT_BYTES = 64 * 1024
FDS_LIMIT = 4


class Closed(Exception):  # noqa: N818 - it says what it is
    """The other end is gone, or said something that is no packet of ours."""


class Packets:
    """One end. One task may receive while others send; sends keep their order."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._sending = asyncio.Lock()
        self._closed = asyncio.Event()

    @classmethod
    async def connect(cls, path: str, *, timeout_s: float) -> Self:
        """Connect to a listening socket; `OSError` or `TimeoutError` when that fails."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, path)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def receive(self) -> tuple[bytes, list[int]]:
        """The next packet and its descriptors, which are the caller's to close. Raises `Closed`."""
        while not self._closed.is_set():
            try:
                text, control, flags, _ = self._sock.recvmsg(
                    PACKET_LIMIT_BYTES, socket.CMSG_SPACE(FDS_LIMIT * 4), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await self._ready(writing=False)
                continue
            except OSError as error:
                raise Closed(str(error)) from None
            fds = _descriptors(control)
            if not text or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                _close_all(fds)
                raise Closed("a packet that is too large" if text else "the other end is gone")
            return text, fds
        raise Closed("closed")

    async def send(self, text: bytes, fds: Sequence[int] = ()) -> None:
        """Send one packet; the descriptors stay open here. Raises `Closed`."""
        if len(text) > PACKET_LIMIT_BYTES:
            raise ValueError(f"a packet of {len(text)} bytes")
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        async with self._sending:
            while not self._closed.is_set():
                try:
                    self._sock.sendmsg([text], control)
                except BlockingIOError:
                    await self._ready(writing=True)
                except OSError as error:
                    raise Closed(str(error)) from None
                else:
                    return
        raise Closed("closed")

    def close(self) -> None:
        """Close this end; whoever waits gets `Closed`. Safe to repeat."""
        if not self._closed.is_set():
            self._closed.set()
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._sock)
            loop.remove_writer(self._sock)
            self._sock.close()

    async def _ready(self, *, writing: bool) -> None:
        """Wait until the socket can be read or written, or is closed."""
        loop = asyncio.get_running_loop()
        add: Callable[..., None] = loop.add_writer if writing else loop.add_reader
        remove: Callable[..., object] = loop.remove_writer if writing else loop.remove_reader
        ready = asyncio.Event()
        add(self._sock, ready.set)
        waiting = [asyncio.ensure_future(ready.wait()), asyncio.ensure_future(self._closed.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            if not self._closed.is_set():
                remove(self._sock)


def _descriptors(control: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
