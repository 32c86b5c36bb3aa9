"""What follows from the way a turn ended: whose fault it may be, how long the agent rests, what people are
told. Pure; docs/outcomes.md is made from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GOOD = frozenset({"ok", "cancelled"})

FAILURES_MAX = 5
"""A message over which so many turns failed by its own fault is set aside."""

ALONE_AFTER = 2
"""A message that failed so often is delivered alone, so that it fails alone."""

ASIDE_MAX = 3
"""So many messages set aside without a good turn in between: it is not the messages. The agent is parked."""

TELL_AFTER = 3
"""People are told after so many turns in a row that failed because of what the agent is."""

DEFER_AFTER = 5
"""After so many turns in a row without an answer, other messages go before those of the turn."""

Blame = Literal["message", "proven", "agent", "world"]
"""Whose fault it may be. `message`: that of the messages. `proven`: the messages' if a request of any agent
succeeded since they last failed, else the world's. `agent`: what the agent is. `world`: anything else."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What follows from one outcome. The agent rests `first_s` after the first such turn, twice as long after
    the next, up to `longest_s`; `shared`: where the gateway saw the same, all agents rest until one
    succeeds."""

    reason: str
    blame: Blame
    first_s: float
    longest_s: float
    hint: str
    shared: bool = False


_MINUTE, _QUARTER = 60.0, 900.0

RULES: Mapping[str, Rule] = {
    "prompt_too_long": Rule(
        "the conversation is too long for the model, also after compacting",
        "message", 1.0, _MINUTE, "`hive new-session NAME` begins a fresh conversation",
    ),
    "stalled": Rule(
        "the turn gave no sign of life", "message", 1.0, _MINUTE,
        "`hive transcript NAME` shows where it stood",
    ),
    "crashed": Rule(
        "the turn broke off", "message", 1.0, _MINUTE, "`hive logs NAME` shows the container's last words",
    ),
    "api_error": Rule(
        "the model's host refused the request", "message", 1.0, _MINUTE,
        "`hive transcript NAME` shows what it said",
    ),
    "unavailable": Rule(
        "the model's host does not answer", "proven", 5.0, 300.0,
        "nothing to do: it is tried again; `hive wake NAME` tries at once",
    ),
    "rate_limited": Rule(
        "rate limited by the model's host", "world", 30.0, _QUARTER,
        "nothing to do: it goes on at the reset; `hive wake NAME` tries at once", shared=True,
    ),
    "auth": Rule(
        "the model's host refused the credential", "world", _MINUTE, _QUARTER,
        "put a valid credential in place, then `hive wake NAME`", shared=True,
    ),
    "credit": Rule(
        "the account has no credit left", "world", _MINUTE, _QUARTER,
        "add credit to the account, then `hive wake NAME`", shared=True,
    ),
    "budget": Rule(
        "refused by the budget", "world", _QUARTER, _QUARTER,
        "`hive budget NAME --raise-today USD`, or wait for the next day",
    ),
    "turn_budget": Rule(
        "the turn needs more than its budget", "message", _MINUTE, _QUARTER,
        "raise budget.tokensPerTurn, or send a smaller task",
    ),
    "model_refused": Rule(
        "the model may not be used", "agent", _MINUTE, _QUARTER,
        "choose another with `hive model NAME MODEL`",
    ),
}  # fmt: skip
"""By the outcome that a turn ended with. `turn_budget` is no word of a container: the host knows it from the
gateway's refusal."""

COUNTED = frozenset(name for name, rule in RULES.items() if rule.blame == "message")
"""Outcomes that always count against the messages."""

LIMIT_LONGEST_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Rest:
    """No turn for `seconds` (None: until somebody wakes the agent), and why."""

    seconds: float | None
    reason: str


def pause_s(outcome: str, in_row: int) -> float:
    """How long the agent rests after the `in_row`-th failed turn in a row."""
    rule = RULES[outcome]
    return min(rule.longest_s, rule.first_s * 2.0 ** min(max(in_row, 1) - 1, 30))


def rest(outcome: str, *, failures: int, in_row: int, limit_s: float | None) -> Rest | None:
    """How the agent rests after a turn. `failures`: the most that one of its messages has failed, this turn
    included (0: it had none, or it is not their fault); `in_row`: failed turns since the last good one;
    `limit_s`: how long a rate limit goes on, as far as anybody knows."""
    rule = RULES.get(outcome)
    if rule is None:
        return None
    if rule.blame == "message" and not failures:
        return None  # a turn without messages, or one that hived itself ended
    if outcome == "rate_limited" and limit_s is not None:
        return Rest(min(LIMIT_LONGEST_S, max(1.0, limit_s)), rule.reason)
    times = failures if rule.blame == "message" else in_row
    return Rest(pause_s(outcome, times), rule.reason)
