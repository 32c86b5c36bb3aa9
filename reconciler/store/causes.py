"""The rows behind what an agent is and does: turns and messages of a proposal, decisions, ends and starts."""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.model.names import AgentName
from reconciler.store.db import Reader, Row

MESSAGES_MAX = 20
CALLS_MAX = 200

# In words that the partial index `events_of_life` knows.
_LIFE = (
    "kind IN ('agent.started', 'agent.crashed', 'agent.stopped_by_hand', 'agent.repaired', 'agent.trouble')"
)
_ACTS = (
    "action IN ('agent.start', 'agent.stop', 'agent.restart', 'agent.destroy', 'agent.revive', "
    "'agent.purge', 'agent.model', 'agent.cancel', 'agent.wake', 'agent.hold', 'agent.release')"
)


async def turn(state: Reader, number: int) -> Row | None:
    """A turn, if it is still kept."""
    return await state.one("SELECT * FROM turns WHERE id = ?", number)


async def messages_of(state: Reader, number: int) -> Sequence[Row]:
    """The messages that a turn was given, newest first; bounded."""
    return await state.all(
        "SELECT m.id, m.sender, m.sent_at, substr(m.body, 1, 400) AS body FROM leases l "
        "JOIN messages m ON m.lease_id = l.id WHERE l.turn_id = ? ORDER BY m.sent_at DESC, m.id DESC LIMIT ?",
        number,
        MESSAGES_MAX,
    )


async def tool_calls(history: Reader, number: int) -> Sequence[Row]:
    """The last tool calls of a turn as the container told them, newest first; bounded."""
    return await history.all(
        "SELECT * FROM transcript WHERE turn_id = ? AND kind = 'tool_call' ORDER BY seq DESC LIMIT ?",
        number,
        CALLS_MAX,
    )


async def born(state: Reader, name: AgentName) -> int:
    """When the agent was made."""
    row = await state.one("SELECT created_at FROM agents WHERE name = ?", name)
    return 0 if row is None else int(row["created_at"])


async def deployments(state: Reader, name: AgentName) -> Sequence[Row]:
    """The proposal of the generation that should run, those under way, and the newest that failed after it:
    id and the generation it was to be, newest first."""
    return await state.all(
        "WITH here AS (SELECT g.proposal_id AS id, a.generation FROM agents a JOIN generations g "
        "              ON g.agent = a.name AND g.number = a.generation WHERE a.name = ?1) "
        "SELECT id, generation FROM proposals WHERE agent = ?1 AND purged = 0 AND "
        "  (id IN (SELECT id FROM here) OR state IN ('approved', 'building', 'activating') OR "
        "   id = (SELECT MAX(id) FROM proposals WHERE agent = ?1 AND state = 'failed' AND purged = 0 "
        "         AND id > COALESCE((SELECT id FROM here), 0))) ORDER BY id DESC LIMIT 5",
        name,
    )


async def proposal_of(state: Reader, name: AgentName, generation: int) -> int | None:
    """The proposal that made a generation."""
    row = await state.one(
        "SELECT proposal_id FROM generations WHERE agent = ? AND number = ?", name, generation
    )
    return None if row is None else int(row["proposal_id"])


async def life(history: Reader, name: AgentName, limit: int) -> Sequence[Row]:
    """What happened to its container, newest first."""
    return await history.all(
        f"SELECT * FROM events WHERE agent = ? AND {_LIFE} ORDER BY id DESC LIMIT ?",  # noqa: S608 - constant
        name,
        limit,
    )


async def acts(state: Reader, name: AgentName, limit: int) -> Sequence[Row]:
    """What people did to it, or to all, newest first."""
    return await state.all(
        f"SELECT * FROM audit WHERE target IN (?, '*') AND {_ACTS} "  # noqa: S608 - constant
        "ORDER BY id DESC LIMIT ?",
        name,
        limit,
    )
