"""What happened and what it cost."""

from __future__ import annotations

from typing import Any

from reconciler.control.models.base import Model


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
