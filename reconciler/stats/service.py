"""Answers with figures: over time, and as a monitor reads them."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from reconciler.control import models as api
from reconciler.effects.protocols import Clock
from reconciler.errors import OperatorError
from reconciler.model.instants import MICRO, micros, stamp
from reconciler.stats import catalogue, exposition, series
from reconciler.stats.catalogue import HIVE, TOOL_PREFIX, Aggregate, Key
from reconciler.stats.series import EVERYBODY, Cell, Grid, Place, Rows
from reconciler.store import agents, fleet
from reconciler.store import statsreads as sql
from reconciler.store.db import Reader, Store
from reconciler.store.statsreads import Span

BY_AGENT_POINTS_MAX = 100
TOKEN_MIN = 16
TOKEN_MAX = 4096

_PERCENTILES = frozenset({Aggregate.P50, Aggregate.P95})
_LEVELS = frozenset({Aggregate.LAST, Aggregate.MAX})


class StatService:
    """Reads events.db; decides nothing. `token_file`: a file with what a monitor must say, None: none may."""

    def __init__(self, store: Store, clock: Clock, token_file: str | None) -> None:
        self._store = store
        self._clock = clock
        self._token_file = token_file

    async def query(
        self, *, agent: str | None, since: str, until: str | None, keys: str | None, points: int, by: str
    ) -> api.Stats:
        """Series of one agent, of the hive put together (`agent` None), or of every agent by itself (`by`
        "agent"). `OperatorError` code "not-found" for an agent that there never was."""
        now = micros(self._clock.now())
        begin = series.instant(since, now, "since")
        end = min(now, series.instant(until, now, "until")) if until else now
        events = self._store.events
        if by == "agent":
            points = min(points, BY_AGENT_POINTS_MAX)
        grid = series.grid(begin, end, points, hours_before=await sql.rolled_until(events))
        names = await self._names(agent)
        each = agent is not None or by == "agent"
        chosen = catalogue.chosen(keys, await sql.tools(events, names), of_agent=each)
        rows = await self._read(chosen, names, grid, together=not each)
        groups = [(name, [name]) for name in names] if each else [(None, names)]
        made = await asyncio.to_thread(_series, chosen, groups, rows, grid)
        times = [stamp(grid.begin + number * grid.width) for number in range(grid.count)]
        return api.Stats(
            since=stamp(grid.begin),
            until=stamp(grid.until),
            bucket_s=grid.width / MICRO,
            times=times,
            series=made,
        )

    async def _names(self, agent: str | None) -> list[str]:
        """Those whose rows count: of destroyed ones, too, as long as there are some."""
        if agent is None:
            known = {*await agents.names(self._store.state), *await sql.agents(self._store.events)}
            return sorted(known)
        if await agents.get(self._store.state, agent) is None and agent not in await sql.agents(
            self._store.events
        ):
            raise OperatorError(
                f"there is no agent {agent[:60]!r}", code="not-found", hint="`hive agents` lists them"
            )
        return [agent]

    async def _read(self, keys: Sequence[Key], names: Sequence[str], grid: Grid, *, together: bool) -> Rows:
        """`together`: what adds up was of everybody; levels are each agent's all the same."""
        events = self._store.events
        kinds = {key.rows: key.aggregate for key in keys if key.aggregate not in _PERCENTILES}
        exact = any(key.aggregate in _PERCENTILES for key in keys)
        turns = any(key.aggregate is Aggregate.PER_TURN or key.rows == "turn_duration" for key in keys)
        levels = sorted({name for name, kind in kinds.items() if kind in _LEVELS})
        added = sorted(set(kinds) - set(levels) - {"turn_duration"})
        cells: dict[Place, Cell] = {}

        def span(wanted: Sequence[str], *, together: bool = False) -> Span:
            return Span([*names, HIVE], wanted, grid.begin, grid.until, grid.width, together)

        reads: list[
            tuple[Callable[[Reader, Span], Coroutine[Any, Any, dict[Place, Cell]]], Sequence[str]]
        ] = [
            (sql.levels, levels),
            (sql.sums, added),
            (sql.durations if exact else sql.sums, ["turn_duration"] if turns else []),
        ]
        for read, wanted in reads:
            if wanted:
                cells |= await read(events, span(wanted, together=together and read is not sql.levels))
        held = [*levels, *(["turn_duration"] if kinds.get("turn_duration") else [])]
        earlier = await sql.before(events, span(held)) if held else {}
        return Rows(cells, series.with_latest(earlier, "turn_duration") if together else earlier)

    # ------------------------------------------------------------------------------------------- metrics
    async def metrics(self) -> api.MetricList:
        """All metrics of agents that are not destroyed."""
        state, events = self._store.state, self._store.events
        names = [row["name"] for row in await agents.existing(state)]
        now = micros(self._clock.now())
        span = Span([*names, HIVE], [*catalogue.GAUGES, "turn_duration"], now + 1, now + 1, 1)
        return api.MetricList(
            items=exposition.metrics(
                names,
                await sql.totals(events, names),
                await sql.before(events, span),
                pending=await fleet.pending(state),
                depths=await fleet.waiting(state),
                now=now,
            )
        )

    async def scrape(self, request: api.Scrape) -> api.MetricList:
        """The same for who says the token."""
        if self._token_file is None:
            raise OperatorError(
                "no monitor may read this hive",
                code="forbidden",
                hint="put a token into a file, and its path as metrics.token_file into hived's configuration",
            )
        wanted = await asyncio.to_thread(_token, Path(self._token_file))
        if not hmac.compare_digest(request.token.encode(), wanted):
            raise OperatorError("that is not the token", code="unauthenticated")
        return await self.metrics()


def _token(path: Path) -> bytes:
    """Read at each call, so that it can be replaced without a restart."""
    try:
        with path.open("rb") as file:
            token = file.read(TOKEN_MAX).strip()
    except OSError as error:
        raise OperatorError(
            "the token of metrics cannot be read", code="forbidden", hint=f"{path}: {error.strerror}"
        ) from error
    if len(token) < TOKEN_MIN:
        raise OperatorError(
            f"the token of metrics has less than {TOKEN_MIN} characters",
            code="forbidden",
            hint="make one: `openssl rand -hex 32`",
        )
    return token


def _series(
    keys: Sequence[Key], groups: Sequence[tuple[str | None, Sequence[str]]], rows: Rows, grid: Grid
) -> list[api.StatSeries]:
    whole, merged = grid.whole, rows.merged
    found = []
    for name, members in groups:
        for key in keys:
            of = [HIVE] if key.hive_only else members
            if name is None and key.aggregate not in _LEVELS:
                of = [EVERYBODY]
            used = any((member, key.rows, 0) in merged.cells for member in members)
            if len(groups) > 1 and key.name.startswith(TOOL_PREFIX) and not used:
                continue  # of many agents only those that used the tool
            [total] = series.values(key, of, merged, whole)
            found.append(
                api.StatSeries(
                    agent=name,
                    key=key.name,
                    unit=key.unit,
                    aggregate=key.aggregate,
                    told_by=key.teller.value,
                    meaning=key.meaning,
                    values=series.values(key, of, rows, grid),
                    total=total,
                )
            )
    return found
