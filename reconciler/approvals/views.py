"""Rows of proposals as the objects of the API, with what does not show in foreign text made visible."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from reconciler.control import models as api
from reconciler.model.changes import Change
from reconciler.model.estimates import BuildState
from reconciler.model.instants import stamp, stamp_or_none
from reconciler.model.states import ProposalState
from reconciler.model.text import visible
from reconciler.store import proposals
from reconciler.store.db import Reader
from reconciler.store.drafts import Draft
from reconciler.store.holds import Hold
from reconciler.store.proposals import ProposalRow

_LINES = "\t\n"


def tag_of(state: ProposalState, proposal: int) -> str:
    """The git tag that stands for a proposal in a state; while it is examined, the one that pins its
    commit."""
    return f"proposal/{proposal}" if state is ProposalState.EXAMINING else f"{state}/{proposal}"


def proposal(row: ProposalRow, entered: Sequence[tuple[str, int]]) -> api.Proposal:
    """A proposal; `entered` holds its states with their instants."""
    progress: list[dict[str, Any]] = [{"state": state, "at": stamp(at)} for state, at in entered]
    return api.Proposal(
        id=row.id,
        kind=row.kind,
        agent=row.agent,
        commit=row.commit,
        base=row.base,
        state=row.state,
        risk=row.risk,
        changes=[api.Change.model_validate(change) for change in json.loads(row.changes)],
        files=json.loads(row.files),
        staged_files=[visible(name) for name in json.loads(row.state_files)],
        requested_by=row.requested_by,
        description=visible(row.description, keep=_LINES),
        note=visible(row.note, keep=_LINES),
        decided_by=row.decided_by,
        created_at=stamp(row.created_at),
        decided_at=stamp_or_none(row.decided_at),
        error=visible(row.error, keep=_LINES),
        tag=tag_of(row.state, row.id),
        digest=row.digest,
        generation=row.generation,
        rollback_of=row.rollback_of,
        progress=[api.Progress.model_validate(step) for step in progress],
    )


def build_progress(state: BuildState | None) -> api.BuildProgress | None:
    """How far a build is."""
    if state is None:
        return None
    return api.BuildProgress(
        queued=state.queued,
        built=state.built,
        expected=state.expected,
        running=[visible(name) for name in state.running],
        elapsed_s=round(state.elapsed_s, 1),
        left_s=None if state.left_s is None else round(state.left_s, 1),
    )


async def read(db: Reader, number: int) -> api.Proposal:
    """A proposal as it stands in `db`, which may be a transaction."""
    row = await proposals.get(db, number)
    view = proposal(row, (await proposals.progress(db, [number]))[number])
    if row.state is not ProposalState.PENDING:
        return view
    return view.model_copy(update={"supersedes": await proposals.older_rivals(db, row)})


def rehearsed(view: api.Proposal) -> api.Proposal:
    """A proposal of a dry run: the number it had in there will be somebody else's."""
    return view.model_copy(update={"id": 0, "tag": ""})


def changes_json(changes: Sequence[Change]) -> str:
    """Changes as the row keeps them: objects of the API, with nothing invisible in them."""
    shown = [
        api.Change(
            option=visible(change.option)[:500],
            before=change.before,
            after=change.after,
            risk=change.risk,
            reason=visible(change.reason)[:1000],
        )
        for change in changes
    ]
    return json.dumps([change.model_dump(mode="json") for change in shown])


def hold(row: Hold) -> api.Hold:
    """A hold."""
    return api.Hold(scope=row.scope, by=row.by, reason=visible(row.reason), at=stamp(row.at))


def draft(row: Draft, offered: ProposalRow | None) -> api.Draft:
    """A draft, with the proposal that was made of it last."""
    return api.Draft(
        name=row.name,
        created_by=row.created_by,
        created_at=stamp(row.created_at),
        commit=row.commit,
        proposal=row.proposal,
        proposal_state=None if offered is None else offered.state,
        description="" if offered is None else visible(offered.description),
        state_files=0 if offered is None else len(json.loads(offered.state_files)),
    )
