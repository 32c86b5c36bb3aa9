"""Troubles that all agents share: what the model's host refuses to everybody."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.store.db import Reader, Tx

KEPT_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Trouble:
    """One of them; instants in microseconds, the columns of its table. `over_at` None: it goes on."""

    key: str
    message: str
    since_at: int
    until_at: int
    tries: int = 0
    told: bool = False
    over_at: int | None = None


async def every(reader: Reader) -> list[Trouble]:
    """All that are written down, over or not."""
    rows = await reader.all("SELECT * FROM troubles ORDER BY key")
    return [
        Trouble(
            row["key"], row["message"], row["since_at"], row["until_at"], row["tries"], bool(row["told"]),
            row["over_at"],
        )
        for row in rows
    ]  # fmt: skip


async def put(tx: Tx, trouble: Trouble) -> None:
    """Write it down as it is now; those that were over long ago go."""
    await tx.run("DELETE FROM troubles WHERE over_at < ?", tx.now - KEPT_US)
    await tx.run(
        "INSERT OR REPLACE INTO troubles (key, message, since_at, until_at, tries, told, over_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        trouble.key,
        trouble.message,
        trouble.since_at,
        trouble.until_at,
        trouble.tries,
        trouble.told,
        trouble.over_at,
    )
