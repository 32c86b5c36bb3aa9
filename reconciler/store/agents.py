"""What the broker reads and writes of agents: who exists, when they may be woken, their session and status.

What the operator wants of them is `fleet`, what runs is `deployments`.
"""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.model.names import AgentName
from reconciler.store.db import Reader, Row, Tx
from reconciler.store.holds import HOLD_REASON, IS_HELD

COLUMNS = f"a.*, {IS_HELD} AS held, {HOLD_REASON} AS hold_reason"
"""Of an agent `a`: what `get` gives, and `fleet` with more."""


async def get(reader: Reader, name: str) -> Row | None:
    """The agent's row, destroyed ones included; None if there never was one."""
    return await reader.one(f"SELECT {COLUMNS} FROM agents a WHERE a.name = ?", name)  # noqa: S608 - constant


async def existing(reader: Reader) -> Sequence[Row]:
    """Names and roles of all agents that are not destroyed, by name."""
    return await reader.all("SELECT name, role FROM agents WHERE desired <> 'destroyed' ORDER BY name")


EXISTING_OF = (
    "SELECT name, role FROM agents WHERE name = ?1 AND desired <> 'destroyed' "
    "UNION SELECT name, role FROM agents WHERE role = 'manager' AND desired <> 'destroyed' ORDER BY name"
)


async def existing_of(reader: Reader, name: str) -> Sequence[Row]:
    """The same, only of the agent `name` and of the manager: two rows of an index, however large the hive."""
    return await reader.all(EXISTING_OF, name)


async def names(reader: Reader) -> list[str]:
    """Names of all agents, destroyed ones included, by name."""
    return [row["name"] for row in await reader.all("SELECT name FROM agents ORDER BY name")]


async def manager(reader: Reader) -> AgentName | None:
    """The hive's manager, if it has one."""
    row = await reader.one("SELECT name FROM agents WHERE role = 'manager' AND desired <> 'destroyed'")
    return None if row is None else AgentName(row["name"])


async def generation(reader: Reader, name: str) -> Row | None:
    """The generation that was last deployed well; None before the first."""
    return await reader.one(
        "SELECT g.* FROM agents a JOIN generations g ON g.agent = a.name AND g.number = a.generation "
        "WHERE a.name = ?",
        name,
    )


async def generation_number(reader: Reader, name: str, number: int) -> Row | None:
    """One generation of the agent, whatever became of it."""
    return await reader.one("SELECT * FROM generations WHERE agent = ? AND number = ?", name, number)


async def draft_names(reader: Reader) -> list[str]:
    """Names of the agents that are being drafted, by name."""
    return [row["name"] for row in await reader.all("SELECT name FROM drafts ORDER BY name")]


async def nap(tx: Tx, name: str, until: int, reason: str) -> None:
    """Do not wake the agent before `until` (microseconds since the epoch)."""
    await tx.run(
        "UPDATE agents SET wake_not_before_at = ?, nap_reason = ? WHERE name = ?", until, reason, name
    )


async def end_nap(tx: Tx, name: str) -> None:
    """The agent may be woken again; a parking stays."""
    await tx.run(
        "UPDATE agents SET wake_not_before_at = NULL, nap_reason = '' "
        "WHERE name = ? AND wake_not_before_at IS NOT NULL",
        name,
    )


async def park(tx: Tx, name: str, until: int | None, reason: str) -> None:
    """No turn before `until`; None: not before somebody ends the parking. `reason` is shown, never empty."""
    assert reason, "an agent is parked for a reason"
    await tx.run(
        "UPDATE agents SET parked_until_at = ?, parked_reason = ? WHERE name = ?", until, reason, name
    )


async def unpark(tx: Tx, reasons: Sequence[str]) -> None:
    """End every parking of these reasons."""
    for reason in reasons:
        await tx.run(
            "UPDATE agents SET parked_until_at = NULL, parked_reason = '' WHERE parked_reason = ?", reason
        )


async def is_being_stopped(reader: Reader, name: str) -> bool:
    """Whether hived itself is about to end the container, or just did: a stop, a restart, an activation."""
    row = await reader.one(
        "SELECT desired <> 'running' OR restart_wanted > restart_done OR EXISTS (SELECT 1 FROM proposals p "
        "WHERE p.agent = a.name AND p.state = 'activating') AS asked FROM agents a WHERE name = ?",
        name,
    )
    return row is not None and bool(row["asked"])


async def waiting(reader: Reader, now: int) -> Sequence[Row]:
    """Agents that should run and have messages that may be delivered: `COLUMNS`, the oldest (`first`), and
    whether one of them is the operator's (`asked`)."""
    return await reader.all(
        f"SELECT {COLUMNS}, (SELECT MIN(id) FROM messages m WHERE m.recipient = a.name "  # noqa: S608 - constant
        "AND m.state = 'queued' AND m.due_at <= ?1) AS first, "
        "EXISTS (SELECT 1 FROM messages m WHERE m.recipient = a.name AND m.state = 'queued' "
        "AND m.sender = 'operator') AS asked FROM agents a "
        "WHERE a.desired = 'running' AND first IS NOT NULL ORDER BY a.name",
        now,
    )


async def set_status(tx: Tx, name: str, text: str) -> None:
    """The short text that the agent shows beside its name."""
    await tx.run("UPDATE agents SET status = ?, status_at = ? WHERE name = ?", text, tx.now, name)


async def renew_session(tx: Tx, name: str, session_id: str, over: str) -> None:
    """A fresh conversation from the next turn on. A parking without end, or one for the reason `over`, was
    over the old one, and ends."""
    await tx.run(
        "UPDATE agents SET session_id = ?1, session_used = 0, compact_wanted = 0, "
        "parked_reason = CASE WHEN parked_until_at IS NULL OR parked_reason = ?3 THEN '' "
        "ELSE parked_reason END WHERE name = ?2",
        session_id,
        name,
        over,
    )


async def want_compaction(tx: Tx, name: str, *, wanted: bool) -> None:
    """Its conversation is to be summed up when it is between two turns."""
    await tx.run("UPDATE agents SET compact_wanted = ? WHERE name = ?", wanted, name)


async def use_session(tx: Tx, name: str, session_id: str) -> None:
    """The conversation exists from now on; nothing if the agent has another one meanwhile."""
    await tx.run(
        "UPDATE agents SET session_used = 1 WHERE name = ? AND session_id = ? AND session_used = 0",
        name,
        session_id,
    )


def parked_until(row: Row, now: int) -> int | None:
    """Until when the agent is parked, by a failed turn or by a budget: 0 not at all, None without end. `now`
    in microseconds."""
    until = row["parked_until_at"] if row["parked_reason"] else 0
    if until is None:
        return None
    until = max(until, row["budget_until_at"] or 0)
    return until if until > now else 0


def parked_reason(row: Row, now: int) -> str:
    """Why it is: the reason of what keeps it longest."""
    failed, budget = row["parked_until_at"], row["budget_until_at"] or 0
    if budget > now and not (row["parked_reason"] and (failed is None or failed > budget)):
        return str(row["budget_reason"])
    return str(row["parked_reason"])


def napping_until(row: Row, now: int) -> int:
    """Until when the agent naps, 0: not at all."""
    until = row["wake_not_before_at"]
    return until if until is not None and until > now else 0
