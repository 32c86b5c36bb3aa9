"""Rows that passes read and write: what should run, what is being deployed, generations, crashes."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.model import estimates
from reconciler.model.names import AGENT_NAME_PATTERN, RESERVED_NAMES, AgentName, Commit
from reconciler.model.states import Desired as Want
from reconciler.model.states import ProposalState, Role
from reconciler.plan.facts import Crashes, Deployment, Desired, Target
from reconciler.store import outbox
from reconciler.store.db import Database, Reader, Row, Tx
from reconciler.store.holds import IS_HELD

MICRO = 1_000_000
ERROR_MAX = 8192
AGENT_NAME = re.compile(AGENT_NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An approved proposal as a pass needs it. `generation` and `store_path` appear as it moves on."""

    proposal: int
    kind: str
    agent: AgentName
    commit: Commit
    spec: dict[str, Any]
    spec_digest: str
    state_digest: str | None
    requested_by: str
    generation: int | None
    store_path: str | None
    state: ProposalState


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """An agent's row and its deployment, as a pass needs them. `candidate` is the deployment's whole row;
    `attached`: somebody is in the container."""

    desired: Desired
    role: Role
    uid_base: int
    candidate: Candidate | None
    limits_spec: Mapping[str, Any]
    attached: bool


async def names(db: Database) -> list[AgentName]:
    """All agents that were not destroyed, and those destroyed ones, too: their containers must be gone."""
    return [AgentName(row["name"]) for row in await db.all("SELECT name FROM agents ORDER BY name")]


_CANDIDATE = (
    "c.id AS c_id, c.kind AS c_kind, c.agent AS c_agent, c.commit_id AS c_commit_id, c.spec AS c_spec, "
    "c.spec_digest AS c_spec_digest, c.state_digest AS c_state_digest, c.requested_by AS c_requested_by, "
    "c.generation AS c_generation, c.store_path AS c_store_path, c.state AS c_state, "
    "c.activate_now AS c_activate_now, c.activating_at AS c_activating_at"
)
_MORE = """, g.store_path AS current_path, g.spec AS current_spec,
       EXISTS (SELECT 1 FROM attachments t WHERE t.agent = a.name AND t.expires_at > ?1) AS attached
FROM agents a LEFT JOIN generations g ON g.agent = a.name AND g.number = a.generation
     LEFT JOIN proposals c ON c.id = (
       SELECT p.id FROM proposals p
       WHERE p.agent = a.name AND p.state IN ('activating', 'building', 'approved')
       ORDER BY CASE p.state WHEN 'activating' THEN 0 WHEN 'building' THEN 1 ELSE 2 END, p.id LIMIT 1)
"""
_FACTS = f"SELECT a.*, {IS_HELD} AS held, {_CANDIDATE}{_MORE}"


async def read(
    reader: Reader, name: AgentName, *, now: int, building: Callable[[AgentName], bool]
) -> AgentFacts | None:
    """The desired side of one agent; None if there is no such agent. `now` in microseconds; `building`:
    whether a build of it is under way in this process."""
    row = await reader.one(f"{_FACTS} WHERE a.name = ?2", now, name)
    return None if row is None else _facts(row, building)


async def read_all(
    reader: Reader, *, now: int, building: Callable[[AgentName], bool]
) -> dict[AgentName, AgentFacts]:
    """The same of every agent, destroyed ones included, by name; one statement."""
    rows = await reader.all(f"{_FACTS} ORDER BY a.name", now)
    return {AgentName(row["name"]): _facts(row, building) for row in rows}


def _facts(row: Row, building: Callable[[AgentName], bool]) -> AgentFacts:
    name = AgentName(row["name"])
    candidate = None if row["c_id"] is None else _candidate(row)
    current = None if row["current_path"] is None else Target(row["generation"], row["current_path"])
    spec: Mapping[str, Any] = {}
    if candidate is not None and (candidate.state is ProposalState.ACTIVATING or current is None):
        spec = candidate.spec
    elif current is not None:
        spec = _parsed(row["current_spec"])
    at = row["c_activating_at"]
    desired = Desired(
        name=name,
        state=Want(row["desired"]),
        current=current,
        deployment=None
        if candidate is None
        else Deployment(
            proposal=candidate.proposal,
            state=candidate.state,
            now=bool(row["c_activate_now"]),
            toplevel=candidate.store_path,
            generation=candidate.generation,
            activating_at=at / MICRO if at is not None else None,
            building=building(name),
        ),
        restart_wanted=row["restart_wanted"] > row["restart_done"],
        stop_intent=row["stop_intent"],
        crashes=Crashes(
            row["crashes"],
            row["crashed_at"] / MICRO if row["crashed_at"] is not None else None,
            row["crash_seen"],
        ),
        held=bool(row["held"]),
        start_untold=row["start_untold"] is not None,
        purge=bool(row["purge_wanted"]),
    )
    return AgentFacts(desired, Role(row["role"]), row["uid_base"], candidate, spec, bool(row["attached"]))


