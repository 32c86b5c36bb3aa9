"""Old figures: rows become hours, hours go. Small transactions, one agent and key at a time."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.model.instants import MICRO
from reconciler.stats import sketch
from reconciler.stats.series import HOUR, Cell
from reconciler.store.db import Reader, Tx
from reconciler.store.stats import set_mark

WINDOW = 500
"""Rows that one transaction rolls up."""

PERCENTILES_OF = frozenset({"turn_duration"})
"""Keys of rows whose values are kept as a sketch: percentiles are asked of them."""

FIRST = ("", "")


@dataclass(frozen=True, slots=True)
class Rolled:
    """What one transaction did: rows that became part of an hour, hours that went, whether there may be
    more."""

    rows: int
    hours: int
    more: bool


async def following(reader: Reader, place: tuple[str, str]) -> tuple[str, str] | None:
    """The agent and key after that one; None after the last."""
    row = await reader.one(
        "SELECT agent, key FROM (SELECT * FROM (SELECT agent, key FROM stats WHERE (agent, key) > (?1, ?2) "
        "ORDER BY agent, key LIMIT 1) UNION ALL SELECT * FROM (SELECT agent, key FROM stats_hours "
        "WHERE (agent, key) > (?1, ?2) ORDER BY agent, key LIMIT 1)) ORDER BY agent, key LIMIT 1",
        *place,
    )
    return None if row is None else (row["agent"], row["key"])


async def roll(tx: Tx, place: tuple[str, str], *, rows_before: int, hours_before: int) -> Rolled:
    """Roll up rows older than `rows_before` (the begin of an hour), and delete hours older than
    `hours_before`. Safe to repeat: a row is either itself or part of its hour."""
    agent, key = place
    gone = await tx.run(
        "DELETE FROM stats_hours WHERE agent = ? AND key = ? AND ts < ?", agent, key, hours_before
    )
    rows = await tx.all(
        "SELECT ts, source, value FROM stats WHERE agent = ? AND key = ? AND ts < ? "
        "ORDER BY ts, source LIMIT ?",
        *(agent, key, rows_before, WINDOW),
    )
    if not rows:
        return Rolled(0, gone.changed, more=False)
    hours: dict[int, Cell] = {}
    for row in rows:
        hours.setdefault(row["ts"] // HOUR * HOUR, Cell()).take(row["value"], row["ts"])
    for begin, cell in hours.items():
        if begin + HOUR > hours_before:
            await _merge(tx, agent, key, begin, cell)
    await tx.run(
        "DELETE FROM stats WHERE agent = ? AND key = ? AND (ts, source) <= (?, ?)",
        *(agent, key, rows[-1]["ts"], rows[-1]["source"]),
    )
    await set_mark(tx, "hours", rows_before)
    return Rolled(len(rows), gone.changed, more=len(rows) == WINDOW)


async def _merge(tx: Tx, agent: str, key: str, begin: int, cell: Cell) -> None:
    known = await tx.one(
        "SELECT * FROM stats_hours WHERE agent = ? AND key = ? AND ts = ?", agent, key, begin
    )
    if key in PERCENTILES_OF:
        cell.sketch = dict(sketch.of(cell.values))
    if known is not None:
        cell.add(
            Cell(
                *(known["count"], known["sum"], known["high"], known["last"], known["last_ts"]),
                sketch=dict(sketch.loads(known["sketch"])),
            )
        )
    await tx.run(
        "INSERT OR REPLACE INTO stats_hours VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *(agent, key, begin, cell.count, cell.sum, cell.high, cell.last, cell.last_ts),
        sketch.dumps(cell.sketch) if cell.sketch else "",
    )


async def forget_tools(tx: Tx, before: int) -> None:
    """Tools that were last used before that instant make room for others."""
    await tx.run("DELETE FROM stats_tools WHERE seen_at < ?", before)


def hour_of(instant: int) -> int:
    """The begin of the hour in which an instant lies."""
    return instant // (3600 * MICRO) * (3600 * MICRO)
