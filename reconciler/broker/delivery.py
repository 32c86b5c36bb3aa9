"""Messages on their way out: leased to one harness process, never given twice while somebody holds them.

An answer can be lost on its way. A lease without a turn is therefore handed out again to the same process
when it asks again; what a turn received is named when it ends (`EndTurn.leases`).
"""

from __future__ import annotations

from collections.abc import Sequence

from harness import wire
from reconciler.broker import loops, outcomes, views
from reconciler.broker.core import Core
from reconciler.broker.troubles import Troubles
from reconciler.errors import AgentError
from reconciler.model.instants import MICRO, micros
from reconciler.model.names import AgentName
from reconciler.store import agents, leases, messages, turns
from reconciler.store import loops as loops_sql
from reconciler.store.db import Reader, Row, Tx

WAIT_MAX_S = 180.0
BATCH_MAX = 50
BATCH_MAX_BYTES = 256 * 1024


class Delivery:
    """Long polls of harnesses, and the ends of leases that no turn holds."""

    def __init__(self, core: Core, troubles: Troubles) -> None:
        self._core = core
        self._troubles = troubles

    async def inbox(
        self, agent: AgentName, boot: str, *, wait_s: float, limit: int, turn: int | None
    ) -> wire.Inbox:
        """Messages under a lease; waits for some up to `wait_s` (180 at most). Within a turn they belong to
        it, and nap and parking do not matter: the agent is awake."""
        deadline = self._core.clock.monotonic() + min(max(wait_s, 0.0), WAIT_MAX_S)
        limit = max(1, min(limit, BATCH_MAX))
        if turn is not None:
            return await self._wait(agent, boot, deadline, limit, turn)
        self._core.residency.poll_begins(agent)
        try:
            return await self._wait(agent, boot, deadline, limit, turn)
        finally:
            self._core.residency.poll_ends(agent)

    async def _wait(
        self, agent: AgentName, boot: str, deadline: float, limit: int, turn: int | None
    ) -> wire.Inbox:
        bell = self._core.inboxes[agent]
        rung = False
        while True:
            seen = bell.version
            self._core.check_boot(agent, boot)
            if self._core.presence.ready(agent):
                self._core.wake(agent)
            # Whoever is woken will find something: all looks are made under the lock, at once.
            if rung and (found := await self._take(agent, boot, limit, turn)) is not None:
                return found
            opens_at = await self._opens_at(self._core.store.state, agent, turn)
            if opens_at != 0 and turn is None:
                self._core.residency.withdraw(agent)
            if opens_at == 0 and not rung and await self._waits(agent, boot, turn):
                found = await self._take(agent, boot, limit, turn)
                if found is not None:
                    return found
            left_s = deadline - self._core.clock.monotonic()
            if left_s <= 0:
                waiting = await messages.due_count(self._core.store.state, agent, self._now())
                return wire.Inbox(lease=None, messages=[], waiting=waiting)
            opens_at = opens_at or await loops_sql.next_due(self._core.store.state, agent, self._now())
            if opens_at:
                left_s = min(left_s, max(0.0, opens_at / MICRO - self._core.clock.now()))
            rung = await bell.wait(seen, self._core.clock, left_s)

    async def _opens_at(self, reader: Reader, agent: AgentName, turn: int | None) -> int | None:
        """From when on messages may be handed out: 0 now, None not before the bell rings."""
        row = await agents.get(reader, agent)
        if row is None or row["held"] or row["desired"] != "running" or agent in self._core.draining:
            return None
        if turn is not None:
            return 0
        if self._core.presence.turn_of(agent) is not None:
            return None  # one turn at a time
        if await turns.orders_wait(reader, agent):
            return None  # what comes after a fresh session must not be told to the old one
        now = self._now()
        parked = agents.parked_until(row, now)
        gate = self._troubles.gate(agent, row)
        if parked is None or (gate is not None and gate.until is None):
            return None
        shared = gate.until or 0 if gate is not None else 0
        return max(parked, shared, agents.napping_until(row, now))

    def _now(self) -> int:
        return micros(self._core.clock.now())

    async def _waits(self, agent: AgentName, boot: str, turn: int | None) -> bool:
        """Whether it is worth the lock to look closer."""
        state = self._core.store.state
        if turn is not None or await messages.due(state, agent, 1, self._now()):
            return True
        return await leases.unbound(state, agent, boot) is not None

    async def _take(self, agent: AgentName, boot: str, limit: int, turn: int | None) -> wire.Inbox | None:
        if turn is not None:
            return await self._lease(agent, boot, limit, turn)
        found = None
        try:
            found = await self._lease(agent, boot, limit, turn)
        finally:
            if found is None and self._core.presence.turn_of(agent) is None:
                self._core.residency.rest(agent)  # whatever kept it from its messages keeps no seat
        return found

    async def _lease(self, agent: AgentName, boot: str, limit: int, turn: int | None) -> wire.Inbox | None:
        """What is due, under a lease, if the agent holds a seat; None if there is nothing for it now."""
        residency = self._core.residency
        # Between turns a lease need not be on the disk before its messages are given out: a power cut ends
        # the harness that has them, too, before the model has seen any. If a turn begins with them, that is
        # synced, and the lease with it: what comes again then is marked. Within a turn the model sees them
        # at once.
        async with self._core.store.state.quick(synced=turn is not None) as tx:
            # Looked at under the lock: hello, hold and end of turn go through the same one.
            self._core.check_boot(agent, boot)
            if turn is not None:
                await self._check_turn(tx, agent, boot, turn)
            if await self._opens_at(tx, agent, turn) != 0:
                return None
            if turn is None and (old := await leases.unbound(tx, agent, boot)) is not None:
                rows = await leases.messages(tx, old["id"])
                residency.busy(agent)
                return await self._answer(tx, agent, old["id"], rows) if rows else None
            rows = _batch(await messages.due(tx, agent, limit, tx.now))
            if not rows:
                residency.withdraw(agent)
                return None
            urgent = await messages.urgent_waits(tx, agent)
            if turn is None and not residency.ask(agent, urgent=urgent):
                return None
            lease = await leases.grant(tx, agent, boot, turn, [row["id"] for row in rows])
            await loops.take_up(tx, agent, rows, more=turn is not None)
            if turn is None:
                # This poll may be one whose asker has gone; another one that waits must see the lease.
                tx.after_commit(lambda: self._core.ring(agent))
            return await self._answer(tx, agent, lease, rows)

    async def _answer(self, reader: Reader, agent: str, lease: int, rows: Sequence[Row]) -> wire.Inbox:
        waiting = await messages.due_count(reader, agent, self._now())
        return wire.Inbox(lease=lease, messages=[views.delivered(row) for row in rows], waiting=waiting)

    async def _check_turn(self, tx: Tx, agent: str, boot: str, turn: int) -> None:
        row = await turns.get(tx, turn)
        if row is None or row["agent"] != agent:
            raise AgentError(f"you have no turn {turn}", code="not-found")
        if row["state"] != "open" or row["boot"] != boot:
            raise AgentError(f"turn {turn} has ended", code="conflict")

    async def ack(self, agent: AgentName, lease: int) -> None:
        """The messages of a lease are consumed; nothing if they were."""
        async with self._core.store.state.quick() as tx:
            await self._check_lease(tx, agent, lease, "returned")
            await leases.ack(tx, lease)
            tx.after_commit(lambda: self._core.rest(agent))

    async def return_lease(self, agent: AgentName, lease: int) -> None:
        """The messages of a lease wait again, marked; nothing if they do."""
        async with self._core.store.state.quick() as tx:
            await self._check_lease(tx, agent, lease, "acked")
            await leases.give_back(tx, lease)
            tx.after_commit(lambda: self._core.rest(agent))
            tx.after_commit(lambda: self._core.ring(agent))

    async def _check_lease(self, tx: Tx, agent: str, lease: int, too_late: str) -> None:
        row = await leases.get(tx, agent, lease)
        if row is None:
            raise AgentError(f"you have no lease {lease}", code="not-found")
        if row["state"] == too_late:
            raise AgentError(f"lease {lease} was {too_late} before", code="conflict")


def _batch(due: Sequence[Row]) -> Sequence[Row]:
    """The first messages that fit into one answer; one that keeps failing goes alone."""
    size, count = 0, 0
    for row in due:
        size += len(row["body"].encode())
        troubled = row["failures"] >= outcomes.ALONE_AFTER
        if count and (troubled or size > BATCH_MAX_BYTES):
            break
        count += 1
        if troubled:
            break
    return due[:count]
