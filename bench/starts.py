"""From the operator's word to a container whose payload is up, over real containers of the shim driver under
a whole hived: what needs no build goes the same way from its approval on. The baseline is the same container
started through the driver alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import structlog

from bench.figures import Figure
from reconciler.config import Timeouts
from reconciler.control import models as api
from reconciler.store.db import Store
from tests.fakes.git import FakeGit
from tests.fakes.nix import FakeNix
from tests.integration.containers_kit import Yard
from tests.integration.test_crash_events import ROOT, SMITH, Hive, until


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
        await hive.agent("smith")
        by_hived = await _by_hived(hive, samples)
        direct = await _direct(hive, samples)
    finally:
        await store.close()
        await yard.clean()
    name = "started through the driver alone"
    return [Figure("start asked of hived → payload is up", "ms", by_hived, name, direct)]


async def _by_hived(hive: Hive, samples: int) -> list[float]:
    taken = []
    async with hive.hived() as hived:
        await hive.running()
        for _ in range(samples):
            await hived.agents.stop(ROOT, "smith", api.Act())
            await until(lambda: _absent(hive))
            begun = time.perf_counter()
            await hived.agents.start(ROOT, "smith", api.Act())
            await hive.running()
            taken.append((time.perf_counter() - begun) * 1000)
        await hived.agents.stop(ROOT, "smith", api.Act())
        await until(lambda: _absent(hive))
    return taken


async def _direct(hive: Hive, samples: int) -> list[float]:
    taken, driver = [], hive.yard.driver()
    spec = await hive.yard.spec("smith")
    for _ in range(samples):
        begun = time.perf_counter()
        await driver.start(spec)
        await hive.running()
        taken.append((time.perf_counter() - begun) * 1000)
        await driver.stop(SMITH)
        await driver.clear(SMITH)
    return taken


async def _absent(hive: Hive) -> bool:
    return (await hive.yard.driver().status(SMITH)).phase == "absent"


if __name__ == "__main__":
    from bench.__main__ import show

    for figure in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 12):
        show(figure)
