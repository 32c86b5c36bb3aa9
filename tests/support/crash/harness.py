"""The harness of a fake container: the genuine link to the host, and turns that do what messages say.

`tell NAME: TEXT` sends a message, `ask: TEXT` a question to the operator; anything else is only read. It
lives in the test's process, so it goes on while hived is away, as a real one does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import platform
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import aiohttp
from aiohttp.client_exceptions import UnixClientConnectorError

from harness import wire
from harness.link import HostAway, Link, Refused
from harness.outcomes import Verdict
from reconciler.model.names import AgentName
from tests.fakes.containers import Start

_SETRESUID = {"x86_64": 117, "aarch64": 147}[platform.machine()]
_LIBC = ctypes.CDLL(None, use_errno=True)
RETRY_S = 0.01
POLL_S = 25


def _become(uid: int) -> None:
    """The effective uid of the calling thread: by the system call itself, since libc changes all threads."""
    if _LIBC.syscall(_SETRESUID, -1, uid, -1):
        raise OSError(ctypes.get_errno(), f"cannot act as uid {uid}")


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Inside, what this thread does is done by another uid."""
    _become(uid)
    try:
        yield
    finally:
        _become(0)


class _AsRoot(aiohttp.UnixConnector):
    """Connects as the container's root, whom the kernel names to the host."""

    def __init__(self, path: Path, uid: int) -> None:
        super().__init__(path=str(path), limit=32)
        self._uid = uid

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:
        link = socket.socket(socket.AF_UNIX)
        try:
            with acting_as(self._uid):
                link.connect(self.path)
            link.setblocking(False)
            _, protocol = await asyncio.get_running_loop().create_unix_connection(self._factory, sock=link)
        except OSError as error:
            link.close()
            raise UnixClientConnectorError(self.path, req.connection_key, error) from error
        return protocol


class Harness:
    """One harness process. `agents` is the folder of all agents' sockets.
    `on_handled` is called with each message whose turn the host has taken as ended well."""

    def __init__(self, start: Start, agents: Path, on_handled: Callable[[AgentName, int], None]) -> None:
        self.name = start.spec.name
        self.boot = str(start.status.invocation)
        self._on_handled = on_handled
        self._between_turns = asyncio.Event()
        self._between_turns.set()
        socket_file = agents / self.name / "agent.sock"
        # The first call says hello, so nothing reads the welcome before there is one.
        self.link = Link(
            socket_file, self.boot, cast(wire.Welcome, None),
            on_welcome=lambda welcome: None, sleep=_soon,
        )  # fmt: skip
        self._replaced = self.link._session
        self.link._session = aiohttp.ClientSession(
            connector=_AsRoot(socket_file, start.spec.uid_base),
            base_url="http://hive/",
            headers={wire.WIRE_HEADER: str(wire.WIRE_VERSION), wire.BOOT_HEADER: self.boot},
        )

    async def run(self) -> None:
        """Hello, then turns, until cancelled (the container ended)."""
        try:
            await self.link.hello()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._obey())
                group.create_task(self._work())
        finally:
            await self._replaced.close()
            await self.link.close()

    async def _obey(self) -> None:
        after = self.link.welcome.directives_after
        while True:
            for order in (await self.link.directives(after)).directives:
                after = order.id
                if order.kind == "spec":  # taken up between two turns
                    await self._between_turns.wait()
                    await self.link.hello()

    async def _work(self) -> None:
        while True:
            inbox = await self.link.inbox(POLL_S, 20)
            if inbox.lease is None:
                continue
            try:
                turn = (await self.link.begin_turn(inbox.lease, f"{self.boot}-{inbox.lease}")).turn
            except Refused:
                continue  # the lease is over: the host says so, and gives its messages anew
            self._between_turns.clear()
            self.link.enter_turn(turn)
            for message in inbox.messages:
                await self._react(message)
            event = wire.TurnEvent(seq=1, at="2026-01-01T00:00:00.000Z", kind="text", data={"text": "done"})
            await self.link.send_events(turn, [event])
            await self.link.end_turn(turn, Verdict("ok"))
            self.link.leave_turn()
            self._between_turns.set()
            for message in inbox.messages:
                self._on_handled(self.name, message.id)

    async def _react(self, message: wire.Delivered) -> None:
        word, _, rest = message.body.partition(" ")
        key = f"{self.name}-about-{message.id}"
        if word == "tell":
            to, _, text = rest.partition(": ")
            await self.link.post("messages", wire.SendMessage(to=to, body=text, key=key), wire.Sent)
        elif word == "ask:":
            await self.link.post("questions", wire.AskOperator(question=rest, key=key), wire.Asked)


async def _soon(seconds: float) -> None:
    await asyncio.sleep(min(seconds, RETRY_S))


__all__ = ["Harness", "HostAway", "Refused", "acting_as"]
