"""Messages: who wrote what to whom, and whether it was consumed. States: queued → leased → acked, and back to
queued when a lease is returned; the operator's go queued → read. One that the loop guard delays is queued and
not due; one that the operator dropped then is acked without a lease, and has no `due_at`. One that failed too
often is set aside: acked by the host itself, with `set_aside_at`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reconciler.model.names import OPERATOR
from reconciler.store import agents
from reconciler.store.db import Reader, Row, Tx


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to be queued. `key` makes a repeat from the same sender harmless; `urgent` ends a nap; `hops`
    and `due_at` (0 at once, None held) are the loop guard's."""

    sender: str
    recipient: str
    body: str
    kind: str = "message"
    urgent: bool = False
    in_reply_to: int | None = None
    turn: int | None = None
    key: str | None = None
    hops: int = 0
    due_at: int | None = 0


async def add(tx: Tx, new: NewMessage) -> int:
    """Queue the message; its id, or that of the message this sender gave the same key for that recipient."""
    if new.key is not None:
        known = await tx.one(
            "SELECT id FROM messages WHERE sender = ? AND recipient = ? AND dedupe_key = ?",
            new.sender,
            new.recipient,
            new.key,
        )
        if known is not None:
            return int(known["id"])
    done = await tx.run(
        "INSERT INTO messages (sender, recipient, body, kind, urgent, in_reply_to, turn_id, dedupe_key, "
        "state, sent_at, hops, due_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?)",
        new.sender,
        new.recipient,
        new.body,
        new.kind,
        new.urgent,
        new.in_reply_to,
        new.turn,
        new.key,
        tx.now,
        new.hops,
        new.due_at,
    )
    if new.urgent:
        await agents.end_nap(tx, new.recipient)
    about, more = None, {}
    if new.recipient != OPERATOR:
        about, more = new.recipient, {"inbox_depth": await depth(tx, new.recipient)}
    await tx.emit(
        "message.sent", about, message=done.row_id, sender=new.sender, to=new.recipient, type=new.kind, **more
    )
    return done.row_id


async def get(reader: Reader, message: int) -> Row | None:
    """One message."""
    return await reader.one("SELECT * FROM messages WHERE id = ?", message)


async def with_key(reader: Reader, sender: str, key: str) -> Sequence[Row]:
    """What this sender sent under that key, one row per recipient, in order."""
    return await reader.all(
        "SELECT * FROM messages WHERE sender = ? AND dedupe_key = ? ORDER BY id", sender, key
    )


async def page(reader: Reader, *, agent: str | None, before: int | None, limit: int) -> Sequence[Row]:
    """Newest first, older than the message `before`; `agent` stands on either side."""
    if agent is None:
        return await reader.all(
            "SELECT * FROM messages WHERE ?1 IS NULL OR id < ?1 ORDER BY id DESC LIMIT ?2", before, limit
        )
    return await reader.all(
        "SELECT * FROM (SELECT * FROM messages WHERE sender = ?1 AND (?2 IS NULL OR id < ?2) "
        "ORDER BY id DESC LIMIT ?3) UNION SELECT * FROM (SELECT * FROM messages WHERE recipient = ?1 "
        "AND (?2 IS NULL OR id < ?2) ORDER BY id DESC LIMIT ?3) ORDER BY id DESC LIMIT ?3",
        *(agent, before, limit),
    )


async def depth(reader: Reader, recipient: str) -> int:
    """How many messages wait for `recipient`, those under a lease not counted."""
    return await _count(
        reader, "SELECT COUNT(*) AS n FROM messages WHERE recipient = ? AND state = 'queued'", recipient
    )


async def wait_at_least(reader: Reader, recipient: str, count: int) -> bool:
    """Whether so many messages wait for `recipient`. Looks at no more of them than that, and only at the
    index: every message that is sent asks."""
    row = await reader.one(
        "SELECT 1 FROM messages WHERE recipient = ? AND state = 'queued' LIMIT 1 OFFSET ?",
        *(recipient, count - 1),
    )
    return row is not None


