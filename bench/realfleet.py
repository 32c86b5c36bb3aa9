"""A hived over real containers, for measurements: agents that are declared, started, and at rest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import structlog

from reconciler.app import Hived
from reconciler.model.names import AgentName
from tests.support.mixed import MixedFleet, mixed_fleet

Driver = Literal["shim", "systemd"]
DEADLINE_S = 600.0


@contextlib.asynccontextmanager
async def declared(count: int, driver: Driver) -> AsyncIterator[MixedFleet]:
    """So many agents that should run, and no hived yet."""
    if os.geteuid() != 0:
        raise SystemExit("containers need root")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="hive-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        async with mixed_fleet(folder, count, count, driver) as world:
            yield world


@contextlib.asynccontextmanager
async def at_work(count: int, driver: Driver) -> AsyncIterator[Hived]:
    """The hived of so many agents, all of whom have said hello."""
    async with declared(count, driver) as world, world.at_work() as hived:
        for agent in world.names:
            await started(hived, agent)
        yield hived


async def started(hived: Hived, name: AgentName, other_than: str | None = None) -> None:
    """Wait until it runs (under another invocation), and its harness has said hello and waits."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = await hived.containers.status(name)
            if found.phase == "running" and found.invocation != other_than:
                hello = hived.broker.hello_of(name)
                if hello is not None and found.started_at is not None and hello >= found.started_at:
                    return
            await asyncio.sleep(0.02)
