"""The agent servers: one HTTP site on each agent's `agent.sock`, for that agent's container root only.

The folder belongs to BASE with mode 0700 and the socket has 0600; the peer's uid must equal BASE exactly, so
uid 1000 inside (BASE+1000) gets nowhere. Everything behind it is hostile: bounded in size, number and time.
`serve` is level-triggered and called by passes; nothing here decides what an agent may, beyond its role.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from aiohttp import web
from pydantic import BaseModel

from harness import wire
from reconciler.control import edge
from reconciler.control.agentcalls import AGENT_ROUTES, HELLO, AgentCall, AgentRoute, Result
from reconciler.control.edge import refusal
from reconciler.control.meters import RATES, TEXT_BYTES, Meters, Rate, Sort, TooManyError
from reconciler.control.running import CUT_S, FIRST_REQUEST_S, Heard, Running
from reconciler.control.uploads import Incoming
from reconciler.errors import AgentError, OperatorError, PermanentError, TemporaryError
from reconciler.model.names import AgentName
from reconciler.model.states import Role
from reconciler.services import Services
from reconciler.sockets import Listener, Peer, bind

log = structlog.get_logger("agents")

SOCKET = "agent.sock"
CONNECTIONS_MAX = 64  # the harness uses at most 33
CALLS_MAX = 32
UPLOADS_MAX = 2
DROP_S = 2.0

Limited = Callable[[AgentName, TooManyError], None]
"""Told of the first call of a burst that was one too many."""


@dataclass(slots=True)
class _Site:
    """What is served for one agent. `boot` is the harness process that said hello to this process last."""

    name: AgentName
    uid_base: int
    role: Role
    runner: web.AppRunner | None = None
    listener: Listener | None = None
    boot: str | None = None
    uploading: int = 0
    running: Running = field(default_factory=Running)
    heard: Heard = field(default_factory=Heard)


class AgentServers:
    """The sites of all agents."""

    def __init__(
        self,
        services: Services,
        run_dir: Path,
        state_dir: Path,
        *,
        limited: Limited | None = None,
        rates: Mapping[Sort, Rate] = RATES,
    ) -> None:
        self._services = services
        self._limited = limited
        self._folder = run_dir / "agents"
        self._incoming = Incoming(state_dir / "incoming")
        self._sites: dict[AgentName, _Site] = {}
        self._locks: dict[AgentName, asyncio.Lock] = {}
        # Of all that ever were served: a new socket is no new burst.
        self._meters: defaultdict[AgentName, Meters] = defaultdict(lambda: Meters(rates))
        self._closed = False
        self._incoming.prepare()

    def serving(self) -> Sequence[AgentName]:
        """Names that are served, sorted."""
        return sorted(name for name in self._sites if self.is_served(name))

    def is_served(self, name: AgentName) -> bool:
        """Whether the agent's socket is this process's and accepts."""
        site = self._sites.get(name)
        return site is not None and site.listener is not None and site.listener.alive

    def is_lost(self, name: AgentName) -> bool:
        """Whether this process serves the agent and somebody took its socket away."""
        return name in self._sites and not self.is_served(name)

    def is_left(self, name: AgentName) -> bool:
        """Whether a socket of the agent lies there, whoever made it."""
        return (self._folder / name / SOCKET).is_socket()

    def refused(self, name: AgentName) -> int:
        """How many connections of wrong peers were closed since the socket was made."""
        site = self._sites.get(name)
        return 0 if site is None or site.listener is None else site.listener.refused

    async def serve(self, name: AgentName, uid_base: int, role: Role) -> None:
        """Make it so that `name` is served to `uid_base`. Safe to repeat: what is right is left alone, a
        socket that is gone or a predecessor's is made anew and connections go on. `PermanentError` if it
        cannot be made."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            if self._closed:
                raise TemporaryError("hived is stopping")
            site = self._sites.get(name)
            if site is not None and site.uid_base != uid_base:
                await self._close(site)
                site = None
            if site is None:
                site = self._sites[name] = _Site(name, uid_base, role)
            site.role = role
            if not self.is_served(name):
                await self._listen(site)

    async def drop(self, name: AgentName) -> None:
        """Serve `name` no more: its calls get `DROP_S` to end. A socket that a killed predecessor left goes,
        too; nothing to do if there is none."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            site = self._sites.pop(name, None)
            if site is not None:
                await self._close(site)
            else:
                (self._folder / name / SOCKET).unlink(missing_ok=True)

    async def close(self) -> None:
        """Drop all, and serve none any more: a pass that is under way would make them anew."""
        self._closed = True
        await asyncio.gather(*(self.drop(name) for name in list(self._sites)))

    # ---------------------------------------------------------------------------------------------- sites
    async def _listen(self, site: _Site) -> None:
        if site.runner is None:
            site.runner = web.AppRunner(
                self._application(site),
                shutdown_timeout=CUT_S,
                logger=edge.connection_logger(),
                **edge.CONNECTION,
            )
            await site.runner.setup()
        server = site.runner.server
        assert server is not None
        site.heard.watch(server)
        if site.listener is not None:
            await site.listener.close()
        folder = self._folder / site.name
        _make_folder(folder, site.uid_base)
        base = site.uid_base

        def is_container_root(peer: Peer) -> bool:
            return peer.uid == base

        site.listener = Listener(
            bind(folder / SOCKET, mode=0o600, uid=base, gid=base),
            server,
            admits=is_container_root,
            open_connections=lambda: len(server.connections),
            limit=CONNECTIONS_MAX,
        )
        log.info("agent.served", agent=site.name, uid=base)

    @staticmethod
    async def _close(site: _Site) -> None:
        if site.listener is not None:
            await site.listener.close()
        await site.heard.all(FIRST_REQUEST_S)
        await site.running.drain(DROP_S)
        if site.runner is not None:
            await site.runner.cleanup()

    def _application(self, site: _Site) -> web.Application:
        look = f"this host speaks version {wire.WIRE_VERSION} of the wire"
        application = web.Application(middlewares=[edge.envelopes(look, site.heard)])
        for route in AGENT_ROUTES:
            application.router.add_route(route.method, route.path, self._handler(site, route))
        return application

    # ----------------------------------------------------------------------------------------------- calls
    def _handler(self, site: _Site, route: AgentRoute) -> edge.Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            if len(site.running) >= CALLS_MAX:
                raise TemporaryError(f"{CALLS_MAX} calls are under way already", code="busy")
            self._count(site, route, 1.0)
            work = self._upload(site, route, request) if route.uploads else self._call(site, route, request)
            result = await site.running.call(work, deadline_s=route.deadline_s, cancellable=route.waits)
            if isinstance(result, bytes):
                return web.Response(body=result, content_type="application/octet-stream")
            return edge.answer(result)

        return handle

    def _count(self, site: _Site, route: AgentRoute, cost: float) -> None:
        """Before anything else is done; raises `TooManyError`. The agent's calls are counted over all of its
        connections and harnesses."""
        error = self._meters[site.name].take(route.sort, cost, asyncio.get_running_loop().time())
        if error is None:
            return
        if error.first:
            log.warning("agent.limited", agent=site.name, sort=error.sort)
            if self._limited is not None:
                self._limited(site.name, error)
        raise error

    def _count_text(self, site: _Site, route: AgentRoute, given: BaseModel) -> None:
        """What is kept of a message or question grows with its text and with how many get it."""
        if isinstance(given, wire.SendMessage):
            each = len(given.body) // TEXT_BYTES
            self._count(site, route, each + (1 + each) * (len(self._sites) // 4 if given.to == "*" else 0))
        elif isinstance(given, wire.AskOperator):
            self._count(site, route, len(given.question) // TEXT_BYTES)

    async def _upload(self, site: _Site, route: AgentRoute, request: web.Request) -> Result:
        if site.uploading >= UPLOADS_MAX:
            raise TemporaryError(f"{UPLOADS_MAX} uploads are under way already", code="busy", after_s=5)
        site.uploading += 1
        try:
            return await self._call(site, route, request)
        finally:
            site.uploading -= 1

    async def _call(self, site: _Site, route: AgentRoute, request: web.Request) -> Result:
        _check_wire(request.headers.get(wire.WIRE_HEADER), needed=route is not HELLO)
        boot = "" if route is HELLO else _boot(site, request.headers.get(wire.BOOT_HEADER))
        if route.manager_only and site.role is not Role.MANAGER:
            raise AgentError(
                f"only the manager may do this, and {site.name} is not the manager",
                code="forbidden",
                hint="send the manager a message that says what you need",
            )
        query = edge.parse_query(request, route.query)
        given: BaseModel | None = None
        if route.request is not None:
            given = await edge.read_model(request, route.request, wire.JSON_MAX_BYTES)
            self._count_text(site, route, given)
        elif request.can_read_body and not route.uploads:
            await edge.read_body(request, wire.JSON_MAX_BYTES)
        call = AgentCall(
            self._services,
            self._incoming,
            site.name,
            site.role,
            boot,
            request.match_info,
            query,
            given,
            request,
        )
        if route is HELLO:
            return await self._hello(site, call)
        return await route.handler(call)

    async def _hello(self, site: _Site, call: AgentCall) -> Result:
        hello = call.body(wire.Hello)
        _check_wire(str(hello.wire), needed=True)
        welcome = await HELLO.handler(call)
        site.boot = hello.boot
        return welcome


def _check_wire(version: str | None, *, needed: bool) -> None:
    if version == str(wire.WIRE_VERSION) or (version is None and not needed):
        return
    said = "no version" if version is None else f"version {version[:20]!r}"
    raise refusal(
        426,
        "wire-version",
        f"the harness speaks {said} of the wire, this host speaks {wire.WIRE_VERSION}",
        hint=f"every call carries {wire.WIRE_HEADER}; harness and host must be of one release",
    )


def _boot(site: _Site, boot: str | None) -> str:
    """The calling harness process, which must be the one that said hello last."""
    if boot is None or not re.fullmatch(wire.BOOT_PATTERN, boot):
        raise OperatorError(f"{wire.BOOT_HEADER} must be the boot id of the harness, 32 hexadecimal digits")
    if boot != site.boot:
        raise OperatorError(
            "this host process does not know this harness yet",
            code="hello-first",
            hint="say hello, then repeat",
        )
    return boot


def _make_folder(folder: Path, owner: int) -> None:
    """The agent's run folder, as `HostFiles.ensure_agent` makes it, too: BASE's, 0700, never a link."""
    try:
        folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(descriptor, owner, owner)
            os.fchmod(descriptor, 0o700)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise PermanentError(f"cannot make {folder}: {error.strerror}", code="socket") from error
