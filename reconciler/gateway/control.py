"""The gateway's end of `control.sock`: hived says which agents to serve, the gateway says what they spent.
 One hived at a time; a new connection takes the place of the old. What hived misses while it is away it
finds in the answers to `hello` and `spending`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

import structlog
from pydantic import ValidationError

from reconciler.errors import HiveError, OperatorError
from reconciler.gateway.charges import Cashier
from reconciler.gateway.doors import Doors
from reconciler.gateway.messages import (
    REQUESTS,
    SPENDING_PAGE,
    VERSION,
    Answer,
    AskClosures,
    AskSpending,
    ClosureRow,
    DropAgent,
    Event,
    Hello,
    Request,
    SetAgent,
    SetHive,
    SpendingRow,
)
from reconciler.gateway.packets import Closed, Packets
from reconciler.sockets import bind, peer_of
from reconciler.store.ledger import Ledger

log = structlog.get_logger("gateway")

EVENTS_WAITING = 1000
SEND_S = 5.0
_ACCEPT_PAUSE_S = 0.1


class Control:
    """Listens at a path, for processes of root and of this user."""

    def __init__(self, doors: Doors, ledger: Ledger, cashier: Cashier) -> None:
        self._doors = doors
        self._ledger = ledger
        self._cashier = cashier
        self._events: asyncio.Queue[Event] | None = None
        self._connection: asyncio.Task[None] | None = None
        self._admitted = {0, os.geteuid()}

    def tell(self, event: Event) -> None:
        """Send an event to hived if it is there. If it does not read, it is cut off and will ask anew."""
        if self._events is None:
            return
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            log.warning("control.slow_reader")
            if self._connection is not None:
                self._connection.cancel()

    async def serve(self, path: Path) -> None:
        """Accept until cancelled."""
        bound = bind(path, mode=0o600, uid=os.geteuid(), gid=os.getegid(), kind=socket.SOCK_SEQPACKET)
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    sock, _ = await loop.sock_accept(bound.sock)
                    peer = peer_of(sock)
                except OSError as error:  # out of descriptors, or the peer has gone
                    log.warning("control.accept_failed", error=error.strerror)
                    await asyncio.sleep(_ACCEPT_PAUSE_S)
                    continue
                if peer.uid not in self._admitted:
                    log.warning("control.peer_refused", uid=peer.uid, pid=peer.pid)
                    sock.close()
                    continue
                await self._hang_up()
                self._connection = asyncio.create_task(self._run(Packets(sock)), name="control connection")
        finally:
            await self._hang_up()
            bound.close(unlink=True)

    async def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connection
            self._connection = None

    async def _run(self, packets: Packets) -> None:
        """Serve one connection until it ends."""
        log.info("control.connected")
        self._events = asyncio.Queue(EVENTS_WAITING)
        sender = asyncio.create_task(_send_events(packets, self._events), name="control events")
        try:
            while True:
                text, fds = await packets.receive()
                await self._answer(packets, text, fds)
        except Closed as why:
            log.info("control.disconnected", why=str(why))
        except TimeoutError:
            log.warning("control.slow_reader")
        finally:
            self._events = None
            sender.cancel()
            packets.close()

    async def _answer(self, packets: Packets, text: bytes, fds: list[int]) -> None:
        try:
            request = REQUESTS.validate_json(text)
        except ValidationError as error:
            _close_all(fds)
            log.warning("control.malformed", error=str(error.errors(include_url=False)[0]["msg"]))
            raise Closed("a malformed request") from None
        try:
            answer = await self._do(request, fds)
        except HiveError as error:
            answer = Answer(id=request.id, error=error.message)
        finally:
            _close_all(fds)
        async with asyncio.timeout(SEND_S):
            await packets.send(answer.model_dump_json().encode())

    async def _do(self, request: Request, fds: list[int]) -> Answer:
        """Carry out one request; descriptors that it takes are removed from `fds`."""
        match request:
            case Hello():
                if request.version != VERSION:
                    raise OperatorError(f"this gateway speaks version {VERSION}, not {request.version}")
                unknown = await self._ledger.unknown()
                return Answer(id=request.id, held=self._doors.held(), unknown=unknown)
            case SetHive():
                self._cashier.hive = request
            case SetAgent():
                await self._doors.set(request.policy, request.socket, fds.pop() if fds else None)
            case DropAgent():
                await self._doors.drop(request.agent)
            case AskSpending():
                found = await self._ledger.spending(
                    since=request.since, after=request.after, limit=SPENDING_PAGE + 1
                )
                rows = tuple(SpendingRow.of(spent) for spent in found[:SPENDING_PAGE])
                return Answer(id=request.id, rows=rows, more=len(found) > SPENDING_PAGE)
            case AskClosures():
                closed = await self._ledger.closures(
                    day=request.day, after=request.after, limit=SPENDING_PAGE + 1
                )
                closures = tuple(ClosureRow.of(closure) for closure in closed[:SPENDING_PAGE])
                return Answer(id=request.id, closures=closures, more=len(closed) > SPENDING_PAGE)
            case _:
                assert_never(request)
        return Answer(id=request.id)


async def _send_events(packets: Packets, events: asyncio.Queue[Event]) -> None:
    while True:
        event = await events.get()
        try:
            async with asyncio.timeout(SEND_S):
                await packets.send(event.model_dump_json().encode())
        except (Closed, TimeoutError):
            packets.close()
            return


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
