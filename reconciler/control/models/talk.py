"""Messages and questions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from reconciler.control.models.base import Model, Write
from reconciler.model.states import MessageState


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


class NewMessage(Write):
    """The operator's message to an agent, to `manager`, or to `*` (all). With a `key`, sending it again after
    a lost answer changes nothing."""

    to: str
    body: Annotated[str, Field(min_length=1)]
    in_reply_to: int | None = None
    key: Annotated[str, Field(min_length=8, max_length=64)] | None = None


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
    closed_at: str | None = None


class QuestionList(Model):
    """Open ones first, then newest first; `next` is the id to give as `before` for earlier ended ones."""

    items: list[Question]
    next: int | None = None


class Answer(Write):
    """The operator's answer: the numbers of chosen options (the first is 1), words in `text`, or both."""

    text: Annotated[str, Field(max_length=8000)] = ""
    options: Annotated[list[Annotated[int, Field(ge=1, le=20)]], Field(max_length=20)] = Field(
        default_factory=list
    )


class Loop(Model):
    """Two agents between whom messages wait, because agents only answered each other for `hops` messages.

    `held`: until the operator decides; `slowed`: until `until`. `last` is the beginning of the latest one,
    hostile text.
    """

    agents: Annotated[list[str], Field(min_length=2, max_length=2)]
    state: Literal["held", "slowed"]
    waiting: int
    hops: int
    since: str
    until: str | None
    last: str


class LoopList(Model):
    """Held ones first."""

    items: list[Loop]


class DecideLoop(Write):
    """Deliver what waits between two agents, or drop it for good."""

    deliver: bool
    note: Annotated[str, Field(max_length=2000)] = ""
