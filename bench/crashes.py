"""From the death of a container's first process to the event of the crash, over real containers under a whole
hived.

The baseline is the same death seen by this process itself, through a pidfd: what nobody can be faster than.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from bench.figures import Figure
from bench.realfleet import Driver, at_work, started
from reconciler.app import Hived
from reconciler.control import models as api
from reconciler.effects import process
from reconciler.effects.containers import proc
from reconciler.model.names import AgentName
from tests.support.fleets import name_of
from tests.support.mixed import ROOT

CRASHES = 200
DEADLINE_S = 30.0
_NAME = name_of(1)


def measure(samples: int, driver: Driver = "shim") -> list[Figure]:
    """Milliseconds."""
    told, seen = asyncio.run(_measure(samples, driver))
    name = f"container killed → event of its crash, {driver} driver"
    return [Figure(name, "ms", told, "its end seen through a pidfd", seen)]


async def _measure(samples: int, driver: Driver) -> tuple[list[float], list[float]]:
    told, seen = [], []
    news: asyncio.Queue[float] = asyncio.Queue()
    async with at_work(2, driver) as hived:
        hived.events.observe(
            lambda event: news.put_nowait(time.perf_counter()) if event.kind == "agent.crashed" else None
        )
        for _ in range(samples):
            invocation, leader = await _living(hived, _NAME)
            ended = asyncio.ensure_future(_end(leader))
            await asyncio.sleep(0)
            begun = time.perf_counter()
            os.kill(leader, 9)
            async with asyncio.timeout(DEADLINE_S):
                seen.append((await ended - begun) * 1000)
                told.append((await news.get() - begun) * 1000)
            # A start by hand forgives the crash: no back-off, no crashloop.
            await hived.agents.start(ROOT, _NAME, api.Act())
            await started(hived, _NAME, other_than=invocation)
    return told, seen


async def _living(hived: Hived, name: AgentName) -> tuple[str | None, int]:
    found = await hived.containers.status(name)
    assert found.leader_pid is not None
    return found.invocation, found.leader_pid


async def _end(leader: int) -> float:
    pidfd = proc.ref(leader).open()
    assert pidfd is not None, "it runs"
    try:
        await process.readable(pidfd)
        return time.perf_counter()
    finally:
        os.close(pidfd)


if __name__ == "__main__":
    from bench.__main__ import show

    for figure in measure(int(sys.argv[1]) if len(sys.argv) > 1 else CRASHES):
        show(figure)
