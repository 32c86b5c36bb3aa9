"""Rows as the objects of the wire and of the control API."""

from __future__ import annotations

import json

from harness import wire
from reconciler.control import models as api
from reconciler.model.instants import stamp, stamp_or_none
from reconciler.model.states import MessageState
from reconciler.store.db import Row


def message(row: Row) -> api.Message:
    """A row of messages for people."""
    return api.Message(
        id=row["id"],
        sender=row["sender"],
        to=row["recipient"],
        body=row["body"],
        in_reply_to=row["in_reply_to"],
        sent_at=stamp(row["sent_at"]),
        state=_state(row),
        redelivered=bool(row["redelivered"]),
        kind=row["kind"],
    )


def _state(row: Row) -> MessageState:
    if row["set_aside_at"] is not None:
        return MessageState.SET_ASIDE
    if row["due_at"] is None:
        return MessageState.HELD if row["state"] == MessageState.QUEUED else MessageState.DROPPED
    return MessageState(row["state"])


def delivered(row: Row) -> wire.Delivered:
    """A row of messages for a harness."""
    return wire.Delivered(
        id=row["id"],
        sender=row["sender"],
        body=row["body"],
        sent_at=stamp(row["sent_at"]),
        in_reply_to=row["in_reply_to"],
        redelivered=bool(row["redelivered"]),
        kind=row["kind"],
    )


def question(row: Row) -> api.Question:
    """A row of questions."""
    return api.Question(
        id=row["id"],
        agent=row["agent"],
        question=row["question"],
        options=json.loads(row["options"]),
        multi=bool(row["multi"]),
        asked_at=stamp(row["asked_at"]),
        expires_at=stamp_or_none(row["expires_at"]),
        state=row["state"],
        answer=row["answer"],
        answered_by=row["answered_by"],
        closed_at=stamp_or_none(row["answered_at"]),
    )


def line(row: Row) -> api.TranscriptLine:
    """A row of the transcript."""
    return api.TranscriptLine(
        id=row["id"],
        turn=row["turn_id"],
        seq=row["seq"],
        at=stamp(row["at"]),
        kind=row["kind"],
        data=json.loads(row["data"]),
    )
