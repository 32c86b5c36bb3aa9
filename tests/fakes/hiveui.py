"""The web server over a fake hived, in this process: for tests and for screenshots."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
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


class Browser:
    """A client with the session's cookie that follows nothing by itself."""

    def __init__(
        self, ui: RunningUi, http: aiohttp.ClientSession, secret: str | None = OPERATOR_SECRET
    ) -> None:
        self.ui, self.http = ui, http
        self.cookies = ui.cookie(secret) if secret else {}

    async def get(self, path: str, **more: Any) -> aiohttp.ClientResponse:
        return await self._ask("GET", path, **more)

    async def post(self, path: str, data: dict[str, str], **more: Any) -> aiohttp.ClientResponse:
        """As a form of our own page is sent, unless `headers` say otherwise."""
        headers = {"Sec-Fetch-Site": "same-origin", "Origin": "null"} | more.pop("headers", {})
        headers = {name: value for name, value in headers.items() if value}
        return await self._ask("POST", path, data=data, headers=headers, **more)

    async def _ask(self, method: str, path: str, **more: Any) -> aiohttp.ClientResponse:
        url = self.ui.url + path
        answer = await self.http.request(method, url, allow_redirects=False, cookies=self.cookies, **more)
        await answer.read()
        return answer
