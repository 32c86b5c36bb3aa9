"""Keeps the model gateway equal to the approved specs: level-triggered, from rows, after every step."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping

import structlog

from reconciler.config import Budget
from reconciler.effects.protocols import Clock
from reconciler.errors import HiveError
from reconciler.gateway.client import GatewayClient
from reconciler.gateway.messages import Added, AgentPolicy, SetHive
from reconciler.model.days import local_day
from reconciler.model.names import AgentName
from reconciler.store import budgets, deployments, fleet
from reconciler.store.db import Row, Store

log = structlog.get_logger("gateway")

SETTLE_S = 0.01
RETRY_S = 1.0


class GatewaySync:
    """Tells the gateway which agents it serves and which models each may ask for."""

    def __init__(self, store: Store, client: GatewayClient, clock: Clock, budget: Budget) -> None:
        self._store = store
        self._client = client
        self._clock = clock
        self._budget = budget
        self._telling = asyncio.Lock()  # rows that were read first are told first
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
                async with self._telling:
                    added = await self._added()
                    await self._client.configure_hive(self._hive(added))
                    await self._client.configure(await self._policies(added))
            except HiveError as error:
                log.warning("gateway.later", error=str(error))
                self._wanted.set()
            if self._client.problems:
                # An agent whose directory is not made yet: its pass makes it soon.
                self._wanted.set()
            if self._wanted.is_set():
                await self._clock.sleep(RETRY_S)

    async def turn_begun(self, agent: AgentName) -> None:
        """Tell the gateway of a turn before its first request, so that its tokens count for it. Returns when
        the gateway knows, or cannot be told."""
        async with self._telling:
            row = await fleet.agent(self._store.state, agent)
            serving = await deployments.serving_generation(self._store.state, agent)
            if serving is not None:
                added = await self._added()
                await self._client.configure_one(_policy(row, _parsed(serving["spec"]), added.get(agent)))

    async def _policies(self, added: Mapping[str, Added]) -> list[AgentPolicy]:
        specs = await deployments.serving_specs(self._store.state)
        rows = await fleet.agents(self._store.state)
        return [
            _policy(row, _parsed(specs[row["name"]]), added.get(row["name"]))
            for row in rows
            if row["name"] in specs
        ]

    async def _added(self) -> Mapping[str, Added]:
        """What the operator added for today, by scope. Of a day on which the ledger was restored only what
        came after counts: what was added before may have been spent."""
        day = local_day(self._clock.now())
        found = await budgets.added(self._store.state, day, since=self._client.unknown.get(day, 0))
        return {scope: Added(day=day, usd_micro=micro) for scope, micro in found.items()}

    def _hive(self, added: Mapping[str, Added]) -> SetHive:
        return SetHive(
            id=0,
            budget_usd_day=self._budget.usd_per_day,
            budget_tokens_turn=self._budget.tokens_per_turn,
            added=added.get(budgets.HIVE),
        )


@functools.lru_cache(maxsize=1024)
def _parsed(spec: str) -> Mapping[str, object]:
    """Every turn of every agent asks for all specs; they change seldom."""
    found: Mapping[str, object] = json.loads(spec)
    return found


def _policy(row: Row, spec: Mapping[str, object], added: Added | None) -> AgentPolicy:
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
        added=added,
        turn=row["turn_id"],
        asked_model=None if row["turn_id"] is None else row["last_model"],
    )
