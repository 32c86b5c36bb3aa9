"""What the operator added to budgets of a day, what was told of them, and agents that wait for a day's end.

Budgets are held by the gateway and its ledger. These rows say what the operator decided, and what agents are
shown as.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from reconciler.store.db import Reader, Row, Tx

HIVE = "*"
"""The scope of the hive's own budget; any other is an agent's name."""

KEPT_DAYS = 92
_DAY_MICROS = 86_400_000_000

Notice = Literal["warned", "reached", "unknown"]


async def add(tx: Tx, scope: str, day: str, usd_micro: int, by: str, note: str) -> None:
    """The operator lets that much more be spent on that day."""
    await tx.run(
        "INSERT INTO budget_additions (scope, day, usd_micro, by, note, at) VALUES (?, ?, ?, ?, ?, ?)",
        *(scope, day, usd_micro, by, note, tx.now),
    )


async def added(reader: Reader, day: str, *, since: int = 0) -> Mapping[str, int]:
    """Micro-dollars added for a day by scope, counting what was added at `since` (microseconds) or later."""
    rows = await reader.all(
        "SELECT scope, SUM(usd_micro) AS total FROM budget_additions WHERE day = ? AND at >= ? "
        "GROUP BY scope",
        *(day, since),
    )
    return {row["scope"]: int(row["total"]) for row in rows}


async def notice(tx: Tx, scope: str, day: str, kind: Notice, ceiling_usd_micro: int = 0) -> bool:
    """Remember that people were told; False if they were before. `ceiling`: tell again of a higher one."""
    done = await tx.run(
        "INSERT INTO budget_notices (scope, day, kind, ceiling_usd_micro, at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO NOTHING",
        *(scope, day, kind, ceiling_usd_micro, tx.now),
    )
    if done.changed:
        for table in ("budget_notices", "budget_additions"):
            await tx.run(f"DELETE FROM {table} WHERE at < ?", tx.now - KEPT_DAYS * _DAY_MICROS)  # noqa: S608 - constants
    return done.changed > 0


async def notices(reader: Reader, day: str) -> Mapping[tuple[str, str], int]:
    """When people were told last, by (scope, kind)."""
    rows = await reader.all(
        "SELECT scope, kind, MAX(at) AS at FROM budget_notices WHERE day = ? GROUP BY scope, kind", day
    )
    return {(row["scope"], row["kind"]): int(row["at"]) for row in rows}


async def wait(tx: Tx, agent: str, until: int, reason: str) -> None:
    """No turn of the agent before the day's end (microseconds), or before its budget is raised."""
    await tx.run(
        "UPDATE agents SET budget_until_at = ?, budget_reason = ? WHERE name = ?", until, reason, agent
    )


async def end_wait(tx: Tx, agent: str) -> None:
    """The agent has room again."""
    await tx.run("UPDATE agents SET budget_until_at = NULL, budget_reason = '' WHERE name = ?", agent)


async def end_rest(tx: Tx, agent: str, reasons: Collection[str]) -> None:
    """End the agent's rest after a failed turn, if it rests for one of these reasons."""
    await tx.run(
        "UPDATE agents SET parked_until_at = NULL, parked_reason = '' WHERE name = ? AND parked_reason IN "
        "(SELECT value FROM json_each(?))",
        *(agent, json.dumps(list(reasons))),
    )


async def waits(reader: Reader) -> Sequence[Row]:
    """Of every agent that is not destroyed, by name: what it waits for, and why it rests."""
    return await reader.all(
        "SELECT name, budget_until_at, budget_reason, parked_reason FROM agents "
        "WHERE desired <> 'destroyed' ORDER BY name"
    )
