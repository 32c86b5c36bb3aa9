"""Hived's two servers with fake services behind them, for those who speak to one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.control.agentserver import AgentServers
from reconciler.control.auth import Door, Ids
from reconciler.control.server import ControlServer
from reconciler.model.states import Role
from tests.contract.agents_kit import BODIES, HEADERS, MANAGER, SCOUT, UNBOUNDED, socket_of
from tests.fakes.services import FakeServices
from tests.fakes.unixhttp import Api


@pytest.fixture
def run_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the sockets, which `hive` is told of."""
    with tempfile.TemporaryDirectory(prefix="hive-") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("HIVE_RUN", folder)
        yield Path(folder)


@pytest_asyncio.fixture
async def services() -> FakeServices:
    return FakeServices()


@pytest_asyncio.fixture
async def server(services: FakeServices, run_dir: Path) -> AsyncIterator[ControlServer]:
    """Everybody's ids are this process's, so that it may speak at both doors."""
    own = Ids(operators_gid=os.getegid(), ui_uid=os.geteuid(), ui_gid=os.getegid())
    running = ControlServer(services.bundle(), run_dir, own, ping_s=0.05)
    await running.start()
    yield running
    await running.close()


@pytest_asyncio.fixture
async def control(server: ControlServer, run_dir: Path) -> AsyncIterator[Api]:
    async with Api(run_dir / Door.CONTROL) as api:
        yield api


@pytest_asyncio.fixture
async def ui(server: ControlServer, run_dir: Path) -> AsyncIterator[Api]:
    async with Api(run_dir / Door.UI) as api:
        yield api


@pytest.fixture
def place() -> Iterator[Path]:
    """Run and state folders that other users may enter."""
    with tempfile.TemporaryDirectory(prefix="hive-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest_asyncio.fixture
async def servers(services: FakeServices, place: Path) -> AsyncIterator[AgentServers]:
    servers = AgentServers(services.bundle(), place / "run", place / "state", rates=UNBOUNDED)
    yield servers
    await servers.close()
    assert list((place / "state" / "incoming").iterdir()) == [], "uploads are removed"


@pytest_asyncio.fixture
async def scout(servers: AgentServers, place: Path) -> AsyncIterator[Api]:
    """An agent whose BASE is this process's uid, after hello."""
    await servers.serve(SCOUT, os.geteuid(), Role.AGENT)
    async with Api(socket_of(place, SCOUT), HEADERS) as api:
        await api.call("POST", "/v1/hello", BODIES["Hello"])
        yield api


@pytest_asyncio.fixture
async def manager(servers: AgentServers, place: Path) -> AsyncIterator[Api]:
    await servers.serve(MANAGER, os.geteuid(), Role.MANAGER)
    async with Api(socket_of(place, MANAGER), HEADERS) as api:
        await api.call("POST", "/v1/hello", BODIES["Hello"])
        yield api
