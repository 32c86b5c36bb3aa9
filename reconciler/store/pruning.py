"""What of the two files is old and needed by nobody: deleted in small transactions, oldest first.

Rules are statements about rows, never about agents: nothing a container says is asked. A row stays as long as
something that stays refers to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reconciler.store.db import Database, Reader, Tx

WINDOW = 500
"""Rows that one transaction looks at."""

SAMPLE = 200
"""Lines of transcripts that are measured to learn who fills the file."""

_DAY_MICROS = 86_400_000_000

# Turns whose proposal is under way, or was approved: `hive why` goes back to them.
_CAUSES = (
    "SELECT turn_id FROM proposals WHERE turn_id IS NOT NULL AND (generation IS NOT NULL "
    "OR state IN ('examining', 'pending', 'approved', 'building', 'activating'))"
)
_NEWEST_STATE = (
    "kind = 'agent.state' AND json_extract(data, '$.state') IS NOT NULL AND NOT EXISTS (SELECT 1 "
    "FROM events n WHERE n.agent = old.agent AND n.kind = 'agent.state' AND n.id > old.id "
    "AND json_extract(n.data, '$.state') IS NOT NULL)"
)
_NEWEST_CONTEXT = (
    "kind = 'context' AND NOT EXISTS (SELECT 1 FROM transcript n WHERE n.agent = old.agent "
    "AND n.kind = 'context' AND n.id > old.id)"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Which rows of `table` may go once the column `instant` is old enough: those for which `condition` holds
    (of the row `old`; `?4` is a JSON list of ids that are needed). `key` counts up in the order in which rows
    were written."""

    table: str
    instant: str
    condition: str
    key: str = "id"


HISTORY: Mapping[str, Rule] = {
    "events": Rule("events", "ts", f"NOT ({_NEWEST_STATE})"),
    "transcript": Rule(
        "transcript", "at", f"turn_id NOT IN (SELECT value FROM json_each(?4)) AND NOT ({_NEWEST_CONTEXT})"
    ),
    "build_log": Rule("build_log", "at", "proposal_id NOT IN (SELECT value FROM json_each(?4))"),
}
"""Of events.db. Needed are for `transcript` open turns, for `build_log` proposals. The newest state and
context of each agent stay: they are what is shown of it after a restart of hived."""

TRUTH: Mapping[str, Rule] = {
    "messages": Rule(
        "messages",
        "sent_at",
        "state IN ('acked', 'read') AND (lease_id IS NULL OR lease_id NOT IN "
        f"(SELECT id FROM leases WHERE turn_id IN ({_CAUSES}))) "
        # Those that somebody has yet to read an answer to.
        "AND id NOT IN (SELECT m.in_reply_to FROM (SELECT name FROM agents UNION SELECT 'operator') AS r "
        "CROSS JOIN messages m WHERE m.recipient = r.name AND m.state IN ('queued', 'leased') "
        "AND m.in_reply_to IS NOT NULL)",
    ),
    "leases": Rule(
        "leases",
        "ended_at",
        "state <> 'open' AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.lease_id = old.id) "
        f"AND (turn_id IS NULL OR turn_id NOT IN ({_CAUSES}))",
    ),
    "turns": Rule(
        "turns",
        "ended_at",
        "state = 'ended' AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.turn_id = old.id) "
        f"AND id NOT IN ({_CAUSES}) AND EXISTS (SELECT 1 FROM turns n WHERE n.agent = old.agent "
        "AND n.state = 'ended' AND n.id > old.id)",
    ),
    "questions": Rule("questions", "answered_at", "state <> 'open'"),
}
"""Of state.db, in this order: leases wait for their messages, turns for their leases. The last turn of each
agent stays. Audit, proposals, generations and what waits in the outbox are in no rule."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one transaction did: the last key it looked at, rows deleted, whether there may be more behind."""

    seen: int
    deleted: int
    more: bool


