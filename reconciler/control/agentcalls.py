"""The table of the agent API (`harness.wire.models`): what a harness may ask of its host, and who may ask it.

The agent is proven by the socket; nothing that it sends names it. What an agent asks about others is refused
here already, in words that the model behind it can use; the services check once more.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel

from harness import wire
from reconciler.control import models as api
from reconciler.control.edge import Param, Value, parse_id
from reconciler.control.meters import Sort
from reconciler.control.ownstatus import own_status
from reconciler.control.uploads import UPLOAD_S, Incoming, receive_file, receive_form
from reconciler.errors import AgentError
from reconciler.model.names import AgentName, agent_name, commit
from reconciler.model.states import Role, UserRole
from reconciler.services import Actor, Services

_M = TypeVar("_M", bound=BaseModel)

DEADLINE_S = 19.0  # no tool blocks longer than 20 s (design section 8) …
WAIT_MAX_S = 180  # … except waiting for messages


@dataclass(frozen=True, slots=True)
class AgentCall:
    """One checked request of `agent`, whose harness process is `boot`."""

    services: Services
    incoming: Incoming
    agent: AgentName
    role: Role
    boot: str
    path: Mapping[str, str]
    query: Mapping[str, Value]
    given: BaseModel | None
    request: web.Request

    @property
    def id(self) -> int:
        """The number in the path."""
        return parse_id(self.path["id"])

    @property
    def name(self) -> AgentName:
        """The agent (or draft) in the path, a valid name."""
        return agent_name(self.path["name"])

    def body(self, model: type[_M]) -> _M:
        """The body, which the table declares to be a `model`."""
        assert isinstance(self.given, model)
        return self.given

    def number(self, name: str) -> int:
        """An integer parameter that has a default."""
        return int(self.query[name] or 0)

    def text(self, name: str) -> str:
        """A string parameter; empty if not given."""
        return str(self.query[name] or "")


Result = BaseModel | bytes
Handler = Callable[[AgentCall], Coroutine[Any, Any, Result]]


@dataclass(frozen=True, slots=True)
class AgentRoute:
    """One row. `waits`: a long poll that ends when its client goes. `uploads`: the handler reads the body.
    `counts`: with what it is counted (None: reads, uploads or acts, as it is)."""

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    request: type[BaseModel] | None = None
    query: tuple[Param, ...] = ()
    manager_only: bool = False
    waits: bool = False
    uploads: bool = False
    deadline_s: float = DEADLINE_S
    counts: Sort | None = None

    @property
    def sort(self) -> Sort:
        """Which of the agent's meters counts a call."""
        if self.counts is not None:
            return self.counts
        return "reads" if self.method == "GET" else "uploads" if self.uploads else "acts"


# ------------------------------------------------------------------------------------------------ handlers
async def _inbox(call: AgentCall) -> wire.Inbox:
    turn = call.query["turn"]
    return await call.services.broker.inbox(
        call.agent,
        call.boot,
        wait_s=float(call.query["wait"] or 0),
        limit=call.number("max"),
        turn=None if turn is None else int(turn),
    )


async def _directives(call: AgentCall) -> wire.Directives:
    wait_s = float(call.query["wait"] or 0)
    return await call.services.broker.directives(call.agent, wait_s=wait_s, after=call.number("after"))


def _done(act: Callable[[AgentCall], Coroutine[Any, Any, object]]) -> Handler:
    """A handler for services that answer nothing."""

    async def handle(call: AgentCall) -> wire.Done:
        await act(call)
        return wire.Done()

    return handle


async def _propose(call: AgentCall) -> wire.Proposed:
    target = agent_name(call.text("agent") or call.agent)
    if target != call.agent and call.role is not Role.MANAGER:
        raise AgentError(
            f"you may propose changes of yourself ({call.agent}) only, not of {target}",
            code="forbidden",
            hint="send the manager a message that says what should change and why",
        )
    sha = commit(call.text("commit"))
    with call.incoming.folder() as folder:
        bundle = folder / "bundle"
        await receive_file(call.request, bundle, wire.BUNDLE_MAX_BYTES)
        return await call.services.approvals.propose_bundle(
            call.agent, target, sha, call.text("description"), bundle
        )


async def _commit_draft(call: AgentCall) -> wire.Proposed:
    name, sha = call.name, commit(call.text("commit"))
    limits = {"bundle": wire.BUNDLE_MAX_BYTES, "state": wire.STATE_TAR_MAX_BYTES}
    with call.incoming.folder() as folder:
        files = await receive_form(call.request, folder, limits)
        return await call.services.approvals.propose_draft(
            call.agent, name, sha, call.text("description"), files["bundle"], files["state"]
        )


async def _bundle(call: AgentCall) -> bytes:
    if call.name != call.agent and call.role is not Role.MANAGER:
        raise AgentError(
            f"you may read your own repository ({call.agent}) only", code="forbidden", hint="ask the manager"
        )
    return await call.services.approvals.repository_bundle(call.agent, call.name)


async def _agents(call: AgentCall) -> wire.Agents:
    """The manager sees all; the others themselves, as `get_status` shows it."""
    known = await call.services.agents.all()
    shown = [a for a in known if call.role is Role.MANAGER or a.name == call.agent]
    return wire.Agents(
        agents=[
            wire.PeerAgent(
                name=agent.name,
                role=agent.role.value,
                state=agent.state.value,
                model=agent.model.active or agent.model.queued or "",
                generation=agent.generation,
                commit=agent.commit,
            )
            for agent in shown
        ]
    )


