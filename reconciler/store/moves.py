"""The one place where a proposal changes its state: the table is asked, progress, event and tag projection
are written with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from reconciler.errors import OperatorError
from reconciler.model.states import ProposalState, may_move

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.store.db import Tx, Value

_COLUMNS = frozenset(
    {
        "note",
        "decided_by",
        "decided_at",
        "activate_now",
        "generation",
        "store_path",
        "error",
        "activating_at",
        "risk",
        "changes",
        "files",
        "spec",
        "spec_digest",
        "digest",
        "base_commit",
        "state_files",
        "state_digest",
    }
)


async def move(tx: Tx, proposal: int, after: ProposalState, columns: Mapping[str, Value]) -> bool:
    """Move `proposal` to `after` and set `columns`; False if it stood there already (nothing is written
    then)."""
    row = await tx.one("SELECT state, agent, commit_id FROM proposals WHERE id = ?", proposal)
    if row is None:
        raise OperatorError(f"there is no proposal {proposal}", code="not-found")
    before = ProposalState(row["state"])
    if before is after:
        return False
    if not may_move(before, after):
        raise OperatorError(
            f"proposal {proposal} is {before}, it cannot become {after}",
            code="conflict",
            hint=f"`hive proposals {proposal}` shows what became of it",
        )
    assert set(columns) <= _COLUMNS, f"unknown columns: {set(columns) - _COLUMNS}"
    assignments = "".join(f", {name} = ?" for name in columns)
    await tx.run(
        f"UPDATE proposals SET state = ?{assignments} WHERE id = ?",  # noqa: S608 - names are of _COLUMNS
        after,
        *columns.values(),
        proposal,
    )
    await tx.run("INSERT OR REPLACE INTO proposal_progress VALUES (?, ?, ?)", proposal, after, tx.now)
    why = columns.get("error") or columns.get("note") or ""
    tag = json.dumps(
        {"agent": row["agent"], "tag": f"{after}/{proposal}", "commit": row["commit_id"], "message": str(why)}
    )
    await tx.run("INSERT INTO outbox (kind, data, created_at) VALUES ('tag', ?, ?)", tag, tx.now)
    await tx.emit("proposal.state", row["agent"], proposal=proposal, state=str(after))
    return True
