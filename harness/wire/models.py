"""Requests and answers of `/v1` on `agent.sock`, one pydantic model each.

| call | request | answer |
|---|---|---|
| POST hello | Hello | Welcome |
| GET inbox?wait&max&turn | - | Inbox |
| POST leases/{id}/ack, POST leases/{id}/return | - | Done |
| POST messages | SendMessage | Sent |
| POST turns | BeginTurn | TurnBegun |
| POST turns/{id}/events | TurnEvents | EventsTaken |
| POST turns/{id}/end | EndTurn | Done |
| GET directives?wait&after | - | Directives |
| POST questions | AskOperator | Asked |
| POST nap | Nap | Napping |
| POST status | Status | Done |
| GET status | - | OwnStatus |
| POST parked | - | Done |
| POST proposals?agent&commit&description | git bundle (application/octet-stream) | Proposed |
| POST drafts | SpawnDraft | DraftMade |
| POST drafts/{name}/commit?commit&description | multipart: `bundle`, `state` (tar) | Proposed |
| POST spawns | Spawn | Proposed |
| POST agents/{name}/{start,stop,restart} | - | Done |
| GET agents | - | Agents |
| GET agents/{name}/logs?lines | - | Logs |
| GET repos/{name}/bundle | - | git bundle of `main` (application/octet-stream) |

Every call but `hello` (whose body tells both) carries the headers `X-Hive-Wire: 1` and `X-Hive-Boot`, the
random id that this harness process gave in `hello`. A JSON body is at most `JSON_MAX_BYTES`.

An error is `{"error": {"code", "message", "hint"}}` with a 4xx or 5xx status. Code `wire-version` (426): this
harness is of another release than its host; `busy` (503): it has too many calls under way; `too-many`
(429, with Retry-After): it called too often; `hello-first` (409): this host process does not know that boot
id (it restarted, or another harness said hello since).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

WIRE_VERSION = 1
WIRE_HEADER = "X-Hive-Wire"
BOOT_HEADER = "X-Hive-Boot"
BOOT_PATTERN = r"^[0-9a-f]{32}$"
JSON_MAX_BYTES = 1024 * 1024
BODY_MAX_BYTES = 65536
EVENT_TEXT_MAX = 200_000
BUNDLE_MAX_BYTES = 32 * 1024 * 1024
STATE_TAR_MAX_BYTES = 32 * 1024 * 1024


class Wire(BaseModel):
    """Base of all wire models: strict, closed, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Done(Wire):
    """The request took effect (or had already)."""

    ok: Literal[True] = True


class Hello(Wire):
    """First call of a harness after each start or reconnect. `boot` is random per harness process;
    `turn` is the turn that is still going on from before the host went away. `resident`: whether it has a
    CLI running (None: it is of an older release and does not know the order `park`)."""

    wire: int
    boot: Annotated[str, Field(pattern=BOOT_PATTERN)]
    turn: int | None = None
    resident: bool | None = None


class Welcome(Wire):
    """What the host has approved for this agent. `spec` is the JSON of the spec; `prompt` the text of its
    prompt file; `session_id` the UUID to use, `resume` whether that session exists already; `model` the one
    to use now (the operator's override or the spec's); `peers` the names it may send to."""

    wire: int
    agent: str
    role: Literal["agent", "manager"]
    spec: dict[str, Any]
    prompt: str
    model: str
    session_id: str
    resume: bool
    generation: int
    peers: list[str]
    directives_after: int
    hive_drafts: list[str] = []


class Delivered(Wire):
    """A message as delivered: `sender` is proven by the host, `body` is foreign text."""

    id: int
    sender: str
    body: str
    sent_at: str
    in_reply_to: int | None = None
    redelivered: bool = False
    kind: Literal["message", "event", "answer"] = "message"


class Inbox(Wire):
    """Messages under one lease (None when there are none); `waiting` is how many more are queued."""

    lease: int | None
    messages: list[Delivered]
    waiting: int


