"""The control server: the table of routes on `control.sock` and `ui.sock`.

It translates and guards: peer, session, role, parameters, body, deadline; what a call means is the services'.
Started and closed by `app.py`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from pydantic import BaseModel

from reconciler.control import edge, openapi
from reconciler.control.auth import Caller, Door, Ids, check_peer, check_role, identify, peer_of_request
from reconciler.control.call import Call, Route
from reconciler.control.routes import ROUTES
from reconciler.control.running import CUT_S, FIRST_REQUEST_S, Heard, Running
from reconciler.control.stream import PING_S, Streams, position, send_archive
from reconciler.errors import OperatorError
from reconciler.services import Services
from reconciler.sockets import Bound, Listener, Peer, bind

CONNECTIONS_MAX = 512
IDENTIFY_S = 5.0
SHUTDOWN_S = 2.0


@dataclass(frozen=True, slots=True)
class _Open:
    """One socket that is served."""

    runner: web.AppRunner
    listener: Listener
    heard: Heard


class ControlServer:
    """Serves both sockets in `run_dir`. `ids` says who may speak at which.

    `inherited` are sockets that the supervisor holds for us, by the name of their door: they are served
    instead of new ones, and keep who connects while no hived is there. The rest is for tests.
    """

    def __init__(
        self,
        services: Services,
        run_dir: Path,
        ids: Ids,
        *,
        inherited: Mapping[str, Bound] | None = None,
        ping_s: float = PING_S,
        routes: Sequence[Route] = ROUTES,
    ) -> None:
        self._inherited = inherited or {}
        self._services = services
        self._run_dir = run_dir
        self._ids = ids
        self._routes = routes
        self._running = Running()
        self._streams = Streams(lambda after: services.events.stream(after=after), ping_s=ping_s)
        self._open: list[_Open] = []

    async def start(self) -> None:
        """Serve both sockets: those that were inherited, else new ones in place of what was there.
        `PermanentError` if that cannot be done."""
        self._run_dir.mkdir(parents=True, exist_ok=True)
        try:
            for door in Door:
                self._open.append(await self._serve(door))
        except BaseException:
            await self.close()
            raise

    async def _serve(self, door: Door) -> _Open:
        heard = Heard()
        application = self._application(door, heard)
        runner = web.AppRunner(
            application, shutdown_timeout=CUT_S, logger=edge.connection_logger(), **edge.CONNECTION
        )
        await runner.setup()
        server = runner.server
        assert server is not None
        mode, uid, gid = self._owner(door)
        listener = Listener(
            self._inherited.get(door) or bind(self._run_dir / door, mode=mode, uid=uid, gid=gid),
            server,
            admits=lambda _peer: True,  # refused per request, with words
            open_connections=lambda: len(server.connections),
            limit=CONNECTIONS_MAX,
        )
        heard.watch(server)
        return _Open(runner, listener, heard)

    async def close(self) -> None:
        """Streams end at once, calls under way get `SHUTDOWN_S`, then all is closed. Who is connected is
        answered. Safe to repeat."""
        self._streams.close()
        closing, self._open = self._open, []
        for served in closing:
            await served.listener.close()
        await asyncio.gather(*(served.heard.all(FIRST_REQUEST_S) for served in closing))
        await self._running.drain(SHUTDOWN_S)
        await asyncio.gather(*(served.runner.cleanup() for served in closing))

    def _owner(self, door: Door) -> tuple[int, int, int]:
        match door:
            case Door.CONTROL:
                return 0o660, os.geteuid(), self._ids.operators_gid
            case Door.UI:
                return 0o600, self._ids.ui_uid, self._ids.ui_gid

    def _application(self, door: Door, heard: Heard) -> web.Application:
        look = "GET /openapi.json lists the calls"
        application = web.Application(middlewares=[edge.envelopes(look, heard)])
        for route in self._routes:
            application.router.add_route(route.method, route.path, self._handler(door, route))
        return application

    def _handler(self, door: Door, route: Route) -> edge.Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            check_peer(door, peer := peer_of_request(request), self._ids)
            if door not in route.doors:
                only = ", ".join(route.doors)
                raise OperatorError(
                    f"{route.method} {route.path} is not served on {door}",
                    code="forbidden",
                    hint=f"only on {only}",
                )
            caller = await self._caller(door, request, peer, route)
            query = edge.parse_query(request, route.query)
            given = await self._given(request, route)
            call = Call(self._services, caller, request.match_info, query, given)
            if route.special is not None:
                return await self._special(request, route, call)
            result = await self._running.call(
                route.handler(call), deadline_s=route.deadline_s, cancellable=False
            )
            return edge.answer(_checked(result, route))

        return handle

    async def _caller(self, door: Door, request: web.Request, peer: Peer, route: Route) -> Caller:
        if route.role is None:  # a browser logs in again with its old session still in its cookie
            return Caller(None)
        who = identify(door, request, peer, self._services.accounts)
        caller = await self._running.call(who, deadline_s=IDENTIFY_S, cancellable=False)
        check_role(route.role, caller)
        return caller

    @staticmethod
    async def _given(request: web.Request, route: Route) -> BaseModel | None:
        if route.request is not None:
            return await edge.read_model(request, route.request, edge.JSON_MAX_BYTES)
        if request.can_read_body:
            body = await edge.read_body(request, edge.JSON_MAX_BYTES)
            if body.strip() not in {b"", b"{}"}:
                raise OperatorError(f"{route.method} {route.path} takes no body")
        return None

    async def _special(self, request: web.Request, route: Route, call: Call) -> web.StreamResponse:
        if route.special == "openapi":
            return web.Response(text=openapi.text(), content_type="application/json")
        if route.special == "archive":
            chunks = self._services.backups.stream(call.actor, with_state=call.number("state") != 0)
            return await self._running.call(send_archive(request, chunks), deadline_s=None, cancellable=True)
        after = position(request, call.number("after"))
        secret = call.caller.secret

        async def still_allowed() -> None:
            if secret is not None:
                await self._services.accounts.session(secret)

        return await self._running.call(
            self._streams.serve(request, after, still_allowed),
            deadline_s=None,
            cancellable=True,
            ends_itself=True,
        )


def _checked(result: BaseModel, route: Route) -> BaseModel:
    """A handler's answer, which must be what the table (and so the OpenAPI document) promises."""
    assert route.answer is not None
    if not isinstance(result, route.answer):
        raise TypeError(f"{route.method} {route.path} answered a {type(result).__name__}")
    return result
