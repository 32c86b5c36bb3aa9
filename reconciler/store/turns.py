"""Turns (open and recent; their transcript is in events.db) and directives to harnesses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from reconciler.store.db import Reader, Row, Tx

DIRECTIVES_KEPT = 1000


async def get(reader: Reader, turn: int) -> Row | None:
    """One turn."""
    return await reader.one("SELECT * FROM turns WHERE id = ?", turn)


async def with_key(reader: Reader, agent: str, key: str) -> Row | None:
    """The turn that the agent's harness began under that key."""
    return await reader.one("SELECT * FROM turns WHERE agent = ? AND start_key = ?", agent, key)


async def open_of(reader: Reader, agent: str) -> Sequence[Row]:
    """The agent's open turns, oldest first; more than one only while a hello is being taken."""
    return await reader.all("SELECT * FROM turns WHERE agent = ? AND state = 'open' ORDER BY id", agent)


async def all_open(reader: Reader) -> Sequence[Row]:
    """All open turns."""
    return await reader.all("SELECT * FROM turns WHERE state = 'open' ORDER BY id")


async def of_other_sessions(reader: Reader, ids: Sequence[int]) -> set[int]:
    """Which of these turns belong to a conversation that their agent has left behind."""
    rows = await reader.all(
        "SELECT t.id FROM json_each(?) AS ids JOIN turns t ON t.id = ids.value "
        "JOIN agents a ON a.name = t.agent WHERE t.session_id <> a.session_id",
        json.dumps(list(ids)),
    )
    return {int(row["id"]) for row in rows}


async def begin(
    tx: Tx,
    agent: str,
    *,
    boot: str,
    key: str,
    lease: int | None,
    model: str,
    session: str,
    generation: int,
    purpose: str,
) -> int:
    """Open a turn; its id."""
    done = await tx.run(
        "INSERT INTO turns (agent, boot, start_key, lease_id, session_id, model, generation, purpose, state, "
        "begun_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'open', ?)",
        agent,
        boot,
        key,
        lease,
        session,
        model,
        generation,
        purpose,
        tx.now,
    )
    return done.row_id


async def end(tx: Tx, turn: int, outcome: str, error: str, figures: Mapping[str, object]) -> None:
    """Close an open turn; `figures`: what was counted of it, for statistics."""
    await tx.run(
        "UPDATE turns SET state = 'ended', outcome = ?, error = ?, ended_at = ?, figures = ? "
        "WHERE id = ? AND state = 'open'",
        outcome,
        error,
        tx.now,
        json.dumps(figures, separators=(",", ":"), sort_keys=True),
        turn,
    )


async def last_good(reader: Reader, agent: str) -> tuple[int, int]:
    """The newest turn that ended well, and when it did; zeros if there is none."""
    row = await reader.one(
        "SELECT id, ended_at FROM turns WHERE agent = ? AND state = 'ended' "
        "AND outcome IN ('ok', 'cancelled') ORDER BY id DESC LIMIT 1",
        agent,
    )
    return (0, 0) if row is None else (int(row["id"]), int(row["ended_at"]))


async def last(reader: Reader, agent: str) -> int:
    """The agent's last turn, 0 if it had none."""
    # Each of the two is one look at the end of an index.
    row = await reader.one(
        "SELECT MAX(COALESCE((SELECT MAX(id) FROM turns WHERE agent = ?1 AND state = 'open'), 0), "
        "COALESCE((SELECT MAX(id) FROM turns WHERE agent = ?1 AND state = 'ended'), 0)) AS id",
        agent,
    )
    return int(row["id"]) if row else 0


async def failed_since(reader: Reader, agent: str, turn: int) -> int:
    """How many turns after that one have ended, all of them badly."""
    row = await reader.one(
        "SELECT COUNT(*) AS n FROM (SELECT 1 FROM turns WHERE agent = ? AND state = 'ended' AND id > ? "
        "LIMIT 100)",
        agent,
        turn,
    )
    assert row is not None, "a count has one row"
    return int(row["n"])


async def last_models(reader: Reader) -> dict[str, str]:
    """Agent → the model of its newest turn."""
    rows = await reader.all(
        "SELECT t.agent, t.model FROM agents a JOIN turns t ON t.id = (SELECT MAX(id) FROM turns "
        "WHERE agent = a.name AND state IN ('open', 'ended'))"
    )
    return {row["agent"]: row["model"] for row in rows}


# ------------------------------------------------------------------------------------------------ directives
async def direct(tx: Tx, agent: str, kind: str, data: Mapping[str, object]) -> int:
    """Put an order down for the agent's harness; its id. Beyond `DIRECTIVES_KEPT` the oldest go."""
    done = await tx.run(
        "INSERT INTO directives (agent, kind, data, created_at) VALUES (?, ?, ?, ?)",
        agent,
        kind,
        json.dumps(data, separators=(",", ":"), sort_keys=True),
        tx.now,
    )
    await tx.run(
        "DELETE FROM directives WHERE agent = ?1 AND id <= (SELECT id FROM directives WHERE agent = ?1 "
        "ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        agent,
        DIRECTIVES_KEPT,
    )
    return done.row_id


async def directives(reader: Reader, agent: str, after: int) -> Sequence[Row]:
    """Orders that came after the order `after`."""
    return await reader.all(
        "SELECT * FROM directives WHERE agent = ? AND id > ? ORDER BY id LIMIT 100", agent, after
    )


async def forget_directives(tx: Tx, agent: str, upto: int) -> None:
    """The harness has them."""
    await tx.run("DELETE FROM directives WHERE agent = ? AND id <= ?", agent, upto)


async def forget_orders(tx: Tx, agent: str, *kinds: str) -> None:
    """Orders that meant a harness process which is gone."""
    for kind in kinds:
        await tx.run("DELETE FROM directives WHERE agent = ? AND kind = ?", agent, kind)


async def orders_wait(reader: Reader, agent: str) -> bool:
    """Whether the harness has yet to hear of a fresh session or a compaction."""
    row = await reader.one(
        "SELECT 1 FROM directives WHERE agent = ? AND kind IN ('session', 'compact') LIMIT 1", agent
    )
    return row is not None


async def directives_done(reader: Reader, agent: str) -> int:
    """The id after which nothing was acknowledged: what a harness asks for first."""
    row = await reader.one(
        "SELECT COALESCE((SELECT MIN(id) - 1 FROM directives WHERE agent = ?), "
        "(SELECT seq FROM sqlite_sequence WHERE name = 'directives'), 0) AS n",
        agent,
    )
    return int(row["n"]) if row else 0


async def set_other_model(tx: Tx, agent: str, turn: int, model: str) -> None:
    """A request of the turn named another model than it was given, or another one answered; the last
    counts."""
    await tx.run("UPDATE turns SET other_model = ? WHERE id = ? AND agent = ?", model, turn, agent)
