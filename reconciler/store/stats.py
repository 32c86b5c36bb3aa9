"""Figures in events.db: rows, their totals, and what has been counted already. What is read of them for
answers is `statsreads`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from reconciler.stats.counting import Row, Spent, totals
from reconciler.store.db import Reader, Tx
from reconciler.store.db import Row as DbRow

# A tool call that never had its answer counts as a call, too. Of the first lines only: a turn has at most so
# many (`claims.LINES_PER_TURN`).
_CALLS = (
    "SELECT json_extract(data, '$.name') AS name, COUNT(*) AS n FROM transcript "
    "WHERE turn_id = ? AND kind = 'tool_call' GROUP BY 1"
)
_COMPACTED = (
    "SELECT 1 FROM transcript WHERE turn_id = ?1 AND kind = 'compaction' AND seq > "
    "(SELECT MIN(seq) FROM transcript WHERE turn_id = ?1 AND kind = 'result' "
    " AND json_extract(data, '$.is_error')) LIMIT 1"
)


# ------------------------------------------------------------------------------------------------- of turns
async def turns_after(state: Reader, cursor: int, limit: int) -> Sequence[DbRow]:
    """Turns with an id above `cursor`, in order, whatever their state."""
    return await state.all("SELECT * FROM turns WHERE id > ? ORDER BY id LIMIT ?", cursor, limit)


async def turns_of(state: Reader, ids: Iterable[int]) -> Sequence[DbRow]:
    """Those of these turns that have ended."""
    return await state.all(
        "SELECT t.* FROM json_each(?) AS listed JOIN turns t ON t.id = listed.value WHERE t.state = 'ended'",
        json.dumps(sorted(ids)),
    )


async def tool_calls(events: Reader, turn: int) -> dict[str, int]:
    """How often the turn called each tool, as told by its container."""
    return {str(row["name"]): int(row["n"]) for row in await events.all(_CALLS, turn)}


async def was_compacted(events: Reader, turn: int) -> bool:
    """Whether the turn told of a failure and then of a compaction."""
    return await events.one(_COMPACTED, turn) is not None


async def counted_turns(events: Reader) -> tuple[int, set[int]]:
    """All turns up to the first number have been counted, and these above it."""
    mark = await events.one("SELECT value FROM stats_marks WHERE name = 'turns'")
    rows = await events.all("SELECT turn_id FROM stats_turns")
    return int(mark["value"]) if mark else 0, {int(row["turn_id"]) for row in rows}


async def is_counted(tx: Tx, turn: int) -> bool:
    """Whether that turn has been counted."""
    row = await tx.one(
        "SELECT 1 FROM stats_turns WHERE turn_id = ?1 UNION ALL "
        "SELECT 1 FROM stats_marks WHERE name = 'turns' AND value >= ?1",
        turn,
    )
    return row is not None


async def count_turn(tx: Tx, turn: int) -> None:
    """Its rows are written in this transaction."""
    await tx.run("INSERT INTO stats_turns VALUES (?) ON CONFLICT DO NOTHING", turn)


async def set_mark(tx: Tx, name: str, value: int) -> None:
    """Move a mark up."""
    await tx.run(
        "INSERT INTO stats_marks VALUES (?, ?) ON CONFLICT DO UPDATE SET value = MAX(value, excluded.value)",
        name,
        value,
    )
    if name == "turns":
        await tx.run("DELETE FROM stats_turns WHERE turn_id <= ?", value)


async def tools_of(tx: Reader, agent: str) -> list[str]:
    """Tools of the agent that have a key of their own, by name."""
    rows = await tx.all("SELECT name FROM stats_tools WHERE agent = ? ORDER BY name", agent)
    return [row["name"] for row in rows]


async def see_tools(tx: Tx, agent: str, names: Iterable[str], at: int) -> None:
    """The agent used these."""
    await tx.run(
        "INSERT INTO stats_tools SELECT ?1, value, ?2 FROM json_each(?3) WHERE true "
        "ON CONFLICT DO UPDATE SET seen_at = MAX(seen_at, excluded.seen_at)",
        *(agent, at, json.dumps(sorted(names))),
    )


# ----------------------------------------------------------------------------------------------------- rows
async def put(tx: Tx, rows: Sequence[Row]) -> None:
    """Write rows that have a place of their own; one that is there stays as it is."""
    await _insert(tx, rows, "NOTHING")


async def add(tx: Tx, rows: Sequence[Row]) -> None:
    """Write rows; where there is one, its value grows."""
    await _insert(tx, rows, "UPDATE SET value = value + excluded.value")


async def _insert(tx: Tx, rows: Sequence[Row], conflict: str) -> None:
    if rows:
        await tx.run(
            "INSERT INTO stats (agent, ts, key, value, source) SELECT json_extract(value, '$[0]'), "  # noqa: S608
            "json_extract(value, '$[1]'), json_extract(value, '$[2]'), json_extract(value, '$[3]'), "
            f"json_extract(value, '$[4]') FROM json_each(?) WHERE true ON CONFLICT DO {conflict}",
            json.dumps(rows),
        )


async def add_totals(tx: Tx, more: Mapping[tuple[str, str], float]) -> None:
    """Let totals grow."""
    if more:
        await tx.run(
            "INSERT INTO stats_totals SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), "
            "json_extract(value, '$[2]') FROM json_each(?) WHERE true "
            "ON CONFLICT DO UPDATE SET value = value + excluded.value",
            json.dumps([[agent, key, value] for (agent, key), value in more.items()]),
        )


async def inbox_depth(tx: Tx, agent: str, ts: int, depth: int, source: int) -> None:
    """How many messages waited for the agent at that instant."""
    await put(tx, [Row(agent, ts, "inbox_depth", depth, source)])


async def started(tx: Tx, agent: str, ts: int) -> None:
    """The agent's container was started; every time but the first is a restart."""
    row = await tx.one("SELECT value FROM stats_totals WHERE agent = ? AND key = 'starts'", agent)
    await add_totals(tx, {(agent, "starts"): 1})
    if row is not None:
        rows = [Row(agent, ts, "restarts", 1)]
        await add(tx, rows)
        await add_totals(tx, totals(rows))


