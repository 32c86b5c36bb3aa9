"""Proposals, their examination and decision, as rows. State changes themselves are in `moves`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.errors import OperatorError
from reconciler.model.names import OPERATOR, AgentName, Commit
from reconciler.model.states import ProposalKind, ProposalState, Risk, Role
from reconciler.store import outbox
from reconciler.store.db import Database, Reader, Row, Tx

LOG_LINES = 2000


@dataclass(frozen=True, slots=True)
class ProposalRow:
    """One row of `proposals`, with its JSON columns as they are. Instants in microseconds."""

    id: int
    kind: ProposalKind
    agent: AgentName
    commit: Commit
    base: Commit | None
    state: ProposalState
    risk: Risk | None
    changes: str
    files: str
    spec: str | None
    spec_digest: str | None
    state_digest: str | None
    state_files: str
    digest: str | None
    requested_by: str
    turn: int | None
    description: str
    note: str
    decided_by: str | None
    generation: int | None
    rollback_of: int | None
    error: str
    created_at: int
    decided_at: int | None


@dataclass(frozen=True, slots=True)
class AgentRow:
    """What proposing and deciding need of an agent. `desired` may be destroyed."""

    name: AgentName
    role: Role
    uid_base: int
    destroyed: bool


@dataclass(frozen=True, slots=True)
class Running:
    """The agent's current generation: its commit, and its spec as JSON."""

    commit: Commit
    spec: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What an examination found, as the row keeps it. JSON in `changes`, `files`, `spec`."""

    base: Commit | None
    risk: Risk
    changes: str
    files: str
    spec: str
    spec_digest: str
    role: Role
    digest: str

    def columns(self) -> dict[str, Any]:
        """For `Tx.move_proposal`."""
        return {
            "base_commit": self.base,
            "risk": self.risk,
            "changes": self.changes,
            "files": self.files,
            "spec": self.spec,
            "spec_digest": self.spec_digest,
            "digest": self.digest,
        }


# ------------------------------------------------------------------------------------------------ reading
def _proposal(row: Row) -> ProposalRow:
    return ProposalRow(
        id=row["id"],
        kind=ProposalKind(row["kind"]),
        agent=AgentName(row["agent"]),
        commit=Commit(row["commit_id"]),
        base=Commit(row["base_commit"]) if row["base_commit"] else None,
        state=ProposalState(row["state"]),
        risk=Risk(row["risk"]) if row["risk"] else None,
        changes=row["changes"],
        files=row["files"],
        spec=row["spec"],
        spec_digest=row["spec_digest"],
        state_digest=row["state_digest"],
        state_files=row["state_files"],
        digest=row["digest"],
        requested_by=row["requested_by"],
        turn=row["turn_id"],
        description=row["description"],
        note=row["note"],
        decided_by=row["decided_by"],
        generation=row["generation"],
        rollback_of=row["rollback_of"],
        error=row["error"],
        created_at=row["created_at"],
        decided_at=row["decided_at"],
    )


async def get(db: Reader, proposal: int) -> ProposalRow:
    """One proposal; `OperatorError` code `not-found`."""
    row = await db.one("SELECT * FROM proposals WHERE id = ?", proposal)
    if row is None:
        raise OperatorError(
            f"there is no proposal {proposal}", code="not-found", hint="`hive proposals` lists them"
        )
    return _proposal(row)


async def listing(
    db: Reader, *, state: ProposalState | None, agent: str | None, before: int | None, limit: int
) -> list[ProposalRow]:
    """Newest first; `before` is exclusive."""
    rows = await db.all(
        "SELECT * FROM proposals WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR agent = ?2) "
        "AND (?3 IS NULL OR id < ?3) ORDER BY id DESC LIMIT ?4",
        state,
        agent,
        before,
        limit,
    )
    return [_proposal(row) for row in rows]


async def in_state(db: Reader, state: ProposalState) -> list[ProposalRow]:
    """All in a state, oldest first."""
    rows = await db.all("SELECT * FROM proposals WHERE state = ? ORDER BY id", state)
    return [_proposal(row) for row in rows]


async def progress(db: Reader, ids: Collection[int]) -> dict[int, list[tuple[str, int]]]:
    """When each state was entered, by proposal, oldest first."""
    found: dict[int, list[tuple[str, int]]] = {number: [] for number in ids}
    rows = await db.all(
        "SELECT * FROM proposal_progress WHERE proposal_id IN (SELECT value FROM json_each(?)) "
        "ORDER BY proposal_id, at, rowid",
        json.dumps(list(ids)),
    )
    for row in rows:
        found[row["proposal_id"]].append((row["state"], row["at"]))
    return found


async def same_open(db: Reader, agent: AgentName, commit: Commit, requested_by: str) -> ProposalRow | None:
    """An unfinished proposal of the same commit by the same proposer: a repeated request is answered with
    it."""
    row = await db.one(
        "SELECT * FROM proposals WHERE agent = ? AND commit_id = ? AND requested_by = ? AND state IN "
        "('examining', 'pending', 'approved', 'building', 'activating') ORDER BY id DESC LIMIT 1",
        agent,
        commit,
        requested_by,
    )
    return _proposal(row) if row is not None else None


async def has_commit(db: Reader, agent: AgentName, commit: Commit) -> bool:
    """Whether this commit was ever proposed for the agent."""
    row = await db.one("SELECT 1 FROM proposals WHERE agent = ? AND commit_id = ? LIMIT 1", agent, commit)
    return row is not None


async def open_spawn(db: Reader, agent: AgentName) -> ProposalRow | None:
    """An unfinished proposal that would create this agent."""
    row = await db.one(
        "SELECT * FROM proposals WHERE agent = ? AND kind = 'spawn' AND state IN "
        "('examining', 'pending', 'approved', 'building', 'activating') LIMIT 1",
        agent,
    )
    return _proposal(row) if row is not None else None


async def any_of(db: Reader, agent: AgentName) -> bool:
    """Whether there ever was a proposal for that name that is still shown."""
    return await db.one("SELECT 1 FROM proposals WHERE agent = ? AND NOT purged LIMIT 1", agent) is not None


async def maker_of_new(db: Reader, agent: AgentName, proposal: int) -> str | None:
    """Which operator asked for that new agent; None if it was no operator."""
    row = await db.one(
        "SELECT actor FROM audit WHERE action = 'agent.new' AND target = ? "
        "AND json_extract(data, '$.proposal') = ? ORDER BY id DESC LIMIT 1",
        f"agent:{agent}",
        proposal,
    )
    return None if row is None else str(row["actor"])


async def load_of(db: Reader, requested_by: str, since: int) -> tuple[int, int]:
    """How many unfinished proposals somebody has, and how many they made since an instant."""
    row = await db.one(
        "SELECT COUNT(*) FILTER (WHERE state IN "
        "('examining', 'pending', 'approved', 'building', 'activating')) AS open, "
        "COUNT(*) FILTER (WHERE created_at >= ?) AS recent FROM proposals WHERE requested_by = ?",
        since,
        requested_by,
    )
    assert row is not None, "an aggregate has one row"
    return int(row["open"]), int(row["recent"])


async def agent(db: Reader, name: str) -> AgentRow | None:
    """An agent, destroyed or not."""
    row = await db.one("SELECT * FROM agents WHERE name = ?", name)
    if row is None:
        return None
    return AgentRow(AgentName(row["name"]), Role(row["role"]), row["uid_base"], row["desired"] == "destroyed")


async def other_manager(db: Reader, name: AgentName) -> AgentName | None:
    """Another agent that is the manager, or is approved to become it."""
    row = await db.one(
        "SELECT name FROM agents WHERE role = 'manager' AND desired <> 'destroyed' AND name <> ?1 "
        "UNION ALL SELECT agent FROM proposals WHERE role = 'manager' AND agent <> ?1 "
        "AND state IN ('approved', 'building', 'activating') LIMIT 1",
        name,
    )
    return AgentName(row["name"]) if row is not None else None


async def uid_bases(db: Reader) -> dict[str, int]:
    """First uid of every agent that was not purged."""
    return {row["name"]: row["uid_base"] for row in await db.all("SELECT name, uid_base FROM agents")}


async def running(db: Reader, name: AgentName) -> Running | None:
    """The generation that should run; None before the first deployment."""
    row = await db.one(
        "SELECT g.commit_id, g.spec FROM agents a JOIN generations g ON g.agent = a.name "
        "AND g.number = a.generation WHERE a.name = ?",
        name,
    )
    return Running(Commit(row["commit_id"]), row["spec"]) if row is not None else None


async def last_approved(db: Reader, proposal: ProposalRow) -> Commit | None:
    """The commit that the operator approved last for this agent, but for this proposal."""
    row = await db.one(
        "SELECT commit_id FROM proposals WHERE agent = ? AND id <> ? "
        "AND state IN ('approved', 'building', 'activating', 'deployed') "
        "ORDER BY decided_at DESC, id DESC LIMIT 1",
        proposal.agent,
        proposal.id,
    )
    return Commit(row["commit_id"]) if row is not None else None


async def previous(db: Reader, proposal: ProposalRow) -> Commit | None:
    """The commit of the proposal before this one that was examined without fault."""
    row = await db.one(
        "SELECT commit_id FROM proposals WHERE agent = ? AND id < ? AND digest IS NOT NULL "
        "ORDER BY id DESC LIMIT 1",
        proposal.agent,
        proposal.id,
    )
    return Commit(row["commit_id"]) if row is not None else None


async def open_turn(db: Reader, name: AgentName) -> int | None:
    """The turn that the agent is in."""
    row = await db.one(
        "SELECT id FROM turns WHERE agent = ? AND state = 'open' ORDER BY id DESC LIMIT 1", name
    )
    return int(row["id"]) if row is not None else None


async def build_log(events: Database, proposal: int, after: int) -> Sequence[Row]:
    """Lines of the build log after a line's id, oldest first."""
    return await events.all(
        "SELECT id, at, text FROM build_log WHERE proposal_id = ? AND id > ? ORDER BY id LIMIT ?",
        proposal,
        after,
        LOG_LINES,
    )


