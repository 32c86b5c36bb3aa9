"""hived killed in every kind of step over real containers, a real Nix and real git: the hive comes to the end
of an undisturbed one, and the machine holds nothing that it does not need.

`make test` dies once in each kind of step. `make test-full` tells the story again and again, until it has
died before, amid or after each call that was made.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.containers_kit import needs_containers
from tests.integration.nix_kit import PrivateNix, needs_nix, private_nix
from tests.support.crash.endstate import check_laws, differences, end_state
from tests.support.crash.forks import Forks
from tests.support.crash.points import Fault, Kind
from tests.support.crash.realworld import RealWorld, real_world
from tests.support.crash.story import STORY

pytestmark = [needs_nix, needs_containers]
FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
TELLINGS = 24
ANY: tuple[Kind, ...] = ("die-before", "die-amid", "die-after")
GONE_S = 30.0  # an evaluation that had just begun ends by itself


@dataclass
class Yard:
    """Where the hives of this module are made."""

    path: Path
    nix: PrivateNix
    forks: Forks

    def tell(self, faults: Sequence[Sequence[Fault]]) -> list[Told]:
        """The story in a new hive, with these deaths in its phases; from an empty store."""
        self.nix.run("nix-store", "--gc")
        return asyncio.run(self._tell(faults))

    async def _tell(self, faults: Sequence[Sequence[Fault]]) -> list[Told]:
        # the same path each time: names of files are compared
        async with real_world(self.path / "hive", self.nix, self.forks) as world:
            return [await _told(world, number, faults[number]) for number in range(len(STORY))]


@dataclass
class Told:
    """How a phase ended: what can be compared, which points it came to, and what it left behind."""

    state: dict[str, Any]
    points: list[str]
    deaths: int
    left: list[str]


async def _told(world: RealWorld, number: int, faults: Sequence[Fault]) -> Told:
    phase = STORY[number]
    await world.begin(faults)
    try:
        async with asyncio.timeout(120):
            await phase.act(world)
    except TimeoutError:
        raise AssertionError(f"{phase.name} does not come to pass\n{world.log()}") from None
    await world.at_rest(phase.done)
    deaths = world.starts - 1
    await world.rest_in_peace()
    check_laws(world)
    return Told(end_state(world), world.reached(), deaths, await _leftovers(world))


async def _leftovers(world: RealWorld) -> list[str]:
    """What is there of it still; what hived's death ended may take a moment to go."""
    until = time.monotonic() + GONE_S
    while (left := world.leftovers()) and time.monotonic() < until:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.05)
    return left


@pytest.fixture(scope="module")
def yard() -> Iterator[Yard]:
    forks = Forks()
    with private_nix() as nix, tempfile.TemporaryDirectory(prefix="hive-real-") as folder:
        Path(folder).chmod(0o755)
        try:
            yield Yard(Path(folder), nix, forks)
        finally:
            forks.close()


@pytest.fixture(scope="module")
def undisturbed(yard: Yard) -> list[Told]:
    told = yard.tell([[] for _ in STORY])
    assert [phase.left for phase in told] == [[] for _ in STORY]
    return told


def _compared(expected: list[Told], found: list[Told], faults: Sequence[Sequence[Fault]]) -> list[str]:
    wrong = []
    for phase, before, now, died in zip(STORY, expected, found, faults, strict=True):
        differs = [*differences(before.state, now.state), *now.left]
        if differs:
            wrong.append("\n".join([f"{phase.name}: {died} ({now.deaths} deaths)", *differs]))
            break  # all that follows differs for it
    return wrong


def _faults(undisturbed: list[Told], telling: int | None) -> list[list[Fault]]:
    """The deaths of each phase: one for each kind of step, or every `TELLINGS`-th call of all."""
    if telling is None:
        return [phase.faults for phase in STORY]
    return [
        [
            Fault(point, ANY[(number + telling) % len(ANY)])
            for number, point in enumerate(told.points)
            if number % TELLINGS == telling
        ]
        for told in undisturbed
    ]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("telling", [None, *range(TELLINGS)] if FULL else [None])
def test_a_death_over_real_effects_leaves_no_trace(
    yard: Yard, undisturbed: list[Told], telling: int | None
) -> None:
    faults = _faults(undisturbed, telling)
    found = yard.tell(faults)
    assert not (wrong := _compared(undisturbed, found, faults)), "\n\n".join(wrong)
    if telling is None:
        for phase, told in zip(STORY, found, strict=True):
            assert not {fault.at for fault in phase.faults} - set(told.points), f"{phase.name} came not to it"
            assert told.deaths == len(phase.faults), phase.name
    assert sum(told.deaths for told in found) > len(STORY)
