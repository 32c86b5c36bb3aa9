"""What hived and the gateway say to each other on `control.sock`: one JSON object per packet.
 hived asks, the gateway answers with the same `id`. Besides, the gateway tells events, without being
asked and without `id`; what matters of them is also in the answers to `hello` and `spending`, so none of
them may be missed for good.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from reconciler.model.names import AGENT_NAME_PATTERN
from reconciler.store.ledger import Closure, Spent

VERSION = 2
SPENDING_PAGE = 100

Agent = Annotated[str, Field(pattern=rf"^{AGENT_NAME_PATTERN}$")]
Day = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Added(_Message):
    """What the operator added to a budget; counts on that day only."""

    day: Day
    usd_micro: Annotated[int, Field(gt=0)]


class AgentPolicy(_Message):
    """What one agent may do at its `model.sock`.

    `uid_base`: the only uid that may connect. `models`: aliases or ids; empty means any that the host
    allows. `server_tools`: the spec's `tools.server`. Budgets: dollars of the host-local day, tokens of a
    turn (input, output and cache writes); None is no limit. `added`: what the operator added to the
    dollars. `turn`: the turn that is going on, None between turns; `asked_model`: the one it shall use.
    """

    agent: Agent
    uid_base: Annotated[int, Field(ge=0, le=4_294_967_294)]
    models: tuple[str, ...] = ()
    server_tools: tuple[str, ...] = ()
    budget_usd_day: Annotated[float, Field(gt=0)] | None = None
    budget_tokens_turn: Annotated[int, Field(gt=0)] | None = None
    added: Added | None = None
    turn: int | None = None
    asked_model: str | None = None


# ------------------------------------------------------------------------------------------------- requests
class Hello(_Message):
    """First request of a connection."""

    op: Literal["hello"] = "hello"
    id: int
    version: int


class SetAgent(_Message):
    """Serve this agent under this policy. A packet with a file descriptor brings its listening socket, in
    place of an earlier one; `socket` names the file that it is bound to, and comes back in `Held`."""

    op: Literal["set"] = "set"
    id: int
    policy: AgentPolicy
    socket: str


class DropAgent(_Message):
    """Serve this agent no more; requests under way are cut. Unknown: nothing to do."""

    op: Literal["drop"] = "drop"
    id: int
    agent: Agent


class SetHive(_Message):
    """What holds for all agents together: dollars of the host-local day, what the operator added to them,
    tokens of any turn; None is no limit."""

    op: Literal["hive"] = "hive"
    id: int
    budget_usd_day: Annotated[float, Field(gt=0)] | None = None
    budget_tokens_turn: Annotated[int, Field(gt=0)] | None = None
    added: Added | None = None


class AskSpending(_Message):
    """A page of spending, in order of (day, agent, model), behind the key `after`."""

    op: Literal["spending"] = "spending"
    id: int
    since: Day
    after: tuple[str, str, str] = ("", "", "")


class AskClosures(_Message):
    """A page of the closures of a day, in order of agent, behind `after`."""

    op: Literal["closures"] = "closures"
    id: int
    day: Day
    after: str = ""


Request = Hello | SetAgent | DropAgent | SetHive | AskSpending | AskClosures
REQUESTS: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])


# -------------------------------------------------------------------------------------------------- answers
class SpendingRow(_Message):
    """One agent, one host-local day, one model."""

    agent: str
    day: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    usd_micro: int

    @classmethod
    def of(cls, spent: Spent) -> SpendingRow:
        """From the ledger."""
        return cls(
            agent=spent.agent,
            day=spent.day,
            model=spent.model,
            requests=spent.requests,
            input_tokens=spent.tokens.input,
            output_tokens=spent.tokens.output,
            cache_read_tokens=spent.tokens.cache_read,
            cache_write_tokens=spent.tokens.cache_write,
            usd_micro=spent.usd_micro,
        )


class ClosureRow(_Message):
    """An agent gets no more on that day: what was left of its own budget or the hive's was too little."""

    agent: str
    day: str
    budget: Literal["agent", "hive"]
    ceiling_usd_micro: int
    spent_usd_micro: int
    needed_usd_micro: int

    @classmethod
    def of(cls, closure: Closure) -> ClosureRow:
        """From the ledger."""
        return cls(
            agent=closure.agent,
            day=closure.day,
            budget=closure.budget,
            ceiling_usd_micro=closure.ceiling_usd_micro,
            spent_usd_micro=closure.spent_usd_micro,
            needed_usd_micro=closure.needed_usd_micro,
        )


class Answer(_Message):
    """To any request. `error` is empty when it was done. `held`: agent → name of its socket, and `unknown`,
    the days before whose instant (microseconds) the ledger lost something: answer to hello. `rows` or
    `closures`, and `more`: a page."""

    kind: Literal["answer"] = "answer"
    id: int
    error: str = ""
    held: dict[str, str] = {}
    closures: tuple[ClosureRow, ...] = ()
    unknown: dict[str, int] = {}
    rows: tuple[SpendingRow, ...] = ()
    more: bool = False


# --------------------------------------------------------------------------------------------------- events
class UsageEvent(_Message):
    """A request ended. The figures are its own; `row` is the whole row of spending that it went to, so that a
    missed event is made good by the next. `certain` is False when a cut stream was charged its worst case."""

    kind: Literal["usage"] = "usage"
    agent: str
    turn: int | None
    model: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    usd_micro: int
    certain: bool
    duration_ms: int
    row: SpendingRow


class LimitEvent(_Message):
    """The API (or the gateway's own bound) told an agent to wait: `until` in epoch seconds, None if
    nobody knows."""

    kind: Literal["limit"] = "limit"
    agent: str
    turn: int | None
    status: int
    message: str
    until: float | None
    model: str = ""


class TroubleEvent(_Message):
    """The API refused a request for a reason that is no limit and may concern everybody who uses this
    credential (401, 402, 403, no credit), or failed by itself (5xx)."""

    kind: Literal["trouble"] = "trouble"
    agent: str
    turn: int | None
    model: str
    status: int
    type: str
    message: str


class RefusalEvent(_Message):
    """A request of an agent was not forwarded, or not answered (`upstream`); the reason, and the words it
    got. Of reason `budget`: `closure` when nothing more is served today, None when the request was too much
    for its turn or for any day."""

    kind: Literal["refusal"] = "refusal"
    agent: str
    turn: int | None
    reason: Literal["budget", "model", "request", "credential", "busy", "upstream"]
    message: str
    closure: ClosureRow | None = None


class ModelEvent(_Message):
    """In a turn that shall use `asked` a request named another model, or (`answered`) the API answered with
    another one than was requested. Told once for each turn and pair."""

    kind: Literal["model"] = "model"
    agent: str
    turn: int | None
    asked: str
    requested: str
    answered: str | None = None


Event = UsageEvent | LimitEvent | TroubleEvent | RefusalEvent | ModelEvent
Reply = Answer | UsageEvent | LimitEvent | TroubleEvent | RefusalEvent | ModelEvent
REPLIES: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="kind")])
