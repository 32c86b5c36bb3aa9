"""Orders of the host to harnesses (directives): rows, so that they outlive restarts of either side, kept
until the harness acknowledges them by asking for what comes after."""

from __future__ import annotations

import json

import structlog
from pydantic import ValidationError

from harness import wire
from reconciler.broker.core import Core
from reconciler.broker.delivery import WAIT_MAX_S
from reconciler.errors import PermanentError
from reconciler.model.names import AgentName
from reconciler.store import agents, turns

log = structlog.get_logger("broker")


class Orders:
    """Giving and handing out directives."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def give(self, agent: AgentName, kind: str, **data: object) -> None:
        """Order something of the agent's harness; nothing if there is no such agent. A `cancel` is for the
        live turn; without one there is nothing to order."""
        try:
            wire.Directive.model_validate({"id": 0, "kind": kind, "data": data})
        except ValidationError as error:
            raise PermanentError(f"{kind!r} is no order to a harness") from error
        if kind == "cancel" and "turn" not in data:
            live = self._core.presence.turn_of(agent)
            if live is None:
                return
            data["turn"] = live
        async with self._core.store.state.transaction() as tx:
            row = await agents.get(tx, agent)
            if row is None or row["desired"] == "destroyed":
                log.info("order.dropped", agent=agent, order=kind)
                return
            await turns.direct(tx, agent, kind, data)
            tx.after_commit(self._core.orders[agent].notify)

    async def park(self) -> None:
        """Tell residents to end their CLI when their seats are needed, until cancelled."""
        core = self._core
        while True:
            seen = core.parking.version
            pause_s = core.residency.tick()
            parking, core.residency.to_park = core.residency.to_park, {}
            for agent, turn in parking.items():
                await self.give(AgentName(agent), "park", after=turn)
            await core.parking.wait(seen, core.clock, pause_s)

    async def take(self, agent: AgentName, *, wait_s: float, after: int) -> wire.Directives:
        """Orders above `after`, in order; waits for some up to `wait_s`. Up to `after` they are forgotten."""
        deadline = self._core.clock.monotonic() + min(max(wait_s, 0.0), WAIT_MAX_S)
        state = self._core.store.state
        if await turns.directives_done(state, agent) < after and await turns.directives(state, agent, 0):
            async with state.transaction() as tx:
                await turns.forget_directives(tx, agent, after)
                tx.after_commit(lambda: self._core.ring(agent))
        bell = self._core.orders[agent]
        while True:
            seen = bell.version
            rows = await turns.directives(state, agent, after)
            left_s = deadline - self._core.clock.monotonic()
            if rows or left_s <= 0:
                return wire.Directives(
                    directives=[
                        wire.Directive(id=row["id"], kind=row["kind"], data=json.loads(row["data"]))
                        for row in rows
                    ]
                )
            await bell.wait(seen, self._core.clock, left_s)
