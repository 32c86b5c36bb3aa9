"""Carries the outbox of state.db to where its rows belong, at least once and in order.

Events are copied to events.db in batches (a row's id makes the copy idempotent) and published; other effects
(git tags, the deploy log) go to handlers, one lane per kind and agent, so that a repository that is not ready
holds up neither events nor other repositories.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from reconciler.broker.signals import Signal
from reconciler.control import models as api
from reconciler.effects.protocols import Clock
from reconciler.errors import PermanentError, TemporaryError, disk_full
from reconciler.model.instants import stamp
from reconciler.room import lasting
from reconciler.store import events as events_sql
from reconciler.store import outbox as outbox_sql
from reconciler.store.db import Row, Store, Tx

log = structlog.get_logger("outbox")

Handler = Callable[[dict[str, Any]], Awaitable[None]]
BATCH = 200
SWEEP_S = 0.25
HANDLER_S = 60.0
RETRY_FIRST_S = 0.5
RETRY_LONGEST_S = 60.0


@dataclass(frozen=True, slots=True)
class _Lane:
    """Effects of one kind for one agent that wait: how often in a row they could not be done, and till when
    (monotonic seconds)."""

    failures: int = 0
    not_before: float = 0.0


class Outbox:
    """The runner. `publish` is called for each new event, in the order of the ids, right after its commit."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        handlers: Mapping[str, Handler],
        publish: Callable[[api.Event], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._handlers = handlers
        self._publish = publish
        self._news = Signal()
        self._copied = 0
        self._swept = 0
        self._lanes: dict[str, _Lane] = {}
        store.state.on_emit = self._news.notify

    async def run(self) -> None:
        """Carry until cancelled, beginning with what a crash left behind."""
        async with self._store.state.transaction() as tx:
            await outbox_sql.forgive(tx)
        async with asyncio.TaskGroup() as group:
            group.create_task(lasting("outbox.events", self._carry_events, self._clock), name="outbox.events")
            effects = lasting("outbox.effects", self._carry_effects, self._clock)
            group.create_task(effects, name="outbox.effects")

    # ------------------------------------------------------------------------------------------------ events
    async def _carry_events(self) -> None:
        while True:
            seen = self._news.version
            while await self.copy_events():
                pass
            # Rows that are copied may stay for a moment: sweeping them waits for the disk, and the writer is
            # needed for what comes next.
            if not await self._news.wait(seen, self._clock, SWEEP_S):
                await self.sweep()
                await self._news.wait(seen, self._clock)

    async def copy_events(self) -> int:
        """Copy the next batch to events.db and publish it; how many rows there were."""
        rows = await outbox_sql.events(self._store.state, self._copied, BATCH)
        if not rows:
            return 0
        async with self._store.events.quick() as tx:
            for row in rows:
                await self._copy(tx, row)
        self._copied = rows[-1]["id"]
        if len(rows) == BATCH:
            await self.sweep()
        return len(rows)

    async def _copy(self, tx: Tx, row: Row) -> None:
        told = json.loads(row["data"])
        agent, kind, data, ts = told["agent"], told["kind"], told["data"], row["created_at"]
        event_id = await events_sql.insert(tx, ts=ts, agent=agent, kind=kind, data=data, outbox_id=row["id"])
        if event_id is None:
            return
        if (project := events_sql.PROJECTIONS.get(kind)) is not None:
            await project(tx, agent, ts, data)
        event = api.Event(id=event_id, ts=stamp(ts), agent=agent, kind=kind, data=data)
        tx.after_commit(lambda: self._publish(event))

    async def sweep(self) -> None:
        """Delete the rows that are copied, once their copies outlive a power cut."""
        if self._swept < self._copied:
            copied = self._copied
            await self._store.events.sync()
            async with self._store.state.transaction() as tx:
                await outbox_sql.forget_events(tx, copied)
            self._swept = copied

    # ----------------------------------------------------------------------------------------------- effects
    async def _carry_effects(self) -> None:
        while True:
            seen = self._news.version
            pause_s = await self.do_effects()
            await self._news.wait(seen, self._clock, pause_s)

    async def do_effects(self) -> float | None:
        """Do what is due, lane by lane; after how many seconds to look at held lanes again (None: none)."""
        held: set[str] = set()
        after = 0
        while rows := await outbox_sql.effects(self._store.state, after, BATCH):
            after = rows[-1]["id"]
            for row in rows:
                data = json.loads(row["data"])
                name = f"{row['kind']}/{data.get('agent')}"
                if name not in held and not await self._advance(row, name, data):
                    held.add(name)
        self._lanes = {name: lane for name, lane in self._lanes.items() if name in held}
        now = self._clock.monotonic()
        return min((max(0.0, lane.not_before - now) for lane in self._lanes.values()), default=None)

    async def _advance(self, row: Row, name: str, data: dict[str, Any]) -> bool:
        """Do one effect; False if its lane must wait."""
        lane = self._lanes.get(name, _Lane())
        if lane.not_before > self._clock.monotonic():
            return False
        try:
            await self._do(row["kind"], data)
        except Exception as trouble:  # a worker's loop: one bad effect must not end the others
            error = trouble if isinstance(trouble, TemporaryError) else disk_full(trouble)
            if error is not None:
                self._hold(name, row, lane, error)
                return False
            log.exception("outbox.given_up", lane=name, row=row["id"])
            async with self._store.state.transaction() as tx:
                await outbox_sql.give_up(tx, row["id"], str(trouble)[:2000])
                await tx.emit("outbox.given_up", None, lane=name, row=row["id"], error=str(trouble)[:2000])
            return True
        self._lanes.pop(name, None)
        async with self._store.state.transaction() as tx:
            await outbox_sql.forget(tx, row["id"])
        return True

    def _hold(self, name: str, row: Row, lane: _Lane, error: TemporaryError) -> None:
        """The lane waits, longer each time."""
        delay_s = max(error.after_s, RETRY_FIRST_S * 2.0 ** min(lane.failures, 10))
        delay_s = min(RETRY_LONGEST_S, delay_s)
        self._lanes[name] = _Lane(lane.failures + 1, self._clock.monotonic() + delay_s)
        log.warning("outbox.later", lane=name, row=row["id"], error=str(error), after_s=delay_s)

    async def _do(self, kind: str, data: dict[str, Any]) -> None:
        handler = self._handlers.get(kind)
        if handler is None:
            raise PermanentError(f"nothing handles effects of kind {kind!r}")
        try:
            async with asyncio.timeout(HANDLER_S):
                await handler(data)
        except TimeoutError as error:
            raise TemporaryError(f"the effect took longer than {HANDLER_S:g} s") from error
