"""Leases: messages in the hands of one harness process, until a good turn acks them or anything else returns
them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reconciler.store import agents
from reconciler.store.db import Reader, Row, Tx


async def get(reader: Reader, agent: str, lease: int) -> Row | None:
    """A lease of this agent."""
    return await reader.one("SELECT * FROM leases WHERE id = ? AND agent = ?", lease, agent)


async def unbound(reader: Reader, agent: str, boot: str) -> Row | None:
    """The lease that this harness got and has not begun a turn with."""
    return await reader.one(
        "SELECT * FROM leases WHERE agent = ? AND state = 'open' AND boot = ? AND turn_id IS NULL "
        "ORDER BY id LIMIT 1",
        agent,
        boot,
    )


async def orphans(reader: Reader, agent: str, boot: str | None) -> list[int]:
    """Open leases without a turn that belong to another harness process than `boot` (None: to any)."""
    rows = await reader.all(
        "SELECT id FROM leases WHERE agent = ?1 AND state = 'open' AND turn_id IS NULL "
        "AND (?2 IS NULL OR boot <> ?2) ORDER BY id",
        agent,
        boot,
    )
    return [int(row["id"]) for row in rows]


async def of_turn(reader: Reader, turn: int) -> list[int]:
    """Open leases of the turn."""
    rows = await reader.all("SELECT id FROM leases WHERE turn_id = ? AND state = 'open' ORDER BY id", turn)
    return [int(row["id"]) for row in rows]


async def messages(reader: Reader, lease: int) -> Sequence[Row]:
    """The messages under an open lease, in order."""
    return await reader.all(
        "SELECT * FROM messages WHERE lease_id = ? AND state = 'leased' ORDER BY id", lease
    )


async def grant(tx: Tx, agent: str, boot: str, turn: int | None, message_ids: Iterable[int]) -> int:
    """Lease these queued messages; the lease's id."""
    done = await tx.run(
        "INSERT INTO leases (agent, boot, turn_id, state, created_at) VALUES (?, ?, ?, 'open', ?)",
        agent,
        boot,
        turn,
        tx.now,
    )
    for message in message_ids:
        await tx.run(
            "UPDATE messages SET state = 'leased', lease_id = ? WHERE id = ? AND state = 'queued'",
            done.row_id,
            message,
        )
    return done.row_id


async def bind(tx: Tx, lease: int, turn: int) -> None:
    """The lease ends with that turn."""
    await tx.run("UPDATE leases SET turn_id = ? WHERE id = ? AND state = 'open'", turn, lease)


async def ack(tx: Tx, lease: int) -> None:
    """Its messages are consumed; nothing if the lease has ended."""
    if await _end(tx, lease, "acked"):
        await tx.run("UPDATE messages SET state = 'acked' WHERE lease_id = ? AND state = 'leased'", lease)


@dataclass(frozen=True, slots=True)
class Fault:
    """What a turn that failed says about its messages. `counted`: it counts against them; `proven_by`: it
    counts against those that had failed before that instant (a request succeeded then, microseconds);
    `deferred`: others are to go first."""

    counted: bool = False
    proven_by: int | None = None
    deferred: bool = False


NO_FAULT = Fault()


async def give_back(tx: Tx, lease: int, fault: Fault = NO_FAULT) -> Sequence[Row]:
    """Its messages wait again, marked. Those whose failures were counted, with the new count; none if the
    lease had ended."""
    if not await _end(tx, lease, "returned"):
        return []
    found = await messages(tx, lease)
    counts = "(?2 OR (?3 IS NOT NULL AND returned_at IS NOT NULL AND returned_at < ?3))"
    failed = fault.counted or fault.proven_by is not None or fault.deferred
    rows = await tx.all(
        "SELECT id, failures + 1 AS failures FROM messages WHERE lease_id = ?1 AND state = 'leased' "  # noqa: S608 - constant
        f"AND {counts} ORDER BY id",
        *(lease, fault.counted, fault.proven_by),
    )
    await tx.run(
        f"UPDATE messages SET state = 'queued', redelivered = 1, lease_id = NULL, "  # noqa: S608 - constant
        f"failures = failures + {counts}, returned_at = CASE WHEN ?5 THEN ?6 ELSE returned_at END, "
        "deferred = deferred OR ?4 WHERE lease_id = ?1 AND state = 'leased'",
        *(lease, fault.counted, fault.proven_by, fault.deferred, failed, tx.now),
    )
    for row in found:
        if row["urgent"]:
            await agents.end_nap(tx, row["recipient"])
    return rows


async def _end(tx: Tx, lease: int, state: str) -> bool:
    done = await tx.run(
        "UPDATE leases SET state = ?, ended_at = ? WHERE id = ? AND state = 'open'", state, tx.now, lease
    )
    return bool(done.changed)