# ------------------------------------------------------------------------------------------------- spending
async def spent(events: Reader) -> dict[tuple[str, str, str], Spent]:
    """How much of each row of the ledger has been counted, by agent, day and model."""
    rows = [Spent(*tuple(row)) for row in await events.all("SELECT * FROM stats_spent")]
    return {(row.agent, row.day, row.model): row for row in rows}


async def set_spent(tx: Tx, rows: Iterable[Spent]) -> None:
    """These rows of the ledger have been counted."""
    await tx.run(
        "INSERT INTO stats_spent SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), "
        "json_extract(value, '$[2]'), json_extract(value, '$[3]'), json_extract(value, '$[4]'), "
        "json_extract(value, '$[5]'), json_extract(value, '$[6]'), json_extract(value, '$[7]') "
        "FROM json_each(?) WHERE true ON CONFLICT DO UPDATE SET input_tokens = excluded.input_tokens, "
        "output_tokens = excluded.output_tokens, cache_read_tokens = excluded.cache_read_tokens, "
        "cache_write_tokens = excluded.cache_write_tokens, usd_micro = excluded.usd_micro",
        json.dumps(list(rows)),
    )


# ------------------------------------------------------------------------------------------------ forgetting
async def forget_strangers(tx: Tx, names: Sequence[str], *, before_day: str) -> None:
    """Totals and tools of agents that are none of these, and what was counted of the ledger before that day
    (which is not asked for any more)."""
    listed = json.dumps(list(names))
    for table in ("stats_totals", "stats_tools"):
        await tx.run(
            f"DELETE FROM {table} WHERE agent NOT IN (SELECT value FROM json_each(?))",  # noqa: S608 - constant
            listed,
        )
    await tx.run("DELETE FROM stats_spent WHERE day < ?", before_day)
