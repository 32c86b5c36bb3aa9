"""Start and stop of hived as its supervisor sees them: proof of life, and an end that comes in time.

Nothing here knows what hived does; `app.py` wires it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from reconciler.notify import Notifier

log = structlog.get_logger("hived")

_T = TypeVar("_T")

STOP_S = 4.5
"""From SIGTERM to the end of the process, whatever hangs: under the 5 s that were promised."""
EXTEND_S = 10.0
MIGRATE_MAX_S = 3600.0
LOOK_S = 5.0


def end_within(seconds: float, notifier: Notifier) -> None:
    """From now on the process has so long to end; then it is ended as by a crash, with status 0.

    Every part of hived may be killed at any instant and goes on from the rows, so this loses nothing. A
    thread of its own, as what hangs may be the event loop.
    """
    notifier.stopping()
    notifier.status("stopping")

    def end() -> None:
        sys.stderr.write(f"hived: did not stop within {seconds:g} s: leaving the rest to the next start\n")
        sys.stderr.flush()
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


async def extending(work: Awaitable[_T], notifier: Notifier) -> _T:
    """The result of `work`, for which the start may take up to `MIGRATE_MAX_S`."""
    task = asyncio.ensure_future(work)
    end = asyncio.get_running_loop().time() + MIGRATE_MAX_S
    try:
        while not task.done():
            if asyncio.get_running_loop().time() < end:
                notifier.extend(3 * EXTEND_S)
            await asyncio.wait({task}, timeout=EXTEND_S)
    finally:
        task.cancel()
    return task.result()


async def prove_life(
    notifier: Notifier, stuck: Callable[[], str | None], status: Callable[[], str], look_s: float = LOOK_S
) -> None:
    """Feed the supervisor's watchdog while `stuck` has nothing to say, until cancelled.

    That this runs is the proof that the event loop does; `stuck` tells what else no longer moves. Without a
    watchdog it is only logged.
    """
    pause = look_s if notifier.watchdog_s is None else min(look_s, notifier.watchdog_s / 3)
    told = ""
    while True:
        why = stuck()
        if why is None:
            notifier.alive()
            notifier.status(status())
        elif why != told:
            log.error("hived.stuck", why=why, watchdog_s=notifier.watchdog_s)
            notifier.status(f"stuck: {why}")
        told = why or ""
        await asyncio.sleep(pause)
