"""Objects of the control API (`/v1` on `control.sock` and `ui.sock`), the same in CLI, API and UI.

Times are RFC 3339 in UTC. Lists are `{"items": [...], "next": cursor or null}`. Errors are
`{"error": {"code", "message", "hint"}}`. On `ui.sock` every call carries the browser's session in
`X-Hive-Session` and hived resolves actor and role from it; on `control.sock` the peer's uid is the operator.

| call | request | answer | role |
|---|---|---|---|
| GET /v1/status | - | HiveStatus | viewer |
| GET /v1/agents · GET /v1/agents/{name} | - | AgentList · Agent | viewer |
| POST /v1/agents | NewAgent | Proposal | operator |
| POST /v1/agents/{name}/{start,stop,restart,destroy,cancel,wake} | Act | Agent | operator |
| POST /v1/agents/{name}/model | SetModel | Agent | operator |
| GET /v1/agents/{name}/spec | - | SpecView | viewer |
| GET /v1/agents/{name}/generations | - | GenerationList | viewer |
| GET /v1/agents/{name}/plan · why | - | Plan · Why | viewer |
| GET /v1/agents/{name}/transcript?before&after&limit | - | Transcript | viewer |
| GET /v1/agents/{name}/logs?lines | - | LogLines | viewer |
| GET /v1/messages?agent&before&limit | - | MessageList | viewer |
| POST /v1/messages | NewMessage | Message | operator |
| POST /v1/messages/{id}/read | - | Message | operator |
| GET /v1/proposals?state&agent · GET /v1/proposals/{id} | - | ProposalList · Proposal | viewer |
| POST /v1/proposals | Propose | Proposal | operator |
| GET /v1/proposals/{id}/diff?base | - | Diff | viewer |
| GET /v1/proposals/{id}/log?after | - | BuildLog | viewer |
| GET /v1/proposals/{id}/why | - | Why | viewer |
| POST /v1/proposals/{id}/approve | Approve | Proposal | operator |
| POST /v1/proposals/{id}/{deny,cancel} | Decide | Proposal | operator |
| GET /v1/questions | - | QuestionList | viewer |
| POST /v1/questions/{id}/{answer,cancel} | Answer | Question | operator |
| GET /v1/drafts | - | DraftList | viewer |
| GET /v1/events?after&agent&kind&limit | - | EventList | viewer |
| GET /v1/stream (SSE, Last-Event-ID) | - | text/event-stream of Event | viewer |
| GET /v1/audit?before&limit | - | AuditList | viewer |
| POST /v1/login-links | NewLoginLink | LoginLink | operator, control.sock only |
| POST /v1/login | Login | Session | nobody, ui.sock only |
| GET /v1/session · POST /v1/logout | - | Session · Done | viewer |
| GET /v1/users · GET /v1/sessions | - | UserList · SessionList | operator |
| GET /v1/spending | - | SpendingList | viewer |
| GET /openapi.json | - | OpenAPI 3.1 document | nobody |
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from reconciler.model.states import (
    AgentState,
    Desired,
    MessageState,
    ProposalKind,
    ProposalState,
    Risk,
    Role,
    UserRole,
)


class Model(BaseModel):
    """Base of all control objects: closed and frozen; enums travel as their values."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Done(Model):
    """The request took effect."""

    ok: Literal[True] = True


class ModelStatus(Model):
    """`active` is what the running session uses, `queued` takes effect with the next turn (None: nothing
    queued)."""

    active: str | None
    queued: str | None
    switched_at: str | None
    switched_by: str | None


class Context(Model):
    """Tokens in use and the window of the model, as told by the container; None before the first turn."""

    used: int | None
    window: int | None


class Container(Model):
    """The agent's container; `limits_enforced` names the limits that the host really holds."""

    driver: Literal["shim", "systemd"]
    unit: str
    leader_pid: int | None
    limits_enforced: list[str]


class Agent(Model):
    """One agent as every badge and list shows it."""

    name: str
    role: Role
    desired: Desired
    state: AgentState
    state_since: str
    reason: str
    until: str | None
    status: str
    model: ModelStatus
    generation: int | None
    commit: str | None
    uid_base: int
    inbox_depth: int
    context: Context
    cost_today_usd: float
    tokens_today: int
    turn: int | None
    last_turn_at: str | None
    held: bool
    container: Container


class AgentList(Model):
    """All agents, by name."""

    items: list[Agent]
    next: str | None = None


class NewAgent(Model):
    """A new agent from the template. `approve`: the operator's own request is decided at once."""

    name: str
    role: Role = Role.AGENT
    description: Annotated[str, Field(max_length=2000)] = ""
    model: str | None = None
    bash_allow: list[str] = []
    approve: bool = False


class Act(Model):
    """Body of agent verbs; `dry_run` answers with what would be done and does nothing."""

    dry_run: bool = False
    note: Annotated[str, Field(max_length=2000)] = ""


class SetModel(Model):
    """The operator's override of the model; None takes the override away."""

    model: str | None


class SpecView(Model):
    """The approved spec of the running generation and its JSON."""

    agent: str
    generation: int | None
    commit: str | None
    digest: str | None
    spec: dict[str, Any]


class Generation(Model):
    """One activation: number → store path, with the commit it was built from."""

    agent: str
    number: int
    proposal: int
    commit: str
    store_path: str
    state: Literal["candidate", "deployed", "failed"]
    current: bool
    created_at: str


class GenerationList(Model):
    """Newest first."""

    items: list[Generation]
    next: str | None = None


class Step(Model):
    """One step of a plan; `cost` is in_place, turn_end, restart or destroys_state."""

    kind: str
    cost: str
    reason: str