# ------------------------------------------------------------------------------------------------ writing
async def insert(
    tx: Tx,
    *,
    kind: ProposalKind,
    agent: AgentName,
    commit: Commit,
    requested_by: str,
    description: str,
    turn: int | None = None,
) -> int:
    """A new proposal in `examining`; its id."""
    written = await tx.run(
        "INSERT INTO proposals (kind, agent, commit_id, state, requested_by, turn_id, description, "
        "created_at) VALUES (?, ?, ?, 'examining', ?, ?, ?, ?)",
        kind,
        agent,
        commit,
        requested_by,
        turn,
        description,
        tx.now,
    )
    state = ProposalState.EXAMINING
    await tx.run("INSERT INTO proposal_progress VALUES (?, ?, ?)", written.row_id, state, tx.now)
    await tx.emit("proposal.state", agent, proposal=written.row_id, state=str(state))
    return written.row_id


async def stage(tx: Tx, proposal: int, digest: str, files: Sequence[str]) -> None:
    """Remember the frozen state that belongs to a proposal."""
    await tx.run(
        "UPDATE proposals SET state_digest = ?, state_files = ? WHERE id = ? AND state = 'examining'",
        digest,
        json.dumps(list(files)),
        proposal,
    )


async def found(tx: Tx, proposal: int, findings: Findings) -> None:
    """Examining → pending, with what was found."""
    await tx.run("UPDATE proposals SET role = ? WHERE id = ?", findings.role, proposal)
    await tx.move_proposal(proposal, ProposalState.PENDING, **findings.columns())