async def _logs(call: AgentCall) -> wire.Logs:
    return wire.Logs(lines=(await call.services.agents.logs(call.name, call.number("lines"))).lines)


def _steer(verb: Literal["start", "stop", "restart"]) -> AgentRoute:
    async def act(call: AgentCall) -> wire.Done:
        if call.name == call.agent:
            raise AgentError(
                f"you cannot {verb} yourself", code="forbidden", hint="end the turn, or ask the operator"
            )
        actor = Actor(f"agent:{call.agent}", UserRole.OPERATOR)
        request = api.Act(note=f"asked by {call.agent}")
        match verb:
            case "start":
                await call.services.agents.start(actor, call.name, request)
            case "stop":
                await call.services.agents.stop(actor, call.name, request)
            case "restart":
                await call.services.agents.restart(actor, call.name, request)
        return wire.Done()

    return AgentRoute("POST", f"/v1/agents/{{name}}/{verb}", act, manager_only=True)


# --------------------------------------------------------------------------------------------------- table
_WAIT = Param("wait", "number", "Wait so many seconds for something to come.", default=0, high=WAIT_MAX_S)
_MAX = Param("max", "integer", "At most so many messages.", default=20, low=1, high=100)
_TURN = Param("turn", "integer", "The turn to which their lease shall belong.", low=1)
_AFTER = Param("after", "integer", "Only directives with a larger id.", default=0)
_LINES = Param("lines", "integer", "The last so many lines.", default=200, low=1, high=2000)
_TARGET = Param("agent", "string", "For whom; you, if it is not given.")
_COMMIT = Param("commit", "string", "The full commit id.", pattern=r"[^\0]{0,100}")
_DESCRIPTION = Param("description", "string", "What changes and why, at most 2000 characters.")
_WAITING = WAIT_MAX_S + 10.0

HELLO = AgentRoute(
    "POST",
    "/v1/hello",
    lambda c: c.services.broker.hello(c.agent, c.body(wire.Hello)),
    wire.Hello,
    counts="hello",
)

AGENT_ROUTES: tuple[AgentRoute, ...] = (
    HELLO,
    AgentRoute("GET", "/v1/inbox", _inbox, query=(_WAIT, _MAX, _TURN), waits=True, deadline_s=_WAITING),
    AgentRoute("GET", "/v1/directives", _directives, query=(_WAIT, _AFTER), waits=True, deadline_s=_WAITING),
    AgentRoute("POST", "/v1/leases/{id}/ack", _done(lambda c: c.services.broker.ack(c.agent, c.id))),
    AgentRoute(
        "POST", "/v1/leases/{id}/return", _done(lambda c: c.services.broker.return_lease(c.agent, c.id))
    ),
    AgentRoute(
        "POST",
        "/v1/messages",
        lambda c: c.services.broker.send(c.agent, c.body(wire.SendMessage)),
        wire.SendMessage,
    ),
    AgentRoute(
        "POST",
        "/v1/turns",
        lambda c: c.services.broker.begin_turn(c.agent, c.boot, c.body(wire.BeginTurn)),
        wire.BeginTurn,
        counts="turns",
    ),
    AgentRoute(
        "POST",
        "/v1/turns/{id}/events",
        lambda c: c.services.broker.turn_events(c.agent, c.id, c.body(wire.TurnEvents)),
        wire.TurnEvents,
        counts="lines",
    ),
    AgentRoute(
        "POST",
        "/v1/turns/{id}/end",
        _done(lambda c: c.services.broker.end_turn(c.agent, c.id, c.body(wire.EndTurn))),
        wire.EndTurn,
        counts="turns",
    ),
    AgentRoute(
        "POST",
        "/v1/questions",
        lambda c: c.services.broker.ask(c.agent, c.body(wire.AskOperator)),
        wire.AskOperator,
    ),
    AgentRoute("POST", "/v1/nap", lambda c: c.services.broker.nap(c.agent, c.body(wire.Nap)), wire.Nap),
    AgentRoute(
        "POST",
        "/v1/status",
        _done(lambda c: c.services.broker.set_status(c.agent, c.body(wire.Status))),
        wire.Status,
    ),
    AgentRoute("GET", "/v1/status", lambda c: own_status(c.services, c.agent)),
    AgentRoute("POST", "/v1/parked", _done(lambda c: c.services.broker.parked(c.agent))),
    AgentRoute(
        "POST",
        "/v1/proposals",
        _propose,
        query=(_TARGET, _COMMIT, _DESCRIPTION),
        uploads=True,
        deadline_s=UPLOAD_S,
    ),
    AgentRoute(
        "POST",
        "/v1/drafts",
        lambda c: c.services.approvals.start_draft(c.agent, c.body(wire.SpawnDraft)),
        wire.SpawnDraft,
        manager_only=True,
    ),
    AgentRoute(
        "POST",
        "/v1/drafts/{name}/commit",
        _commit_draft,
        query=(_COMMIT, _DESCRIPTION),
        manager_only=True,
        uploads=True,
        deadline_s=UPLOAD_S,
    ),
    AgentRoute(
        "POST",
        "/v1/spawns",
        lambda c: c.services.approvals.request_spawn(c.agent, c.body(wire.Spawn)),
        wire.Spawn,
        manager_only=True,
    ),
    _steer("start"),
    _steer("stop"),
    _steer("restart"),
    AgentRoute("GET", "/v1/agents", _agents),
    AgentRoute("GET", "/v1/agents/{name}/logs", _logs, query=(_LINES,), manager_only=True),
    AgentRoute("GET", "/v1/repos/{name}/bundle", _bundle),
)
