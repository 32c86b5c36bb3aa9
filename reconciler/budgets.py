"""Budgets of a day as the operator sees and raises them, and the agents that wait for the day's end.

The gateway alone holds budgets: nothing here lets or keeps a request. From what it counted, what it closed
and what the operator added, this brings the agents' rows to what is true: who waits, until when and why; and
tells people, once. Level-triggered: every look computes the same from the same, whatever was missed.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from reconciler.broker.outcomes import RULES
from reconciler.broker.sending import tell
from reconciler.broker.signals import Signal
from reconciler.config import Config
from reconciler.control import models as api
from reconciler.effects.protocols import Clock
from reconciler.errors import OperatorError
from reconciler.gateway.messages import ClosureRow
from reconciler.model.days import local_day, next_midnight
from reconciler.model.instants import micros, stamp, stamp_or_none
from reconciler.model.money import MICRO, DayBudget, dollars, used_up
from reconciler.model.names import OPERATOR, AgentName
from reconciler.model.states import UserRole
from reconciler.services import Actor
from reconciler.store import budgets, deployments, fleet
from reconciler.store.budgets import HIVE
from reconciler.store.db import Reader, Row, Store, Tx

# Why an agent rests after a turn that a budget ended. Where the day is used up, the wait takes its place.
_RESTS = RULES["budget"].reason
SETTLE_S = 0.2
MAX_USD = 100_000


class Counted(Protocol):
    """What the gateway counted and closed. `known`: it was asked since this process began."""

    @property
    def known(self) -> bool: ...
    @property
    def closures(self) -> Mapping[str, ClosureRow]: ...
    @property
    def unknown(self) -> Mapping[str, int]: ...
    def spent_micro(self, day: str) -> Mapping[str, int]:
        """Micro-dollars of a day by agent."""
        ...


@dataclass(frozen=True, slots=True)
class _Day:
    """All that one look sees. `specs`: budgets of the approved specs by agent."""

    day: str
    reset: int
    limits: Mapping[str, tuple[float | None, int | None]]
    added: Mapping[str, int]
    spent: Mapping[str, int]
    told: Mapping[tuple[str, str], int]
    unknown: bool

    def of(self, scope: str) -> DayBudget:
        """The budget of an agent or of the hive."""
        usd, _ = self.limits.get(scope, (None, None))
        spent = sum(self.spent.values()) if scope == HIVE else self.spent.get(scope, 0)
        return DayBudget(None if usd is None else round(usd * MICRO), self.added.get(scope, 0), spent)


class BudgetService:
    """The service `Budgets`. `nudge` lets an agent's waiting inbox look again; `sync` brings the gateway to
    the rows."""

    def __init__(
        self,
        *,
        store: Store,
        config: Config,
        clock: Clock,
        counted: Counted,
        nudge: Callable[[AgentName], None],
        sync: Callable[[], None],
    ) -> None:
        self._store = store
        self._config = config.budget
        self._clock = clock
        self._counted = counted
        self._nudge = nudge
        self._sync = sync
        self._looking = asyncio.Lock()
        self._news = Signal()

    # ------------------------------------------------------------------------------------------- reading
    async def all(self) -> api.BudgetList:
        """The hive's, then every agent's by name."""
        seen = await self._see(self._store.state)
        rows = await budgets.waits(self._store.state)
        waiting = {row["name"]: row for row in rows}
        scopes = [HIVE, *waiting]
        return api.BudgetList(items=[self._view(seen, scope, waiting.get(scope)) for scope in scopes])

    async def of(self, scope: str) -> api.Budget:
        """One agent's, or with `*` the hive's; `OperatorError` code `not-found`."""
        return await self._read(self._store.state, scope)

    async def _read(self, reader: Reader, scope: str) -> api.Budget:
        row = None if scope == HIVE else await fleet.agent(reader, scope)
        return self._view(await self._see(reader), scope, row)

    async def _see(self, reader: Reader) -> _Day:
        now = self._clock.now()
        day = local_day(now)
        limits = {name: _limits(spec) for name, spec in (await deployments.serving_specs(reader)).items()}
        lost = self._counted.unknown.get(day)
        return _Day(
            day=day,
            reset=micros(next_midnight(now)),
            limits={HIVE: (self._config.usd_per_day, self._config.tokens_per_turn), **limits},
            added=await budgets.added(reader, day, since=lost or 0),
            spent=self._counted.spent_micro(day),
            told=await budgets.notices(reader, day),
            unknown=lost is not None,
        )

    def _view(self, seen: _Day, scope: str, row: Row | None) -> api.Budget:
        found = seen.of(scope)
        now = micros(self._clock.now())
        waits = row is not None and (row["budget_until_at"] or 0) > now
        closure = self._counted.closures.get(scope)
        reached = found.left == 0 or waits or (seen.unknown and found.usd_micro is not None)
        reached = reached or (scope == HIVE and self._closed_by_hive(seen))
        warned_at = seen.told.get((scope, "warned"))
        state: api.BudgetState = "ok" if found.ceiling is not None else "unlimited"
        if warned_at is not None or (found.share or 0) >= self._config.warn_at:
            state = "warned"
        return api.Budget(
            scope=scope,
            day=seen.day,
            resets_at=stamp(seen.reset),
            usd_per_day=None if found.usd_micro is None else found.usd_micro / MICRO,
            added_today_usd=found.added / MICRO,
            limit_today_usd=None if found.ceiling is None else found.ceiling / MICRO,
            spent_today_usd=found.spent / MICRO,
            left_today_usd=None if found.left is None else found.left / MICRO,
            share=found.share,
            warn_at=self._config.warn_at,
            warned_at=stamp_or_none(warned_at),
            state="reached" if reached else state,
            waits=waits,
            reason=row["budget_reason"] if waits and row is not None else "",
            waits_for=closure.budget if waits and closure is not None else None,
            tokens_per_turn=seen.limits.get(scope, (None, None))[1],
        )

    def _closed_by_hive(self, seen: _Day) -> bool:
        """Whether some agent gets no more today because of the hive's budget."""
        ceiling = seen.of(HIVE).ceiling
        return ceiling is not None and any(
            one.budget == "hive" and one.day == seen.day and ceiling <= one.ceiling_usd_micro
            for one in self._counted.closures.values()
        )

    # ------------------------------------------------------------------------------------------- raising
    async def raise_today(self, actor: Actor, scope: str, request: api.RaiseBudget) -> api.Budget:
        """Let so much more be spent until the day's end; agents that waited for it go on at once."""
        if actor.role is not UserRole.OPERATOR:
            raise OperatorError("a viewer may only look", code="forbidden", hint="log in as an operator")
        async with self._looking:
            async with self._store.state.transaction(dry_run=request.dry_run) as tx:
                before = (await self._read(tx, scope)).limit_today_usd
                if before is None:
                    raise OperatorError(
                        f"{_whom(scope)} has no budget of a day, so there is nothing to raise",
                        code="conflict",
                        hint="the hive's is `budget.usd_per_day` of the host's configuration, an agent's is "
                        "`budget.usdPerDay` of its agent.nix",
                    )
                if before + request.usd > MAX_USD:
                    raise OperatorError(
                        f"a budget of more than ${MAX_USD} a day is not taken", code="invalid"
                    )
                day = local_day(self._clock.now())
                micro = round(request.usd * MICRO)
                await budgets.add(tx, scope, day, micro, actor.name, request.note)
                await tx.audit(actor.name, "budget.raise", scope, day=day, usd=request.usd, note=request.note)
                seen = await self._see(tx)
                for row in await budgets.waits(tx):
                    await self._settle(tx, seen, row)
                    if scope in {HIVE, row["name"]}:  # what was too much may fit now
                        await self._end_rest(tx, AgentName(row["name"]))
                after = await self._read(tx, scope)
                await tx.emit(
                    "budget.raised",
                    None if scope == HIVE else scope,
                    scope=scope,
                    usd=request.usd,
                    limit_usd=after.limit_today_usd,
                    by=actor.name,
                )
            if not request.dry_run:
                self._sync()
        return after

    # ------------------------------------------------------------------------------------------- looking
    def poke(self) -> None:
        """The gateway counted or closed something, a turn ended, a spec changed: look again soon."""
        self._news.notify()

    async def run(self) -> None:
        """Look after every poke and at the day's end, until cancelled."""
        while True:
            seen = self._news.version
            await self.look()
            now = self._clock.now()
            if await self._news.wait(seen, self._clock, next_midnight(now) - now):
                await self._clock.sleep(SETTLE_S)  # what comes at once is looked at once

    async def look(self) -> None:
        """Bring the rows to what is true, and tell what was not told."""
        async with self._looking:
            seen = await self._see(self._store.state)
            rows = await budgets.waits(self._store.state)
            scopes = [HIVE, *(row["name"] for row in rows)]
            if not any(self._is_due(seen, row) for row in rows) and not self._due_notices(seen, scopes):
                return
            async with self._store.state.transaction() as tx:
                seen = await self._see(tx)
                for row in await budgets.waits(tx):
                    await self._settle(tx, seen, row)
                for scope in self._due_notices(seen, scopes):
                    await self._warn(tx, seen, scope)

    def _is_due(self, seen: _Day, row: Row) -> bool:
        wanted = self._wanted(seen, row)
        return wanted != (row["budget_until_at"], row["budget_reason"]) or self._rests(seen, row)

    def _rests(self, seen: _Day, row: Row) -> bool:
        """Whether it rests after a turn that the day's budget ended: then this waits in its place, or the
        operator has raised the budget."""
        closure = self._counted.closures.get(row["name"])
        return bool(row["parked_reason"] == _RESTS and closure is not None and closure.day == seen.day)

    def _wanted(self, seen: _Day, row: Row) -> tuple[int | None, str]:
        """Until when the agent waits and why; (None, "") not at all."""
        closure = self._counted.closures.get(row["name"])
        if closure is None:
            there = row["budget_until_at"]
            if self._counted.known or there is None or there <= micros(self._clock.now()):
                return None, ""
            return there, row["budget_reason"]  # the gateway is away and knows better
        ceiling = seen.of(HIVE if closure.budget == "hive" else row["name"]).ceiling
        if closure.day != seen.day or ceiling is None or ceiling > closure.ceiling_usd_micro:
            return None, ""
        why = used_up(
            closure.spent_usd_micro,
            closure.ceiling_usd_micro,
            closure.needed_usd_micro,
            of_hive=closure.budget == "hive",
            unknown=seen.unknown,
        )
        return seen.reset, why

    async def _settle(self, tx: Tx, seen: _Day, row: Row) -> None:
        """Bring one agent's row to what is true."""
        if not self._is_due(seen, row):
            return
        agent = AgentName(row["name"])
        until, reason = self._wanted(seen, row)
        if until is None:
            await budgets.end_wait(tx, agent)
        else:
            await budgets.wait(tx, agent, until, reason)
            await self._tell_reached(tx, seen, agent, until, reason)
        if self._rests(seen, row):
            await budgets.end_rest(tx, agent, (_RESTS,))
        tx.after_commit(lambda: self._nudge(agent))

    async def _end_rest(self, tx: Tx, agent: AgentName) -> None:
        await budgets.end_rest(tx, agent, (_RESTS, RULES["turn_budget"].reason))
        tx.after_commit(lambda: self._nudge(agent))

    async def _tell_reached(self, tx: Tx, seen: _Day, agent: AgentName, until: int, reason: str) -> None:
        """Of a budget of the hive once for all agents, of each other one once."""
        closure = self._counted.closures.get(agent)
        scope = HIVE if closure is not None and closure.budget == "hive" else str(agent)
        ceiling = seen.of(scope).ceiling or 0
        await tx.emit("budget.reached", agent, scope=scope, reason=reason, until=stamp(until))
        if not await budgets.notice(tx, scope, seen.day, "reached", ceiling):
            return
        verb = "hive budget --hive" if scope == HIVE else f"hive budget {agent}"
        others = " Other agents wait as soon as they ask for more than is left." if scope == HIVE else ""
        await tell(
            tx,
            OPERATOR,
            f"{agent} waits until {stamp(until)}: {reason}.{others}\n`{verb} --raise-today USD` adds to "
            "today's budget and lets it go on at once.",
            key=f"budget-reached-{scope}-{seen.day}-{ceiling}",
            urgent=True,
        )

    def _due_notices(self, seen: _Day, scopes: list[str]) -> list[str]:
        """Scopes that are past the share at which people are warned, and were not warned of today."""
        return [
            scope
            for scope in scopes
            if (seen.of(scope).share or 0) >= self._config.warn_at and (scope, "warned") not in seen.told
        ]

    async def _warn(self, tx: Tx, seen: _Day, scope: str) -> None:
        found = seen.of(scope)
        assert found.ceiling is not None, "it has a share"
        if not await budgets.notice(tx, scope, seen.day, "warned"):
            return
        figures = {"spent_usd": found.spent / MICRO, "limit_usd": found.ceiling / MICRO}
        agent = None if scope == HIVE else AgentName(scope)
        resets = stamp(seen.reset)
        await tx.emit(
            "budget.warned", agent, scope=scope, share=round(found.share or 0, 4), resets_at=resets, **figures
        )
        verb = "hive budget --hive" if agent is None else f"hive budget {scope}"
        await tell(
            tx,
            OPERATOR,
            f"{_whom(scope)} has spent {dollars(found.spent)} of {dollars(found.ceiling)} for today "
            f"({100 * (found.share or 0):.0f} %). Nothing changes until all of it is spent; then it waits "
            f"until {resets}. `{verb} --raise-today USD` adds to today's budget.",
            key=f"budget-warned-{scope}-{seen.day}",
        )
        if agent is not None:
            tx.after_commit(lambda: self._nudge(agent))


def _whom(scope: str) -> str:
    return "the hive" if scope == HIVE else scope


@functools.lru_cache(maxsize=1024)
def _limits(spec: str) -> tuple[float | None, int | None]:
    """Dollars a day and tokens a turn of an approved spec, from its JSON: one of an older schema counts,
    too."""
    budget = json.loads(spec).get("budget") or {}
    return budget.get("usdPerDay"), budget.get("tokensPerTurn")
