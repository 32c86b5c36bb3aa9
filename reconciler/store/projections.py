"""What git should show of the rows: the tags of an agent's proposals."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from reconciler.model.names import AgentName, Commit
from reconciler.model.states import PROPOSAL_ENDS, ProposalState
from reconciler.store.db import Reader, Row

Version = tuple[int, int]

_WITH_ERROR = frozenset({ProposalState.INVALID, ProposalState.FAILED})
_WITH_NOTE = frozenset({ProposalState.DENIED, ProposalState.CANCELLED, ProposalState.SUPERSEDED})
# A proposal that was ever in another state than these has its commit in the repository.
_PERHAPS_WITHOUT_COMMIT = frozenset({"examining", "invalid", "cancelled"})
# `probing` is a part of `activating`, and no state that has a tag.
_TAGS = """\
SELECT p.id, p.commit_id, p.error, p.note, g.state, EXISTS (
    SELECT 1 FROM outbox o WHERE o.kind = 'tag' AND o.error = ''
      AND json_extract(o.data, '$.tag') = g.state || '/' || p.id
  ) AS waits
FROM proposals p JOIN proposal_progress g ON g.proposal_id = p.id
WHERE p.agent = ? AND p.state <> 'examining' AND NOT p.purged AND g.state <> 'probing'
ORDER BY p.id, g.at
"""


@dataclass(frozen=True, slots=True)
class ExpectedTag:
    """A tag that the rows ask for; `message` makes it an annotated one.

    `after`: it is asked for only if that tag is there (an end of a proposal whose commit may never have
    come).
    """

    tag: str
    commit: Commit
    message: str | None = None
    after: str | None = None


async def tags_version(db: Reader) -> Version:
    """Another value once `expected_tags` of anybody may give another answer: moves of proposals so far (each
    writes a row), and how many tags wait."""
    row = await db.one(
        "SELECT COALESCE((SELECT MAX(rowid) FROM proposal_progress), 0) AS moves, "
        "(SELECT COUNT(*) FROM outbox WHERE kind = 'tag' AND error = '') AS waiting"
    )
    assert row is not None, "a select of scalars has one row"
    return row["moves"], row["waiting"]


async def expected_tags(db: Reader, name: AgentName) -> list[ExpectedTag]:
    """Tags of an agent that should be there by now, in the order in which they were made.

    Left out is what nobody can expect yet or any more: a proposal whose commit may still be arriving, a move
    whose tag waits in the outbox, everything of a purged agent.
    """
    found: list[ExpectedTag] = []
    for number, group in itertools.groupby(await db.all(_TAGS, name), key=lambda row: int(row["id"])):
        rows = list(group)
        arrival = f"proposal/{number}"
        arrived = any(row["state"] not in _PERHAPS_WITHOUT_COMMIT for row in rows)
        found += [_expected(row, None if arrived else arrival) for row in rows if _is_expected(row, arrived)]
    return found


def _is_expected(row: Row, arrived: bool) -> bool:
    return not row["waits"] and (arrived or row["state"] != "examining")


def _expected(row: Row, after: str | None) -> ExpectedTag:
    state, commit = ProposalState(row["state"]), Commit(row["commit_id"])
    if state is ProposalState.EXAMINING:
        return ExpectedTag(f"proposal/{row['id']}", commit)
    text = row["error"] if state in _WITH_ERROR else row["note"] if state in _WITH_NOTE else ""
    message = (text or str(state)) if state in PROPOSAL_ENDS else None
    return ExpectedTag(f"{state}/{row['id']}", commit, message, after)
