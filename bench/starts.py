"""From the approval of a new agent to the hello of its harness, over real containers under a whole hived; its
root is built already. The baseline is the same container, its unit started by `systemctl start`, or its shim
by the driver alone.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Literal

from bench.figures import Figure
from bench.realfleet import Driver, declared, started
from reconciler.app import Hived
from reconciler.control import models as api
from reconciler.effects import process
from reconciler.effects.containers.unitfile import unit_name
from reconciler.effects.protocols import ContainerSpec
from reconciler.model.names import AgentName
from tests.integration.containers_kit import served
from tests.support.mixed import ROOT, MixedFleet

DEADLINE_S = 60.0


def measure(samples: int, driver: Driver = "shim") -> list[Figure]:
    """Milliseconds."""
    return asyncio.run(_measure(samples, driver))


async def _measure(samples: int, driver: Driver) -> list[Figure]:
    names = [AgentName(f"new-{number}") for number in range(samples)]
    async with declared(1, driver) as world:
        async with world.at_work() as hived:
            await started(hived, world.names[0])
            approved = [await _approved(hived, name) for name in names]
        # Their containers live on; now nobody else looks after them.
        plain = [await _plain(world, name) for name in names]
    how = "`systemctl start` of its unit" if driver == "systemd" else "started through the driver alone"
    return [Figure(f"approved → hello, nothing to build, {driver} driver", "ms", approved, how, plain)]


async def _approved(hived: Hived, name: AgentName) -> float:
    proposal = await hived.agents.new(ROOT, api.NewAgent(name=name))
    async with asyncio.timeout(DEADLINE_S):
        while (found := await hived.approvals.get(proposal.id)).state != "pending":  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    begun = time.time()
    await hived.approvals.approve(ROOT, proposal.id, api.Approve(digest=found.digest or ""))
    await started(hived, name)
    hello = hived.broker.hello_of(name)
    assert hello is not None
    async with asyncio.timeout(DEADLINE_S):
        while (await hived.approvals.get(proposal.id)).state != "deployed":  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return (hello - begun) * 1000


async def _plain(world: MixedFleet, name: AgentName) -> float:
    """The same container again: from its start to the first words of its harness."""
    spec = await world.spec(name)
    await _act(world, spec, "stop")
    async with served(spec) as listener, asyncio.timeout(DEADLINE_S):
        begun = time.perf_counter()
        starting = asyncio.ensure_future(_act(world, spec, "start"))
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(listener)
        with connection:
            connection.setblocking(False)
            await loop.sock_recv(connection, 4096)
            taken = (time.perf_counter() - begun) * 1000
        await starting
        await _act(world, spec, "stop")
    return taken


async def _act(world: MixedFleet, spec: ContainerSpec, what: Literal["start", "stop"]) -> None:
    if world.driver == "systemd":
        await process.run(["systemctl", what, unit_name(spec.name)], timeout_s=DEADLINE_S)
    elif what == "start":
        await world.yard.driver().start(spec)
    else:
        await world.yard.driver().stop(spec.name)


if __name__ == "__main__":
    from bench.__main__ import show

    for figure in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 12):
        show(figure)
