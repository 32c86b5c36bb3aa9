"""People who are inside a container now, each for as long as they keep saying so."""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.store.db import Reader, Row, Tx


async def of(reader: Reader, agent: str, now: int) -> Sequence[Row]:
    """Who is in the agent's container, oldest first."""
    return await reader.all(
        "SELECT * FROM attachments WHERE agent = ? AND expires_at > ? ORDER BY since, id", agent, now
    )


async def attach(tx: Tx, attachment: str, agent: str, by: str, expires_at: int) -> None:
    """Somebody goes in; what has expired of anybody is forgotten."""
    await tx.run("DELETE FROM attachments WHERE expires_at <= ?", tx.now)
    await tx.run(
        "INSERT INTO attachments (id, agent, by, since, expires_at) VALUES (?, ?, ?, ?, ?)",
        *(attachment, agent, by, tx.now, expires_at),
    )


async def renew(tx: Tx, attachment: str, expires_at: int) -> bool:
    """They are still there; False if the attachment is unknown or over."""
    done = await tx.run(
        "UPDATE attachments SET expires_at = ? WHERE id = ? AND expires_at > ?",
        expires_at,
        attachment,
        tx.now,
    )
    return done.changed > 0


async def detach(tx: Tx, attachment: str) -> Row | None:
    """They went out; the row as it was, None if it was not there."""
    row = await tx.one("SELECT * FROM attachments WHERE id = ?", attachment)
    await tx.run("DELETE FROM attachments WHERE id = ?", attachment)
    return row
