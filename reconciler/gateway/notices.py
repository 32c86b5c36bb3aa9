"""What an error of the API tells the host. Pure."""

from __future__ import annotations

import contextlib
import email.utils
import json
from dataclasses import dataclass

from reconciler.gateway.messages import LimitEvent, TroubleEvent

MESSAGE_MAX = 500
_LIMITED = frozenset({429, 529})
_SHARED = frozenset({401, 402, 403})
# The very beginning: words of a request that an error repeats stand further on.
_NO_CREDIT = "your credit balance is too low"


@dataclass(frozen=True, slots=True)
class Notice:
    """An answer that the host should know of; `until` (epoch seconds) where it is a limit that says so."""

    status: int
    type: str
    message: str
    limit: bool
    until: float | None

    def event(self, *, agent: str, turn: int | None, model: str) -> LimitEvent | TroubleEvent:
        """As it is told."""
        if self.limit:
            return LimitEvent(
                agent=agent,
                turn=turn,
                status=self.status,
                message=self.message,
                until=self.until,
                model=model,
            )
        return TroubleEvent(
            agent=agent, turn=turn, model=model, status=self.status, type=self.type, message=self.message
        )


def notice(status: int, body: bytes, retry_after: str, now: float) -> Notice | None:
    """What the host should know of an answer; None if it concerns nobody but the agent."""
    if status < 400:
        return None
    kind, message = _said(body)
    if status in _LIMITED:
        return Notice(status, kind, message, limit=True, until=until(retry_after, now))
    if status in _SHARED or status >= 500:
        return Notice(status, kind, message, limit=False, until=None)
    if status == 400 and message.lower().startswith(_NO_CREDIT):
        return Notice(status, "billing_error", message, limit=False, until=None)
    return None


def until(retry_after: str, now: float) -> float | None:
    """The instant that a retry-after header means, as seconds or as a date."""
    if retry_after.isdigit() and len(retry_after) < 8:
        return now + int(retry_after)
    with contextlib.suppress(ValueError):
        return email.utils.parsedate_to_datetime(retry_after).timestamp()
    return None


def _said(body: bytes) -> tuple[str, str]:
    """Type and message of the API's error, or the beginning of whatever came instead."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        error = json.loads(body)["error"]
        return str(error["type"])[:80], str(error["message"])[:MESSAGE_MAX]
    return "", body[:MESSAGE_MAX].decode("utf-8", "replace")
