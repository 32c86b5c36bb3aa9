"""`GET /stream`: hived's events on their way to a browser, as hints of what to read anew.

The browser learns kind and agent of each event and refetches parts of its page; a lost event costs a refetch
and never correctness, and no text of an agent travels here. The id is hived's, so `Last-Event-ID` replays
through both hops. While hived is away the browser's stream stays open and says so.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing
from datetime import UTC, datetime

import structlog
from aiohttp import web

from reconciler.control.client import ControlClient, HiveError, encode
from reconciler.control.models import Event
from ui.keys import STREAMS, client_of

log = structlog.get_logger("ui")

PING_S = 15.0
WRITE_S = 10.0
STREAMS_MAX = 64
FRAMES_MAX = 256
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0)
_LOOK_S = 1.0
_ID = re.compile(r"[0-9]{1,18}")


class Streams:
    """The open streams of this server: bounded, and ended at once when it stops."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def count(self) -> int:
        return len(self._tasks)

    async def run(self, relay: Relay) -> None:
        """Run one relay until its browser leaves, its session ends or the server stops."""
        if self._closing or len(self._tasks) >= STREAMS_MAX:
            raise web.HTTPServiceUnavailable
        task = asyncio.create_task(relay.run(), name="stream")
        self._tasks.add(task)
        try:
            await asyncio.wait([task])
        finally:
            self._tasks.discard(task)
            task.cancel()
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            if not relay.response.prepared:
                raise error
            log.error("stream.failed", exc_info=error)  # too late for another answer

    async def close(self, _: web.Application | None = None) -> None:
        """End all streams; browsers come back by themselves once a server is there again."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)


class Relay:
    """One browser's stream.

    Frames: `event: hive` {kind, agent}, with hived's id · `event: away` {since} · `event: back` {} · `event:
    logout` {}. Between the two sides stands a bounded queue; a browser that does not read for `WRITE_S` loses
    its stream, and hived in turn drops a reader that is too slow with `resync`.
    """

    def __init__(self, request: web.Request, client: ControlClient, after: int | None) -> None:
        self._request = request
        self._client = client
        self._after = after
        self.response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=FRAMES_MAX)
        self._away = False
        self._failures = 0

    async def run(self) -> None:
        """Pass events on until the browser is gone or its session has ended."""
        await self.response.prepare(self._request)
        reader = asyncio.create_task(self._read(), name="stream.read")
        try:
            await self._write()
        finally:
            reader.cancel()
            await asyncio.wait([reader])

    async def _read(self) -> None:
        try:
            while await self._follow():
                if not self._away:
                    self._away = True
                    since = json.dumps({"since": datetime.now(UTC).isoformat()})
                    await self._frames.put(encode(since, event="away"))
                await asyncio.sleep(_BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)])
                self._failures += 1
            await self._frames.put(encode("{}", event="logout"))
        finally:
            if not self._frames.full():
                self._frames.put_nowait(None)

    async def _follow(self) -> bool:
        """Pass on one connection to hived until it ends. False: the session has ended, do not come again."""
        try:
            async with aclosing(self._client.stream(self._after, on_open=self._opened)) as events:
                async for event in events:
                    await self._frames.put(_hint(event))
                    # A resync row is no place to continue from: what was lost lies before it.
                    self._after = event.id if event.kind != "resync" else self._after
        except HiveError as error:
            return error.code not in {"unauthenticated", "forbidden"}
        return True

    def _opened(self) -> None:
        self._failures = 0
        if self._away and not self._frames.full():
            self._frames.put_nowait(encode("{}", event="back"))
        self._away = False

    async def _write(self) -> None:
        """Write frames, and a comment when there were none for a while, until the browser is gone."""
        silent_s = PING_S  # the first ping goes out at once, so that the browser sees the stream open
        while not _is_gone(self._request):
            frame: bytes | None = b": ping\n\n"
            if silent_s < PING_S:
                try:
                    frame = await asyncio.wait_for(self._frames.get(), _LOOK_S)
                except TimeoutError:
                    silent_s += _LOOK_S
                    continue
            if frame is None:
                return
            silent_s = 0.0
            try:
                await asyncio.wait_for(self.response.write(frame), WRITE_S)
            except (ConnectionError, TimeoutError):
                log.debug("stream.left")
                return


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _hint(event: Event) -> bytes:
    return encode(json.dumps({"kind": event.kind, "agent": event.agent}), id=event.id, event="hive")


def start_of(request: web.Request) -> int | None:
    """The id to continue after: the browser's `Last-Event-ID` on a reconnect, else `?after` of the page."""
    for text in (request.headers.get("Last-Event-ID", ""), request.query.get("after", "")):
        if _ID.fullmatch(text):
            return int(text)
    return None


async def stream(request: web.Request) -> web.StreamResponse:
    """GET /stream."""
    relay = Relay(request, client_of(request), start_of(request))
    await request.app[STREAMS].run(relay)
    return relay.response
