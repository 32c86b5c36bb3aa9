"""The event stream (`GET /v1/stream`): replay and live events as server-sent events, to one client each.

`services.events.stream` does replay and fan-out and ends for a slow reader; this part writes frames, pings,
and ends at once when the server closes, when the client has gone, or when the browser's session has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from reconciler.control import models as api
from reconciler.control.edge import BEGUN, ID_MAX
from reconciler.control.sse import encode
from reconciler.errors import HiveError, OperatorError, TemporaryError

PING_S = 15.0
WRITE_S = 20.0
STREAMS_MAX = 128
RETRY_MS = 1000
RESYNC = "resync"

_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


def position(request: web.Request, after: int | None) -> int | None:
    """The id after which to begin: `Last-Event-ID`, else `?after=`, else None (live only)."""
    header = request.headers.get("Last-Event-ID")
    if header is None:
        return after
    if not re.fullmatch(r"[0-9]{1,19}", header) or int(header) > ID_MAX:
        raise OperatorError(f"Last-Event-ID: {header[:60]!r} is not the id of an event")
    return int(header)


class Streams:
    """All open streams of one server. `ping_s` is a parameter for tests only."""

    def __init__(
        self, open_stream: Callable[[int | None], AsyncIterator[api.Event]], *, ping_s: float = PING_S
    ) -> None:
        self._open_stream = open_stream
        self._ping_s = ping_s
        self._closing = asyncio.Event()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Every stream ends now; new ones are refused. The clients come back by themselves."""
        self._closing.set()

    async def serve(
        self, request: web.Request, after: int | None, still_allowed: Callable[[], Awaitable[object]]
    ) -> web.StreamResponse:
        """Write events until one of the ends above. `still_allowed` raises a `HiveError` when the session has
        ended; it is asked with every ping."""
        if self._closing.is_set():
            raise TemporaryError("hived is stopping")
        if self._count >= STREAMS_MAX:
            raise TemporaryError(f"{STREAMS_MAX} streams are open already", code="busy", after_s=5)
        self._count += 1
        try:
            events = self._open_stream(after)
            async with _closing(events):
                response = web.StreamResponse(headers=_HEADERS)
                response.force_close()
                await response.prepare(request)
                request[BEGUN] = response
                with contextlib.suppress(ConnectionError, TimeoutError, HiveError):
                    await self._write(response, events, still_allowed)
                return response
        finally:
            self._count -= 1

    async def _write(
        self,
        response: web.StreamResponse,
        events: AsyncIterator[api.Event],
        still_allowed: Callable[[], Awaitable[object]],
    ) -> None:
        await _send(response, f"retry: {RETRY_MS}\n\n".encode())
        closing = asyncio.create_task(self._closing.wait())
        coming = asyncio.ensure_future(anext(events))
        try:
            while True:
                await asyncio.wait({coming, closing}, timeout=self._ping_s, return_when="FIRST_COMPLETED")
                if closing.done():
                    return
                if not coming.done():
                    await still_allowed()
                    await _send(response, b": ping\n\n")
                    continue
                try:
                    event = coming.result()
                except StopAsyncIteration:
                    return
                await _send(response, frame(event))
                if event.kind == RESYNC:
                    return
                coming = asyncio.ensure_future(anext(events))
        finally:
            closing.cancel()
            coming.cancel()
            await asyncio.gather(coming, closing, return_exceptions=True)


async def send_archive(request: web.Request, chunks: AsyncIterator[bytes]) -> web.StreamResponse:
    """A long answer of bytes. What is refused before the first chunk comes back as an envelope; a client that
    has gone or takes nothing for `WRITE_S` ends it."""
    async with _closing(chunks):
        first = await anext(chunks, b"")
        response = web.StreamResponse(
            headers={"Content-Type": "application/x-tar", "Cache-Control": "no-store"}
        )
        response.force_close()
        await response.prepare(request)
        request[BEGUN] = response
        with contextlib.suppress(ConnectionError, TimeoutError):
            await _send(response, first)
            async for chunk in chunks:
                await _send(response, chunk)
        return response


def frame(event: api.Event) -> bytes:
    """One event as it goes over the wire."""
    return encode(event.model_dump_json(by_alias=True), id=event.id, event=event.kind)


async def _send(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_S):
        await response.write(data)


@contextlib.asynccontextmanager
async def _closing(events: AsyncIterator[object]) -> AsyncIterator[None]:
    """Close a generator (the Protocol promises an iterator only) so that it frees its queue."""
    try:
        yield
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
