"""A pass that has nothing to do, over a real store and the fakes of containers: the reconciler's own cost."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from bench.figures import Figure
from reconciler.model.names import AgentName
from reconciler.store.db import Store
from tests.support.passbench import SMITH, FakeClock, PassBench

ROUNDS = 200


def measure(samples: int) -> list[Figure]:
    """Microseconds of one pass; the baseline reads the agent's row alone."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="bench-passes-") as folder:
        return asyncio.run(_measure(Path(folder), samples))


async def _measure(folder: Path, samples: int) -> list[Figure]:
    clock = FakeClock()
    store = await Store.open(folder / "db", now=clock.now)
    async with store.state.transaction() as tx:
        await tx.run(
            "INSERT INTO agents (name, role, uid_base, desired, session_id, created_at) "
            "VALUES ('smith', 'agent', 1048576, 'running', 's', ?)",
            tx.now,
        )
    bench = PassBench(store, folder, clock)
    await bench.approve("haiku")
    await bench.settle()
    whole, rows = [], []
    for _ in range(samples):
        whole.append(await _timed(lambda: bench.passes.run_pass(SMITH)))
        rows.append(await _timed(lambda: _read(store, SMITH)))
    await bench.builds.close()
    await store.close()
    return [Figure("no-op pass of one agent", "µs", whole, "reading its row", rows)]


async def _read(store: Store, name: AgentName) -> object:
    return await store.state.one("SELECT * FROM agents WHERE name = ?", name)


async def _timed(call: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    for _ in range(ROUNDS):
        await call()
    return (time.perf_counter() - started) / ROUNDS * 1e6
