"""A gateway with a scripted upstream, all over unix sockets in one process, for the tests of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from reconciler.config import Config, Gateway
from reconciler.gateway.app import control_path, gateway
from reconciler.gateway.client import GatewayClient
from reconciler.gateway.deadlines import Bounds, Deadlines
from reconciler.gateway.messages import AgentPolicy, LimitEvent, ModelEvent, RefusalEvent, UsageEvent
from reconciler.scripted.scenario import Scenario
from reconciler.scripted.server import Log, ScriptedModel

SECRET = "sk-ant-the-operators-own-secret"
WAIT_S = 20.0
MODEL = "claude-haiku-5-5"


def body(prompt: str = "hello", **more: Any) -> dict[str, Any]:
    """A request as small as the API takes it."""
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": prompt}], **more}


@dataclass
class Seen:
    """What reached the upstream."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Answer:
    """What the agent got."""

    status: int
    headers: Mapping[str, str]
    text: bytes

    @property
    def error(self) -> tuple[str, str]:
        told = json.loads(self.text)
        assert told["type"] == "error"
        return told["error"]["type"], told["error"]["message"]


@dataclass
class Lab:
    """The folders, the upstream, and whatever of gateway and client a test starts."""

    root: Path
    seen: list[Seen] = field(default_factory=list)
    usage: list[UsageEvent] = field(default_factory=list)
    limits: list[LimitEvent] = field(default_factory=list)
    refusals: list[RefusalEvent] = field(default_factory=list)
    models: list[ModelEvent] = field(default_factory=list)

    @property
    def config(self) -> Config:
        upstream = Gateway(
            upstream=f"unix:{self.root}/upstream.sock", credential_file=str(self.root / "credential")
        )
        return Config(state_dir=str(self.root / "state"), run_dir=str(self.root / "run"), gateway=upstream)

    def make(self) -> None:
        for folder in ("state/gateway", "run/gateway"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "credential").write_text(SECRET + "\n")
        self.agent_folder("scout")

    def agent_folder(self, agent: str) -> None:
        (self.root / "run/agents" / agent).mkdir(parents=True, exist_ok=True)

    def socket(self, agent: str = "scout") -> Path:
        return self.root / "run/agents" / agent / "model.sock"

    @contextlib.asynccontextmanager
    async def upstream(self, app: web.Application) -> AsyncIterator[None]:
        """Serve an application as the API; every request to it is in `seen`."""

        @web.middleware
        async def note(request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
            self.seen.append(Seen(request.raw_path, list(request.headers.items()), await request.read()))
            answer: web.StreamResponse = await handler(request)
            return answer

        app.middlewares.append(note)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(self.root / "upstream.sock")).start()
        try:
            yield
        finally:
            await runner.cleanup()
            (self.root / "upstream.sock").unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def scripted(self, *steps: dict[str, Any], **when: Any) -> AsyncIterator[None]:
        """The scripted model with one scenario; a list of steps answers one exchange after the other."""
        plays = Scenario.model_validate({"name": "lab", "when": when, "steps": list(steps)})
        async with self.upstream(ScriptedModel([plays], Log()).app()):
            yield

    @contextlib.asynccontextmanager
    async def gateway(
        self, deadlines: Deadlines | None = None, bounds: Bounds | None = None
    ) -> AsyncIterator[None]:
        async with gateway(
            self.config, deadlines=deadlines or Deadlines(drain_s=0.0), bounds=bounds or Bounds()
        ) as control:
            serving = asyncio.create_task(control.serve(control_path(self.config)))
            try:
                yield
            finally:
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving

    @contextlib.asynccontextmanager
    async def client(self, *policies: AgentPolicy) -> AsyncIterator[GatewayClient]:
        """Hived's end, connected and configured."""
        client = GatewayClient(
            self.root / "run",
            on_usage=self.usage.append,
            on_limit=self.limits.append,
            on_refusal=self.refusals.append,
            on_model=self.models.append,
        )
        await client.configure(policies)
        running = asyncio.create_task(client.run())
        try:
            await until(lambda: client.connected)
            yield client
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    @contextlib.asynccontextmanager
    async def served(
        self, *policies: AgentPolicy, deadlines: Deadlines | None = None, bounds: Bounds | None = None
    ) -> AsyncIterator[GatewayClient]:
        """Gateway and client together."""
        async with self.gateway(deadlines, bounds), self.client(*(policies or (policy(),))) as client:
            yield client

    @contextlib.asynccontextmanager
    async def session(self, agent: str = "scout") -> AsyncIterator[aiohttp.ClientSession]:
        """A harness's connection pool to its model.sock."""
        connector = aiohttp.UnixConnector(str(self.socket(agent)), limit=0)
        async with aiohttp.ClientSession(
            connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=WAIT_S)
        ) as session:
            yield session

    async def ask(
        self,
        payload: dict[str, Any] | bytes | None = None,
        *,
        agent: str = "scout",
        path: str = "/v1/messages",
        method: str = "POST",
        headers: Sequence[tuple[str, str]] = (),
    ) -> Answer:
        """One request of an agent."""
        raw = payload if isinstance(payload, bytes) else json.dumps(payload or body()).encode()
        async with (
            self.session(agent) as session,
            session.request(
                method, f"http://model{path}", data=io.BytesIO(raw), headers=list(headers)
            ) as answer,
        ):
            return Answer(answer.status, answer.headers, await answer.read())


def policy(agent: str = "scout", **more: Any) -> AgentPolicy:
    """A policy for this very process as the agent."""
    return AgentPolicy(agent=agent, uid_base=os.geteuid(), **more)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that has no event of its own; fails when it does not come."""
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - what is waited for happens in another process or connection
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def lab_folder() -> Any:
    """A folder below /tmp that other users may pass, which pytest's are not."""
    root = Path(tempfile.mkdtemp(prefix="gw-"))
    root.chmod(0o755)
    lab = Lab(root)
    lab.make()
    try:
        yield lab
    finally:
        shutil.rmtree(root)