class SendMessage(Wire):
    """`to`: an agent, `manager`, `operator` or `*`. `key` makes a repeat after a lost answer harmless."""

    to: Annotated[str, Field(min_length=1, max_length=64)]
    body: Annotated[str, Field(min_length=1, max_length=BODY_MAX_BYTES)]
    in_reply_to: int | None = None
    key: Annotated[str, Field(min_length=8, max_length=64)]


class Sent(Wire):
    """Ids of the messages made, one per recipient. `note`: what the sender should know, as that one is
    slowed or held because agents only answer each other; empty if there is nothing."""

    ids: list[int]
    note: str = ""


Purpose = Literal["messages", "compaction", "notes"]


class BeginTurn(Wire):
    """A turn over the messages of `lease`, or without one for another `purpose`: to sum the conversation up,
    or to rewrite the notes. `key` makes it idempotent. Code `no-seat` (503 with another code than `busy`):
    no seat is free for a CLI, try again later."""

    lease: int | None
    key: Annotated[str, Field(min_length=8, max_length=64)]
    purpose: Purpose = "messages"


class TurnBegun(Wire):
    """The turn's id on the host, and the model it must use."""

    turn: int
    model: str


EventKind = Literal[
    "prompt",
    "text",
    "thinking",
    "tool_call",
    "tool_result",
    "policy_refusal",
    "note",
    "stderr",
    "model",
    "compaction",
    "result",
    "context",
    "notes",
    "mcp",
]


class TurnEvent(Wire):
    """One line of the transcript, as told by the container. `seq` counts from 1 in each turn.

    `data` by kind: prompt {text}; text {text}; thinking {text}; tool_call {id, name, input}; tool_result
    {id, text, is_error, duration_ms?}; policy_refusal {tool, command?, reason}; note {text}; stderr {text};
    model {model}; compaction {before_tokens} when it begins, with {after_tokens} or {error} when it is over;
    result {is_error, subtype, terminal_reason?, api_error_status?, duration_ms, num_turns, text?};
    context {used_tokens, window_tokens}; mcp {servers: [{name, status, error?, tools}]}; notes {before_bytes,
    after_bytes?, error?}: a rewriting that was done, or was not. Texts are cut at `EVENT_TEXT_MAX`
    characters.
    """

    seq: Annotated[int, Field(ge=1)]
    at: str
    kind: EventKind
    data: dict[str, Any]


class TurnEvents(Wire):
    """A batch in order; sending one again changes nothing."""

    events: Annotated[list[TurnEvent], Field(min_length=1, max_length=200)]


class EventsTaken(Wire):
    """All events up to and including `seq` are stored and need not be sent again."""

    seq: int


Outcome = Literal[
    "ok",
    "cancelled",
    "prompt_too_long",
    "rate_limited",
    "auth",
    "budget",
    "stalled",
    "crashed",
    "model_refused",
    "api_error",
    "unavailable",
    "credit",
]


class EndTurn(Wire):
    """How the turn ended. `ok` acks every lease of the turn, everything else returns them (redelivered),
    except `cancelled`, which acks: the operator ended the turn, its messages are not to come again.
    `retry_after_s` is told for rate limits; `error` in words. `leases`: those whose messages reached the
    harness by `inbox?turn`; a lease of the turn that is not among them (its answer got lost on the way) is
    returned, not acked. None: all arrived. The lease that `BeginTurn` named need not be listed."""

    outcome: Outcome
    error: Annotated[str, Field(max_length=4000)] = ""
    retry_after_s: Annotated[float, Field(ge=0, le=604800)] | None = None
    leases: Annotated[list[int], Field(max_length=1000)] | None = None


