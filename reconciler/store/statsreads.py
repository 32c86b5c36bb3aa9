"""Figures as answers need them: summed up by bucket in the database, raw only where a percentile is asked
for.

`begin`, `until` and `width` are microseconds; bucket n begins at `begin + n * width`. Rows that were rolled
up lie in the bucket in which their hour begins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reconciler.stats import sketch
from reconciler.stats.catalogue import HIVE
from reconciler.stats.series import EVERYBODY, Cell, Place
from reconciler.store.db import Reader, Row

# Agents and keys are looked for one by one: the primary key leads to the span of each.
_SPANS = (
    "FROM json_each(?1) a CROSS JOIN json_each(?2) k CROSS JOIN {table} s "
    "WHERE s.agent = a.value AND s.key = k.value AND s.ts >= ?3 AND s.ts < ?4"
)


@dataclass(frozen=True, slots=True)
class Span:
    """What is asked for: whose, which keys of rows, from when to when, in buckets of which width. `together`:
    as if all rows were those of one agent, `EVERYBODY`."""

    agents: Sequence[str]
    keys: Sequence[str]
    begin: int
    until: int
    width: int
    together: bool = False

    @property
    def who(self) -> str:
        """Whose a row is, in SQL."""
        return f"'{EVERYBODY}'" if self.together else "s.agent"


async def agents(reader: Reader) -> list[str]:
    """Everybody who has figures, by name, the hive's own left out."""
    rows = await reader.all(
        "WITH RECURSIVE raw (name) AS (SELECT MIN(agent) FROM stats UNION ALL "
        "SELECT (SELECT MIN(agent) FROM stats WHERE agent > name) FROM raw WHERE name IS NOT NULL), "
        "old (name) AS (SELECT MIN(agent) FROM stats_hours UNION ALL "
        "SELECT (SELECT MIN(agent) FROM stats_hours WHERE agent > name) FROM old WHERE name IS NOT NULL) "
        "SELECT name FROM raw WHERE name IS NOT NULL UNION "
        "SELECT name FROM old WHERE name IS NOT NULL ORDER BY 1"
    )
    return [row["name"] for row in rows if row["name"] != HIVE]


async def tools(reader: Reader, names: Sequence[str]) -> list[str]:
    """Tools that any of these agents has a key for."""
    rows = await reader.all(
        "SELECT DISTINCT t.name FROM json_each(?) a JOIN stats_tools t ON t.agent = a.value ORDER BY 1",
        json.dumps(list(names)),
    )
    return [row["name"] for row in rows]


async def rolled_until(reader: Reader) -> int:
    """Before this instant rows may have been rolled up to hours; 0: none was."""
    row = await reader.one("SELECT value FROM stats_marks WHERE name = 'hours'")
    return int(row["value"]) if row else 0


async def sums(reader: Reader, span: Span) -> dict[Place, Cell]:
    """Count, sum, maximum and last instant of each bucket that has rows."""
    raw = await reader.all(
        f"SELECT {span.who} AS agent, s.key, (s.ts - ?3) / ?5 AS n, COUNT(*) AS count, SUM(s.value) AS sum, "
        f"MAX(s.value) AS high, MAX(s.ts) AS last_ts {_SPANS.format(table='stats')} GROUP BY 1, 2, 3",
        *_given(span),
    )
    found = {_place(row): Cell(row["count"], row["sum"], row["high"], 0.0, row["last_ts"]) for row in raw}
    return _with_hours(found, await _hours(reader, span))


async def levels(reader: Reader, span: Span) -> dict[Place, Cell]:
    """Like `sums`, with the last value."""
    found = await sums(reader, span)
    # Of a bare column beside MAX(), SQLite takes the row that has the maximum.
    raw = await reader.all(
        f"SELECT s.agent, s.key, (s.ts - ?3) / ?5 AS n, s.value AS last, MAX(s.ts) AS last_ts "
        f"{_SPANS.format(table='stats')} GROUP BY 1, 2, 3",
        *_given(span),
    )
    for row in raw:
        found[_place(row)].last = row["last"]
    return found


async def durations(reader: Reader, span: Span) -> dict[Place, Cell]:
    """Like `sums`, with every value, and a sketch of those that were rolled up."""
    raw = await reader.all(
        f"SELECT {span.who} AS agent, s.key, (s.ts - ?3) / ?5 AS n, s.ts, s.value "
        f"{_SPANS.format(table='stats')}",
        *_given(span),
    )
    found: dict[Place, Cell] = {}
    for row in raw:
        cell = found.setdefault(_place(row), Cell())
        cell.take(row["value"], row["ts"])
    return _with_hours(found, await _hours(reader, span))


async def before(reader: Reader, span: Span) -> dict[tuple[str, str], tuple[int, float]]:
    """The last row before `begin` of each agent and key: its instant and value."""
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for table, instant, value in (("stats_hours", "last_ts", "last"), ("stats", "ts", "value")):
        rows = await reader.all(
            f"SELECT a.value AS agent, k.value AS key, s.{instant} AS ts, s.{value} AS last "  # noqa: S608
            f"FROM json_each(?1) a CROSS JOIN json_each(?2) k CROSS JOIN {table} s ON s.agent = a.value "
            f"AND s.key = k.value AND s.ts = (SELECT MAX(ts) FROM {table} "
            "WHERE agent = a.value AND key = k.value AND ts < ?3)",
            *(json.dumps(list(span.agents)), json.dumps(list(span.keys)), span.begin),
        )
        for row in rows:
            place = (row["agent"], row["key"])
            if place not in found or row["ts"] >= found[place][0]:
                found[place] = (row["ts"], row["last"])
    return found


async def totals(reader: Reader, names: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    """Everything ever counted of these agents, by agent and key."""
    rows = await reader.all(
        "SELECT t.* FROM json_each(?) a JOIN stats_totals t ON t.agent = a.value", json.dumps(list(names))
    )
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["agent"], {})[row["key"]] = row["value"]
    return found


async def _hours(reader: Reader, span: Span) -> Sequence[Row]:
    return await reader.all(
        f"SELECT {span.who} AS agent, s.key, s.count, s.sum, s.high, s.last, s.last_ts, s.sketch, "
        f"(s.ts - ?3) / ?5 AS n {_SPANS.format(table='stats_hours')}",
        *_given(span),
    )


def _with_hours(found: dict[Place, Cell], hours: Sequence[Row]) -> dict[Place, Cell]:
    for row in hours:
        found.setdefault(_place(row), Cell()).add(
            Cell(
                *(row["count"], row["sum"], row["high"], row["last"], row["last_ts"]),
                sketch=dict(sketch.loads(row["sketch"])),
            )
        )
    return found


def _given(span: Span) -> tuple[str, str, int, int, int]:
    return (json.dumps(list(span.agents)), json.dumps(list(span.keys)), span.begin, span.until, span.width)


def _place(row: Row) -> Place:
    return row["agent"], row["key"], row["n"]
