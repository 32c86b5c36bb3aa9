"""The calls of a server that are under way, and the connections that are still owed an answer: what a stop
waits for, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog
from aiohttp import web

from reconciler.errors import HiveError, TemporaryError

log = structlog.get_logger("http")

_T = TypeVar("_T")

LINGER_S = 5.0
# At a stop: for connections whose first request is on its way, and for calls that were cut short.
FIRST_REQUEST_S = 0.5
CUT_S = 0.5


class Running:
    """The calls under way, each a task of its own that a vanished client does not cancel.

    A handler that has begun a write ends it; only those started with `cancellable` (waits and streams) end
    with their client. A deadline bounds each.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waits: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def __len__(self) -> int:
        return len(self._tasks)

    async def call(
        self,
        work: Coroutine[Any, Any, _T],
        *,
        deadline_s: float | None,
        cancellable: bool,
        ends_itself: bool = False,
    ) -> _T:
        """The result of `work`; after `deadline_s` (None: never) `TemporaryError` code "timeout", 504.

        While stopping, what waits and what was cut short is `TemporaryError` code "stopping": come again.
        `ends_itself`: it is told of the stop in another way.
        """
        waits = cancellable and not ends_itself
        if self._stopping and waits:
            work.close()
            raise _stopping()
        task = asyncio.create_task(_bounded(work, deadline_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # it never began, if the task was cancelled at once
        if waits:
            self._waits.add(task)
            task.add_done_callback(self._waits.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._stopping and task.cancelled() and caller is not None and not caller.cancelling():
                raise _stopping() from None  # it was cut short, not its caller
            if cancellable:
                task.cancel()
                await asyncio.wait({task}, timeout=LINGER_S)
            else:
                task.add_done_callback(_tell_bug)  # nobody else will
            raise

    async def drain(self, timeout_s: float) -> None:
        """Waits end now, other calls have the time to end, then they are cut short. Nothing is left."""
        self._stopping = True
        for task in set(self._waits):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)
        rest = set(self._tasks)
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=CUT_S)


class Heard:
    """Which connections of a server have made a request: the others are owed the answer to their first one.

    Clients connect anew for each call. A connection that was accepted just before a stop has its request on
    the way; to close it would leave its client in the dark about what became of the call.
    """

    def __init__(self) -> None:
        self._heard: set[object] = set()
        self._open: Callable[[], Sequence[object]] = list

    def watch(self, server: web.Server) -> None:
        """The server whose connections these are; it is made after the application."""
        self._open = lambda: server.connections

    def note(self, request: web.Request) -> None:
        """A request has come."""
        self._heard.add(request.protocol)
        if len(self._heard) > 2 * len(self._open()) + 64:
            self._heard.intersection_update(self._open())

    async def all(self, timeout_s: float) -> None:
        """Wait until every connection has made its request or is gone; at most `timeout_s`."""
        end = asyncio.get_running_loop().time() + timeout_s
        while not self._heard.issuperset(self._open()):
            if asyncio.get_running_loop().time() >= end:
                return
            await asyncio.sleep(0.005)


def _stopping() -> TemporaryError:
    return TemporaryError("hived is stopping", code="stopping", hint="the next one answers: try again")


async def _bounded(work: Coroutine[Any, Any, _T], deadline_s: float | None) -> _T:
    scope = asyncio.timeout(deadline_s)
    try:
        async with scope:
            return await work
    except TimeoutError as error:
        if not scope.expired():
            raise
        late = TemporaryError(f"hived did not finish this within {deadline_s:g} s", code="timeout")
        late.status = 504
        raise late from error


def _tell_bug(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) and not isinstance(error, HiveError):
        log.error("http.bug", exc_info=error, path="(the client has gone)")
