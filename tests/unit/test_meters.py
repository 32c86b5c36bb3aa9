"""Buckets of calls: bounded over any stretch of time, generous to honest harnesses, told once per burst."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reconciler.control.agentcalls import AGENT_ROUTES
from reconciler.control.meters import RATES, Meter, Meters, Rate

RATE = Rate(10, 0.5)


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 20)), max_size=200))
def test_over_any_time_no_more_gets_through_than_the_burst_and_the_rate(
    calls: list[tuple[float, float]],
) -> None:
    meter, now, taken = Meter(RATE), 0.0, 0.0
    for pause, cost in calls:
        now += pause
        wait_s, _ = meter.take(cost, now)
        if not wait_s:
            taken += min(cost, RATE.burst)
        assert taken <= RATE.burst + now * RATE.per_s + 1e-6


@given(st.floats(0, 100), st.integers(0, 40))
def test_whoever_waits_as_long_as_told_gets_through(cost: float, before: int) -> None:
    meter = Meter(RATE)
    for _ in range(before):
        meter.take(1, 5.0)
    wait_s, _ = meter.take(cost, 5.0)
    assert meter.take(cost if wait_s else 0, 5.0 + wait_s + 1e-6)[0] == 0


def test_a_burst_is_told_once_until_the_bucket_was_full_again() -> None:
    meter = Meter(RATE)
    for _ in range(10):
        assert meter.take(1, 0.0) == (0.0, False)
    told = [meter.take(1, 0.1 * number)[1] for number in range(5)]
    assert told == [True, False, False, False, False]
    assert meter.take(1, 10.0) == (0.0, False)
    assert meter.take(9, 10.0)[1] is False, "the same burst goes on"
    assert meter.take(10, 40.0) == (0.0, False)
    assert meter.take(1, 40.0)[1] is True, "a new one"


def test_a_clock_that_goes_back_gives_nothing() -> None:
    meter = Meter(RATE)
    assert meter.take(10, 100.0)[0] == 0
    assert meter.take(1, 50.0)[0] > 0
    assert meter.take(1, 51.0)[0] > 0


def test_sorts_are_counted_apart() -> None:
    meters = Meters({sort: Rate(1, 1) for sort in RATES})
    for sort in RATES:
        assert meters.take(sort, 1, 0.0) is None
        error = meters.take(sort, 1, 0.0)
        assert error is not None
        assert (error.status, error.code, error.first, error.after_s) == (429, "too-many", True, 1.0)


def test_every_call_that_writes_is_counted_apart_from_looks() -> None:
    for route in AGENT_ROUTES:
        assert (route.sort == "reads") == (route.method == "GET"), route.path


def test_a_day_of_the_worst_an_agent_can_do_is_bounded() -> None:
    rows = sum(rate.burst + 86_400 * rate.per_s for sort, rate in RATES.items() if sort != "reads")
    assert rows < 2_500_000


def test_an_honest_harness_is_far_from_every_bound() -> None:
    """An hour of one turn a second, each with ten batches of lines and an act, as no real model is that fast;
    and a harness that greets once a second until somebody approves its first generation."""
    meters = Meters()
    for second in range(3600):
        assert meters.take("hello", 1, second) is None
        for sort, count in (("turns", 2), ("lines", 10), ("acts", 1), ("reads", 3)):
            for _ in range(count):
                assert meters.take(sort, 1, second) is None  # type: ignore[arg-type]
