"""`python -m bench.brokerhost FOLDER COUNT`: the broker and the agents' sockets of a hived, and nothing else.

Agents are called as in `tests.support.fleets`, may write to everybody, and are served to this process's uid.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import structlog

from reconciler.control.agentserver import AgentServers
from reconciler.control.meters import RATES, Rate
from reconciler.model.states import Role
from tests.support.fleets import fleet, name_of


async def serve(folder: Path, count: int) -> None:
    """Says `ready` on standard output; until the process is ended."""
    async with fleet(folder, count, allow=["*"]) as world:
        hived = world.hived()
        services = hived.services
        unbounded = {sort: Rate(1e9, 1e9) for sort in RATES}
        sites = AgentServers(services, folder / "run", folder / "state", rates=unbounded)
        for number in range(count):
            await sites.serve(name_of(number), os.geteuid(), Role.AGENT)
        await hived.broker.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(hived.events.run())
            group.create_task(hived.broker.run())
            print("ready", flush=True)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
