"""events.db: what happened, transcripts as told by containers, build logs, figures. Everything is idempotent,
because it is written after (or without) a commit of the truth.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.store import stats
from reconciler.store.db import Reader, Row, Tx

SEQ_BEGIN = 0
SEQ_END = 2_000_000_000
BUILD_LINE_MAX = 4000
BUILD_LINES_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a transcript; `at` in microseconds since the epoch."""

    seq: int
    at: int
    kind: str
    data: Mapping[str, Any]


# ---------------------------------------------------------------------------------------------------- events
async def insert(
    tx: Tx, *, ts: int, agent: str | None, kind: str, data: Mapping[str, Any], outbox_id: int | None = None
) -> int | None:
    """Write an event; its id, or None if this row of the outbox was copied before."""
    done = await tx.run(
        "INSERT INTO events (ts, agent, kind, data, outbox_id) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (outbox_id, ts) DO NOTHING",
        ts,
        agent,
        kind,
        dumps(data),
        outbox_id,
    )
    return done.row_id if done.changed else None


async def after(
    reader: Reader,
    cursor: int,
    *,
    agent: str | None = None,
    kind: str | None = None,
    hints: bool = True,
    limit: int,
) -> Sequence[Row]:
    """Events with an id above `cursor`, oldest first; `hints`: those, too, that only say that a turn goes
    on."""
    return await reader.all(
        "SELECT * FROM events WHERE id > ?1 AND (?2 IS NULL OR agent = ?2) AND (?3 IS NULL OR kind = ?3) "
        "AND (?4 OR kind <> 'turn.event') ORDER BY id LIMIT ?5",
        cursor,
        agent,
        kind,
        hints,
        limit,
    )


async def newest(
    reader: Reader, *, before: int | None, agent: str | None, kind: str | None, hints: bool, limit: int
) -> Sequence[Row]:
    """The last ones, with an id below `before` if given, oldest first; `hints` as for `after`."""
    rows = await reader.all(
        "SELECT * FROM events WHERE (?1 IS NULL OR agent = ?1) AND (?2 IS NULL OR kind = ?2) "
        "AND (?3 IS NULL OR id < ?3) AND (?4 OR kind <> 'turn.event') ORDER BY id DESC LIMIT ?5",
        agent,
        kind,
        before,
        hints,
        limit,
    )
    return list(reversed(rows))


async def bounds(reader: Reader) -> tuple[int, int]:
    """From which id on all events are kept, and the id of the newest ever written: (1, 0) before it."""
    row = await reader.one(
        "SELECT MAX(COALESCE((SELECT MIN(id) FROM events), 1), "
        "COALESCE((SELECT upto + 1 FROM pruned WHERE name = 'events'), 1)) AS first, "
        "COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0) AS last"
    )
    assert row is not None, "a select of scalars has one row"
    return int(row["first"]), int(row["last"])


async def last_state(reader: Reader, agent: str) -> Row | None:
    """The last event that told this agent's state."""
    return await reader.one(
        "SELECT * FROM events WHERE agent = ? AND kind = 'agent.state' "
        "AND json_extract(data, '$.state') IS NOT NULL ORDER BY id DESC LIMIT 1",
        agent,
    )


async def last_states(reader: Reader, agents: Sequence[str]) -> Sequence[Row]:
    """`last_state` of many agents; those that never told one are left out."""
    return await reader.all(
        "SELECT e.* FROM json_each(?) AS names JOIN events e ON e.id = (SELECT id FROM events "
        "WHERE agent = names.value AND kind = 'agent.state' "
        "AND json_extract(data, '$.state') IS NOT NULL ORDER BY id DESC LIMIT 1)",
        json.dumps(list(agents)),
    )


# ------------------------------------------------------------------------------------------------ transcript
async def add_lines(tx: Tx, agent: str, turn: int, lines: Sequence[Line]) -> int:
    """Write lines that are not there yet; how many were new."""
    added = 0
    for line in lines:
        done = await tx.run(
            "INSERT INTO transcript (agent, turn_id, seq, at, kind, data) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (turn_id, seq) DO NOTHING",
            agent,
            turn,
            line.seq,
            line.at,
            line.kind,
            dumps(line.data),
        )
        added += done.changed
    return added


async def last_line(reader: Reader, agent: str) -> int:
    """The id of the agent's newest line, 0 without one."""
    row = await reader.one("SELECT MAX(id) AS id FROM transcript WHERE agent = ?", agent)
    return int(row["id"] or 0) if row else 0


async def last_seq(reader: Reader, turn: int) -> int:
    """The highest number that the harness has told of this turn, 0 before the first."""
    row = await reader.one(
        "SELECT MAX(seq) AS seq FROM transcript WHERE turn_id = ? AND seq < ?", turn, SEQ_END
    )
    return int(row["seq"] or 0) if row else 0


