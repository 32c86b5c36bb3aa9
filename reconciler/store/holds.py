"""Holds: what the operator froze, one agent or (scope `*`) the whole hive, and why."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.model.names import AgentName
from reconciler.store.db import Reader, Tx

EVERYBODY = "*"
# For selects over `agents a`: whether a hold of its own or of the whole hive is on it.
IS_HELD = "EXISTS (SELECT 1 FROM holds h WHERE h.scope IN (a.name, '*'))"

HOLD_REASON = "(SELECT h.reason FROM holds h WHERE h.scope IN (a.name, '*') ORDER BY h.scope = '*' LIMIT 1)"


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold. `scope` is an agent's name or `*`; `at` in microseconds since the epoch."""

    scope: str
    by: str
    reason: str
    at: int


async def on(reader: Reader, name: AgentName) -> list[Hold]:
    """The holds on an agent, the hive's first; empty: it is free."""
    rows = await reader.all("SELECT * FROM holds WHERE scope IN (?, '*') ORDER BY scope", name)
    return [Hold(row["scope"], row["by"], row["reason"], row["at"]) for row in rows]


async def every(reader: Reader) -> list[Hold]:
    """All holds, the hive's first."""
    rows = await reader.all("SELECT * FROM holds ORDER BY scope")
    return [Hold(row["scope"], row["by"], row["reason"], row["at"]) for row in rows]


async def put(tx: Tx, scope: str, by: str, reason: str) -> bool:
    """Hold; False if that hold is there already. Another reason takes the place of the one before."""
    done = await tx.run(
        "INSERT INTO holds (scope, by, reason, at) VALUES (?, ?, ?, ?) ON CONFLICT (scope) DO UPDATE "
        "SET by = excluded.by, reason = excluded.reason WHERE excluded.reason NOT IN ('', holds.reason)",
        *(scope, by, reason, tx.now),
    )
    return done.changed > 0


async def lift(tx: Tx, scope: str) -> bool:
    """Release; False if there was no such hold. The hive's and an agent's own are two: each is lifted alone.

    A probe that was under way begins anew: while it was suspended its deadline may have passed.
    """
    done = await tx.run("DELETE FROM holds WHERE scope = ?", scope)
    if not done.changed:
        return False
    await tx.run(
        "UPDATE proposals SET activating_at = ?1 WHERE state = 'activating' AND ?2 IN (agent, '*')",
        *(tx.now, scope),
    )
    return True
