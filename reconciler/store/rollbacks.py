"""Rollbacks: an approved proposal without a build, whose new generation points to an earlier store path."""

from __future__ import annotations

from typing import Protocol

from reconciler.errors import OperatorError
from reconciler.model.names import OPERATOR, AgentName
from reconciler.model.states import ProposalState
from reconciler.store import outbox
from reconciler.store.db import Reader, Row, Tx


class Wish(Protocol):
    """What of the request is kept."""

    @property
    def now(self) -> bool: ...
    @property
    def note(self) -> str: ...


async def target(reader: Reader, name: str, number: int | None) -> Row:
    """The generation to go back to: `number`, or the newest good one that runs other things than the current,
    and that nobody has gone back from.

    `OperatorError`: there is no such generation, or it never came up, or it runs now.
    """
    current = await reader.one(
        "SELECT g.* FROM agents a JOIN generations g ON g.agent = a.name AND g.number = a.generation "
        "WHERE a.name = ?",
        name,
    )
    if number is None:
        if current is None:
            raise OperatorError(f"{name} was never deployed", code="conflict")
        row = await reader.one(
            "SELECT * FROM generations WHERE agent = ? AND state = 'deployed' AND number < ? "
            "AND store_path <> ? AND store_path NOT IN (SELECT gone.store_path FROM proposals p "
            "  JOIN generations back ON back.agent = p.agent AND back.number = p.generation "
            "  JOIN generations gone ON gone.agent = p.agent "
            "   AND gone.number > p.rollback_of AND gone.number < back.number "
            "  WHERE p.agent = generations.agent AND p.rollback_of IS NOT NULL AND p.state = 'deployed') "
            "ORDER BY number DESC LIMIT 1",
            *(name, current["number"], current["store_path"]),
        )
        if row is None:
            raise OperatorError(
                f"{name} has no earlier generation", code="conflict", hint=f"`hive generations {name}`"
            )
        return row
    row = await reader.one("SELECT * FROM generations WHERE agent = ? AND number = ?", name, number)
    if row is None:
        raise OperatorError(
            f"{name} has no generation {number}", code="not-found", hint=f"`hive generations {name}`"
        )
    if row["state"] != "deployed":
        raise OperatorError(
            f"generation {number} of {name} never came up", code="conflict", hint="choose one that did"
        )
    if current is not None and current["number"] == number:
        raise OperatorError(f"generation {number} of {name} runs now", code="conflict")
    return row


async def insert(tx: Tx, name: AgentName, goal: Row, actor: str, wish: Wish, judged: tuple[str, str]) -> int:
    """The proposal, approved as it is made; its id. `judged`: its risk, and its changes as JSON."""
    base = await tx.one(
        "SELECT g.commit_id FROM agents a JOIN generations g ON g.agent = a.name "
        "AND g.number = a.generation WHERE a.name = ?",
        name,
    )
    state = ProposalState.APPROVED
    made = await tx.run(
        "INSERT INTO proposals (kind, agent, commit_id, base_commit, state, risk, changes, spec, "
        "spec_digest, requested_by, description, note, decided_by, activate_now, store_path, rollback_of, "
        "created_at, decided_at) VALUES ('apply', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *(name, goal["commit_id"], base["commit_id"] if base else None, state, *judged),
        *(goal["spec"], goal["spec_digest"], OPERATOR, f"back to generation {goal['number']}", wish.note),
        *(actor, int(wish.now), goal["store_path"], goal["number"], tx.now, tx.now),
    )
    await tx.run("INSERT INTO proposal_progress VALUES (?, ?, ?)", made.row_id, state, tx.now)
    tag = {"agent": name, "tag": f"{state}/{made.row_id}", "commit": goal["commit_id"], "message": wish.note}
    await outbox.put(tx, "tag", tag)
    await tx.emit("proposal.state", name, proposal=made.row_id, state=str(state))
    return made.row_id


async def rivals(tx: Tx, name: str, proposal: int) -> list[int]:
    """Approved proposals of the agent that have not come so far as to be probed."""
    rows = await tx.all(
        "SELECT id FROM proposals WHERE agent = ? AND id <> ? AND state IN ('approved', 'building')",
        *(name, proposal),
    )
    return [row["id"] for row in rows]