async def lines(
    reader: Reader, agent: str, *, before: int | None, cursor: int | None, limit: int
) -> Sequence[Row]:
    """Oldest first: the first ones above `cursor` if given, else the last ones below `before`."""
    if cursor is not None:
        return await reader.all(
            "SELECT * FROM transcript WHERE agent = ?1 AND id > ?2 AND (?3 IS NULL OR id < ?3) "
            "ORDER BY id LIMIT ?4",
            agent,
            cursor,
            before,
            limit,
        )
    rows = await reader.all(
        "SELECT * FROM transcript WHERE agent = ?1 AND (?2 IS NULL OR id < ?2) ORDER BY id DESC LIMIT ?3",
        agent,
        before,
        limit,
    )
    return list(reversed(rows))


async def has_lines_before(reader: Reader, agent: str, line: int) -> bool:
    """Whether the agent's transcript goes on before that line."""
    row = await reader.one("SELECT 1 FROM transcript WHERE agent = ? AND id < ? LIMIT 1", agent, line)
    return row is not None


async def last_context(reader: Reader, agent: str) -> Row | None:
    """The last line in which the agent told how full its context is."""
    return await reader.one(
        "SELECT * FROM transcript WHERE agent = ? AND kind = 'context' ORDER BY id DESC LIMIT 1", agent
    )


async def last_contexts(reader: Reader, agents: Sequence[str]) -> Sequence[Row]:
    """`last_context` of many agents; those that never told one are left out."""
    return await reader.all(
        "SELECT t.* FROM json_each(?) AS names JOIN transcript t ON t.id = (SELECT id FROM transcript "
        "WHERE agent = names.value AND kind = 'context' ORDER BY id DESC LIMIT 1)",
        json.dumps(list(agents)),
    )


async def record_turn_begun(tx: Tx, agent: str, at: int, data: Mapping[str, Any]) -> None:
    """The first line of a turn, from its `turn.begun` event."""
    shown = {"model": data["model"], "messages": data["messages"]}
    if data.get("purpose", "messages") != "messages":
        shown["purpose"] = data["purpose"]
    turn = data["turn"]
    await add_lines(tx, agent, turn, [Line(SEQ_BEGIN, at, "turn_begin", shown)])
    if "inbox_depth" in data:  # not in what an older version left in the outbox
        await stats.inbox_depth(tx, agent, at, data["inbox_depth"], -turn)


async def record_turn_ended(tx: Tx, agent: str, at: int, data: Mapping[str, Any]) -> None:
    """The last line of a turn, from its `turn.ended` event; its figures are `reconciler.stats.recorder`'s."""
    told = ("outcome", "error", "duration_ms", "hint", "reason", "until", "set_aside")
    shown = {key: data[key] for key in told if key in data}
    await add_lines(tx, agent, data["turn"], [Line(SEQ_END, at, "turn_end", shown)])


async def _record_sent(tx: Tx, agent: str | None, at: int, data: Mapping[str, Any]) -> None:
    if agent is not None and "inbox_depth" in data:
        await stats.inbox_depth(tx, agent, at, data["inbox_depth"], data["message"])


async def _record_started(tx: Tx, agent: str, at: int, _: Mapping[str, Any]) -> None:
    await stats.started(tx, agent, at)


PROJECTIONS: Mapping[str, Callable[[Tx, str, int, Mapping[str, Any]], Awaitable[None]]] = {
    "turn.begun": record_turn_begun,
    "turn.ended": record_turn_ended,
    "message.sent": _record_sent,
    "agent.started": _record_started,
}
"""What else follows from an event, written with its copy: repairs what a crash kept from being written."""


# ------------------------------------------------------------------------------------------------ build logs
async def append_build_log(tx: Tx, proposal: int, texts: Sequence[str]) -> int:
    """Add lines, each cut at `BUILD_LINE_MAX` characters and `BUILD_LINES_MAX` in all; the last line's id."""
    row = await tx.one(
        "SELECT COUNT(*) AS n, COALESCE(MAX(id), 0) AS last FROM build_log WHERE proposal_id = ?", proposal
    )
    assert row is not None, "a count has one row"
    room = max(0, BUILD_LINES_MAX - row["n"])
    kept = [text if len(text) <= BUILD_LINE_MAX else text[:BUILD_LINE_MAX] + " …" for text in texts[:room]]
    if 0 < room < len(texts):
        kept.append("[the log is too long: the rest is left out]")
    last = int(row["last"])
    for text in kept:
        done = await tx.run(
            "INSERT INTO build_log (proposal_id, at, text) VALUES (?, ?, ?)",
            proposal,
            tx.now,
            text.encode("utf-8", "replace").decode(),
        )
        last = done.row_id
    return last


async def build_log(reader: Reader, proposal: int, cursor: int, limit: int) -> Sequence[Row]:
    """Lines above `cursor`, oldest first."""
    return await reader.all(
        "SELECT * FROM build_log WHERE proposal_id = ? AND id > ? ORDER BY id LIMIT ?",
        proposal,
        cursor,
        limit,
    )


def dumps(data: Mapping[str, Any]) -> str:
    """Compact JSON in ASCII: whatever a container told fits into a TEXT column."""
    return json.dumps(data, separators=(",", ":"), sort_keys=True)
