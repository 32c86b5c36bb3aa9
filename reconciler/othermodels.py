"""Turns whose requests name another model than the turn was given: written to its row, told as an event.

The command line replaces retired model ids by newer ones without a word, and what runs in a container may ask
for any model it likes. The gateway sees the model of every request and of every answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from reconciler.gateway.messages import ModelEvent
from reconciler.model.names import AgentName
from reconciler.store import turns
from reconciler.store.db import Store

log = structlog.get_logger("gateway")

WAITING_MAX = 1000


class OtherModels:
    """Takes what the gateway tells, in order. `nudge` lets the agent's state be told anew."""

    def __init__(self, store: Store, nudge: Callable[[AgentName], None]) -> None:
        self._store = store
        self._nudge = nudge
        self._waiting: asyncio.Queue[ModelEvent] = asyncio.Queue(WAITING_MAX)

    def heard(self, event: ModelEvent) -> None:
        """Note it soon; beyond the bound it is only logged."""
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            log.warning("model.other", agent=event.agent, asked=event.asked, requested=event.requested)

    async def run(self) -> None:
        """Write what was heard, until cancelled."""
        while True:
            await self._note(await self._waiting.get())

    async def _note(self, event: ModelEvent) -> None:
        agent = AgentName(event.agent)
        async with self._store.state.transaction() as tx:
            if event.turn is not None:
                await turns.set_other_model(tx, agent, event.turn, event.answered or event.requested)
            await tx.emit(
                "gateway.model",
                agent,
                turn=event.turn,
                asked=event.asked,
                requested=event.requested,
                answered=event.answered,
            )
            tx.after_commit(lambda: self._nudge(agent))
