"""Writes figures: of turns that ended, of what the ledger grew by, and of what is now.

Level-triggered: what is to be written is what the rows of the host tell and what has not been counted yet.
Rows and the mark that they are counted are one transaction of events.db, so a death at any instant neither
loses a figure nor counts one twice. Nothing waits for this job, and without it nothing else fails.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog

from reconciler.broker.signals import Signal
from reconciler.control import models as api
from reconciler.effects.protocols import Clock, ContainerStatus, Measures
from reconciler.errors import HiveError
from reconciler.gateway.messages import SpendingRow, UsageEvent
from reconciler.model.instants import micros
from reconciler.model.names import AgentName
from reconciler.stats.catalogue import HIVE
from reconciler.stats.counting import EndedTurn, Levels, Row, Spent, fold_tools, spent_rows, totals, turn_rows
from reconciler.store import agents, fleet
from reconciler.store import stats as sql
from reconciler.store.db import Row as DbRow
from reconciler.store.db import StatementError, Store

log = structlog.get_logger("stats")

TICK_S = 10.0
"""How long what the gateway tells of may wait for its row, unless a turn ends."""

SETTLE_S = 0.3
"""After the end of a turn: its last request may not have been told yet, and others may end, too."""

HEARTBEAT_S = 900.0
"""A level that does not change is written again after this long."""

BATCH = 100
LEDGER_DAYS = 93
"""Days of the ledger that are compared; one more than the gateway is asked for."""


class Ledger(Protocol):
    """What the gateway has told of its ledger."""

    def ledger_rows(self) -> Sequence[SpendingRow]:
        """All rows that are known."""
        ...


class Statuses(Protocol):
    """Containers as they are."""

    async def statuses(self) -> Mapping[AgentName, ContainerStatus]: ...


class Recorder:
    """The one writer of figures. `usage` and `observe` are to be called with what happens; both only hint."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        ledger: Ledger,
        containers: Statuses,
        measures: Measures,
        sample_s: float,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ledger = ledger
        self._containers = containers
        self._measures = measures
        self._sample_s = sample_s
        self._levels = Levels(micros(HEARTBEAT_S))
        self._news = Signal()
        self._cursor: int | None = None
        self._open: set[int] = set()
        self._spent: dict[tuple[str, str, str], Spent] | None = None
        self._pending: dict[tuple[str, str, str], Spent] = {}
        self._contexts: dict[str, int] = {}
        self._sampled = clock.monotonic() - sample_s + TICK_S  # what starts with hived goes first
        self._asked = False

    # -------------------------------------------------------------------------------------------- hints
    def observe(self, event: api.Event) -> None:
        """Something happened."""
        if event.kind == "turn.ended":
            self._news.notify()
        elif event.kind.startswith("proposal."):
            self._asked = True
            self._news.notify()

    def usage(self, event: UsageEvent) -> None:
        """A request ended."""
        row = _spent(event.row)
        self._pending[row.agent, row.day, row.model] = row
        used = event.input_tokens + event.cache_read_tokens + event.cache_write_tokens + event.output_tokens
        if event.certain:
            self._contexts[event.agent] = max(used, self._contexts.get(event.agent, 0))

    # ------------------------------------------------------------------------------------------- running
    async def run(self) -> None:
        """Write until cancelled. A full disk ends a round, not the job."""
        while True:
            seen = self._news.version
            try:
                await self.round()
            except (StatementError, HiveError) as error:
                log.warning("stats.later", error=str(error))
            if await self._news.wait(seen, self._clock, TICK_S):
                await self._clock.sleep(SETTLE_S)

    async def round(self) -> None:
        """Write all that is due. Safe to be cut off anywhere and to be repeated."""
        await self._turns()
        now = self._clock.monotonic()
        full = now - self._sampled >= self._sample_s
        await self._spending(full=full)
        if full:
            self._sampled = now
            await self._sample()
            await self._tidy()
        elif self._asked:
            await self._approvals()
        self._asked = False

    # --------------------------------------------------------------------------------------------- turns
    async def _turns(self) -> None:
        """Rows of every turn that has ended and was not counted."""
        try:
            await self._look()
        except BaseException:
            self._cursor, self._open = None, set()  # what was read and not written is read again
            raise

    async def _look(self) -> None:
        state, done = self._store.state, set[int]()
        if self._cursor is None:
            self._cursor, done = await sql.counted_turns(self._store.events)
        ended = list(await sql.turns_of(state, self._open))
        while found := await sql.turns_after(state, self._cursor, BATCH):
            for row in found:
                if row["state"] == "open":
                    self._open.add(row["id"])
                elif row["id"] not in done:
                    ended.append(row)
            self._cursor = found[-1]["id"]
            await self._count(ended)
            ended = []
        if ended:
            await self._count(ended)

    async def _count(self, ended: Sequence[DbRow]) -> None:
        if not ended:
            return
        events = self._store.events
        turns = [
            _turn(row, await sql.tool_calls(events, row["id"]), await sql.was_compacted(events, row["id"]))
            for row in ended
        ]
        still_open = self._open - {turn.id for turn in turns}
        mark = min(still_open, default=(self._cursor or 0) + 1) - 1
        async with events.transaction() as tx:
            rows: list[Row] = []
            for turn in turns:
                if await sql.is_counted(tx, turn.id):
                    continue
                tools = fold_tools(turn.tools, await sql.tools_of(tx, turn.agent))
                await sql.see_tools(tx, turn.agent, tools, turn.ended_at)
                rows += turn_rows(turn, tools)
                await sql.count_turn(tx, turn.id)
            await sql.put(tx, rows)
            await sql.add_totals(tx, totals(rows))
            await sql.set_mark(tx, "turns", mark)
        self._open = still_open

    # ------------------------------------------------------------------------------------------ spending
    async def _spending(self, *, full: bool) -> None:
        """What the ledger grew by; `full`: compare all of it, not only what was told of."""
        if self._spent is None:
            self._spent = await sql.spent(self._store.events)
        pending, self._pending = self._pending, {}
        contexts, self._contexts = self._contexts, {}
        ledger = dict(pending)
        if full:
            oldest = self._day(LEDGER_DAYS)
            known = (_spent(row) for row in self._ledger.ledger_rows() if row.day >= oldest)
            ledger |= {(row.agent, row.day, row.model): row for row in known}
        changed = [row for key, row in ledger.items() if self._spent.get(key) != row]
        if not changed and not contexts:
            return
        try:
            async with self._store.events.transaction() as tx:
                rows = spent_rows(changed, self._spent, tx.now)
                await sql.add(tx, rows)
                await sql.add_totals(tx, totals(rows))
                await sql.set_spent(tx, changed)
                await sql.put(
                    tx, [Row(agent, tx.now, "context_used", used) for agent, used in contexts.items()]
                )
        except BaseException:
            self._pending = pending | self._pending
            raise
        self._spent |= {(row.agent, row.day, row.model): row for row in changed}

    def _day(self, ago: int) -> str:
        now = dt.datetime.fromtimestamp(self._clock.now(), dt.UTC).astimezone()
        return (now - dt.timedelta(days=ago)).date().isoformat()

    # ----------------------------------------------------------------------------------------- what is now
    async def _sample(self) -> None:
        """Levels of all agents, and of the hive."""
        found = await fleet.agents(self._store.state)
        depths = await fleet.waiting(self._store.state)
        statuses = await self._containers.statuses()
        leaders = {
            name: status.leader_pid
            for name, status in statuses.items()
            if status.phase == "running" and status.leader_pid is not None
        }
        memory = await self._measures.memory_bytes(leaders)
        now = micros(self._clock.now())
        rows = [Row(HIVE, now, "approvals_pending", await fleet.pending(self._store.state))]
        for one in found:
            name = AgentName(one["name"])
            rows.append(Row(name, now, "inbox_depth", depths.get(name, 0)))
            rows.append(Row(name, now, "rss", memory.get(name, 0)))
            rows.append(Row(name, now, "notes_bytes", await self._measures.notes_bytes(name) or 0))
        self._levels.keep([HIVE, *(one["name"] for one in found)])
        await self._put(self._levels.due(rows))

    async def _approvals(self) -> None:
        count = await fleet.pending(self._store.state)
        await self._put([Row(HIVE, micros(self._clock.now()), "approvals_pending", count)])

    async def _put(self, rows: Sequence[Row]) -> None:
        if rows:
            async with self._store.events.transaction() as tx:
                await sql.put(tx, rows)

    async def _tidy(self) -> None:
        """Agents that are purged leave neither totals nor names of tools."""
        names = [HIVE, *await agents.names(self._store.state)]
        async with self._store.events.transaction() as tx:
            await sql.forget_strangers(tx, names, before_day=self._day(LEDGER_DAYS))


def _turn(row: DbRow, tools: Mapping[str, int], compacted: bool) -> EndedTurn:
    figures: Mapping[str, Any] = json.loads(row["figures"]) if row["figures"] else {}
    return EndedTurn(
        id=row["id"],
        agent=row["agent"],
        outcome=row["outcome"],
        begun_at=row["begun_at"],
        ended_at=row["ended_at"],
        received=figures.get("received", {}),
        sent=figures.get("sent", {}),
        inbox_depth=figures.get("inbox_depth"),
        tools=tools,
        compacted=compacted,
    )


def _spent(row: SpendingRow) -> Spent:
    return Spent(
        *(row.agent, row.day, row.model),
        *(row.input_tokens, row.output_tokens, row.cache_read_tokens, row.cache_write_tokens),
        row.usd_micro,
    )
