"""What happened and what it cost."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from reconciler.control.models.base import Model, Write


class Event(Model):
    """Something that happened. On the stream, `id` is the SSE id."""

    id: int
    ts: str
    agent: str | None
    kind: str
    data: dict[str, Any]


class EventList(Model):
    """Oldest first. `next` is the `after` of the page that follows, or, when no `after` was given, the
    `before` of the older one."""

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


BudgetState = Literal["unlimited", "ok", "warned", "reached"]


class Budget(Model):
    """The budget of an agent, or (`scope` `*`) of the hive, on the host-local day that ends at `resets_at`.

    `limit_today_usd` is `usd_per_day` and what the operator added for this day; None: no limit. `share` of it
    is spent. `state`: `warned` from the share `warn_at` on, `reached` when nothing is left or an agent waits
    for the day's end (`waits`, with the `reason`; `waits_for` says whether for its own budget or the hive's,
    None where that is not known).
    """

    scope: str
    day: str
    resets_at: str
    usd_per_day: float | None
    added_today_usd: float
    limit_today_usd: float | None
    spent_today_usd: float
    left_today_usd: float | None
    share: float | None
    warn_at: float
    warned_at: str | None
    state: BudgetState
    waits: bool
    reason: str
    waits_for: Literal["agent", "hive"] | None = None
    tokens_per_turn: int | None


class BudgetList(Model):
    """The hive's, then the agents' by name."""

    items: list[Budget]
    next: str | None = None


class RaiseBudget(Write):
    """Add `usd` to the budget of today; it ends with the day."""

    usd: Annotated[float, Field(gt=0, le=100_000)]
    note: Annotated[str, Field(max_length=2000)] = ""
