"""A full read of agents with real units that finds nothing to do, against one call that lists their units."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from bench.figures import Figure
from bench.realfleet import Driver, at_work
from reconciler.effects.bus import SystemBus
from reconciler.effects.containers.units import Units

AGENTS = 100


def measure(samples: int, driver: Driver = "systemd", agents: int = AGENTS) -> list[Figure]:
    """Milliseconds."""
    return asyncio.run(_measure(samples, driver, agents))


async def _measure(samples: int, driver: Driver, agents: int) -> list[Figure]:
    reads, statuses, lists = [], [], []
    async with at_work(agents, driver) as hived:
        await hived.passes.full_read()
        bus = SystemBus()
        units = Units(bus)
        assert len(await units.listed("hive-agent@*.service")) == agents
        for _ in range(samples):
            reads.append(await _timed(hived.passes.full_read))
            statuses.append(await _timed(hived.containers.statuses))
            lists.append(await _timed(lambda: units.listed("hive-agent@*.service")))
        bus.close()
    name = "one ListUnitsByPatterns"
    return [
        Figure(f"full read of {agents} agents with units, nothing to do", "ms", reads, name, lists),
        Figure("  of that: how their containers are", "ms", statuses, name, lists),
    ]


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    begun = time.perf_counter()
    await work()
    return (time.perf_counter() - begun) * 1000


if __name__ == "__main__":
    from bench.__main__ import show

    for figure in measure(20, agents=int(sys.argv[1]) if len(sys.argv) > 1 else AGENTS):
        show(figure)
