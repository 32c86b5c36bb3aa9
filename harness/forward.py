"""127.0.0.1:8080 inside → `model.sock` of the host: bytes both ways, nothing read or changed.

While the gateway is away, new connections are held and not refused, so that the CLI's request survives its
restart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

HOLD_S = 60.0
_RETRY_S = 0.1
_IDLE_S = 900.0
_CONNECTIONS_MAX = 64
_BLOCK = 65536


class Forwarder:
    """A bounded number of connections; one more is closed at once. `moved` is called when bytes come from the
    model."""

    def __init__(self, socket: Path, moved: Callable[[], None], *, hold_s: float = HOLD_S) -> None:
        self._socket = socket
        self._moved = moved
        self._hold_s = hold_s
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[int]:
        """Listens on loopback while the block lasts (on any free port if `port` is 0): the port."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", port)
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._forward(reader, writer)
        except asyncio.CancelledError:
            pass  # the harness is ending; asyncio would report a cancelled handler as an error
        finally:
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= _CONNECTIONS_MAX:
            writer.close()
            return
        self._open += 1
        upstream: asyncio.StreamWriter | None = None
        try:
            answer, upstream = await self._upstream()
            async with asyncio.TaskGroup() as pumps:
                both = [
                    pumps.create_task(_pump(reader, upstream, lambda: None)),
                    pumps.create_task(_pump(answer, writer, self._moved)),
                ]
                # an HTTP exchange is over when either side closes
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                for pump in both:
                    pump.cancel()
        except (OSError, TimeoutError):
            pass  # the gateway stayed away: the CLI sees a closed connection and retries by its own rules
        finally:
            self._open -= 1
            for end in (writer, upstream):
                if end is not None:
                    end.close()

    async def _upstream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(self._hold_s):
            while True:
                with contextlib.suppress(OSError):
                    return await asyncio.open_unix_connection(str(self._socket))
                await asyncio.sleep(_RETRY_S)


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, moved: Callable[[], None]
) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        while True:
            async with asyncio.timeout(_IDLE_S):
                block = await reader.read(_BLOCK)
            if not block:
                return
            moved()
            writer.write(block)
            async with asyncio.timeout(_IDLE_S):
                await writer.drain()
