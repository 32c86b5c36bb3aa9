"""Questions of agents to the operator: open → answered, expired or cancelled."""

from __future__ import annotations

import json
from collections.abc import Sequence

from reconciler.store.db import Reader, Row, Tx


async def ask(
    tx: Tx,
    agent: str,
    *,
    question: str,
    options: Sequence[str],
    multi: bool,
    expires_at: int | None,
    key: str,
) -> int:
    """Open a question; its id. The key must be new for this agent."""
    done = await tx.run(
        "INSERT INTO questions (agent, question, options, multi, dedupe_key, asked_at, expires_at, state) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 'open')",
        agent,
        question,
        json.dumps(list(options), ensure_ascii=False),  # as people search for it
        multi,
        key,
        tx.now,
        expires_at,
    )
    await tx.emit("question.asked", agent, question=done.row_id)
    return done.row_id


async def get(reader: Reader, question: int) -> Row | None:
    """One question."""
    return await reader.one("SELECT * FROM questions WHERE id = ?", question)


async def with_key(reader: Reader, agent: str, key: str) -> Row | None:
    """The question that the agent asked under that key."""
    return await reader.one("SELECT * FROM questions WHERE agent = ? AND dedupe_key = ?", agent, key)


async def open_count(reader: Reader, agent: str) -> int:
    """How many questions of the agent are open."""
    row = await reader.one("SELECT COUNT(*) AS n FROM questions WHERE agent = ? AND state = 'open'", agent)
    return int(row["n"]) if row else 0


async def page(
    reader: Reader, *, agent: str | None, state: str | None, words: str, before: int | None, limit: int
) -> Sequence[Row]:
    """Open ones first (none with `before`), newest first; `state` is one of the table's, `ended` for all but
    open, None for any. `words` stand in question, options or answer, whatever their case in ASCII."""
    if agent is None and state is None and not words and before is None:
        return await _first(reader, limit)
    states = {None: None, "ended": '["answered","expired","cancelled"]'}
    return await reader.all(
        "SELECT * FROM questions WHERE (?1 IS NULL OR agent = ?1) "
        "AND (?2 IS NULL OR state IN (SELECT value FROM json_each(?2))) "
        "AND (?3 IS NULL OR (id < ?3 AND state <> 'open')) "
        "AND (?4 = '' OR instr(lower(question || char(10) || options || char(10) || COALESCE(answer, '')), "
        "lower(?4))) "
        "ORDER BY state <> 'open', id DESC LIMIT ?5",
        agent,
        states[state] if state in states else json.dumps([state]),
        before,
        words,
        limit,
    )


async def _first(reader: Reader, limit: int) -> Sequence[Row]:
    return await reader.all(
        "SELECT * FROM ("
        "SELECT * FROM (SELECT * FROM questions INDEXED BY questions_open WHERE state = 'open' "
        "ORDER BY id DESC LIMIT ?1) "
        "UNION SELECT * FROM (SELECT * FROM questions ORDER BY id DESC LIMIT ?1)) "
        "ORDER BY state <> 'open', id DESC LIMIT ?1",
        limit,
    )


async def close(tx: Tx, row: Row, state: str, *, answer: str | None = None, by: str | None = None) -> bool:
    """End an open question; False if it had ended before."""
    done = await tx.run(
        "UPDATE questions SET state = ?, answer = ?, answered_by = ?, answered_at = ? "
        "WHERE id = ? AND state = 'open'",
        state,
        answer,
        by,
        tx.now,
        row["id"],
    )
    if done.changed:
        await tx.emit("question.closed", row["agent"], question=row["id"], state=state)
    return bool(done.changed)


async def overdue(reader: Reader, now: int) -> Sequence[Row]:
    """Open questions whose time is over."""
    return await reader.all(
        "SELECT * FROM questions WHERE state = 'open' AND expires_at <= ? ORDER BY expires_at LIMIT 100", now
    )


async def without_agent(reader: Reader) -> Sequence[Row]:
    """Open questions of destroyed agents."""
    return await reader.all(
        "SELECT q.* FROM questions q INDEXED BY questions_open JOIN agents a ON a.name = q.agent "
        "WHERE q.state = 'open' AND a.desired = 'destroyed' ORDER BY q.id LIMIT 100"
    )


async def next_expiry(reader: Reader) -> int | None:
    """When the next open question expires (microseconds since the epoch)."""
    row = await reader.one("SELECT MIN(expires_at) AS at FROM questions WHERE state = 'open'")
    return None if row is None else row["at"]
