"""What `hive doctor` reads of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reconciler.store import copies
from reconciler.store.db import Reader, Row

_PAGE = 2000
_LIVE = "('examining', 'pending', 'approved', 'building', 'activating')"


@dataclass(frozen=True, slots=True)
class Known:
    """Names and numbers that things outside of the rows may bear: `agents` have a row, `repositories` also
    those of proposals and drafts; `staged` are proposals whose staged state may still be needed."""

    agents: frozenset[str]
    repositories: frozenset[str]
    proposals: frozenset[int]
    staged: frozenset[int]


async def agents(db: Reader) -> Sequence[Row]:
    """Every agent with its current generation and whether another is on its way."""
    return await db.all(
        "SELECT a.name, a.uid_base, a.desired, a.role, a.generation, g.store_path, g.commit_id,"
        " g.proposal_id,"
        " EXISTS (SELECT 1 FROM proposals p WHERE p.agent = a.name"
        "         AND p.state IN ('approved', 'building', 'activating')) AS deploying"
        " FROM agents a LEFT JOIN generations g ON g.agent = a.name AND g.number = a.generation"
        " ORDER BY a.name"
    )


async def known(db: Reader) -> Known:
    """Who and what the rows know of."""
    names = frozenset(row["name"] for row in await db.all("SELECT name FROM agents"))
    others = await db.all(
        "SELECT agent AS name FROM proposals WHERE NOT purged UNION SELECT name FROM drafts"
    )
    numbers = await db.all("SELECT id FROM proposals")
    staged = await db.all(f"SELECT id FROM proposals WHERE state IN {_LIVE}")  # noqa: S608 - constants
    return Known(
        names,
        names | {row["name"] for row in others},
        frozenset(row["id"] for row in numbers),
        frozenset(row["id"] for row in staged),
    )


async def given_up(db: Reader) -> list[str]:
    """Effects of the outbox that were given up until the next start, with the reason."""
    rows = await db.all("SELECT id, kind, error FROM outbox WHERE error <> '' ORDER BY id LIMIT 100")
    return [f"{row['kind']} (row {row['id']}): {row['error'][:200]}" for row in rows]


async def waits(db: Reader, kind: str) -> bool:
    """Whether an effect of that kind waits in the outbox: what it makes may lag behind the rows."""
    return await db.one("SELECT 1 FROM outbox WHERE kind = ? LIMIT 1", kind) is not None


async def newest_at(db: Reader) -> int | None:
    """The youngest instant of any row that tells one (microseconds)."""
    row = await db.one(
        "SELECT max(at) AS at FROM (SELECT max(at) AS at FROM audit"
        " UNION ALL SELECT max(sent_at) FROM messages"
        " UNION ALL SELECT max(begun_at) FROM turns UNION ALL SELECT max(created_at) FROM proposals)"
    )
    return None if row is None or row["at"] is None else int(row["at"])


async def audit_chain(db: Reader) -> tuple[str, int, int | None]:
    """As `copies.audit_chain`, of the live file, page by page."""
    head, count, last, broken = "", 0, 0, None
    while rows := await db.all("SELECT * FROM audit WHERE id > ? ORDER BY id LIMIT ?", last, _PAGE):
        for row in rows:
            count += 1
            if broken is None and not copies.is_next(head, row):
                broken = int(row["id"])
            head, last = str(row["hash"]), int(row["id"])
    return head, count, broken