async def pair_depth(reader: Reader, sender: str, recipient: str) -> int:
    """How many of them are from `sender`."""
    return await _count(
        reader,
        "SELECT COUNT(*) AS n FROM messages WHERE recipient = ? AND state = 'queued' AND sender = ?",
        recipient,
        sender,
    )


async def by_sender(reader: Reader, turn: int) -> dict[str, int]:
    """How many messages that turn has in its leases or has consumed, by who sent them."""
    rows = await reader.all(
        "SELECT m.sender AS name, COUNT(*) AS n FROM leases l JOIN messages m ON m.lease_id = l.id "
        "WHERE l.turn_id = ? GROUP BY 1",
        turn,
    )
    return {row["name"]: int(row["n"]) for row in rows}


async def by_recipient(reader: Reader, turn: int) -> dict[str, int]:
    """How many messages were sent during that turn, by who gets them."""
    rows = await reader.all(
        "SELECT recipient AS name, COUNT(*) AS n FROM messages WHERE turn_id = ? GROUP BY 1", turn
    )
    return {row["name"]: int(row["n"]) for row in rows}


async def due(reader: Reader, recipient: str, limit: int, now: int) -> Sequence[Row]:
    """The oldest that wait and may be delivered at `now` (microseconds), in order; those that let others go
    first stand behind."""
    rows = await _due(reader, recipient, limit, now, deferred=False)
    if len(rows) < limit:
        rows = [*rows, *await _due(reader, recipient, limit - len(rows), now, deferred=True)]
    return rows


async def _due(reader: Reader, recipient: str, limit: int, now: int, *, deferred: bool) -> Sequence[Row]:
    return await reader.all(
        "SELECT * FROM messages WHERE recipient = ? AND state = 'queued' AND due_at <= ? AND deferred = ? "
        "ORDER BY id LIMIT ?",
        *(recipient, now, deferred, limit),
    )


async def due_count(reader: Reader, recipient: str, now: int) -> int:
    """How many those are."""
    sql = "SELECT COUNT(*) AS n FROM messages WHERE recipient = ? AND state = 'queued' AND due_at <= ?"
    return await _count(reader, sql, recipient, now)


async def set_aside(tx: Tx, message: int) -> None:
    """Deliver it no more, until somebody wants it `again`."""
    await tx.run(
        "UPDATE messages SET state = 'acked', set_aside_at = ? WHERE id = ? AND state = 'queued'",
        tx.now,
        message,
    )


async def again(tx: Tx, message: int) -> bool:
    """What was set aside waits anew, its failures forgiven; False if it was not."""
    done = await tx.run(
        "UPDATE messages SET state = 'queued', set_aside_at = NULL, failures = 0, returned_at = NULL, "
        "deferred = 0, lease_id = NULL WHERE id = ? AND set_aside_at IS NOT NULL",
        message,
    )
    row = await get(tx, message) if done.changed else None
    if row is not None and row["urgent"]:
        await agents.end_nap(tx, row["recipient"])
    return bool(done.changed)


async def set_aside_since(reader: Reader, recipient: str, instant: int) -> int:
    """How many messages for `recipient` were set aside after that instant."""
    sql = "SELECT COUNT(*) AS n FROM messages WHERE recipient = ? AND set_aside_at > ?"
    return await _count(reader, sql, recipient, instant)


async def urgent_waits(reader: Reader, recipient: str) -> bool:
    """Whether something urgent waits for `recipient`."""
    row = await reader.one(
        "SELECT 1 FROM messages WHERE recipient = ? AND state = 'queued' AND urgent = 1 LIMIT 1", recipient
    )
    return row is not None


async def mark_read(tx: Tx, message: int) -> bool:
    """The operator has seen it; False if it was read before."""
    done = await tx.run("UPDATE messages SET state = 'read' WHERE id = ? AND state = 'queued'", message)
    if done.changed:
        await tx.emit("message.read", None, message=message)
    return bool(done.changed)


async def _count(reader: Reader, sql: str, *values: str | int) -> int:
    row = await reader.one(sql, *values)
    assert row is not None, "a count has one row"
    return int(row["n"])
