"""Proposals, their differences, logs and decisions; drafts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from reconciler.control.models.base import Model, Write
from reconciler.model.states import ProposalKind, ProposalState, Risk


class Change(Model):
    """One setting before → after (JSON text, None: absent) with its risk and the reason for it."""

    option: str
    before: str | None
    after: str | None
    risk: Risk
    reason: str


class Progress(Model):
    """When each state was entered; `probing` is the part of `activating` that waits for the new harness's
    hello."""

    state: ProposalState | Literal["probing"]
    at: str


class Proposal(Model):
    """An immutable commit offered for an agent. `digest` is what an approval binds to: commit, spec and
    staged state. `rollback_of`: the operator's rollback to that generation. `supersedes`: the earlier
    proposals that end with its approval, of one that is pending or was approved in a dry run (lists leave it
    empty)."""

    id: int
    kind: ProposalKind
    agent: str
    commit: str
    base: str | None
    state: ProposalState
    risk: Risk | None
    changes: list[Change]
    files: list[str]
    staged_files: list[str]
    requested_by: str
    description: str
    note: str
    decided_by: str | None
    created_at: str
    decided_at: str | None
    error: str
    tag: str
    digest: str | None
    generation: int | None
    rollback_of: int | None = None
    supersedes: list[int] = Field(default_factory=list)
    progress: list[Progress]


class ProposalList(Model):
    """Newest first."""

    items: list[Proposal]
    next: int | None = None


class Propose(Write):
    """The operator proposes a commit that is already in `repos/<agent>.git`."""

    agent: str
    commit: str
    description: Annotated[str, Field(max_length=2000)] = ""


class DiffLine(Model):
    """`kind`: context, add, del. Numbers are 1-based; control and bidirectional characters are already made
    visible."""

    kind: Literal["context", "add", "del"]
    old: int | None
    new: int | None
    text: str


class Hunk(Model):
    """A run of lines with its header."""

    header: str
    lines: list[DiffLine]


class FileDiff(Model):
    """One file's changes; `note` says why hunks are absent (binary, too large)."""

    path: str
    old_path: str | None
    status: Literal["added", "modified", "deleted", "renamed"]
    added: int
    deleted: int
    note: str
    hunks: list[Hunk]


class Diff(Model):
    """The text diff of a proposal against one of three bases: running, approved, proposal (the previous
    one)."""

    proposal: int
    base: Literal["running", "approved", "proposal"]
    base_commit: str | None
    commit: str
    files: list[FileDiff]
    truncated: bool


class LogLine(Model):
    """One line of a build or activation log."""

    id: int
    at: str
    text: str


class BuildProgress(Model):
    """How far a build is: derivations `built` of those known to be needed, names of some being built.
    `queued`: other builds have all slots. `left_s` is a guess from earlier builds and from the pace; null
    where nothing can be said."""

    queued: bool
    built: int
    expected: int
    running: list[str]
    elapsed_s: float
    left_s: float | None


class BuildLog(Model):
    """Lines after the cursor, oldest first; `done` when no more will come. `progress` while it is built."""

    items: list[LogLine]
    done: bool
    progress: BuildProgress | None = None


class Approve(Write):
    """Approve what was shown: `digest` must equal the proposal's. `now`: do not wait for the end of a
    running turn."""

    digest: str
    note: Annotated[str, Field(max_length=2000)] = ""
    now: bool = False


class Decide(Write):
    """Deny or cancel, with a note that reaches the proposer."""

    note: Annotated[str, Field(max_length=2000)] = ""


class Draft(Model):
    """A new agent being drafted by the manager: its first `commit`, and the `proposal` that was made of it
    last (None: it is in the manager's tree only), with its state, description (hostile text) and how many
    files of state go with it."""

    name: str
    created_by: str
    created_at: str
    proposal: int | None
    commit: str = ""
    proposal_state: ProposalState | None = None
    description: str = ""
    state_files: int = 0


class DraftList(Model):
    """Open drafts."""

    items: list[Draft]
    next: str | None = None
