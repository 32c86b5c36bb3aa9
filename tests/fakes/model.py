"""The project's scripted model on a unix socket, in the test's own process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

from reconciler.scripted.scenario import File
from reconciler.scripted.server import Log, ScriptedModel


class Model:
    """What was asked; `requests` are whole entries of the log, with bodies."""

    def __init__(self, log: Log) -> None:
        self._log = log

    @property
    def requests(self) -> list[dict[str, Any]]:
        """All requests for messages, oldest first."""
        return [entry for entry in self._log.after(0) if entry["path"] == "/v1/messages"]

    def said(self, number: int = -1) -> str:
        """All messages of a request, as text."""
        return str(self.requests[number]["body"]["messages"])


@contextlib.asynccontextmanager
async def serving(path: Path, scenarios: list[dict[str, Any]]) -> AsyncIterator[Model]:
    """Plays these scenarios (as in the YAML files) on the socket."""
    log = Log(bodies=True)
    app = ScriptedModel(File.model_validate({"scenarios": scenarios}).scenarios, log).app()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(path)).start()
        path.chmod(0o600)
        yield Model(log)
    finally:
        await runner.cleanup()
        path.unlink(missing_ok=True)
