"""What an error of the API tells the host, and what the host makes of it."""

from __future__ import annotations

import json

import pytest

from reconciler import gatewaysigns
from reconciler.broker.outcomes import LIMIT_LONGEST_S
from reconciler.gateway.messages import (
    ClosureRow,
    LimitEvent,
    RefusalEvent,
    SpendingRow,
    TroubleEvent,
    UsageEvent,
)
from reconciler.gateway.notices import Notice, notice

NOW = 1_700_000_000.0
WHEN = "Tue, 14 Nov 2023 22:14:20 GMT"
NO_CREDIT = "Your credit balance is too low to access the API."


def body(kind: str, message: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


@pytest.mark.parametrize(
    ("status", "said", "retry_after", "expected"),
    [
        (200, body("x", "y"), "", None),
        (404, body("not_found_error", "model: x"), "", None),
        (413, body("request_too_large", "too large"), "", None),
        (400, body("invalid_request_error", "prompt is too long"), "", None),
        (400, body("invalid_request_error", f"messages.0: {NO_CREDIT}"), "", None),
        (
            400,
            body("invalid_request_error", NO_CREDIT),
            "",
            Notice(400, "billing_error", NO_CREDIT, limit=False, until=None),
        ),
        (
            401,
            body("authentication_error", "who"),
            "",
            Notice(401, "authentication_error", "who", limit=False, until=None),
        ),
        (500, b"<html>", "", Notice(500, "", "<html>", limit=False, until=None)),
        (503, b'{"error": 5}', "", Notice(503, "", '{"error": 5}', limit=False, until=None)),
        (
            429,
            body("rate_limit_error", "slow"),
            "90",
            Notice(429, "rate_limit_error", "slow", limit=True, until=NOW + 90),
        ),
        (
            429,
            body("r", "s"),
            "Tue, 14 Nov 2023 22:14:20 GMT",
            Notice(429, "r", "s", limit=True, until=NOW + 60),
        ),
        (529, body("o", "busy"), "", Notice(529, "o", "busy", limit=True, until=None)),
    ],
)
def test_what_an_answer_tells(status: int, said: bytes, retry_after: str, expected: Notice | None) -> None:
    assert notice(status, said, retry_after, NOW) == expected


def test_words_are_bounded() -> None:
    found = notice(401, body("t" * 999, "m" * 9999), "", NOW)
    assert found is not None
    assert (len(found.type), len(found.message)) == (80, 500)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "credential"),
        (402, "credit"),
        (403, "forbidden"),
        (400, "credit"),
        (500, "unavailable"),
        (502, "unavailable"),
    ],
)
def test_troubles_by_status(status: int, kind: str) -> None:
    event = TroubleEvent(
        agent="scout", turn=3, model="claude-haiku-5-5", status=status, type="t", message="m"
    )
    sign = gatewaysigns.of_trouble(event)
    assert (sign.kind, sign.agent, sign.turn, sign.message) == (kind, "scout", 3, "m")


def test_a_limit_is_believed_for_a_week_and_an_overload_is_none() -> None:
    event = LimitEvent(agent="scout", turn=None, status=429, message="m", until=9e15, model="haiku")
    sign = gatewaysigns.of_limit(event, NOW)
    assert (sign.kind, sign.until) == ("limit", int((NOW + LIMIT_LONGEST_S) * 1e6))
    overload = gatewaysigns.of_limit(event.model_copy(update={"status": 529}), NOW)
    assert overload.kind == "unavailable"


@pytest.mark.parametrize(
    ("reason", "message", "kind"),
    [
        ("credential", "none", "credential"),
        ("upstream", "the API cannot be reached", "unavailable"),
        ("budget", "refused by budget: 5 of 9 tokens for this turn are left", "turn_budget"),
        ("budget", "refused by budget: this request alone may cost $2.00", "turn_budget"),
        ("model", "not allowed", None),
        ("busy", "too many", None),
        ("request", "no such tool", None),
    ],
)
def test_what_the_gateway_refused_by_itself(reason: str, message: str, kind: str | None) -> None:
    event = RefusalEvent.model_validate({"agent": "scout", "turn": 1, "reason": reason, "message": message})
    sign = gatewaysigns.of_refusal(event)
    assert (None if sign is None else sign.kind) == kind


def test_a_day_that_is_used_up_is_no_fault_of_the_message() -> None:
    closure = ClosureRow(
        agent="scout", day="2026-03-01", budget="agent", ceiling_usd_micro=1, spent_usd_micro=1,
        needed_usd_micro=1,
    )  # fmt: skip
    event = RefusalEvent(agent="scout", turn=1, reason="budget", message="spent", closure=closure)
    assert gatewaysigns.of_refusal(event) is None


@pytest.mark.parametrize("certain", [True, False])
def test_only_an_answer_that_came_to_its_end_proves_that_the_api_works(certain: bool) -> None:
    row = SpendingRow(
        agent="scout", day="2026-01-01", model="m", requests=1, input_tokens=1, output_tokens=1,
        cache_read_tokens=0, cache_write_tokens=0, usd_micro=1,
    )  # fmt: skip
    event = UsageEvent(
        agent="scout", turn=1, model="m", input_tokens=1, output_tokens=1, cache_read_tokens=0,
        cache_write_tokens=0, usd_micro=1, certain=certain, duration_ms=5, row=row,
    )  # fmt: skip
    assert (gatewaysigns.of_usage(event) is not None) == certain
