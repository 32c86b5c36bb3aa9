"""The web server over a fake hived, in this process: for tests and for screenshots."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from tests.fakes.controlapi import OPERATOR_SECRET, FakeControlApi
from tests.fakes.controldata import World
from ui.app import create_app
from ui.keys import Settings


@dataclass(frozen=True, slots=True)
class RunningUi:
    """`url` has no slash at its end."""

    url: str
    fake: FakeControlApi
    settings: Settings
    app: web.Application

    def cookie(self, secret: str = OPERATOR_SECRET) -> dict[str, str]:
        """What a logged-in browser sends."""
        return {self.settings.cookie: secret}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running_ui(world: World, *, port: int | None = None) -> AsyncIterator[RunningUi]:
    """Both servers, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeControlApi(world)
        settings = Settings(socket=Path(folder) / "ui.sock", port=port or free_port())
        await fake.start(settings.socket)
        app = create_app(settings)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", settings.port).start()
        try:
            yield RunningUi(f"http://localhost:{settings.port}", fake, settings, app)
        finally:
            await runner.cleanup()
            await fake.stop()
