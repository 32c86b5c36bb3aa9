"""The broker's pure rules: what an agent is shown as, who may write to whom, how it rests after a turn."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from harness import wire
from reconciler.broker.claims import Allowance
from reconciler.broker.outcomes import GOOD, RULES, Rest, rest
from reconciler.broker.policy import Policy, Roster
from reconciler.broker.presence import Facts, Shown, derive_state
from reconciler.model.states import AgentState as S
from reconciler.model.states import Desired

BASE = Facts()
RESTING = {
    "held": True,
    "parked_until": 9,
    "parked_reason": "rate limited",
    "napping_until": 8,
    "nap_reason": "tired",
}


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, Shown(S.IDLE)),
        ({"phase": "unknown"}, Shown(S.IDLE)),
        # what the operator wants comes first
        ({"desired": Desired.STOPPED, "phase": "absent", "crashes": 3, **RESTING}, Shown(S.STOPPED)),
        ({"desired": Desired.STOPPED, "turn": True}, Shown(S.STOPPED, "its container is being stopped")),
        ({"desired": Desired.DESTROYED, "phase": "exited"}, Shown(S.STOPPED)),
        # then a hold: nothing of it runs
        ({"phase": "starting", "hello": False, **RESTING}, Shown(S.HELD, "held by the operator")),
        ({"turn": True, "held": True, "hold_reason": "odd"}, Shown(S.HELD, "odd")),
        ({"phase": "exited", "crashes": 1, "held": True}, Shown(S.HELD, "held by the operator")),
        # then the container
        ({"phase": "absent", "rest": "", "hello": False}, Shown(S.STARTING)),
        ({"phase": "exited", "crashes": 1, "retry_at": 7}, Shown(S.CRASHED, "its container ended", 7)),
        (
            {
                "phase": "absent",
                "crashes": 6,
                "rest": "waiting for the operator",
                "waits": True,
                "turn": True,
            },
            Shown(S.CRASHED, "waiting for the operator"),
        ),
        (
            {"phase": "absent", "rest": "waiting for an approved proposal", "waits": True, "hello": False},
            Shown(S.STOPPED, "waiting for an approved proposal"),
        ),
        # then its harness
        ({"hello": False}, Shown(S.STARTING, "its harness has not said hello yet")),
        (
            {"phase": "starting", "hello": False, **RESTING, "held": False},
            Shown(S.STARTING, "its harness has not said hello yet"),
        ),
        ({"crashes": 2}, Shown(S.IDLE)),
        ({"turn": True}, Shown(S.THINKING)),
        ({"turn": True, "hello": False}, Shown(S.THINKING)),
        ({"turn": True, **RESTING, "held": False}, Shown(S.THINKING)),
        ({"turn": True, "compacting": "rewriting"}, Shown(S.COMPACTING, "rewriting")),
        ({"no_seat": True}, Shown(S.IDLE, "waiting for a seat")),
        # then why it rests
        (RESTING, Shown(S.HELD, "held by the operator")),
        ({**RESTING, "held": False}, Shown(S.PARKED, "rate limited", 9)),
        ({**RESTING, "held": False, "parked_until": None}, Shown(S.PARKED, "rate limited")),
        ({**RESTING, "held": False, "parked_until": 0}, Shown(S.NAPPING, "tired", 8)),
    ],
)
def test_what_an_agent_is_shown_as(change: dict[str, object], shown: Shown) -> None:
    assert derive_state(replace(BASE, **change)) == shown  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------- policy
ROSTER = Roster(("boss", "scout", "smith"), "boss")


@pytest.mark.parametrize(
    ("allow", "reachable", "peers"),
    [
        ((), (), []),
        (("manager", "operator"), ("boss", "operator"), ["manager", "boss", "operator"]),
        (("operator",), ("operator",), ["operator"]),
        (("smith", "scout"), ("scout",), ["scout"]),
        (("boss",), ("boss",), ["manager", "boss"]),
        (("*",), ("boss", "scout", "operator"), ["manager", "boss", "scout", "operator"]),
        (("nobody",), (), []),
    ],
)
def test_the_literal_list_decides(
    allow: tuple[str, ...], reachable: tuple[str, ...], peers: list[str]
) -> None:
    policy = Policy("smith", allow)
    assert policy.reachable(ROSTER) == reachable
    assert policy.peers(ROSTER) == peers


def test_a_manager_that_may_write_to_the_manager_may_not_write_to_itself() -> None:
    assert Policy("boss", ("manager", "scout")).reachable(ROSTER) == ("scout",)


# --------------------------------------------------------------------------------------------------- outcomes
@pytest.mark.parametrize(
    ("outcome", "limit_s", "failures", "in_row", "seconds"),
    [
        ("ok", None, 0, 0, None),
        ("cancelled", None, 0, 0, None),
        ("crashed", None, 0, 3, None),
        ("crashed", None, 1, 9, 1.0),
        ("stalled", None, 4, 9, 8.0),
        ("api_error", None, 50, 50, 60.0),
        ("unavailable", None, 0, 1, 5.0),
        ("unavailable", None, 3, 99, 300.0),
        ("rate_limited", 0.0, 0, 5, 1.0),
        ("rate_limited", 9e9, 0, 1, 604_800.0),
        ("rate_limited", None, 0, 1, 30.0),
        ("rate_limited", None, 0, 4, 240.0),
        ("auth", None, 0, 3, 240.0),
        ("credit", None, 0, 1, 60.0),
        ("budget", None, 0, 7, 900.0),
        ("turn_budget", None, 2, 7, 120.0),
        ("model_refused", None, 0, 2, 120.0),
    ],
)
def test_how_an_agent_rests_after_a_turn(
    outcome: str, limit_s: float | None, failures: int, in_row: int, seconds: float | None
) -> None:
    found = rest(outcome, failures=failures, in_row=in_row, limit_s=limit_s)
    assert found == (None if seconds is None else Rest(seconds, RULES[outcome].reason))


def test_every_outcome_that_a_container_can_tell_has_a_rule() -> None:
    assert set(get_args(wire.Outcome)) | {"turn_budget"} == GOOD | set(RULES)


def test_an_allowance_runs_out_and_fills_again_for_each_agent_by_itself() -> None:
    allowance = Allowance(burst=100, per_s=10)
    assert allowance.take("smith", 90, 0.0)
    assert not allowance.take("smith", 20, 0.0)
    assert allowance.take("scout", 100, 0.0)
    assert allowance.take("smith", 20, 1.0)
    assert not allowance.take("smith", 101, 1000.0)
