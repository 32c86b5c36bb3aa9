"""What the service of agents needs of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reconciler.control import models as api
from reconciler.model.names import AgentName
from reconciler.model.states import AgentState
from reconciler.store.db import Row


@dataclass(frozen=True, slots=True)
class Now:
    """What an agent is doing now, as the broker's presence knows it. Instants in epoch seconds."""

    state: AgentState
    since: float
    reason: str
    until: float | None
    context_used: int | None
    context_window: int | None
    active_model: str | None
    servers: Sequence[Mapping[str, Any]] = ()
    resident: bool = False
    nap_until: float | None = None


class SeatCount(Protocol):
    """How many seats there are, are taken, are at work, and how many agents wait for one."""

    @property
    def cap(self) -> int: ...
    @property
    def taken(self) -> int: ...
    @property
    def busy(self) -> int: ...
    @property
    def waiting(self) -> int: ...


class Presence(Protocol):
    """Where the present state of agents is read."""

    async def now(self, name: AgentName, row: Row | None = None) -> Now:
        """`row`: the agent's, if it was just read."""
        ...

    def seats(self) -> SeatCount:
        """Those of resident sessions."""
        ...

    def fresh_session(self, name: AgentName) -> None:
        """Its context is empty from now on."""
        ...


class Voice(Protocol):
    """Orders to harnesses."""

    async def direct(self, agent: AgentName, kind: str, **data: object) -> None: ...
    def nudge(self, agent: AgentName) -> None:
        """Let a waiting inbox look again."""
        ...


class Spending(Protocol):
    """What the gateway counted."""

    @property
    def connected(self) -> bool: ...
    async def today(self) -> dict[str, tuple[int, float]]:
        """Tokens and dollars of the host-local day by agent."""
        ...

    async def rows(self) -> Sequence[api.Spending]: ...


class Storage(Protocol):
    """What the databases take."""

    async def sizes(self) -> Sequence[api.DatabaseSize]: ...

    @property
    def pruned_at(self) -> str | None:
        """When they were last pruned by this process."""
        ...
