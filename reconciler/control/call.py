"""What the rows of the control API's table are made of: a `Route`, and the `Call` that its handler gets."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from reconciler.control.auth import BOTH, Caller, Door
from reconciler.control.edge import Param, Value, parse_id
from reconciler.model.names import AgentName, agent_name
from reconciler.model.states import UserRole
from reconciler.services import Actor, Services

_M = TypeVar("_M", bound=BaseModel)

DEADLINE_S = 14.0  # under the 15 s after which clients give up, so that they hear why


@dataclass(frozen=True, slots=True)
class Call:
    """One checked request: path values as the URL has them, `query` with every declared parameter."""

    services: Services
    caller: Caller
    path: Mapping[str, str]
    query: Mapping[str, Value]
    given: BaseModel | None

    @property
    def actor(self) -> Actor:
        """Who acts. Only for routes with a role."""
        assert self.caller.actor is not None
        return self.caller.actor

    @property
    def agent(self) -> AgentName:
        """The agent in the path, a valid name."""
        return agent_name(self.path["name"])

    @property
    def id(self) -> int:
        """The number in the path."""
        return parse_id(self.path["id"])

    @property
    def pair(self) -> tuple[AgentName, AgentName]:
        """The two agents in the path."""
        return agent_name(self.path["name"]), agent_name(self.path["peer"])

    @property
    def attachment(self) -> str:
        """The attachment in the path; one that does not exist is not found."""
        return self.path["attachment"]

    def body(self, model: type[_M]) -> _M:
        """The body, which the route declares to be a `model`."""
        assert isinstance(self.given, model)
        return self.given

    def text(self, name: str) -> str | None:
        """A string parameter; None if not given."""
        value = self.query[name]
        return None if value is None else str(value)

    def number(self, name: str) -> int | None:
        """An integer parameter; None if not given and without default."""
        value = self.query[name]
        return None if value is None else int(value)

    def count(self, name: str) -> int:
        """An integer parameter that has a default."""
        value = self.number(name)
        assert value is not None
        return value


Handler = Callable[[Call], Coroutine[Any, Any, BaseModel]]


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table. `role` None: no login needed. `special`: the server answers, not the handler."""

    method: Literal["GET", "POST"]
    path: str
    summary: str
    answer: type[BaseModel] | None
    handler: Handler
    role: UserRole | None = UserRole.VIEWER
    request: type[BaseModel] | None = None
    query: tuple[Param, ...] = ()
    doors: frozenset[Door] = BOTH
    special: Literal["stream", "archive", "openapi"] | None = None
    deadline_s: float = DEADLINE_S
