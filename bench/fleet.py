"""300 agents on one host: what a list, a plan and a full read without anything to do take, how soon a
decision becomes a container, and what they take of hived's memory. Containers, Nix and git are the
contract-tested fakes; databases, sockets, services and passes are hived's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import structlog

from bench.figures import Figure
from bench.memory import resident_mib
from harness import wire
from reconciler.app import Hived
from reconciler.control import models as api
from reconciler.model.names import AgentName
from reconciler.model.states import Role, UserRole
from reconciler.services import Actor
from tests.fakes.containers import Start
from tests.support.fleets import FIRST_BASE, Fleet, fleet, name_of

AGENTS = 300
BOOT = "b" * 32
OPERATOR = Actor("operator:bench", UserRole.OPERATOR)
DEADLINE_S = 30.0

Work = Callable[[], Awaitable[object]]


def measure(samples: int) -> list[Figure]:
    """Milliseconds, and MiB."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="hive-bench-", dir="/var/tmp") as folder:
        return asyncio.run(_measure(Path(folder), samples))


async def _measure(folder: Path, samples: int) -> list[Figure]:
    before = resident_mib(os.getpid())
    async with fleet(folder, AGENTS) as world, _at_work(world) as hived:
        grown = resident_mib(os.getpid()) - before
        lists, plans, reads, rows = [], [], [], []
        for _ in range(samples):
            lists.append(await _timed(hived.agents.all))
            plans.append(await _timed(hived.agents.plans))
            reads.append(await _timed(hived.passes.full_read))
            rows.append(await _timed(lambda: world.store.state.all("SELECT * FROM agents")))
        decisions = [await _decide(world, hived, AgentName(f"new-{number}")) for number in range(samples)]
    return [
        Figure(f"list of {AGENTS} agents", "ms", lists),
        Figure(f"plans of {AGENTS} agents", "ms", plans),
        Figure(f"full read of {AGENTS} agents, nothing to do", "ms", reads, "one SELECT of their rows", rows),
        Figure(f"decision → container started, beside {AGENTS} agents", "ms", decisions),
        Figure(f"memory that {AGENTS} agents take in hived", "MiB", [grown]),
    ]


@contextlib.asynccontextmanager
async def _at_work(world: Fleet) -> AsyncIterator[Hived]:
    """A hived whose parts run and whose agents have all been seen at rest."""
    hived = world.hived()
    await hived.broker.start()
    for number in range(world.count):
        await hived.sites.serve(name_of(number), FIRST_BASE + number * 65_536, Role.AGENT)
        await _greet(hived, name_of(number))
        await hived.passes.run_pass(name_of(number))
    running = [
        asyncio.ensure_future(part.run())
        for part in (hived.events, hived.broker, hived.passes, hived.approvals)
    ]
    await hived.passes.first_read.wait()
    try:
        yield hived
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await hived.builds.close()
        await hived.approvals.close()
        await hived.sites.close()


async def _greet(hived: Hived, name: AgentName) -> None:
    await hived.broker.hello(name, wire.Hello(wire=wire.WIRE_VERSION, boot=BOOT))
    await hived.broker.inbox(name, BOOT, wait_s=0, limit=1, turn=None)


async def _timed(work: Work) -> float:
    begun = time.perf_counter()
    await work()
    return (time.perf_counter() - begun) * 1000


async def _decide(world: Fleet, hived: Hived, name: AgentName) -> float:
    """A new agent is proposed and examined; then it is approved, built and started."""
    started = asyncio.Event()
    world.containers.on_start = lambda start: _started(start, name, started)
    proposal = await hived.agents.new(OPERATOR, api.NewAgent(name=name))
    async with asyncio.timeout(DEADLINE_S):
        while (found := await hived.approvals.get(proposal.id)).state != "pending":  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        begun = time.perf_counter()
        await hived.approvals.approve(OPERATOR, proposal.id, api.Approve(digest=found.digest or ""))
        await started.wait()
        taken = (time.perf_counter() - begun) * 1000
        await _greet(hived, name)
    return taken


def _started(start: Start, name: AgentName, started: asyncio.Event) -> None:
    if start.spec.name == name:
        started.set()


if __name__ == "__main__":
    from bench.__main__ import show

    for figure in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 12):
        show(figure)
