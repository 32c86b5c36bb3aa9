"""Agents as the operator sees and steers them: joined reads, and writes of desired state only."""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.errors import OperatorError
from reconciler.model.states import Desired
from reconciler.store import agents as agent_rows
from reconciler.store.db import Database, Reader, Row, Tx

# The newest turn is looked for in each state apart: the index knows the last of each, whatever their number.
_MORE = """, g.commit_id, g.spec,
       (SELECT COUNT(*) FROM messages m
        WHERE m.recipient = a.name AND m.state IN ('queued', 'leased')) AS inbox_depth,
       o.id AS turn_id, o.session_id AS turn_session, o.purpose AS turn_purpose,
       e.id AS ended_id, e.outcome AS ended_outcome, e.error AS ended_error,
       e.ended_at AS ended_at, last.begun_at AS last_turn_at, last.model AS last_model,
       last.other_model AS last_other_model
FROM agents a LEFT JOIN generations g ON g.agent = a.name AND g.number = a.generation
     LEFT JOIN turns o ON o.id = (SELECT id FROM turns t
                                  WHERE t.agent = a.name AND t.state = 'open' ORDER BY id DESC LIMIT 1)
     LEFT JOIN turns e ON e.id = (SELECT id FROM turns t
                                  WHERE t.agent = a.name AND t.state = 'ended' ORDER BY id DESC LIMIT 1)
     LEFT JOIN turns last ON last.id = MAX(COALESCE(o.id, 0), COALESCE(e.id, 0))
"""
_AGENT = "SELECT " + agent_rows.COLUMNS + _MORE


async def agents(db: Database) -> Sequence[Row]:
    """All agents that are not destroyed, by name."""
    return await db.all(_AGENT + " WHERE a.desired <> 'destroyed' ORDER BY a.name")


async def agent(db: Reader, name: str) -> Row:
    """One agent, destroyed or not; `OperatorError` code `not-found`."""
    row = await db.one(_AGENT + " WHERE a.name = ?", name)
    if row is None:
        raise OperatorError(
            f"there is no agent {name[:60]!r}", code="not-found", hint="`hive agents` lists them"
        )
    return row


async def generations(db: Database, name: str) -> Sequence[Row]:
    """All generations of an agent, newest first."""
    return await db.all("SELECT * FROM generations WHERE agent = ? ORDER BY number DESC", name)


async def counts(db: Database) -> Row:
    """Numbers of the hive's status: agents, open turns, pending proposals, open questions."""
    row = await db.one(
        "SELECT (SELECT COUNT(*) FROM agents WHERE desired <> 'destroyed') AS agents, "
        "(SELECT COUNT(*) FROM agents a CROSS JOIN turns t ON t.agent = a.name AND t.state = 'open') "
        " AS thinking, "
        "(SELECT COUNT(*) FROM proposals WHERE state = 'pending') AS pending, "
        "(SELECT COUNT(*) FROM questions WHERE state = 'open') AS questions, "
        "(SELECT hash FROM audit ORDER BY id DESC LIMIT 1) AS audit_head"
    )
    assert row is not None, "a select of scalars has one row"
    return row


async def crashed(db: Database) -> set[str]:
    """Agents that should run and crashed, and have not been up for long since."""
    rows = await db.all("SELECT name FROM agents WHERE desired = 'running' AND crashes > 0")
    return {row["name"] for row in rows}


async def held(db: Database) -> set[str]:
    """Agents with a hold of their own, but for destroyed ones, of which nothing could run."""
    rows = await db.all(
        "SELECT a.name FROM agents a JOIN holds h ON h.scope = a.name WHERE a.desired <> 'destroyed'"
    )
    return {row["name"] for row in rows}


async def kept(db: Database) -> Sequence[Row]:
    """Destroyed agents, by name, with when they were."""
    return await db.all(
        "SELECT a.*, g.commit_id, (SELECT MAX(at) FROM audit u WHERE u.action = 'agent.destroy' "
        " AND u.target = a.name) AS destroyed_at "
        "FROM agents a LEFT JOIN generations g ON g.agent = a.name AND g.number = a.generation "
        "WHERE a.desired = 'destroyed' ORDER BY a.name"
    )


async def want_purge(tx: Tx, name: str) -> None:
    """What was kept of a destroyed agent is to go."""
    await tx.run("UPDATE agents SET purge_wanted = 1 WHERE name = ? AND desired = 'destroyed'", name)


async def set_desired(tx: Tx, name: str, desired: Desired) -> None:
    """What the operator wants; a start also forgives earlier crashes."""
    forgive = ", crashes = 0, crashed_at = NULL" if desired is Desired.RUNNING else ""
    sql = f"UPDATE agents SET desired = ?{forgive} WHERE name = ?"  # noqa: S608 - constant text
    await tx.run(sql, desired, name)


async def want_restart(tx: Tx, name: str) -> None:
    """Ask for one restart more; a start serves all that were asked before it."""
    await tx.run(
        "UPDATE agents SET restart_wanted = restart_wanted + 1, crashes = 0, crashed_at = NULL "
        "WHERE name = ?",
        name,
    )


async def set_model(tx: Tx, name: str, model: str | None, by: str) -> None:
    """The operator's override; None takes it away."""
    await tx.run(
        "UPDATE agents SET model_override = ?, model_switched_at = ?, model_switched_by = ? WHERE name = ?",
        model,
        tx.now,
        by,
        name,
    )


async def end_nap(tx: Tx, name: str) -> None:
    """The agent may be woken at once, and is no longer parked."""
    await tx.run(
        "UPDATE agents SET wake_not_before_at = NULL, nap_reason = '', parked_until_at = NULL, "
        "parked_reason = '' WHERE name = ?",
        name,
    )


async def waiting(db: Database) -> dict[str, int]:
    """How many messages wait for each agent, those under a lease not counted; none for whom none does."""
    rows = await db.all(
        "SELECT a.name, COUNT(*) AS n FROM agents a CROSS JOIN messages m ON m.recipient = a.name "
        "AND m.state = 'queued' GROUP BY a.name"
    )
    return {row["name"]: int(row["n"]) for row in rows}


async def pending(db: Database) -> int:
    """How many proposals wait for a decision."""
    row = await db.one("SELECT COUNT(*) AS n FROM proposals WHERE state = 'pending'")
    return int(row["n"]) if row else 0
