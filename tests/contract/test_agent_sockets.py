"""Who may speak on an agent's socket, and how sockets come and go."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from reconciler.control.agentserver import AgentServers
from reconciler.model.states import Role
from tests.contract.agents_kit import (
    BASE,
    BODIES,
    BOOT,
    SCOUT,
    called,
    socket_of,
)
from tests.fakes.services import FakeServices
from tests.fakes.unixhttp import Api, as_user, error
from tests.support.needs import needs_root

pytestmark = pytest.mark.asyncio


@needs_root
async def test_only_exactly_base_may_speak_and_all_others_are_closed_and_counted(
    servers: AgentServers, services: FakeServices, place: Path
) -> None:
    await servers.serve(SCOUT, BASE, Role.AGENT)
    path = socket_of(place, SCOUT)
    found, folder = path.stat(), path.parent.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (BASE, 0o600)
    assert (folder.st_uid, folder.st_mode & 0o777) == (BASE, 0o700)
    hello = (
        "POST /v1/hello HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 55\r\n\r\n"
        f'{{"wire": 1, "boot": "{BOOT}"}}'
    )
    assert (await as_user(path, hello, uid=BASE, gid=BASE)).startswith("HTTP/1.1 200")
    assert await as_user(path, hello, uid=BASE + 1000, gid=BASE + 1000) == "PermissionError\n"
    path.parent.chmod(0o755)
    path.chmod(0o666)  # without the files' modes, too
    nothing = ("closed", "ConnectionReset", "BrokenPipe")
    for uid in (BASE + 1000, BASE + 1, BASE + 65536, 0):
        assert (await as_user(path, hello, uid=uid, gid=BASE)).startswith(nothing)
    assert servers.refused(SCOUT) == 4
    assert len(services.broker.hello_calls) == 1


async def test_serving_is_level_triggered(servers: AgentServers, place: Path) -> None:
    path = socket_of(place, SCOUT)
    await servers.serve(SCOUT, os.geteuid(), Role.AGENT)
    first = path.stat().st_ino
    await servers.serve(SCOUT, os.geteuid(), Role.AGENT)
    assert path.stat().st_ino == first
    path.unlink()
    assert servers.serving() == []
    assert not servers.is_served(SCOUT)
    await servers.serve(SCOUT, os.geteuid(), Role.AGENT)
    assert servers.serving() == [SCOUT]
    await servers.drop(SCOUT)
    await servers.drop(SCOUT)
    assert not path.exists()
    assert servers.serving() == []


async def test_a_socket_that_a_killed_hived_left_is_seen_and_dropped(
    servers: AgentServers, services: FakeServices, place: Path
) -> None:
    await servers.serve(SCOUT, os.geteuid(), Role.AGENT)
    successor = AgentServers(services.bundle(), place / "run", place / "state")
    assert successor.is_left(SCOUT)
    await successor.drop(SCOUT)
    assert not successor.is_left(SCOUT)


async def test_a_connection_outlives_the_loss_of_the_socket_file(
    servers: AgentServers, scout: Api, services: FakeServices, place: Path
) -> None:
    services.broker.hold_inbox = asyncio.Event()
    waiting = asyncio.create_task(scout.call("GET", "/v1/inbox?wait=60"))
    await called(services, "inbox")
    socket_of(place, SCOUT).unlink()
    await servers.serve(SCOUT, os.geteuid(), Role.AGENT)
    services.broker.hold_inbox.set()
    assert (await waiting).status == 200
    assert (await scout.call("GET", "/v1/agents")).status == 200


async def test_a_new_hived_takes_the_socket_over_and_wants_a_hello_first(
    servers: AgentServers, scout: Api, services: FakeServices, place: Path
) -> None:
    successor = AgentServers(services.bundle(), place / "run", place / "state")
    await successor.serve(SCOUT, os.geteuid(), Role.AGENT)
    assert not servers.is_served(SCOUT)
    assert error(await scout.call("GET", "/v1/inbox")) == (409, "hello-first")
    assert (await scout.call("POST", "/v1/hello", BODIES["Hello"])).status == 200
    assert (await scout.call("GET", "/v1/inbox")).status == 200
    await servers.drop(SCOUT)
    assert successor.is_served(SCOUT)
    await successor.close()
