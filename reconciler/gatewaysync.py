"""Keeps the model gateway equal to the approved specs: level-triggered, from rows, after every step."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping

import structlog

from reconciler.effects.protocols import Clock
from reconciler.errors import HiveError
from reconciler.gateway.client import GatewayClient
from reconciler.gateway.messages import AgentPolicy
from reconciler.store import deployments, fleet
from reconciler.store.db import Row, Store

log = structlog.get_logger("gateway")

SETTLE_S = 0.01
RETRY_S = 1.0


class GatewaySync:
    """Tells the gateway which agents it serves and which models each may ask for."""

    def __init__(self, store: Store, client: GatewayClient, clock: Clock) -> None:
        self._store = store
        self._client = client
        self._clock = clock
        self._wanted = asyncio.Event()
        self._wanted.set()

    def poke(self) -> None:
        """Something may have changed."""
        self._wanted.set()

    async def run(self) -> None:
        """Bring the gateway to what the rows say, again after every poke, until cancelled."""
        while True:
            await self._wanted.wait()
            await self._clock.sleep(SETTLE_S)
            self._wanted.clear()
            try:
                await self._client.configure(await self._policies())
            except HiveError as error:
                log.warning("gateway.later", error=str(error))
                self._wanted.set()
            if self._client.problems:
                # An agent whose directory is not made yet: its pass makes it soon.
                self._wanted.set()
            if self._wanted.is_set():
                await self._clock.sleep(RETRY_S)

    async def _policies(self) -> list[AgentPolicy]:
        specs = await deployments.serving_specs(self._store.state)
        rows = await fleet.agents(self._store.state)
        return [_policy(row, _parsed(specs[row["name"]])) for row in rows if row["name"] in specs]


@functools.lru_cache(maxsize=1024)
def _parsed(spec: str) -> Mapping[str, object]:
    """Every turn of every agent asks for all specs; they change seldom."""
    found: Mapping[str, object] = json.loads(spec)
    return found


def _policy(row: Row, spec: Mapping[str, object]) -> AgentPolicy:
    """What the approved spec allows, from its JSON: a spec of an older schema still serves."""
    model, models = spec.get("model", "haiku"), spec.get("models", [])
    budget, tools = spec.get("budget", {}), spec.get("tools", {})
    assert isinstance(models, list)
    assert isinstance(budget, dict)
    assert isinstance(tools, dict)
    # Without a list of its own, the operator's override decides; with one, the list does.
    override = [row["model_override"]] if row["model_override"] and not models else []
    return AgentPolicy(
        agent=row["name"],
        uid_base=row["uid_base"],
        models=tuple(dict.fromkeys([str(model), *models, *override])),
        server_tools=tuple(tools.get("server", [])),
        budget_usd_day=budget.get("usdPerDay"),
        budget_tokens_turn=budget.get("tokensPerTurn"),
        turn=row["turn_id"],
    )
