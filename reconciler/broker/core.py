"""What the broker's parts share: store, clock, presence, the bells that wake waiters, and approved specs."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from reconciler.broker.events import EventLog
from reconciler.broker.policy import ALL, Policy, Roster
from reconciler.broker.presence import Presence
from reconciler.broker.residency import CAP_DEFAULT, IDLE_DEFAULT_S, Residency
from reconciler.broker.signals import Signal
from reconciler.effects.protocols import Clock
from reconciler.errors import AgentError, OperatorError, TemporaryError
from reconciler.model.names import AgentName
from reconciler.model.spec import Spec
from reconciler.model.states import Role, UserRole
from reconciler.services import Actor, Wake
from reconciler.store import agents, deployments
from reconciler.store.db import Reader, Row, Store

BODY_MAX_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Seats:
    """How many agents may keep a Claude Code in memory at once, and how long while they idle."""

    cap: int = CAP_DEFAULT
    idle_s: float = IDLE_DEFAULT_S


SEATS = Seats()


@dataclass(frozen=True, slots=True)
class Serving:
    """The approved generation that a harness belongs to."""

    number: int
    spec: Spec
    spec_json: dict[str, Any]
    prompt: str

    def model(self, override: str | None) -> str:
        """The model to use: the operator's override, if the spec allows it, else the spec's."""
        allowed = not self.spec.models or override == self.spec.model or override in self.spec.models
        return override if override is not None and allowed else self.spec.model


class Core:
    """Shared by sending, delivery, turns, questions and orders; no policy of its own."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        events: EventLog,
        presence: Presence,
        wake: Wake,
        seats: Seats = SEATS,
    ) -> None:
        self.store = store
        self.clock = clock
        self.events = events
        self.presence = presence
        self.wake = wake
        self.inboxes: defaultdict[str, Signal] = defaultdict(Signal)
        self.orders: defaultdict[str, Signal] = defaultdict(Signal)
        self.draining: set[str] = set()
        self.parking = Signal()
        self.residency = Residency(
            cap=seats.cap,
            idle_s=seats.idle_s,
            clock=clock.monotonic,
            ring=self.ring,
            changed=presence.touch,
            look=self.parking.notify,
        )
        presence.residency = self.residency

    def ring(self, agent: str) -> None:
        """Let the agent's waiting inbox look again."""
        self.inboxes[agent].notify()

    def rest(self, agent: AgentName) -> None:
        """The agent holds no lease; without a turn, it is at rest."""
        if self.presence.turn_of(agent) is None:
            self.residency.rest(agent)

    def check_boot(self, agent: AgentName, boot: str) -> None:
        """`AgentError` code `hello-first` unless this harness process was the last to greet."""
        if self.presence.boot_of(agent) != boot:
            raise AgentError(
                "this host process does not know your harness",
                code="hello-first",
                hint="say hello (again); if another harness of this agent has, end",
            )

    async def serving(self, agent: AgentName) -> Serving:
        """The generation to serve; `TemporaryError` before the first is approved."""
        row = await deployments.serving_generation(self.store.state, agent)
        if row is None:
            raise TemporaryError(f"{agent} has no approved generation yet", after_s=1.0)
        return _serving(row)

    async def policy(self, reader: Reader, agent: AgentName) -> Policy:
        """Whom the agent may write to: by its deployed generation, before the first one by that being
        probed."""
        row = await agents.generation(reader, agent)
        serving = _serving(row) if row is not None else await self.serving(agent)
        return Policy(agent, tuple(serving.spec.send.allow))


async def roster(reader: Reader, to: str = ALL) -> Roster:
    """The agents that are not destroyed; with `to`, no more of them than a message to it must know of: the
    one of that name, and the manager."""
    rows = await (agents.existing(reader) if to == ALL else agents.existing_of(reader, to))
    manager = next((row["name"] for row in rows if row["role"] == Role.MANAGER), None)
    return Roster(tuple(row["name"] for row in rows), manager)


def checked_body(body: str, refusal: type[OperatorError]) -> str:
    """The text of a message or an answer, if it may be one."""
    try:
        size = len(body.encode())
    except UnicodeEncodeError:
        raise refusal("the text is not valid Unicode: it has half of a surrogate pair") from None
    if size > BODY_MAX_BYTES:
        raise refusal(
            f"the text has {size} bytes, the limit is {BODY_MAX_BYTES}",
            code="too-large",
            hint="put it into a file and name the file, or send it in parts",
        )
    if "\x00" in body:
        raise refusal("the text has a NUL character")
    if not body.strip():
        raise refusal("the text is empty")
    return body


def must_be_operator(actor: Actor) -> None:
    """`OperatorError` code `forbidden` for a viewer."""
    if actor.role is not UserRole.OPERATOR:
        raise OperatorError("a viewer may only look", code="forbidden", hint="log in as an operator")


def _serving(row: Row) -> Serving:
    spec, raw = _parsed(row["spec"])
    return Serving(number=row["number"], spec=spec, spec_json=raw, prompt=row["prompt"])


@functools.lru_cache(maxsize=1024)
def _parsed(spec: str) -> tuple[Spec, dict[str, Any]]:
    """Every message asks for its sender's. Not to be written to."""
    return Spec.model_validate_json(spec), json.loads(spec)