class Plan(Model):
    """What the next passes would do; empty when desired equals actual."""

    agent: str
    steps: list[Step]
    outcome: str


class Cause(Model):
    """One link of the chain that led to the present, newest first."""

    at: str
    kind: str
    text: str
    ref: str


class Why(Model):
    """The cause chain of an agent's running generation, or of a proposal (who asked, in which turn, after
    which message)."""

    agent: str
    chain: list[Cause]


class TranscriptLine(Model):
    """One event of a turn; `id` grows over the whole hive, `data` by kind as in harness.wire.TurnEvent, plus
    turn_begin {model, messages}, turn_end {outcome, error, duration_ms}."""

    id: int
    turn: int
    seq: int
    at: str
    kind: str
    data: dict[str, Any]


class Transcript(Model):
    """Lines in order; `before` is the cursor for older ones (None: the beginning is here)."""

    items: list[TranscriptLine]
    before: int | None


class LogLines(Model):
    """Last lines of the container's console, oldest first."""

    lines: list[str]


class Message(Model):
    """A message; `body` of an agent's message is hostile text."""

    id: int
    sender: Annotated[str, Field(alias="from")]
    to: str
    body: str
    in_reply_to: int | None
    sent_at: str
    state: MessageState
    redelivered: bool
    kind: Literal["message", "event", "answer"] = "message"

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)


class MessageList(Model):
    """Newest first; `next` is the id to give as `before`."""

    items: list[Message]
    next: int | None = None


class NewMessage(Model):
    """The operator's message to an agent, to `manager`, or to `*` (all). With a `key`, sending it again after
    a lost answer changes nothing."""

    to: str
    body: Annotated[str, Field(min_length=1)]
    in_reply_to: int | None = None
    key: Annotated[str, Field(min_length=8, max_length=64)] | None = None


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
    staged state."""

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
    progress: list[Progress]


class ProposalList(Model):
    """Newest first."""

    items: list[Proposal]
    next: int | None = None


class Propose(Model):
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


class BuildLog(Model):
    """Lines after the cursor, oldest first; `done` when no more will come."""

    items: list[LogLine]
    done: bool


class Approve(Model):
    """Approve what was shown: `digest` must equal the proposal's. `now`: do not wait for the end of a
    running turn."""

    digest: str
    note: Annotated[str, Field(max_length=2000)] = ""
    now: bool = False


class Decide(Model):
    """Deny or cancel, with a note that reaches the proposer."""

    note: Annotated[str, Field(max_length=2000)] = ""


class Question(Model):
    """A question of an agent."""

    id: int
    agent: str
    question: str
    options: list[str]
    multi: bool
    asked_at: str
    expires_at: str | None
    state: Literal["open", "answered", "expired", "cancelled"]
    answer: str | None
    answered_by: str | None


class QuestionList(Model):
    """Open ones first, then newest first."""

    items: list[Question]
    next: int | None = None


class Answer(Model):
    """The operator's answer: chosen options and/or free text joined in `text`."""

    text: Annotated[str, Field(max_length=8000)] = ""


class Draft(Model):
    """A new agent being drafted by the manager."""

    name: str
    created_by: str
    created_at: str
    proposal: int | None


class DraftList(Model):
    """Open drafts."""

    items: list[Draft]
    next: str | None = None


class Event(Model):
    """Something that happened. On the stream, `id` is the SSE id."""

    id: int
    ts: str
    agent: str | None
    kind: str
    data: dict[str, Any]


class EventList(Model):
    """Oldest first after the cursor."""

    items: list[Event]
    next: int | None = None


class AuditRow(Model):
    """One decision; `hash` = SHA-256 over the previous hash and this row."""

    id: int
    at: str
    actor: str
    action: str
    target: str
    data: dict[str, Any]
    hash: str


class AuditList(Model):
    """Newest first."""

    items: list[AuditRow]
    next: int | None = None
    head: str


class NewLoginLink(Model):
    """A one-time login link for `user` (made if new)."""

    user: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")] = "operator"
    role: UserRole = UserRole.OPERATOR


class LoginLink(Model):
    """`token` goes into `http://localhost:PORT/login/TOKEN`; valid for `expires_in_s` seconds, once."""

    token: str
    url: str
    user: str
    expires_in_s: int


class Login(Model):
    """Consumes a one-time token."""

    token: Annotated[str, Field(min_length=1, max_length=200)]


class Session(Model):
    """A browser's session. `session` (the secret for the cookie) is only in the answer to POST /v1/login.
    `csrf` must come back with every form."""

    user: str
    role: UserRole
    csrf: str
    created_at: str
    expires_at: str
    stepped_up_until: str | None
    session: str | None = None


class User(Model):
    """A person who may log in."""

    name: str
    role: UserRole
    created_at: str


class UserList(Model):
    """All users."""

    items: list[User]
    next: str | None = None


class SessionInfo(Model):
    """A live session, without its secret."""

    id: int
    user: str
    created_at: str
    last_seen_at: str


class SessionList(Model):
    """Live sessions."""

    items: list[SessionInfo]
    next: str | None = None


class Spending(Model):
    """Tokens of one agent and model on one host-local day, counted by the gateway."""

    agent: str
    day: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    usd: float


class SpendingList(Model):
    """By day, newest first."""

    items: list[Spending]
    next: str | None = None


class HiveStatus(Model):
    """The hive at a glance."""

    version: str
    platform: Literal["bare", "nixos"]
    driver: Literal["shim", "systemd"]
    model_upstream: str
    agents: int
    thinking: int
    needs_operator: int
    approvals_pending: int
    questions_open: int
    cost_today_usd: float
    audit_head: str
    last_event_id: int
    gateway_connected: bool