async def prune(tx: Tx, rule: Rule, *, before: int, after: int, needed: Iterable[int] = ()) -> Window:
    """Delete what `rule` lets go of the next rows above the key `after`, if older than `before` (exclusive).

    Rows are looked at in the order of their keys until none of a window is old. Instants of the future, as a
    wrong clock wrote them, do not end the search, and are kept.
    """
    key, at = rule.key, rule.instant
    row = await tx.one(
        f"SELECT MAX(k) AS last, COUNT(*) AS n, COALESCE(MIN(a), 0) AS oldest, COALESCE(MAX(a), 0) AS newest "
        f"FROM (SELECT {key} AS k, {at} AS a FROM {rule.table} WHERE {key} > ? ORDER BY {key} LIMIT ?)",
        after,
        WINDOW,
    )
    assert row is not None, "an aggregate has one row"
    if row["n"] == 0 or (row["oldest"] >= before and row["newest"] <= tx.now + _DAY_MICROS):
        return Window(after, 0, more=False)
    done = await tx.run(
        f"DELETE FROM {rule.table} AS old WHERE {key} > ?1 AND {key} <= ?2 AND {at} < ?3 "
        f"AND {rule.condition}",
        *(after, row["last"], before),
        *([json.dumps(sorted(needed))] if "?4" in rule.condition else []),
    )
    return Window(int(row["last"]), done.changed, more=row["n"] == WINDOW)


async def record(tx: Tx, name: str, upto: int) -> None:
    """Rows of that table may be missing up to that id."""
    await tx.run(
        "INSERT INTO pruned VALUES (?, ?) ON CONFLICT DO UPDATE SET upto = MAX(upto, excluded.upto)",
        name,
        upto,
    )


async def relieve(tx: Tx, needed: Iterable[int]) -> int:
    """Delete some of the oldest lines of the agent whose transcript fills most of the file: who writes most
    loses most. How many went; 0 when all that is left is needed.

    Who that is, is told by a sample of lines evenly spread over all.
    """
    row = await tx.one("SELECT COALESCE(MIN(id), 0) AS first, COALESCE(MAX(id), 0) AS last FROM transcript")
    assert row is not None, "an aggregate has one row"
    step = max(1, (row["last"] - row["first"]) // SAMPLE)
    rows = await tx.all(
        "SELECT t.agent, SUM(LENGTH(t.data)) AS size FROM json_each(?) AS probe "
        "JOIN transcript t ON t.id = (SELECT id FROM transcript WHERE id >= probe.value ORDER BY id LIMIT 1) "
        "GROUP BY t.agent ORDER BY size DESC",
        json.dumps(list(range(row["first"], row["last"] + 1, step))),
    )
    listed = json.dumps(sorted(needed))
    for heavy in rows:
        done = await tx.run(
            "DELETE FROM transcript WHERE id IN (SELECT id FROM transcript AS old WHERE agent = ?1 "
            "AND turn_id NOT IN (SELECT value FROM json_each(?2)) "
            f"AND NOT ({_NEWEST_CONTEXT}) ORDER BY id LIMIT ?3)",
            *(heavy["agent"], listed, WINDOW),
        )
        if done.changed:
            return done.changed
    return 0


async def oldest_waiting(reader: Reader) -> int | None:
    """When the oldest row of the outbox was written: nothing younger may go, for it might be copied again."""
    row = await reader.one("SELECT MIN(created_at) AS at FROM outbox")
    return None if row is None else row["at"]


async def open_turns(reader: Reader) -> list[int]:
    """Turns that go on."""
    return [row["id"] for row in await reader.all("SELECT id FROM turns WHERE state = 'open'")]


async def living_proposals(reader: Reader) -> list[int]:
    """Proposals that are under way, and those that made the generations that run."""
    rows = await reader.all(
        "SELECT id FROM proposals WHERE state IN ('examining', 'pending', 'approved', 'building', "
        "'activating') UNION SELECT g.proposal_id FROM agents a JOIN generations g "
        "ON g.agent = a.name AND g.number = a.generation"
    )
    return [row["id"] for row in rows]


async def forget_logins(tx: Tx, before: int) -> int:
    """One-time links and sessions that ended before that instant; how many."""
    links = await tx.run("DELETE FROM login_tokens WHERE expires_at < ?1 OR used_at < ?1", before)
    sessions = await tx.run("DELETE FROM sessions WHERE expires_at < ?1 OR revoked_at < ?1", before)
    return links.changed + sessions.changed


async def used_bytes(database: Database) -> int:
    """Bytes of the file that hold something."""
    size = await database.size()
    return size.file - size.free
