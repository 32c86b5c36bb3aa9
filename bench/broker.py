"""Our broker beside Redis Streams and NATS JetStream: the same payload, one message an answer, over sockets.

hive         POST /v1/messages and GET /v1/inbox on agents' sockets; answered when state.db is on the disk
Redis        XADD and XREADGROUP; `appendfsync always`
JetStream    publish with acknowledgement and a pull consumer, file storage; `sync_interval: always` where
             the version has it, else named so

Throughput: `SENDERS` connections, each sending when it has its answer. Latency: one message at a time, from
before it is sent until the receiver, who waits for it, has it. Rounds take turns: all see the same load.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

from bench import rivals
from bench.figures import Figure
from bench.wires import Http, Nats, Resp
from harness import wire
from tests.support.demohive import CLONE
from tests.support.fleets import name_of

SENDERS = 16
ROUND_S = 1.0
LATENCIES_PER_ROUND = 25
BODY = "x" * 300
DEADLINE_S = 60.0


class System(Protocol):
    """What is measured. Receivers are numbered from 0, `SENDERS` is nobody's but the latency's."""

    name: str

    async def send(self, sender: int, receiver: int) -> None:
        """Return when the message is kept."""
        ...

    async def receive(self) -> None:
        """Wait for a message to receiver `SENDERS`."""
        ...

    async def consumed(self) -> None:
        """It is done with."""
        ...


def measure(samples: int) -> list[Figure]:
    """Messages per second, and milliseconds from sending to having."""
    return asyncio.run(_measure(samples))


async def _measure(rounds: int) -> list[Figure]:
    # Not in /tmp, which may be memory: the disk is what is waited for.
    with tempfile.TemporaryDirectory(prefix="hive-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            systems: list[System] = [
                await stack.enter_async_context(_hive(folder / "hive")),
                await stack.enter_async_context(_redis(_made(folder / "redis"))),
                await stack.enter_async_context(_nats(_made(folder / "nats"))),
            ]
            rates: dict[str, list[float]] = {system.name: [] for system in systems}
            delays: dict[str, list[float]] = {system.name: [] for system in systems}
            for _, system in itertools.product(range(rounds), systems):
                rates[system.name].append(await _throughput(system))
                delays[system.name] += await _latencies(system)
    ours, *others = (system.name for system in systems)
    return [
        figure
        for other in others
        for figure in (
            Figure(f"durable messages, {SENDERS} senders", "per s", rates[ours], other, rates[other]),
            Figure("message sent → its receiver has it", "ms", delays[ours], other, delays[other]),
        )
    ]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def _throughput(system: System) -> float:
    end = time.perf_counter() + ROUND_S

    async def sender(number: int) -> int:
        for count in itertools.count(1):
            await system.send(number, (number + count) % SENDERS)
            if time.perf_counter() > end:
                return count
        raise AssertionError

    begun = time.perf_counter()
    sent = sum(await asyncio.gather(*(sender(number) for number in range(SENDERS))))
    return sent / (time.perf_counter() - begun)


async def _latencies(system: System) -> list[float]:
    taken = []
    for number in range(LATENCIES_PER_ROUND):
        received = asyncio.ensure_future(system.receive())
        await asyncio.sleep(0.005)  # it waits by now
        begun = time.perf_counter()
        sending = asyncio.ensure_future(system.send(number % SENDERS, SENDERS))
        async with asyncio.timeout(DEADLINE_S):
            await received
            taken.append((time.perf_counter() - begun) * 1000)
            await sending
            await system.consumed()
    return taken


# -------------------------------------------------------------------------------------------------- ours
class _Hive:
    name = "hive"

    def __init__(self, connections: list[Http]) -> None:
        self._connections = connections
        self._keys = itertools.count()
        self._lease = 0

    async def send(self, sender: int, receiver: int) -> None:
        key = f"key-{next(self._keys):08}"
        # Nobody writes to themselves: those who would have write to the next but one.
        to = name_of(receiver if receiver != sender else (receiver + 1) % SENDERS)
        await self._connections[sender].call("POST", "/v1/messages", {"to": to, "body": BODY, "key": key})

    async def receive(self) -> None:
        found = await self._connections[SENDERS].call("GET", "/v1/inbox?wait=30&max=1")
        self._lease = found["lease"]

    async def consumed(self) -> None:
        await self._connections[SENDERS].call("POST", f"/v1/leases/{self._lease}/ack")


@contextlib.asynccontextmanager
async def _hive(folder: Path) -> AsyncIterator[System]:
    boot = "b" * 32
    headers = (
        f"Content-Type: application/json\r\n{wire.WIRE_HEADER}: {wire.WIRE_VERSION}\r\n"
        f"{wire.BOOT_HEADER}: {boot}\r\n"
    )
    with _host(folder):
        connections = []
        for number in range(SENDERS + 1):
            socket = folder / "run/agents" / name_of(number) / "agent.sock"
            connection = await Http.connect(socket, headers)
            await connection.call("POST", "/v1/hello", {"wire": wire.WIRE_VERSION, "boot": boot})
            connections.append(connection)
        yield _Hive(connections)
        for connection in connections:
            connection.close()


@contextlib.contextmanager
def _host(folder: Path) -> Iterator[None]:
    argv = [sys.executable, "-m", "bench.brokerhost", str(folder), str(SENDERS + 1)]
    environment = os.environ | {"PYTHONPATH": str(CLONE)}
    running = subprocess.Popen(argv, cwd=CLONE, stdout=subprocess.PIPE, env=environment)
    try:
        assert running.stdout is not None
        if running.stdout.readline() != b"ready\n":
            raise RuntimeError("the broker did not start")
        yield
    finally:
        running.terminate()
        running.wait(10)
        if running.stdout is not None:
            running.stdout.close()


# ------------------------------------------------------------------------------------------------- theirs
class _Redis:
    def __init__(self, name: str, connections: list[Resp]) -> None:
        self.name = name
        self._connections = connections
        self._entry = b""

    async def send(self, sender: int, receiver: int) -> None:
        await self._connections[sender].call("XADD", f"inbox:{receiver}", "*", "body", BODY)

    async def receive(self) -> None:
        found: Any = await self._connections[SENDERS].call(
            "XREADGROUP",
            "GROUP",
            "g",
            "c",
            "COUNT",
            "1",
            "BLOCK",
            "30000",
            "STREAMS",
            f"inbox:{SENDERS}",
            ">",
        )
        self._entry = found[0][1][0][0]

    async def consumed(self) -> None:
        await self._connections[SENDERS].call("XACK", f"inbox:{SENDERS}", "g", self._entry)


@contextlib.asynccontextmanager
async def _redis(folder: Path) -> AsyncIterator[System]:
    with rivals.redis(folder) as socket:
        connections = [await Resp.connect(socket) for _ in range(SENDERS + 1)]
        await connections[0].call("XGROUP", "CREATE", f"inbox:{SENDERS}", "g", "$", "MKSTREAM")
        yield _Redis(f"Redis {rivals.version('redis-server')}, appendfsync always", connections)
        for connection in connections:
            connection.close()


class _Nats:
    def __init__(self, name: str, connections: list[Nats]) -> None:
        self.name = name
        self._connections = connections
        self._ack = ""

    async def send(self, sender: int, receiver: int) -> None:
        _, answer = await self._connections[sender].request(f"inbox.{receiver}", BODY.encode())
        if b'"error"' in answer:
            raise RuntimeError(answer.decode())

    async def receive(self) -> None:
        asked = b'{"batch": 1, "expires": 30000000000}'
        self._ack, _ = await self._connections[SENDERS].request("$JS.API.CONSUMER.MSG.NEXT.BENCH.c", asked)

    async def consumed(self) -> None:
        await self._connections[SENDERS].request(self._ack, b"+ACK")


@contextlib.asynccontextmanager
async def _nats(folder: Path) -> AsyncIterator[System]:
    with rivals.nats(folder) as (port, synced):
        connections = [await Nats.connect(port, f"bench{number}") for number in range(SENDERS + 1)]
        stream = b'{"name": "BENCH", "subjects": ["inbox.*"], "storage": "file", "retention": "limits"}'
        consumer = (
            '{"stream_name": "BENCH", "config": {"durable_name": "c", "ack_policy": "explicit", '
            f'"deliver_policy": "all", "filter_subject": "inbox.{SENDERS}"}}}}'
        )
        for subject, asked in (
            ("$JS.API.STREAM.CREATE.BENCH", stream),
            ("$JS.API.CONSUMER.DURABLE.CREATE.BENCH.c", consumer.encode()),
        ):
            _, answer = await connections[0].request(subject, asked)
            if b'"error"' in answer:
                raise RuntimeError(answer.decode())
        how = "sync always" if synced else "which cannot sync each message"
        yield _Nats(f"JetStream {rivals.version('nats-server')}, {how}", connections)
        for connection in connections:
            connection.close()


if __name__ == "__main__":
    from bench.__main__ import show

    for found in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        show(found)