class Directive(Wire):
    """An order of the host. `spec` means: the approved spec changed, say hello again at the turn's end.
    `model` carries `{model}`; `session` `{session_id}` (a fresh one); `wake` ends a nap; `park` `{after}`:
    end the CLI and say so by `POST parked`, unless a turn with a larger id than `after` has begun; `text`
    `{turn?}` etc. by kind."""

    id: int
    kind: Literal["cancel", "model", "compact", "session", "spec", "wake", "repos", "park"]
    data: dict[str, Any] = {}


class Directives(Wire):
    """Orders in order of id; ask again with `after` = the last id."""

    directives: list[Directive]


class AskOperator(Wire):
    """A question for the operator; the answer arrives as a message."""

    question: Annotated[str, Field(min_length=1, max_length=8000)]
    options: Annotated[list[Annotated[str, Field(min_length=1, max_length=400)]], Field(max_length=20)] = []
    multi: bool = False
    ttl_seconds: Annotated[int, Field(ge=60, le=604800)] | None = None
    key: Annotated[str, Field(min_length=8, max_length=64)]


class Asked(Wire):
    """The question's id."""

    id: int


class Nap(Wire):
    """Do not wake this agent before `seconds` have passed, unless something urgent comes."""

    seconds: Annotated[int, Field(ge=1, le=86400)]
    reason: Annotated[str, Field(max_length=400)] = ""


class Napping(Wire):
    """Until when the agent naps (RFC 3339); None: not at all, as something urgent waits for it already."""

    ok: Literal[True] = True
    until: str | None = None


class Status(Wire):
    """A short text shown beside the agent."""

    text: Annotated[str, Field(max_length=400)]


class OpenQuestion(Wire):
    """A question that waits for its answer."""

    id: int
    question: str
    expires_at: str | None


class OwnStatus(Wire):
    """How the host sees the agent that asks. Times RFC 3339. `waiting`: messages in its inbox; `held`: its
    own messages that the loop guard keeps until the operator decides; `peers` as of now, which `Welcome` may
    not know yet; `settings`: approved lists by option; dollars None: no limit."""

    state: str
    model: str
    model_queued: str | None = None
    generation: int | None
    commit: str | None
    status: str = ""
    nap_until: str | None = None
    waiting: int = 0
    held: int = 0
    questions: list[OpenQuestion] = []
    peers: list[str] = []
    settings: dict[str, list[str]] = {}
    budget_limit_usd: float | None = None
    budget_left_usd: float | None = None
    budget_resets_at: str | None = None
    tokens_per_turn: int | None = None
    queued: list[str] = []


class Proposed(Wire):
    """The proposal made of a commit; its examination goes on, the outcome comes as a message."""

    proposal: int
    state: str


class SpawnDraft(Wire):
    """Start a draft of a new agent; the host seeds its first commit."""

    name: str


class DraftMade(Wire):
    """The draft's first commit, to be fetched from `GET repos/{name}/bundle`."""

    name: str
    commit: str


class Spawn(Wire):
    """One-shot request for a new agent from the template."""

    name: str
    description: Annotated[str, Field(max_length=2000)] = ""


class PeerAgent(Wire):
    """What an agent may know of another."""

    name: str
    role: str
    state: str
    model: str
    generation: int | None
    commit: str | None


class Agents(Wire):
    """All agents of the hive, by name."""

    agents: list[PeerAgent]


class Logs(Wire):
    """Last lines of an agent's console log, oldest first."""

    lines: list[str]


MODELS: tuple[type[Wire], ...] = (
    Done,
    Hello,
    Welcome,
    Delivered,
    Inbox,
    SendMessage,
    Sent,
    BeginTurn,
    TurnBegun,
    TurnEvent,
    TurnEvents,
    EventsTaken,
    EndTurn,
    Directive,
    Directives,
    AskOperator,
    Asked,
    Nap,
    Napping,
    Status,
    OpenQuestion,
    OwnStatus,
    Proposed,
    SpawnDraft,
    DraftMade,
    Spawn,
    PeerAgent,
    Agents,
    Logs,
)