def _candidate(row: Row) -> Candidate:
    return Candidate(
        proposal=row["c_id"],
        kind=row["c_kind"],
        agent=AgentName(row["c_agent"]),
        commit=Commit(row["c_commit_id"]),
        spec=json.loads(row["c_spec"]),
        spec_digest=row["c_spec_digest"],
        state_digest=row["c_state_digest"],
        requested_by=row["c_requested_by"],
        generation=row["c_generation"],
        store_path=row["c_store_path"],
        state=ProposalState(row["c_state"]),
    )


@functools.lru_cache(maxsize=1024)
def _parsed(spec: str) -> Mapping[str, Any]:
    """Every full read asks for all of them; they change seldom. Not to be written to."""
    found: Mapping[str, Any] = json.loads(spec)
    return found


async def specs_of_roots(db: Database, name: AgentName, roots: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """The spec that each of these roots of the agent was built from; those that are no generation's are left
    out."""
    rows = await db.all(
        "SELECT DISTINCT store_path, spec FROM generations WHERE agent = ? "
        "AND store_path IN (SELECT value FROM json_each(?))",
        name,
        json.dumps(list(roots)),
    )
    return {row["store_path"]: _parsed(row["spec"]) for row in rows}


async def record_probe(tx: Tx, proposal: int) -> None:
    """The proposal is being probed from now on."""
    await tx.run("INSERT OR REPLACE INTO proposal_progress VALUES (?, 'probing', ?)", proposal, tx.now)


async def serving_generation(db: Database, name: AgentName) -> Row | None:
    """The generation a harness that says hello now belongs to: the candidate while it is probed, else the
    current one."""
    row = await db.one(
        "SELECT g.* FROM proposals p JOIN generations g ON g.agent = p.agent AND g.number = p.generation "
        "WHERE p.agent = ? AND p.state = 'activating'",
        name,
    )
    if row is not None:
        return row
    return await db.one(
        "SELECT g.* FROM agents a JOIN generations g ON g.agent = a.name AND g.number = a.generation "
        "WHERE a.name = ?",
        name,
    )


async def serving_specs(db: Reader) -> dict[str, str]:
    """Of every agent that has one, the JSON of the spec that `serving_generation` gives."""
    rows = await db.all(
        "SELECT a.name, g.spec FROM agents a JOIN generations g ON g.agent = a.name AND g.number = "
        "COALESCE((SELECT c.number FROM proposals p JOIN generations c ON c.agent = p.agent "
        "AND c.number = p.generation WHERE p.agent = a.name AND p.state = 'activating'), a.generation)"
    )
    return {row["name"]: row["spec"] for row in rows}


async def next_generation(db: Database, name: AgentName) -> int:
    """The number the next activation gets; the same until that activation is written."""
    row = await db.one("SELECT COALESCE(MAX(number), 0) + 1 AS n FROM generations WHERE agent = ?", name)
    return int(row["n"]) if row else 1


async def begin_build(tx: Tx, candidate: Candidate) -> None:
    """Approved → building; nothing if it builds already."""
    await tx.move_proposal(candidate.proposal, ProposalState.BUILDING)


async def set_built(tx: Tx, proposal: int, store_path: str, took_s: float | None = None) -> None:
    """Remember the build's result, and how long it took."""
    await tx.run(
        "UPDATE proposals SET store_path = ?, build_us = ? WHERE id = ? AND state = 'building'",
        store_path,
        int(took_s * MICRO) if took_s is not None else None,
        proposal,
    )


async def usual_build_s(db: Database, name: AgentName) -> float | None:
    """What the last builds of the agent took, or those of all agents if it has none; None if there are
    none."""
    rows = await db.all(
        "SELECT build_us FROM proposals WHERE agent = ? AND build_us IS NOT NULL ORDER BY id DESC LIMIT 9",
        name,
    ) or await db.all("SELECT build_us FROM proposals WHERE build_us IS NOT NULL ORDER BY id DESC LIMIT 25")
    return estimates.typical_s([row["build_us"] / MICRO for row in rows])


async def activate(tx: Tx, candidate: Candidate, number: int, prompt: str) -> None:
    """Building → activating, with its generation as a candidate. A rollback has nothing to build."""
    assert candidate.store_path is not None, "only a built proposal is activated"
    if candidate.state is ProposalState.APPROVED:
        await tx.move_proposal(candidate.proposal, ProposalState.BUILDING)
    await tx.run(
        "INSERT OR IGNORE INTO generations (agent, number, proposal_id, commit_id, store_path, spec, "
        "spec_digest, prompt, state, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'candidate', ?)",
        candidate.agent,
        number,
        candidate.proposal,
        candidate.commit,
        candidate.store_path,
        json.dumps(candidate.spec, sort_keys=True, separators=(",", ":")),
        candidate.spec_digest,
        prompt,
        tx.now,
    )
    await tx.move_proposal(
        candidate.proposal, ProposalState.ACTIVATING, generation=number, activating_at=tx.now
    )


async def confirm(tx: Tx, candidate: Candidate) -> None:
    """Activating → deployed: the candidate is the agent's generation now, and its proposer is told."""
    await tx.run(
        "UPDATE generations SET state = 'deployed' WHERE agent = ? AND number = ?",
        candidate.agent,
        candidate.generation,
    )
    await _note_model(tx, candidate)
    await tx.run(
        "UPDATE agents SET generation = ?, crashes = 0, crashed_at = NULL, "
        "restart_done = restart_wanted, role = ? WHERE name = ?",
        candidate.generation,
        candidate.spec.get("role", "agent"),
        candidate.agent,
    )
    await tx.run("DELETE FROM drafts WHERE name = ?", candidate.agent)
    # A harness that greets a new hived takes it up without being asked.
    await tx.run(
        "INSERT OR IGNORE INTO proposal_progress VALUES (?, 'probing', ?)", candidate.proposal, tx.now
    )
    deployed = {
        "agent": candidate.agent,
        "generation": candidate.generation,
        "commit": candidate.commit,
        "proposal": candidate.proposal,
        "store_path": candidate.store_path,
    }
    await outbox.put(tx, "meta", deployed)
    await tx.move_proposal(candidate.proposal, ProposalState.DEPLOYED)
    await _tell(tx, candidate, "deployed", f"{candidate.agent} runs it as generation {candidate.generation}")


async def _note_model(tx: Tx, candidate: Candidate) -> None:
    """Who approved another model for an agent whose model the operator does not override has switched it."""
    row = await tx.one(
        "SELECT a.model_override, json_extract(g.spec, '$.model') AS model FROM agents a "
        "JOIN generations g ON g.agent = a.name AND g.number = a.generation WHERE a.name = ?",
        candidate.agent,
    )
    if row is not None and row["model_override"] is None and row["model"] != candidate.spec.get("model"):
        await tx.run(
            "UPDATE agents SET model_switched_at = ?, model_switched_by = "
            "(SELECT decided_by FROM proposals WHERE id = ?) WHERE name = ?",
            *(tx.now, candidate.proposal, candidate.agent),
        )


async def fail(tx: Tx, candidate: Candidate, error: str) -> None:
    """→ failed, with its generation if it had one; its proposer is told the error."""
    if candidate.generation is not None:
        await tx.run(
            "UPDATE generations SET state = 'failed' WHERE agent = ? AND number = ?",
            candidate.agent,
            candidate.generation,
        )
    await tx.move_proposal(candidate.proposal, ProposalState.FAILED, error=error[:ERROR_MAX])
    await _tell(tx, candidate, "failed", error[:ERROR_MAX])


async def _tell(tx: Tx, candidate: Candidate, state: str, text: str) -> None:
    """A message for the proposer in the same transaction as the move; the operator sees it on the page."""
    if not AGENT_NAME.fullmatch(candidate.requested_by) or candidate.requested_by in RESERVED_NAMES:
        return
    body = f"proposal {candidate.proposal} for {candidate.agent} ({candidate.commit[:12]}) {state}: {text}"
    await notify(tx, candidate.requested_by, body, key=f"proposal-{candidate.proposal}-{state}")


async def notify(tx: Tx, agent: str, body: str, *, key: str, urgent: bool = False) -> None:
    """A message of the system once this transaction is committed; the same key is told once."""
    await outbox.put(tx, "notify", {"agent": agent, "body": body, "key": key, "urgent": urgent})


async def intend_stop(tx: Tx, name: AgentName, invocation: str) -> None:
    """Write down, before it happens, that hived itself ends this start."""
    await tx.run("UPDATE agents SET stop_intent = ? WHERE name = ?", invocation, name)


async def record_start(
    tx: Tx, name: AgentName, probed: int | None, *, generation: int | None, reason: str
) -> None:
    """A start serves every restart that was asked for before it; with it begins the probing of proposal
    `probed`. What it will be told as is written before it: whoever finds its container later can tell it."""
    told = json.dumps({"generation": generation, "reason": reason})
    await tx.run(
        "UPDATE agents SET restart_done = restart_wanted, start_untold = ? WHERE name = ?", told, name
    )
    if probed is not None:
        await record_probe(tx, probed)


async def tell_start(tx: Tx, name: AgentName, invocation: str | None) -> None:
    """Write down what was started and why, once."""
    row = await tx.one("SELECT start_untold FROM agents WHERE name = ?", name)
    if row is None or row["start_untold"] is None:
        return
    await tx.run("UPDATE agents SET start_untold = NULL WHERE name = ?", name)
    await tx.emit("agent.started", name, invocation=invocation, **json.loads(row["start_untold"]))


async def record_crash(
    tx: Tx,
    name: AgentName,
    invocation: str,
    *,
    healthy: bool,
    detail: dict[str, Any],
    receiver: str,
    body: str,
) -> None:
    """Count an end that nobody asked for and tell `receiver`, once per invocation.

    `healthy`: it had run long enough that earlier crashes do not count any more.
    """
    row = await tx.one("SELECT crashes, crash_seen FROM agents WHERE name = ?", name)
    if row is None or row["crash_seen"] == invocation:
        return
    count = 1 if healthy else int(row["crashes"]) + 1
    await tx.run(
        "UPDATE agents SET crashes = ?, crashed_at = ?, crash_seen = ? WHERE name = ?",
        count,
        tx.now,
        invocation,
        name,
    )
    await notify(tx, receiver, body, key=f"crash-{invocation}", urgent=True)
    await tx.emit("agent.crashed", name, invocation=invocation, count=count, **detail)


async def record_stop(
    tx: Tx, name: AgentName, invocation: str, *, detail: dict[str, Any], receiver: str, body: str
) -> None:
    """Somebody else stopped it: told like a crash, once per invocation, but it counts as none."""
    row = await tx.one("SELECT crash_seen FROM agents WHERE name = ?", name)
    if row is None or row["crash_seen"] == invocation:
        return
    await tx.run("UPDATE agents SET crash_seen = ? WHERE name = ?", invocation, name)
    await notify(tx, receiver, body, key=f"stopped-{invocation}")
    await tx.emit("agent.stopped_by_hand", name, invocation=invocation, **detail)


async def purge(tx: Tx, name: AgentName) -> None:
    """Forget a destroyed agent whose files are gone: its name and uid range are free again.

    Its proposals, turns and messages stay as history; what nobody will ever read is not kept waiting.
    """
    await tx.run("DELETE FROM generations WHERE agent = ?", name)
    await tx.run("DELETE FROM drafts WHERE name = ?", name)
    await tx.run("DELETE FROM directives WHERE agent = ?", name)
    await tx.run("DELETE FROM holds WHERE scope = ?", name)
    await tx.run("DELETE FROM attachments WHERE agent = ?", name)
    await tx.run(
        "UPDATE messages SET state = 'acked' WHERE recipient = ? AND state IN ('queued', 'leased')", name
    )
    await tx.run("UPDATE proposals SET purged = 1 WHERE agent = ?", name)
    await tx.run("DELETE FROM agents WHERE name = ? AND desired = 'destroyed' AND purge_wanted = 1", name)
    await outbox.put(tx, "meta", {"agent": name, "purged": True})
    await tx.emit("agent.purged", name)


async def record_repair(tx: Tx, name: AgentName, step: str, reason: str) -> None:
    """Write down that hived mended what somebody else changed."""
    await tx.emit("agent.repaired", name, step=step, reason=reason)


async def record_well(tx: Tx, name: AgentName) -> None:
    """It has run long enough: the row of crashes is over."""
    await tx.run("UPDATE agents SET crashes = 0, crashed_at = NULL WHERE name = ?", name)
