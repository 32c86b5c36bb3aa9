"""Keeps the databases from growing without end: what is older than the host's `retention` goes, in small
transactions with pauses between them, so that nobody waits for it; free pages go back to the file system.

What is kept regardless of its age is said in `reconciler.store.pruning`. Only the host's configuration
decides; nothing inside a container is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from reconciler.broker.events import EventLog
from reconciler.config import Retention as Bounds
from reconciler.control import models as api
from reconciler.effects.protocols import Clock
from reconciler.errors import HiveError
from reconciler.model.instants import micros, stamp_or_none
from reconciler.store import pruning, statsroll
from reconciler.store.db import Database, StatementError, Store
from reconciler.store.pruning import Rule

log = structlog.get_logger("retention")

FIRST_S = 60.0
EVERY_S = 3600.0
PAUSE_S = 0.02
WINDOWS_MAX = 20_000
"""Transactions for one table in one run; what is left then waits for the next."""

LOGINS_KEPT_DAYS = 7
SHRINK_PAGES = 256
SLACK_PAGES = 1024
"""Free pages that stay in a file to be used again; as does a tenth of it."""

_DAY_S = 86_400
_MIB = 1024 * 1024


@dataclass(slots=True)
class Run:
    """What one run deleted, by table."""

    deleted: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, rows: int) -> None:
        """Count rows of a table."""
        if rows:
            self.deleted[name] = self.deleted.get(name, 0) + rows


class Retention:
    """Prunes both databases from time to time, and tells their sizes."""

    def __init__(self, store: Store, clock: Clock, events: EventLog, bounds: Bounds) -> None:
        self._store = store
        self._clock = clock
        self._events = events
        self._bounds = bounds
        self._last: tuple[float, Run] | None = None

    async def run(self) -> None:
        """Prune soon after the start and then every hour, until cancelled. A full disk or a busy file ends a
        run, not the job."""
        await self._clock.sleep(FIRST_S)
        while True:
            try:
                await self.prune()
            except (StatementError, HiveError) as error:
                log.warning("retention.failed", error=str(error))
            await self._clock.sleep(EVERY_S)

    async def prune(self) -> Run:
        """One run over everything. Safe to be cut off anywhere and to be repeated."""
        done = Run()
        await self._truth(done)
        await self._history(done)
        for database in (self._store.state, self._store.events):
            await self._shrink(database)
        self._last = (self._clock.now(), done)
        if done.deleted:
            log.info("retention.pruned", **done.deleted)
            await self._events.publish("hive.pruned", None, rows=done.deleted)
        return done

    async def sizes(self) -> Sequence[api.DatabaseSize]:
        """Both files, in bytes."""
        found = []
        for database in (self._store.state, self._store.events):
            size = await database.size()
            found.append(
                api.DatabaseSize(
                    name=database.path.name, bytes=size.file, free_bytes=size.free, log_bytes=size.log
                )
            )
        return found

    @property
    def pruned_at(self) -> str | None:
        """When this process ended its last run."""
        return stamp_or_none(None if self._last is None else micros(self._last[0]))

    # ------------------------------------------------------------------------------------------- inside
    async def _truth(self, done: Run) -> None:
        days = {
            "messages": self._bounds.messages_days,
            "leases": self._bounds.turns_days,
            "turns": self._bounds.turns_days,
            "questions": self._bounds.questions_days,
        }
        for name, rule in pruning.TRUTH.items():
            await self._table(self._store.state, rule, await self._before(days[name]), done)
        async with self._store.state.transaction() as tx:
            done.add("logins", await pruning.forget_logins(tx, await self._before(LOGINS_KEPT_DAYS)))

    async def _history(self, done: Run) -> None:
        days = {
            "events": self._bounds.events_days,
            "transcript": self._bounds.transcripts_days,
            "build_log": self._bounds.build_logs_days,
        }
        needed = {
            "transcript": await pruning.open_turns(self._store.state),
            "build_log": await pruning.living_proposals(self._store.state),
        }
        for name, rule in pruning.HISTORY.items():
            before = await self._before(days[name])
            await self._table(self._store.events, rule, before, done, needed.get(name, ()))
        await self._figures(done)
        await self._cap(done)

    async def _figures(self, done: Run) -> None:
        """Rows of figures become hours, and hours go."""
        events = self._store.events
        hours = await self._before(self._bounds.stats_days)
        rows = statsroll.hour_of(await self._before(self._bounds.stats_raw_days))
        place = statsroll.FIRST
        while (found := await statsroll.following(events, place)) is not None:
            place = found
            for _ in range(WINDOWS_MAX):
                async with events.transaction() as tx:
                    rolled = await statsroll.roll(tx, place, rows_before=rows, hours_before=hours)
                done.add("stats", rolled.rows)
                done.add("stats_hours", rolled.hours)
                if not rolled.more:
                    break
                await self._clock.sleep(PAUSE_S)
        async with events.transaction() as tx:
            await statsroll.forget_tools(tx, hours)

    async def _before(self, days: int) -> int:
        """Rows older than this instant may go: never one as young as what waits to be copied."""
        before = micros(self._clock.now() - days * _DAY_S)
        waiting = await pruning.oldest_waiting(self._store.state)
        return before if waiting is None else min(before, waiting)

    async def _table(
        self, database: Database, rule: Rule, before: int, done: Run, needed: Sequence[int] = ()
    ) -> None:
        after = 0
        for _ in range(WINDOWS_MAX):
            async with database.transaction() as tx:
                window = await pruning.prune(tx, rule, before=before, after=after, needed=needed)
                if rule.table == "events" and window.deleted:
                    await pruning.record(tx, rule.table, window.seen)
            done.add(rule.table, window.deleted)
            if not window.more:
                return
            after = window.seen
            await self._clock.sleep(PAUSE_S)

    async def _cap(self, done: Run) -> None:
        """Transcripts beyond the size that history may have go before their time."""
        limit = self._bounds.history_max_mib * _MIB
        for _ in range(WINDOWS_MAX):
            if await pruning.used_bytes(self._store.events) <= limit:
                return
            needed = await pruning.open_turns(self._store.state)
            async with self._store.events.transaction() as tx:
                gone = await pruning.relieve(tx, needed)
            if not gone:
                log.warning("retention.over", limit_mib=self._bounds.history_max_mib)
                return
            done.add("transcript", gone)
            await self._clock.sleep(PAUSE_S)

    async def _shrink(self, database: Database) -> None:
        for _ in range(WINDOWS_MAX):
            size = await database.size()
            pages = size.free // size.page
            if pages <= SLACK_PAGES or size.free <= size.file // 10:
                return
            await database.shrink(SHRINK_PAGES)
            if (await database.size()).free >= size.free:
                return  # a file that cannot
            await self._clock.sleep(PAUSE_S)
