"""How a turn ended, told from what the CLI left behind. Pure.

Exit status 0 is no success, and neither is `subtype: "success"`: an API failure is `success` with `is_error`
true. The one test of success is a result whose `is_error` is false.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.wire import Outcome

ERROR_MAX = 4000
_BUDGET = re.compile(r"refused by budget", re.IGNORECASE)
_CREDIT = re.compile(r"credit balance is too low", re.IGNORECASE)
_RETRY_AFTER = re.compile(r"\b(?:retry|try again)[ -](?:after|in) (\d{1,6})(?:\.\d+)? ?s", re.IGNORECASE)
_MODEL = re.compile(r"\bmodel\b", re.IGNORECASE)
_DENIED = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class Result:
    """The fields of the CLI's `result` message that matter here."""

    is_error: bool
    subtype: str
    terminal_reason: str | None = None
    api_error_status: int | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at a turn's end.

    `result` is None when the CLI went away first (`gone` says how); `api_error` is the word of the CLI's own
    synthetic message (`rate_limit`, `billing_error` …). `cancelled`, `stalled` (why) and `stopping` say what
    the harness itself did.
    """

    result: Result | None
    api_error: str | None = None
    gone: str = ""
    cancelled: bool = False
    stalled: str = ""
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, in words for the operator when it is not good, and the wait that a rate limit named."""

    outcome: Outcome
    error: str = ""
    retry_after_s: float | None = None


def classify(facts: Facts) -> Verdict:
    """The verdict on a turn. A turn that ended well by itself is `ok`, even when a cancel was on its way."""
    if facts.result is not None and not facts.result.is_error:
        return Verdict("ok")
    if facts.stopping:
        return Verdict("crashed", "the container was stopped during the turn")
    if facts.cancelled:
        return Verdict("cancelled")
    if facts.stalled:
        return Verdict("stalled", _bounded(f"{facts.stalled}; the turn was interrupted"))
    if facts.result is None:
        return Verdict(
            "crashed", _bounded(f"the command line ended without a result: {facts.gone or 'no reason known'}")
        )
    return _of_error(facts.result, facts.api_error)


def _of_error(result: Result, api_error: str | None) -> Verdict:
    text = _bounded(result.text or result.subtype)
    status = result.api_error_status
    reason = result.terminal_reason or ""
    if reason in {"prompt_too_long", "blocking_limit"}:
        return Verdict("prompt_too_long", text)
    if reason.startswith("aborted"):
        return Verdict("crashed", "the turn was interrupted from inside the container")
    if status in {402, 403, 429} and _BUDGET.search(text):
        return Verdict("budget", text)
    if status == 402 or api_error == "billing_error" or _CREDIT.search(text):
        return Verdict("credit", text)
    if status == 429 or api_error == "rate_limit":
        wait = _RETRY_AFTER.search(text)
        return Verdict("rate_limited", text, float(wait[1]) if wait and int(wait[1]) <= 604800 else None)
    if status == 404 or api_error == "model_not_found" or (status == 403 and _MODEL.search(text)):
        return Verdict("model_refused", text)
    if status in _DENIED or api_error == "authentication_failed" or "Not logged in" in text:
        return Verdict("auth", text)
    if status is not None and status < 500:
        return Verdict("api_error", text)  # it answered, and this request is not what it takes
    if status is not None or api_error is not None or reason == "api_error":
        return Verdict("unavailable", text)  # 5xx, no connection, no answer in time
    return Verdict("crashed", text)


def _bounded(text: str) -> str:
    clean = text.encode("utf-8", "replace").decode().replace("\x00", "�").strip()
    return clean if len(clean) <= ERROR_MAX else clean[: ERROR_MAX - 1] + "…"