async def found_again(tx: Tx, proposal: ProposalRow, findings: Findings) -> None:
    """What a pending proposal means changed, because another generation runs now."""
    columns: Mapping[str, Any] = findings.columns()
    assignments = ", ".join(f"{name} = ?" for name in columns)
    await tx.run(
        f"UPDATE proposals SET {assignments} WHERE id = ? AND state = 'pending'",  # noqa: S608 - our own names
        *columns.values(),
        proposal.id,
    )
    await tx.emit("proposal.changed", proposal.agent, proposal=proposal.id)


async def tell(tx: Tx, proposal: ProposalRow, state: ProposalState, text: str) -> None:
    """A message for the proposer in the same transaction as the move; a person sees it on the page."""
    if proposal.requested_by == OPERATOR:
        return
    body = f"proposal {proposal.id} for {proposal.agent} ({proposal.commit[:12]}) is {state}{text}"
    key = f"proposal-{proposal.id}-{state}"
    await outbox.put(tx, "notify", {"agent": proposal.requested_by, "body": body, "key": key})


async def older_rivals(db: Reader, proposal: ProposalRow) -> list[int]:
    """Ids of earlier proposals for the agent that an approval of this one makes pointless."""
    rows = await db.all(
        "SELECT id FROM proposals WHERE agent = ? AND id < ? "
        "AND state IN ('pending', 'approved', 'building') ORDER BY id",
        proposal.agent,
        proposal.id,
    )
    return [row["id"] for row in rows]


async def insert_agent(tx: Tx, name: AgentName, role: Role, uid_base: int, session_id: str) -> None:
    """The row of a new agent, wanted to run."""
    await tx.run(
        "INSERT INTO agents (name, role, uid_base, desired, session_id, created_at) "
        "VALUES (?, ?, ?, 'running', ?, ?)",
        name,
        role,
        uid_base,
        session_id,
        tx.now,
    )
    await tx.emit("agent.created", name, role=str(role), uid_base=uid_base)


async def destroy_unborn(tx: Tx, name: AgentName) -> None:
    """The operator takes back a spawn: an agent that never ran is not wanted any more."""
    await tx.run("UPDATE agents SET desired = 'destroyed' WHERE name = ? AND generation IS NULL", name)
