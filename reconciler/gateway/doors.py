"""The agents that are served: for each its policy, its listening socket and its connections.

A door exists as long as hived wants it and this process lives; that hived is away changes nothing.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
from aiohttp import web

from reconciler.errors import OperatorError
from reconciler.gateway.catalog import Catalog
from reconciler.gateway.deadlines import Bounds
from reconciler.gateway.messages import AgentPolicy
from reconciler.gateway.proxy import Client, Proxy
from reconciler.gateway.screening import Rules
from reconciler.sockets import Bound, Listener

log = structlog.get_logger("gateway")

AGENTS_LIMIT = 1024
SHUTDOWN_S = 1.0
_KEEPALIVE_S = 75.0
_LINGER_S = 2.0
_HEADERS_LIMIT = 16 * 1024


@dataclass(slots=True)
class _Door:
    name: str
    client: Client
    server: web.Server
    listener: Listener


class Doors:
    """All agents, by name."""

    def __init__(self, *, proxy: Proxy, catalog: Catalog, host_models: Iterable[str], bounds: Bounds) -> None:
        self._proxy = proxy
        self._catalog = catalog
        self._host_models = catalog.ids(host_models)
        self._bounds = bounds
        self._doors: dict[str, _Door] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def held(self) -> dict[str, str]:
        """The agents that are served, with the names of their sockets."""
        return {agent: door.name for agent, door in self._doors.items()}

    async def set(self, policy: AgentPolicy, name: str, fd: int | None) -> None:
        """Serve an agent under this policy, at the listening socket `fd` if one came; takes the descriptor.

        Requests under way go on under the policy that they began with. `OperatorError` when there is no
        socket, or it is none that listens.
        """
        door = self._doors.get(policy.agent)
        sock = _listening(fd) if fd is not None else None
        if door is not None and door.client.policy.uid_base != policy.uid_base:
            await self.drop(policy.agent)  # another uid: whoever is connected is somebody else
            door = None
        if door is None:
            if sock is None:
                raise OperatorError(f"{policy.agent} has no socket here: pass one", code="not-found")
            if len(self._doors) >= AGENTS_LIMIT:
                sock.close()
                raise OperatorError(f"{AGENTS_LIMIT} agents are served, not one more", code="too-large")
            self._doors[policy.agent] = self._open(policy, name, sock)
            log.info("agent.served", agent=policy.agent, uid=policy.uid_base)
            return
        door.client.policy = policy
        door.client.rules = self._rules(policy)
        if sock is not None:
            await door.listener.close(unlink=False)
            door.listener = self._listen(policy, door.client, door.server, sock)
            door.name = name

    async def drop(self, agent: str) -> None:
        """Serve an agent no more; its connections are closed. Unknown: nothing to do."""
        door = self._doors.pop(agent, None)
        if door is not None:
            # To its end, also when hived goes away meanwhile: a connection that nobody serves and nobody
            # closes would keep its turn waiting for minutes.
            closing = asyncio.create_task(_shut(agent, door), name=f"drop {agent}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)

    async def close(self) -> None:
        """Drop all."""
        await asyncio.gather(*(self.drop(agent) for agent in list(self._doors)))
        await asyncio.gather(*self._closing)

    def _open(self, policy: AgentPolicy, name: str, sock: socket.socket) -> _Door:
        client = Client(policy, self._rules(policy), self._bounds)
        server = web.Server(
            functools.partial(self._proxy.handle, client),
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=_KEEPALIVE_S,
            lingering_time=_LINGER_S,
            max_field_size=_HEADERS_LIMIT,
            max_line_size=_HEADERS_LIMIT,
        )
        return _Door(name, client, server, self._listen(policy, client, server, sock))

    def _listen(
        self, policy: AgentPolicy, client: Client, server: web.Server, sock: socket.socket
    ) -> Listener:
        return Listener(
            Bound(sock, Path("agents", policy.agent, "model.sock"), (0, 0)),
            server,
            admits=lambda peer: peer.uid == client.policy.uid_base,
            open_connections=lambda: len(server.connections),
            limit=self._bounds.connections,
        )

    def _rules(self, policy: AgentPolicy) -> Rules:
        wanted = self._catalog.ids(policy.models) if policy.models else self._host_models
        return Rules(wanted & self._host_models, frozenset(policy.server_tools))


async def _shut(agent: str, door: _Door) -> None:
    await door.listener.close(unlink=False)
    await door.server.shutdown(SHUTDOWN_S)
    log.info("agent.dropped", agent=agent)


def _listening(fd: int) -> socket.socket:
    """The socket of a descriptor, which must listen on a unix stream; else it is closed."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise OperatorError("the descriptor is no socket") from None
    listens = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
    if not listens or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise OperatorError("the descriptor is no listening unix socket")
    sock.setblocking(False)
    return sock
