"""hived killed at every call of an effect: whatever was under way, the hive comes to the same end.

`make test` dies at each point once, in turn before and after its act, several times in one run where it can;
`make test-full` does both at each, one death in a run. A full disk is walked over every scenario there, over
three in `make test`: each fault of it waits for space as a hive would.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from tests.support.crash.points import DEATHS, Fault
from tests.support.crash.scenarios import SCENARIOS
from tests.support.crash.walk import Ground, Walk, ground, play
from tests.support.needs import needs_root

pytestmark = needs_root
FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"


@pytest.fixture(scope="module")
def place() -> Iterator[Ground]:
    with ground() as found:
        yield found


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize("name", SCENARIOS)
def test_hived_killed_at_any_point_comes_to_the_end_of_an_undisturbed_run(place: Ground, name: str) -> None:
    expected = asyncio.run(play(place, SCENARIOS[name]))
    assert expected.deaths == 0
    assert len(expected.points) >= 8
    walk = Walk(place, name, expected)
    if FULL:
        asyncio.run(walk.one_by_one(Fault(point, kind) for point in expected.points for kind in DEATHS))
    else:
        asyncio.run(walk.chained([Fault(p, DEATHS[n % 2]) for n, p in enumerate(expected.points)]))
    assert not walk.found, "\n\n".join(walk.found)


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize("name", SCENARIOS if FULL else ("spawn", "message", "stop"))
def test_a_full_disk_at_any_point_only_delays(place: Ground, name: str) -> None:
    expected = asyncio.run(play(place, SCENARIOS[name]))
    walk = Walk(place, name, expected)
    faults = [Fault(point, "full") for point in expected.points]
    asyncio.run(walk.one_by_one(faults) if FULL else walk.chained(faults))
    assert not walk.found, "\n\n".join(walk.found)
