"""Walks: a scenario once undisturbed, then once for each point at which hived dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.crash.endstate import check_laws, differences, end_state
from tests.support.crash.forks import Forks
from tests.support.crash.points import DEATHS, Fault
from tests.support.crash.scenarios import SCENARIOS, Scenario, build_base
from tests.support.crash.world import World, copy_world

PARALLEL = 3
CHAIN_MAX = 6
ACT_S = 120.0


@dataclass
class Ground:
    """Where hives of one test are made: in memory, since nobody cuts the power here."""

    path: Path
    forks: Forks
    base: Path
    numbers: Any = field(default_factory=itertools.count)

    @contextlib.asynccontextmanager
    async def world(self, faults: Sequence[Fault], hello_s: float) -> AsyncIterator[World]:
        directory = self.path / str(next(self.numbers))
        copy_world(self.base, directory)
        try:
            async with World.running(directory, self.forks, faults, hello_s=hello_s) as world:
                yield world
        finally:
            shutil.rmtree(directory)


@contextlib.contextmanager
def ground() -> Any:
    """A ground with its base hive."""
    path = Path(
        tempfile.mkdtemp(prefix="hive-crash-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    )
    path.chmod(0o755)
    forks = Forks()
    try:
        base = path / "base"
        base.mkdir()

        async def build() -> None:
            async with World.running(base, forks) as world:
                await build_base(world)

        asyncio.run(build())
        for name in ("trace", "hived.log"):
            (base / name).unlink()
        yield Ground(path, forks, base)
    finally:
        forks.close()
        shutil.rmtree(path)


@dataclass(frozen=True, slots=True)
class Played:
    """How a scenario went: the end state, the points that were reached, how often hived was killed."""

    state: dict[str, Any]
    points: list[str]
    deaths: int


async def play(ground: Ground, scenario: Scenario, faults: Sequence[Fault] = ()) -> Played:
    """The scenario, with these faults."""
    async with ground.world(faults, scenario.hello_s) as world:
        await world.at_rest()
        if scenario.before is not None:
            await scenario.before(world)
        world.arm()
        try:
            async with asyncio.timeout(ACT_S):  # each call is bounded, but not who asks again and again
                await scenario.act(world)
        except TimeoutError:
            raise AssertionError(f"it does not come to pass\n{world.log()}") from None
        await world.at_rest(scenario.done)
        world.kill()
        check_laws(world)
        return Played(end_state(world), world.reached(), world.starts - 1)


@dataclass
class Walk:
    """One scenario under many deaths. `found`: what was not as undisturbed; `runs`: how often it was
    played."""

    ground: Ground
    name: str
    expected: Played
    found: list[str] = field(default_factory=list)
    runs: int = 0

    async def one_by_one(self, faults: Iterable[Fault]) -> None:
        """One death in each run."""
        slots = asyncio.Semaphore(PARALLEL)

        async def alone(fault: Fault) -> None:
            async with slots:
                await self.play([fault])

        await asyncio.gather(*(alone(fault) for fault in faults))

    async def chained(self, faults: Sequence[Fault]) -> None:
        """Every fault in some run, several far apart in each; one that its run did not come to is played
        alone."""
        count = -(-len(faults) // CHAIN_MAX)
        slots = asyncio.Semaphore(PARALLEL)
        alone: list[Fault] = []

        async def chain(links: Sequence[Fault]) -> None:
            async with slots:
                alone.extend(await self.play(links))

        await asyncio.gather(*(chain(faults[first::count]) for first in range(count)))
        await self.one_by_one(alone)

    async def play(self, faults: Sequence[Fault]) -> list[Fault]:
        """Those that the run did not come to."""
        self.runs += 1
        told = ", then ".join(f"{fault.kind} {fault.at}" for fault in faults)
        try:
            played = await play(self.ground, SCENARIOS[self.name], faults)
        except AssertionError as error:
            self.found.append(f"{self.name}: {told}: {error}")
            return []
        if played.deaths and not any(fault.kind in DEATHS for fault in faults):
            self.found.append(f"{self.name}: {told}: hived ended")
        if differs := differences(self.expected.state, played.state):
            self.found.append("\n".join([f"{self.name}: {told} ({played.deaths} deaths)", *differs]))
        return [fault for fault in faults if fault.at not in played.points]
