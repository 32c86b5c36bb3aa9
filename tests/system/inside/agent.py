"""`python -m tests.system.inside.agent start|freeze|status`: one container in a test bed, at a place that
outlives reboots; prints its status as JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from pathlib import Path

from reconciler.model.names import AgentName
from tests.integration.containers_kit import Yard

_PLACE = Path("/var/lib/hyperhive/yard")
_NAME = AgentName("probe")


async def main(verb: str) -> None:
    """Do it, and print the status after."""
    yard = Yard.at(_PLACE, "systemd") if _PLACE.exists() else Yard.make(_PLACE, "systemd")
    driver = yard.systemd()
    match verb:
        case "start":
            await driver.start(await yard.spec(_NAME))
        case "freeze":
            await driver.freeze(_NAME)
    status = await driver.status(_NAME)
    names = await driver.list()
    driver.close()
    sys.stdout.write(json.dumps(dataclasses.asdict(status) | {"names": names}) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
