"""Agents as the operator sees and steers them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from reconciler.control.models.base import Model, Write
from reconciler.model.states import AgentState, Desired, Role


class ModelStatus(Model):
    """`active` is what the running turn uses, or the last one did; `queued` takes its place with the next
    turn (None: nothing queued). `switched_at` and `switched_by`: the last switch, whether by an override or
    by an approved change. `default` is the spec's, `override` the operator's, `allowed` what may be chosen.
    `other`: a model that requests of that turn named, or that answered them, though the turn was given
    `active`; `problem`: why turns with the model of the next turn fail."""

    active: str | None
    queued: str | None
    switched_at: str | None
    switched_by: str | None
    default: str = ""
    override: str | None = None
    allowed: list[str] = Field(default_factory=list)
    other: str | None = None
    problem: str = ""


class Context(Model):
    """Tokens in use and the window of the model, as told by the container; None before the first turn."""

    used: int | None
    window: int | None


class LastOutcome(Model):
    """How the last turn ended: the outcome's name (docs/outcomes.md), what was said of it (by the container),
    and what the operator can do where it did not end well."""

    turn: int
    outcome: str
    error: str
    ended_at: str
    hint: str


class McpServer(Model):
    """A further MCP server of the agent, as told by the container: connected, pending, failed …"""

    name: str
    status: str
    tools: int
    error: str = ""


class Container(Model):
    """The agent's container; `limits_enforced` names the limits that the host really holds."""

    driver: Literal["shim", "systemd"]
    unit: str
    leader_pid: int | None
    limits_enforced: list[str]


class Agent(Model):
    """One agent as every badge and list shows it. `trouble`: why the last pass over it failed; it is tried
    again by itself. `resident`: it holds a seat, that is, may have a Claude Code in memory. `queued`: what
    waits for the end of its turn. `status` is hostile text that it said at `status_at`; `nap_until` is known
    already while the turn that asked for the nap goes on."""

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
    last_outcome: LastOutcome | None = None
    mcp_servers: list[McpServer] = Field(default_factory=list)
    held: bool
    container: Container
    trouble: str = ""
    resident: bool = False
    queued: list[Literal["compact", "new-session", "nap"]] = Field(default_factory=list)
    status_at: str | None = None
    nap_until: str | None = None


class AgentList(Model):
    """All agents, by name."""

    items: list[Agent]
    next: str | None = None


class NewAgent(Write):
    """A new agent from the template. `approve`: the operator's own request is decided at once."""

    name: str
    role: Role = Role.AGENT
    description: Annotated[str, Field(max_length=2000)] = ""
    model: str | None = None
    bash_allow: list[str] = Field(default=[])
    approve: bool = False


class Act(Write):
    """Body of agent verbs."""

    note: Annotated[str, Field(max_length=2000)] = ""


class NapAgent(Act):
    """Do not wake the agent before `seconds` have passed; `note` is shown as the reason."""

    seconds: Annotated[int, Field(ge=1, le=86400)]


class Rollback(Act):
    """Back to an earlier generation (None: the last good one before the current). `now`: do not wait for the
    end of a running turn."""

    generation: int | None = None
    now: bool = False


class Purge(Act):
    """`confirm` is the agent's name, typed again."""

    confirm: str


class Hold(Model):
    """A hold on one agent, or on the whole hive (`*`)."""

    scope: str
    by: str
    reason: str
    at: str


class HoldList(Model):
    """All holds, the hive's first."""

    items: list[Hold]
    next: str | None = None


class Kept(Model):
    """A destroyed agent whose repository and state are still there, with the room they take on the disk (at
    least, unless `size_is_whole`)."""

    name: str
    role: Role
    generation: int | None
    commit: str | None
    uid_base: int
    destroyed_at: str | None
    purging: bool
    size_bytes: int | None = None
    size_is_whole: bool = True


class KeptList(Model):
    """Kept state, by name."""

    items: list[Kept]
    next: str | None = None


class Attachment(Model):
    """Somebody is inside the container, until `expires_at` unless they renew it."""

    id: str
    agent: str
    by: str
    expires_at: str


class AttachmentList(Model):
    """Who is inside, oldest first."""

    items: list[Attachment]
    next: str | None = None


class SetModel(Write):
    """The operator's override of the model; None takes the override away."""

    model: str | None


class SpecView(Model):
    """The approved spec of the running generation and its JSON."""

    agent: str
    generation: int | None
    commit: str | None
    digest: str | None
    spec: dict[str, Any]


class PolicyAnswer(Model):
    """How the Bash policy of the running generation decides on a command, and by which patterns."""

    agent: str
    generation: int | None
    command: str
    folder: str
    allowed: bool
    reason: str
    allow: list[str]
    deny: list[str]


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


class PlanList(Model):
    """The plans of all agents, by name."""

    items: list[Plan]
    next: str | None = None


class Cause(Model):
    """One link of the chain that led to the present. `told_by` container: the agent's own word, which proves
    nothing."""

    at: str
    kind: str
    text: str
    ref: str
    told_by: Literal["host", "container"] = "host"


class Why(Model):
    """The cause chain of what an agent is, or of a proposal (who asked, in which turn, after which message),
    newest first. `now`: sentences about why the agent does or does not do something at this moment."""

    agent: str
    chain: list[Cause]
    now: list[str] = Field(default_factory=list)


class TranscriptLine(Model):
    """One event of a turn; `id` grows over the whole hive, `data` by kind as in harness.wire.TurnEvent, plus
    turn_begin {model, messages, purpose?}, turn_end {outcome, error, duration_ms}."""

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


class DatabaseSize(Model):
    """A database of the hive: bytes of its file, how many of them are free to be used again, and of the log
    beside it."""

    name: str
    bytes: int
    free_bytes: int
    log_bytes: int


class Seats(Model):
    """How many agents may keep a Claude Code in memory (`cap`), do, are at work with it, and wait for one."""

    cap: int
    taken: int
    busy: int
    waiting: int


class HiveStatus(Model):
    """The hive at a glance. `troubles` of hived itself, in words with the remedy. `hold`: the whole hive is
    frozen. It counts as one thing that needs the operator, as does each of `held` (agents with a hold of
    their own) and of `stuck` (crashed, or no pass brings them to what they should be); no agent is in
    both. `loops_held`: pairs of agents whose messages are held, because they only feed each other."""

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
    databases: list[DatabaseSize] = Field(default_factory=list)
    pruned_at: str | None = None
    troubles: list[str] = Field(default_factory=list)
    hold: Hold | None = None
    held: list[str] = Field(default_factory=list)
    stuck: list[str] = Field(default_factory=list)
    loops_held: int = 0
    seats: Seats | None = None
