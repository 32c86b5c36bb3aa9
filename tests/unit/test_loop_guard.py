"""When a message goes at once, later, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.broker.loops import DELAY_MAX_S, Limits, origin
from reconciler.config import Config

MICRO = 1_000_000
NOW = 10**15


def row(sender: str, hops: int = 0, *, urgent: bool = False, again: bool = False) -> Any:
    return {"sender": sender, "hops": hops, "urgent": urgent, "redelivered": again}


@given(hops=st.integers(0, 200), slow=st.integers(1, 60), more=st.integers(0, 60))
def test_delays_grow_from_none_to_a_hold_and_never_shrink(hops: int, slow: int, more: int) -> None:
    limits = Limits(slow, slow + more)
    due = limits.due_at(hops, NOW)
    if hops <= slow:
        assert due == 0
    elif hops > slow + more:
        assert due is None
    else:
        assert due is not None
        assert NOW < due <= NOW + DELAY_MAX_S * MICRO
        before = limits.due_at(hops - 1, NOW)
        assert before is not None
        assert before <= due


@pytest.mark.parametrize(
    ("rows", "hops"),
    [
        ([row("smith", 7)], 7),
        ([row("smith", 7), row("scout", 3)], 3),
        ([row("smith", 7), row("operator", 99)], 0),
        ([row("system")], None),
        ([row("system"), row("smith", 7)], 7),
        ([row("system", urgent=True), row("smith", 7)], 0),
        ([], None),
        ([row("operator", again=True)], None),
        ([row("operator", again=True), row("smith", 7)], 7),
    ],
)
def test_what_is_taken_up_is_as_fresh_as_its_freshest_part(rows: list[Any], hops: int | None) -> None:
    """Events of the hive say nothing, as agents can cause them; urgent ones (a crash) are a new beginning."""
    assert origin(rows) == hops


def test_a_hold_before_the_slowing_is_no_configuration() -> None:
    with pytest.raises(ValueError, match="hold_after must not be smaller"):
        Config.model_validate({"loops": {"slow_after": 9, "hold_after": 8}})
