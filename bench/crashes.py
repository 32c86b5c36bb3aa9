"""From the death of a container's first process to the event of the crash, over real containers of the shim
driver under a whole hived.

The baseline is the same death seen by this process itself, through a pidfd: what nobody can be faster than.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import structlog

from bench.figures import Figure
from reconciler.config import Timeouts
from reconciler.control import models as api
from reconciler.effects import process
from reconciler.effects.containers.proc import ProcessRef
from reconciler.store.db import Store
from tests.fakes.git import FakeGit
from tests.fakes.nix import FakeNix
from tests.integration.containers_kit import Yard
from tests.integration.test_crash_events import ROOT, Hive

DEADLINE_S = 30.0


def measure(samples: int) -> list[Figure]:
    """Milliseconds."""
    if os.geteuid() != 0:
        raise SystemExit("containers need root")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="hive-bench-") as folder:
        return asyncio.run(_measure(Path(folder), samples))


async def _measure(folder: Path, samples: int) -> list[Figure]:
    folder.chmod(0o755)
    yard = Yard.make(folder)
    people = {"ui_user": "root", "gateway_user": "root", "build_user": "root", "operator_group": "root"}
    yard.config = yard.config.model_copy(update={"timeouts": Timeouts(), **people})
    store = await Store.open(Path(yard.config.state_dir))
    hive = Hive(yard, store, FakeNix(), FakeGit())
    try:
        told, seen = await _crashes(hive, samples)
    finally:
        await store.close()
        await yard.clean()
    return [Figure("container killed → event of its crash", "ms", told, "its end seen through a pidfd", seen)]


async def _crashes(hive: Hive, samples: int) -> tuple[list[float], list[float]]:
    await hive.agent("smith")
    told, seen = [], []
    news: asyncio.Queue[float] = asyncio.Queue()
    async with hive.hived() as hived:
        hived.events.observe(
            lambda event: news.put_nowait(time.perf_counter()) if event.kind == "agent.crashed" else None
        )
        found = await hive.running()
        for _ in range(samples):
            assert found.leader is not None
            ended = asyncio.ensure_future(_end(found.leader))
            await asyncio.sleep(0)
            begun = time.perf_counter()
            found.leader.send(signal.SIGKILL)
            async with asyncio.timeout(DEADLINE_S):
                seen.append((await ended - begun) * 1000)
                told.append((await news.get() - begun) * 1000)
            # A start by hand forgives the crash: no back-off, no crashloop.
            await hived.agents.start(ROOT, "smith", api.Act())
            found = await hive.running(other_than=found.invocation)
        await hived.agents.stop(ROOT, "smith", api.Act())
    return told, seen


async def _end(leader: ProcessRef) -> float:
    pidfd = leader.open()
    assert pidfd is not None, "it runs"
    try:
        await process.readable(pidfd)
        return time.perf_counter()
    finally:
        os.close(pidfd)


if __name__ == "__main__":
    from bench.__main__ import show

    for figure in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 200):
        show(figure)
