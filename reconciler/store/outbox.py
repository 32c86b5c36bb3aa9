"""The outbox: what must follow a commit of state.db outside of it, at least once and in order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from reconciler.store.db import Reader, Row, Tx


async def put(tx: Tx, kind: str, data: Mapping[str, Any]) -> None:
    """An effect of `kind` (`tag`, `meta`), done after the commit."""
    await tx.run(
        "INSERT INTO outbox (kind, data, created_at) VALUES (?, ?, ?)",
        kind,
        json.dumps(data, separators=(",", ":"), sort_keys=True),
        tx.now,
    )
    tx.emitted = True


async def events(reader: Reader, after: int, limit: int) -> Sequence[Row]:
    """Events that wait to be copied, above the id `after`, in order."""
    return await reader.all(
        "SELECT * FROM outbox WHERE kind = 'event' AND id > ? ORDER BY id LIMIT ?", after, limit
    )


async def forget_events(tx: Tx, upto: int) -> None:
    """Events up to that id are copied."""
    await tx.run("DELETE FROM outbox WHERE kind = 'event' AND id <= ?", upto)


async def effects(reader: Reader, after: int, limit: int) -> Sequence[Row]:
    """Other effects that wait, above the id `after`, in order; those given up are left out."""
    return await reader.all(
        "SELECT * FROM outbox WHERE kind <> 'event' AND error = '' AND id > ? ORDER BY id LIMIT ?",
        after,
        limit,
    )


async def forget(tx: Tx, row_id: int) -> None:
    """The effect is done."""
    await tx.run("DELETE FROM outbox WHERE id = ?", row_id)


async def give_up(tx: Tx, row_id: int, error: str) -> None:
    """The effect cannot be done; it is tried again after the next start."""
    await tx.run("UPDATE outbox SET error = ? WHERE id = ?", error or "unknown", row_id)


async def forgive(tx: Tx) -> None:
    """Try again what was given up."""
    await tx.run("UPDATE outbox SET error = '' WHERE error <> ''")
