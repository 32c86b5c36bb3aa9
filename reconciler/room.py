"""hived without room on its disk: loops that wait instead of ending it, and word when there is room again.

Whoever cannot write raises `DiskFullError` and leaves all as it was. Calls answer with it, passes and the
outbox try again by themselves; what is here is for the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from reconciler.effects.protocols import Clock
from reconciler.errors import DiskFullError
from reconciler.model.instants import MICRO, stamp
from reconciler.store.db import Database, Store

log = structlog.get_logger("room")

LOOK_S = 2.0
Publish = Callable[..., Awaitable[int]]


async def lasting(name: str, run: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Run a loop that may be begun anew at any time; when it ends for lack of room, it is."""
    while True:
        wait_s = 0.0
        try:
            await run()
        except* DiskFullError as group:
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            assert isinstance(first, DiskFullError)
            log.warning("room.waiting", loop=name, error=first.message)
            wait_s = first.after_s
        if not wait_s:
            return
        await clock.sleep(wait_s)


class Room:
    """Tries databases that were full, and tells when one can be written again."""

    def __init__(self, store: Store, publish: Publish, clock: Clock) -> None:
        self._store = store
        self._publish = publish
        self._clock = clock
        self._told: dict[str, float] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._clock.sleep(LOOK_S)
            for db in (self._store.state, self._store.events):
                await self._look(db)

    async def _look(self, db: Database) -> None:
        """The event is the try. It may be another's write that finds room first: then it is told all the
        same."""
        if db.full_since is not None and db.path.name not in self._told:
            self._told[db.path.name] = db.full_since
            log.error("room.full", database=str(db.path))
        if db.path.name not in self._told:
            return
        data = {"database": db.path.name, "since": stamp(int(self._told[db.path.name] * MICRO))}
        try:
            if db is self._store.state:
                async with db.transaction() as tx:
                    await tx.emit("disk.recovered", None, **data)
            else:
                await self._publish("disk.recovered", None, **data)
        except DiskFullError:
            return
        del self._told[db.path.name]
        log.info("room.again", **data)
