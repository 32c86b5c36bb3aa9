"""What the gateway adds to a request: a process between us and the scripted model, all on unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from bench.figures import Figure
from reconciler.config import Config, Gateway
from reconciler.gateway.client import GatewayClient
from reconciler.gateway.messages import AgentPolicy

ROOT = Path(__file__).parents[1]
READY_S = 20.0
PROMPT_BYTES = 120_000  # a conversation of some length, with the CLI's tools and system prompt
WARM_UP = 10


def measure(samples: int) -> list[Figure]:
    """Milliseconds from the first byte of a streamed request to the first of its answer; and to its end."""
    return asyncio.run(_measure(max(samples, 100)))


async def _measure(samples: int) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="hive-bench-") as folder:
        root = Path(folder)
        for name in ("state/gateway", "run/gateway", "run/agents/bench"):
            (root / name).mkdir(parents=True)
        upstream = root / "model.sock"
        config = Config(
            state_dir=str(root / "state"),
            run_dir=str(root / "run"),
            gateway=Gateway(upstream=f"unix:{upstream}"),
        )
        (root / "config.json").write_text(config.model_dump_json())
        async with (
            _process("reconciler.scripted", "--socket", str(upstream)),
            _process("reconciler.gateway", "--config", str(root / "config.json")),
            _served(config),
        ):
            await _until(upstream.exists)
            return await _compare(root / "run/agents/bench/model.sock", upstream, samples)


async def _compare(through: Path, direct: Path, samples: int) -> list[Figure]:
    """Alternately, so that both see the same load of the machine."""
    first: dict[Path, list[float]] = {through: [], direct: []}
    whole: dict[Path, list[float]] = {through: [], direct: []}
    async with contextlib.AsyncExitStack() as stack:
        sessions = {
            path: await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)))
            )
            for path in (through, direct)
        }
        for number in range(WARM_UP + samples):
            for path, session in sessions.items():
                times = await _ask(session, number)
                if number >= WARM_UP:
                    first[path].append(times[0])
                    whole[path].append(times[1])
    return [
        Figure(
            "model request → first byte, through the gateway", "ms", first[through], "direct", first[direct]
        ),
        Figure("model request → end, through the gateway", "ms", whole[through], "direct", whole[direct]),
    ]


async def _ask(session: aiohttp.ClientSession, number: int) -> tuple[float, float]:
    body: dict[str, Any] = {
        "model": "claude-haiku-5-5",
        "max_tokens": 1000,
        "stream": True,
        "messages": [{"role": "user", "content": f"bench {number} " + "word " * (PROMPT_BYTES // 5)}],
    }
    begun = time.perf_counter()
    async with session.post("http://model/v1/messages", json=body) as answer:
        assert answer.status == 200, await answer.text()
        await answer.content.readany()
        first = time.perf_counter()
        await answer.read()
    return (first - begun) * 1000, (time.perf_counter() - begun) * 1000


@contextlib.asynccontextmanager
async def _process(module: str, *arguments: str) -> AsyncIterator[None]:
    command = [sys.executable, "-m", module, *arguments]
    running = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        running.terminate()
        await asyncio.to_thread(running.wait, READY_S)


@contextlib.asynccontextmanager
async def _served(config: Config) -> AsyncIterator[None]:
    client = GatewayClient(Path(config.run_dir))
    await client.configure([AgentPolicy(agent="bench", uid_base=os.geteuid())])
    running = asyncio.create_task(client.run())
    try:
        await _until(lambda: client.connected)
        yield
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def _until(holds: Any) -> None:
    async with asyncio.timeout(READY_S):
        while not holds():  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    from bench.__main__ import show

    for figure in measure(100):
        show(figure)
