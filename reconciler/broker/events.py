"""The service `Events`: what happened, as history and as a live stream in the order of one number.

Rare and precious events go through the outbox of the transaction that caused them. Frequent ones (lines of a
turn, lines of a build) are hints that something can be read anew: `announce` lets the newest of each kind and
subject through at most every `HINT_PAUSE_S` seconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from reconciler.broker.hub import QUEUE_MAX, Hub, Subscription
from reconciler.broker.outbox import Handler, Outbox
from reconciler.broker.signals import Signal
from reconciler.control import models as api
from reconciler.effects.protocols import Clock
from reconciler.model.instants import micros, stamp
from reconciler.room import lasting
from reconciler.store import events as sql
from reconciler.store.db import Row, Store

HINT_PAUSE_S = 0.05
REPLAY_PAGE = 500
REPLAY_MAX = 10_000
LIST_MAX = 1000

Observer = Callable[[api.Event], None]
ReadSpending = Callable[[], Awaitable[Sequence[api.Spending]]]


class EventLog:
    """History in events.db, the hub of live streams, and the runner of the outbox."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        handlers: Mapping[str, Handler],
        spending: ReadSpending,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self._store = store
        self._clock = clock
        self._spending = spending
        self._hints: dict[tuple[str, str | None, str], dict[str, Any]] = {}
        self._hinted = Signal()
        self._observers: list[Observer] = []
        self.hub = Hub(queue_max=queue_max)
        self.outbox = Outbox(store, clock, handlers, self._published)

    def observe(self, observer: Observer) -> None:
        """Call `observer` for every event in order, right after its commit. It must not block or raise."""
        self._observers.append(observer)

    def _published(self, event: api.Event) -> None:
        self.hub.publish(event)
        for observer in self._observers:
            observer(event)

    async def run(self) -> None:
        """Carry the outbox and the hints until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(lasting("outbox", self.outbox.run, self._clock), name="outbox")
            group.create_task(lasting("hints", self._carry_hints, self._clock), name="hints")

    async def drain(self) -> None:
        """Copy what the process before left in the outbox, before anything new is written."""
        while await self.outbox.copy_events():
            pass

    def close(self) -> None:
        """End all streams."""
        self.hub.close()

    # --------------------------------------------------------------------------------------------- publishing
    async def publish(self, kind: str, agent: str | None, **data: Any) -> int:
        """Write an event to the history and the stream at once; its id. Not for what belongs to a
        transaction of state.db: that is `Tx.emit`."""
        async with self._store.events.quick() as tx:
            event_id = await sql.insert(tx, ts=tx.now, agent=agent, kind=kind, data=data)
            assert event_id is not None, "only copies of the outbox can be there already"
            event = api.Event(id=event_id, ts=stamp(tx.now), agent=agent, kind=kind, data=data)
            tx.after_commit(lambda: self._published(event))
        return event_id

    def announce(self, kind: str, agent: str | None, subject: str, **data: Any) -> None:
        """Publish soon; of several with the same kind, agent and subject only the last."""
        self._hints[kind, agent, subject] = data
        self._hinted.notify()

    async def _carry_hints(self) -> None:
        seen = -1
        while True:
            await self._hinted.wait(seen, self._clock)
            seen = self._hinted.version
            hints, self._hints = self._hints, {}
            for (kind, agent, _), data in hints.items():
                await self.publish(kind, agent, **data)
            if hints:
                await self._clock.sleep(HINT_PAUSE_S)

    # ------------------------------------------------------------------------------------------------ reading
    async def list(
        self,
        *,
        after: int | None,
        agent: str | None,
        kind: str | None,
        limit: int,
        before: int | None = None,
    ) -> api.EventList:
        """Oldest first above `after`; without it, the newest `limit` of them (below `before`). `next` is the
        cursor for more, None when the page was not full.

        That a turn goes on is told so often that it hides all else: `turn.event` is left out unless an agent
        or a kind is asked for.
        """
        limit = max(1, min(limit, LIST_MAX))
        hints = agent is not None or kind is not None
        if after is None:
            rows = await sql.newest(
                self._store.events, before=before, agent=agent, kind=kind, hints=hints, limit=limit
            )
            full = len(rows) == limit
            return api.EventList(items=[_event(row) for row in rows], next=rows[0]["id"] if full else None)
        rows = await sql.after(self._store.events, after, agent=agent, kind=kind, hints=hints, limit=limit)
        return api.EventList(
            items=[_event(row) for row in rows], next=rows[-1]["id"] if len(rows) == limit else None
        )

    async def last_id(self) -> int:
        """The id of the newest event, 0 before the first."""
        return (await sql.bounds(self._store.events))[1]

    async def spending(self) -> Sequence[api.Spending]:
        """Tokens by agent, model and day, as the gateway counted them."""
        return await self._spending()

    async def stream(self, *, after: int | None) -> AsyncGenerator[api.Event, None]:
        """Replay from `after` (None: nothing), then live, without gap or repeat.

        An event of kind `resync` says: read everything anew. It comes in the middle when `after` lies in
        what is no longer kept, more than `REPLAY_MAX` events ago, or in the future (another database); it is
        the end for a reader that is too slow.
        """
        first, last = await sql.bounds(self._store.events)
        cursor = last if after is None else after
        if cursor > last or cursor < first - 1 or last - cursor > REPLAY_MAX:
            # Who is that far behind reads everything anew anyway: months of events would only come late.
            cursor = last if cursor > last else max(first - 1, last - REPLAY_MAX)
            yield self._resync(last)
        # Only the last page is read with the live queue open: a long history must not make it overflow.
        while len(rows := await self._page(cursor)) == REPLAY_PAGE:
            for row in rows:
                cursor = row["id"]
                yield _event(row)
        subscription = self.hub.subscribe()
        try:
            async with aclosing(self._follow(subscription, cursor)) as following:
                async for event in following:
                    yield event
        finally:
            self.hub.unsubscribe(subscription)

    async def _follow(self, subscription: Subscription, cursor: int) -> AsyncGenerator[api.Event, None]:
        while rows := await self._page(cursor):
            for row in rows:
                cursor = row["id"]
                yield _event(row)
        while (event := await subscription.next()) is not None:
            if event.id > cursor:  # the queue was open while the last page was read
                yield event
        if subscription.overflown:
            yield self._resync(self.hub.last)

    async def _page(self, cursor: int) -> Sequence[Row]:
        return await sql.after(self._store.events, cursor, limit=REPLAY_PAGE)

    def _resync(self, event_id: int) -> api.Event:
        now = stamp(micros(self._clock.now()))
        return api.Event(id=event_id, ts=now, agent=None, kind="resync", data={})

    # --------------------------------------------------------------------------------------------- build logs
    async def append_build_log(self, proposal: int, lines: Sequence[str]) -> None:
        """Add lines to a proposal's log and hint at them."""
        async with self._store.events.transaction() as tx:
            last = await sql.append_build_log(tx, proposal, lines)
        self.announce("build.log", None, str(proposal), proposal=proposal, line=last)


def _event(row: Row) -> api.Event:
    return api.Event(
        id=row["id"],
        ts=stamp(row["ts"]),
        agent=row["agent"],
        kind=row["kind"],
        data=json.loads(row["data"]),
    )
