"""A whole harness in a container, with a host and a model that are played."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from harness import wire
from tests.fakes import model as scripted
from tests.fakes.agenthost import FakeHost, Turn, welcome
from tests.fakes.container import Container, command_of, processes_of_agent
from tests.fakes.model import Model

Step = dict[str, Any]


def scenario(prompt: str, *steps: Step) -> dict[str, Any]:
    """What the model does when a prompt matches; failed tools do not end it."""
    return {
        "name": "".join(char for char in prompt.lower() if char.isalnum()) or "any",
        "when": {"prompt": prompt},
        "steps": [{"expect": "any", **step} for step in steps],
    }


def calling(tool: str, **arguments: Any) -> Step:
    return {"tools": [{"name": tool, "input": arguments}]}


def hive(tool: str, **arguments: Any) -> Step:
    return calling(f"mcp__hyperhive__{tool}", **arguments)


class World:
    """A harness with its host and model."""

    def __init__(self, container: Container, host: FakeHost, model: Model) -> None:
        self.container = container
        self.host = host
        self.model = model
        self.process: asyncio.subprocess.Process | None = None

    async def turn(self, body: str, **more: Any) -> Turn:
        """Delivers a message and waits for the end of the turn that it starts."""
        number = len(self.host.turns) + 1
        await self.host.deliver(body, **more)
        return await self.host.ended(number)

    def agents_processes(self) -> list[int]:
        """Pids of all processes of the agent's user in this container."""
        assert self.process is not None
        return processes_of_agent(self.process)

    def commands(self) -> str:
        """What these processes are."""
        return " / ".join(command_of(pid) for pid in self.agents_processes())


@contextlib.asynccontextmanager
async def world(
    folder: Path, *scenarios: dict[str, Any], told: wire.Welcome | None = None, **environment: str
) -> AsyncIterator[World]:
    container = Container(folder)
    host = FakeHost(container.run, told or welcome())
    await host.start()
    try:
        async with scripted.serving(container.run / "model.sock", list(scenarios)) as model:
            made = World(container, host, model)
            async with container.harness(environment) as process:
                made.process = process
                await host.until(lambda: host.hellos)
                yield made
    finally:
        await host.stop()
