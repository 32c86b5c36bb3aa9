"""127.0.0.1:8080 inside → `model.sock` of the host: bytes both ways, nothing read or changed.

While the gateway is away, new connections are held and not refused, so that the CLI's request survives its
restart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
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

    async def serve(self, port: int) -> asyncio.Server:
        """Listens on loopback only; the caller closes the server."""
        return await asyncio.start_server(self._connection, "127.0.0.1", port)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= _CONNECTIONS_MAX:
            writer.close()
            return
        self._open += 1
        upstream: asyncio.StreamWriter | None = None
        try:
            answer, upstream = await self._upstream()
            pumps = [
                asyncio.create_task(_pump(reader, upstream, lambda: None)),
                asyncio.create_task(_pump(answer, writer, self._moved)),
            ]
            # an HTTP exchange is over when either side closes
            _done, pending = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pending:
                pump.cancel()
            await asyncio.wait(pumps)
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
