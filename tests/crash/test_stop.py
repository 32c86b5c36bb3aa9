"""hived told to stop in the middle of everything: it ends in time, nobody is refused, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from reconciler.control import models as api
from reconciler.control.client import ControlClient
from tests.support.crash.harness import acting_as
from tests.support.crash.points import Fault
from tests.support.crash.walk import Ground, ground
from tests.support.crash.world import World, approve, new_agent
from tests.support.needs import needs_root

pytestmark = needs_root
STREAMS = 10
MESSAGES = 40
STOP_S = 5.0


@pytest.fixture(scope="module")
def place() -> Iterator[Ground]:
    with ground() as found:
        yield found


def test_a_stop_under_load_takes_less_than_five_seconds_and_loses_nothing(place: Ground) -> None:
    asyncio.run(_stop_under_load(place))


async def _stop_under_load(place: Ground) -> None:
    hang = Fault("nix.build late#1", "hang")
    async with place.world([hang], 20.0) as world, contextlib.AsyncExitStack() as stack:
        smith = await world.operator(lambda client: client.agent("smith"))
        world.arm()
        await approve(world, await new_agent(world, "late"))
        await _building(world)
        streams = [await stack.enter_async_context(_stream(world)) for _ in range(STREAMS)]
        assert smith.uid_base is not None
        upload = stack.enter_context(_half_an_upload(world, smith.uid_base))
        first = world.starts

        sending = asyncio.create_task(_send(world, range(MESSAGES)))
        await world.acting(_handled(world, MESSAGES // 4))
        began = time.monotonic()
        signal.pidfd_send_signal(world._pidfd, signal.SIGTERM)
        await world.acting(_started(world, first + 1))
        took = time.monotonic() - began
        assert took < STOP_S
        assert "did not stop within" not in world.log()

        await world.acting(sending)
        assert upload.recv(4096).startswith((b"HTTP/1.1 503", b"")), "cut short, with words if there was time"
        assert await asyncio.gather(*streams) == [None] * STREAMS, "every stream ended"
        await world.at_rest()
        assert (await world.operator(lambda client: client.agent("late"))).state == "idle"
        bodies = Counter(str(n) for n in range(MESSAGES))
        found = await world.operator(lambda client: client.messages(agent="smith", limit=200))
        assert Counter(m.body for m in found.items if m.to == "smith" and m.body.isdigit()) == bodies
        sent = {m.id for m in found.items if m.to == "smith" and m.body.isdigit()}
        handled = Counter(number for name, number in world.handled if name == "smith" and number in sent)
        assert handled == Counter(sent), "each message in one turn that ended well"
        print(f"\nstopped and started again in {took:.2f} s")


async def _building(world: World) -> None:
    async def is_building() -> None:
        while True:
            found = await world.operator(lambda client: client.proposals(agent="late"))
            if found.items[0].state == "building":
                return
            await asyncio.sleep(0.005)

    await world.acting(is_building())


@contextlib.asynccontextmanager
async def _stream(world: World) -> AsyncIterator[asyncio.Task[None]]:
    """A reader of the event stream, connected; the task ends with the stream."""
    opened = asyncio.Event()

    async def read() -> None:
        async with ControlClient(world.directory / "run/control.sock") as client:
            async for _ in client.stream(on_open=opened.set):
                pass

    task = asyncio.create_task(read())
    await world.acting(opened.wait())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.contextmanager
def _half_an_upload(world: World, uid: int) -> Iterator[socket.socket]:
    """A bundle of which only the beginning comes."""
    path: Path = world.directory / "run/agents/smith/agent.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        with acting_as(uid):
            sock.connect(str(path))
        boot = world.harnesses[next(name for name in world.harnesses if name == "smith")].boot
        sock.sendall(
            f"POST /v1/proposals?commit={'a' * 40} HTTP/1.1\r\nHost: hive\r\nX-Hive-Wire: 1\r\n"
            f"X-Hive-Boot: {boot}\r\nContent-Length: 1000000\r\n\r\nhalf".encode()
        )
        sock.settimeout(10)
        yield sock


async def _send(world: World, numbers: range) -> None:
    """Messages one after the other, each repeated under its key until it is answered."""
    for number in numbers:
        request = api.NewMessage(to="smith", body=str(number), key=f"under-load-{number}")
        await world.operator(partial(ControlClient.send, request=request))


async def _handled(world: World, count: int) -> None:
    while len(world.handled) < count:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.002)


async def _started(world: World, starts: int) -> None:
    while world.starts < starts:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.002)
