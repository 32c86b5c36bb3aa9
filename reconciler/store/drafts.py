"""Drafts: new agents that the manager prepares in two steps. A draft ends when its agent is deployed."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.model.names import AgentName, Commit
from reconciler.store.db import Reader, Tx


@dataclass(frozen=True, slots=True)
class Draft:
    """A new agent that the manager drafts: its first commit, and the proposal that was made of it."""

    name: AgentName
    created_by: str
    commit: Commit
    proposal: int | None
    created_at: int


async def all_drafts(db: Reader) -> list[Draft]:
    """All drafts that became no agent yet, by name."""
    rows = await db.all("SELECT * FROM drafts ORDER BY name")
    return [
        Draft(
            AgentName(r["name"]), r["created_by"], Commit(r["commit_id"]), r["proposal_id"], r["created_at"]
        )
        for r in rows
    ]


async def get(db: Reader, name: AgentName) -> Draft | None:
    """The draft of that name."""
    return next((row for row in await all_drafts(db) if row.name == name), None)


async def insert(tx: Tx, name: AgentName, created_by: str, commit: Commit) -> Draft:
    """Begin a draft."""
    await tx.run(
        "INSERT INTO drafts (name, created_by, commit_id, created_at) VALUES (?, ?, ?, ?)",
        name,
        created_by,
        commit,
        tx.now,
    )
    await tx.emit("draft.started", name, by=created_by)
    return Draft(name, created_by, commit, None, tx.now)


async def discard(tx: Tx, name: AgentName) -> None:
    """Forget a draft."""
    await tx.run("DELETE FROM drafts WHERE name = ?", name)
    await tx.emit("draft.discarded", name)


async def proposed(tx: Tx, name: AgentName, proposal: int) -> None:
    """Remember which proposal a draft became."""
    await tx.run("UPDATE drafts SET proposal_id = ? WHERE name = ?", proposal, name)
