"""What is said about the time a build still needs."""

from __future__ import annotations

import pytest

from reconciler.model.estimates import left_s, typical_s


@pytest.mark.parametrize(
    ("durations", "usual"),
    [
        ([], None),
        ([5.0], 5.0),
        ([9.0, 1.0], 5.0),
        ([100.0, 2.0, 3.0], 3.0),
        ([-1.0], None),
        ([-5.0, 4.0], 4.0),
    ],
)
def test_the_usual_time_is_the_median_of_earlier_builds(durations: list[float], usual: float | None) -> None:
    assert typical_s(durations) == usual


@pytest.mark.parametrize(
    ("elapsed", "built", "expected", "usual", "left"),
    [
        (10.0, 0, 0, 60.0, 50.0),  # earlier builds know before anything is built
        (10.0, 5, 10, 60.0, 50.0),  # and better than the pace
        (70.0, 5, 10, 60.0, 70.0),  # until this one takes longer: then the pace
        (70.0, 0, 10, 60.0, None),  # which says nothing before something is built
        (10.0, 2, 10, None, None),  # nor after too little
        (10.0, 4, 8, None, 10.0),
        (10.0, 8, 8, None, None),  # all is built: what it does now, nobody knows
        (0.0, 0, 0, None, None),
    ],
)
def test_the_time_left(
    elapsed: float, built: int, expected: int, usual: float | None, left: float | None
) -> None:
    assert left_s(elapsed, built, expected, usual) == left
