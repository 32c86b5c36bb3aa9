"""A session in a container for tests: the genuine CLI, driven in lines of JSON, with a scripted model."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from harness.outcomes import Facts, Result
from tests.fakes import model as scripted
from tests.fakes.container import Container
from tests.fakes.model import Model

DRIVER = Path(__file__).with_name("harness_session_driver.py")


def plays(prompt: str, *steps: dict[str, Any]) -> dict[str, Any]:
    """What the model does when a prompt contains this word."""
    return {
        "name": prompt,
        "when": {"prompt": prompt},
        "steps": [{"expect": "any", **step} for step in steps],
    }


def calls(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"tools": [{"name": tool, "input": arguments}]}


class Session:
    """A session in a container, spoken to in lines of JSON. `events` are those of the last run."""

    def __init__(self, process: asyncio.subprocess.Process, model: Model) -> None:
        self.process = process
        self.model = model
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.sent: list[dict[str, Any]] = []

    async def order(self, **line: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        await self.process.stdin.drain()

    async def next(self) -> dict[str, Any]:
        """The next line, noted."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            line: dict[str, Any] = json.loads(await self.process.stdout.readline())
        if "event" in line:
            self.events.append((line["event"], line["data"]))
        if "tool" in line:
            self.sent.append(line["arguments"])
        return line

    async def until_event(self, kind: str) -> dict[str, Any]:
        while True:
            line = await self.next()
            if line.get("event") == kind:
                data: dict[str, Any] = line["data"]
                return data

    async def run(self, prompt: str) -> Facts:
        """A whole turn."""
        await self.begin(prompt)
        return await self.end()

    async def begin(self, prompt: str) -> None:
        self.events.clear()
        await self.order(run=prompt)

    async def end(self) -> Facts:
        while "facts" not in (line := await self.next()):
            pass
        facts = line["facts"]
        return Facts(**{**facts, "result": Result(**facts["result"]) if facts["result"] else None})

    async def do(self, **line: Any) -> None:
        """An order that is answered at once; lines of a run in between are noted."""
        await self.order(**line)
        while "ready" not in await self.next():
            pass

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [data for event, data in self.events if event == kind]


@contextlib.asynccontextmanager
async def session(folder: Path, *scenarios: dict[str, Any], **environment: str) -> AsyncIterator[Session]:
    container = Container(folder)
    program = ["/opt/hive/venv/bin/python", "-c", DRIVER.read_text()]
    async with (
        scripted.serving(container.run / "model.sock", list(scenarios)) as model,
        container.running(program, environment, as_pid_1=False) as process,
    ):
        yield Session(process, model)
        assert process.stdin is not None
        process.stdin.close()  # ends the driver
        assert await process.wait() == 0
