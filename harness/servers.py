"""The further MCP servers of an agent as the CLI sees them: which run, which do not, and why. What they say
is hostile text like all that comes from inside; it is bounded here, and again on the host.

The CLI goes on without a server that fails; nothing else tells of it. One that died is started again before
the next turn, at most once a minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

log = logging.getLogger(__name__)

_ASK_S = 3.0
_CONNECT_S = 12.0
_AGAIN_S = 60.0
_ERROR_MAX = 300


class Client(Protocol):
    """What is needed of the SDK's client."""

    def get_mcp_status(self) -> Awaitable[Any]: ...
    def reconnect_mcp_server(self, server_name: str) -> Awaitable[None]: ...


class Servers:
    """Asks for the states of the servers that the spec names, and tells of changes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: list[dict[str, Any]] = []
        self._tried: dict[str, float] = {}

    def forget(self) -> None:
        """Another CLI: all are started anew."""
        self._told, self._tried = [], {}

    async def revive(self, client: Client, names: Sequence[str]) -> None:
        """Start those again that failed, before a turn. What does not work is told by `news`."""
        now = self._clock()
        for one in self._told:
            name = one["name"]
            if one["status"] != "failed" or name not in names or now < self._tried.get(name, 0.0):
                continue
            self._tried[name] = now + _AGAIN_S
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await client.reconnect_mcp_server(name)
            except Exception as error:  # noqa: BLE001 - the SDK raises plain Exception; the turn goes on without it
                log.warning("starting the MCP server %s again: %s", name, error)

    async def news(self, client: Client, names: Sequence[str]) -> list[dict[str, Any]] | None:
        """The states, if they are others than those told last."""
        if not names:
            return None
        try:
            async with asyncio.timeout(_ASK_S):
                answer = await client.get_mcp_status()
        except Exception as error:  # noqa: BLE001 - the SDK raises plain Exception; the next turn asks again
            log.warning("asking for the MCP servers: %s", error)
            return None
        found = states(answer, names)
        if found == self._told:
            return None
        self._told = found
        return found


def states(answer: object, names: Sequence[str]) -> list[dict[str, Any]]:
    """The states of these servers, in their order, from the CLI's answer, whatever that is."""
    listed = answer.get("mcpServers") if isinstance(answer, Mapping) else None
    known = {
        str(one.get("name")): one
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, Mapping)
    }
    return [_state(name, known.get(name, {})) for name in names]


def _state(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    tools = told.get("tools")
    state: dict[str, Any] = {
        "name": name,
        "status": str(told.get("status") or "unknown")[:40],
        "tools": len(tools) if isinstance(tools, list) else 0,
    }
    if told.get("error"):
        state["error"] = str(told["error"])[:_ERROR_MAX]
    return state
