"""What follows from the way a turn ended: whether its messages come again, and whether the agent rests first.
Pure."""

from __future__ import annotations

from dataclasses import dataclass

GOOD = frozenset({"ok", "cancelled"})
COUNTED = frozenset({"prompt_too_long", "stalled", "crashed", "model_refused", "api_error"})
"""Outcomes that may be the messages' own fault; the others are the fault of the world around."""

FAILURES_MAX = 5
ALONE_AFTER = 2
"""A message that failed so often is delivered alone, so that it fails alone."""

_RETRY_LONGEST_S = 60.0
_PARK_LONGEST_S = 7 * 86_400.0
_WAITS: dict[str, tuple[float, str]] = {
    "rate_limited": (60.0, "rate limited by the model's host"),
    "auth": (60.0, "the model's host refused the credential"),
    "budget": (900.0, "refused by the budget"),
}


@dataclass(frozen=True, slots=True)
class Parking:
    """No turn for `seconds` (None: until somebody wakes the agent), and why."""

    seconds: float | None
    reason: str


def parking(outcome: str, retry_after_s: float | None, failures: int) -> Parking | None:
    """How the agent rests after a turn; `failures`: the most that one of its messages has failed, this turn
    included (0: it had none, or the outcome is not counted)."""
    if outcome in _WAITS:
        usual_s, reason = _WAITS[outcome]
        wanted_s = usual_s if retry_after_s is None else retry_after_s
        return Parking(min(_PARK_LONGEST_S, max(1.0, wanted_s)), reason)
    if outcome not in COUNTED or not failures:
        return None
    if failures >= FAILURES_MAX:
        return Parking(None, f"a message failed {failures} turns, the last one: {outcome}")
    return Parking(min(_RETRY_LONGEST_S, 2.0 ** (failures - 1)), f"the last turn failed: {outcome}")
