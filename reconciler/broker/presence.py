"""What every agent is doing now: one computation for every badge, list and event.

`derive_state` is pure. `Presence` holds what only this process knows (hello, live turn, what passes saw of
the container), tells `agent.state` when the answer changes, and remembers since when it holds.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from reconciler.agents import Now
from reconciler.broker.residency import Count, Residency
from reconciler.broker.signals import Signal
from reconciler.effects.protocols import Clock, ContainerStatus
from reconciler.errors import OperatorError
from reconciler.model.instants import MICRO, micros, parse_stamp, stamp, stamp_or_none
from reconciler.model.names import AgentName
from reconciler.model.states import AgentState, Desired
from reconciler.plan.steps import Again, Failed, Outcome, Settled, Waiting
from reconciler.store import agents, turns
from reconciler.store import events as history
from reconciler.store.db import Row, Store

GRACE_S = 5.0
"""After a start of hived, harnesses at work get this long to greet before they count as not there."""

NO_SEAT = "waiting for a seat"
COMPACTIONS = {"compaction": "summing its conversation up", "notes": "rewriting its notes"}
"""What a turn of that purpose is shown as, all along."""

Phase = Literal["unknown", "absent", "starting", "running", "exited"]


@dataclass(frozen=True, slots=True)
class Facts:
    """All that decides what an agent is shown as. Instants in microseconds, 0: not; `parked_until` None:
    without end.

    `phase` as the last pass saw the container (unknown before the first); `rest` why that pass left things
    as they are, `waits` whether for something that must happen first, `retry_at` when it looks again.
    """

    desired: Desired = Desired.RUNNING
    phase: Phase = "running"
    rest: str = ""
    waits: bool = False
    retry_at: int | None = None
    crashes: int = 0
    hello: bool = True
    turn: bool = False
    compacting: str = ""
    no_seat: bool = False
    held: bool = False
    hold_reason: str = ""
    parked_until: int | None = 0
    parked_reason: str = ""
    napping_until: int = 0
    nap_reason: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """A state with its reason and, where it ends by itself, its end (microseconds)."""

    state: AgentState
    reason: str = ""
    until: int | None = None


def derive_state(facts: Facts) -> Shown:
    """What the agent is shown as: what its container is, else what its harness does, else why it rests."""
    alive = facts.phase in {"starting", "running"}
    if facts.desired is not Desired.RUNNING:
        return Shown(AgentState.STOPPED, "its container is being stopped" if alive else "")
    if facts.held:
        return Shown(AgentState.HELD, facts.hold_reason or "held by the operator")
    if facts.phase in {"absent", "exited"}:
        if facts.crashes:
            return Shown(AgentState.CRASHED, facts.rest or "its container ended", facts.retry_at)
        return Shown(AgentState.STOPPED if facts.waits else AgentState.STARTING, facts.rest)
    if facts.turn:
        doing = facts.compacting
        return Shown(AgentState.COMPACTING, doing) if doing else Shown(AgentState.THINKING)
    if not facts.hello:
        return Shown(AgentState.STARTING, facts.rest or "its harness has not said hello yet")
    if facts.parked_until != 0:
        return Shown(AgentState.PARKED, facts.parked_reason, facts.parked_until)
    if facts.napping_until:
        return Shown(AgentState.NAPPING, facts.nap_reason, facts.napping_until)
    return Shown(AgentState.IDLE, NO_SEAT if facts.no_seat else "")


@dataclass(slots=True)
class _Memory:
    """What only this process knows of one agent."""

    boot: str | None = None
    hello_at: float | None = None
    generation: int | None = None
    turn_ended_at: float = 0.0
    ready: bool = False
    turn: int | None = None
    model: str | None = None
    purpose: str = "messages"
    compacting: str = ""
    context: tuple[int, int] | None = None
    servers: list[Mapping[str, Any]] = field(default_factory=list)
    context_read: bool = False
    phase: Phase = "unknown"
    rest: str = ""
    waits: bool = False
    retry_at: int | None = None


class Closed(Protocol):
    """Why an agent may begin no turn, and until when (microseconds; None: nobody knows)."""

    @property
    def until(self) -> int | None: ...
    @property
    def reason(self) -> str: ...


class Publish(Protocol):
    """Write an event to history and stream."""

    def __call__(self, kind: str, agent: str | None, **data: Any) -> Awaitable[int]: ...


class Presence:
    """Agents as they are now. Methods that change something are synchronous: `run` tells of it soon after."""

    def __init__(self, store: Store, clock: Clock, publish: Publish) -> None:
        self._store = store
        self._clock = clock
        self._publish = publish
        self._memories: dict[str, _Memory] = {}
        self._told: dict[str, tuple[Shown, int]] = {}
        self._past: dict[str, tuple[Shown, int] | None] = {}  # what history said when it was asked
        self._unsure: set[str] = set()
        self._passed: dict[str, int] = {}
        self._dirty: set[str] = set()
        self._news = Signal()
        self.gate: Callable[[str, Row], Closed | None] = _open  # what keeps all agents, as far as it goes
        self._grace_until = micros(clock.now() + GRACE_S)
        self.residency: Residency | None = None  # of the broker, which is made after this

    async def load(self) -> None:
        """Take up open turns of the process before: their harnesses may still be at work. And what history
        says of every agent, at once."""
        names = [row["name"] for row in await agents.existing(self._store.state)]
        self._past = dict.fromkeys(names)
        for row in await history.last_states(self._store.events, names):
            self._past[row["agent"]] = _shown(row)
        for name in names:
            self._of(name).context_read = True
        contexts = await history.last_contexts(self._store.events, names)
        over = await turns.of_other_sessions(self._store.state, [row["turn_id"] for row in contexts])
        for row in contexts:
            used, window = _context(row)
            self._of(row["agent"]).context = (0 if row["turn_id"] in over else used, window)
        for row in await turns.all_open(self._store.state):
            self.turn_begun(AgentName(row["agent"]), row["id"], row["model"], row["purpose"])

    # ------------------------------------------------------------------------------------- what others tell
    def hello(self, agent: AgentName, boot: str, generation: int) -> None:
        """A harness process greeted, and was told that generation."""
        memory = self._of(agent)
        if memory.boot != boot:
            memory.ready = False
        memory.boot, memory.hello_at, memory.generation = boot, self._clock.now(), generation
        self.touch(agent)

    def gone(self, agent: AgentName) -> None:
        """The harness is no more."""
        memory = self._of(agent)
        memory.boot = memory.hello_at = memory.turn = memory.generation = None
        memory.ready = False
        memory.compacting = ""
        self.touch(agent)

    def turn_begun(self, agent: AgentName, turn: int, model: str, purpose: str = "messages") -> None:
        """A turn is live from now on; `purpose` as in `harness.wire.BeginTurn`."""
        memory = self._of(agent)
        memory.turn, memory.model, memory.compacting = turn, model, COMPACTIONS.get(purpose, "")
        memory.purpose = purpose
        self.touch(agent)

    def turn_ended(self, agent: AgentName, turn: int) -> None:
        """That turn is over."""
        memory = self._of(agent)
        if memory.turn == turn:
            memory.turn, memory.compacting, memory.turn_ended_at = None, "", self._clock.now()
            self.touch(agent)

    def compacting(self, agent: AgentName, *, on: bool) -> None:
        """The live turn compacts, as told by the container."""
        memory = self._of(agent)
        doing = COMPACTIONS.get(memory.purpose, COMPACTIONS["compaction"] if on else "")
        if memory.compacting != doing:
            memory.compacting = doing
            self.touch(agent)

    def servers(self, agent: AgentName, told: Sequence[Mapping[str, Any]]) -> bool:
        """Further MCP servers, as told by the container; whether that is news."""
        memory = self._of(agent)
        is_news = memory.servers != list(told)
        memory.servers = list(told)
        return is_news

    def context(self, agent: AgentName, used: int, window: int) -> None:
        """Tokens in use and the window, as told by the container."""
        memory = self._of(agent)
        memory.context, memory.context_read = (used, window), True

    def fresh_session(self, name: AgentName) -> None:
        """The conversation begins anew; the window is that of the model, as before."""
        memory = self._of(name)
        memory.context = None if memory.context is None else (0, memory.context[1])
        self.touch(name)

    async def set_phase(self, agent: AgentName, status: ContainerStatus, outcome: Outcome) -> None:
        """What a pass saw and why it rests; called by every pass."""
        memory = self._of(agent)
        rest, waits, retry_at = "", False, None
        match outcome:
            case Waiting(on):
                rest, waits = f"waiting for {on}", True
            case Failed(error):
                rest = error
            case Again(after_s) if status.phase in {"absent", "exited"}:
                retry_at = micros(self._clock.now() + after_s)
            case Again() | Settled():
                pass
        before = (memory.phase, memory.rest, memory.waits, memory.retry_at is None)
        if before == (status.phase, rest, waits, retry_at is None):
            return  # the same delay, seen a moment later, is the same instant
        memory.phase, memory.rest, memory.waits, memory.retry_at = status.phase, rest, waits, retry_at
        self.touch(agent)

    def touch(self, agent: str) -> None:
        """Something may have changed: look again soon."""
        self._dirty.add(agent)
        self._news.notify()

    # --------------------------------------------------------------------------------------- what others ask
    def boot_of(self, agent: AgentName) -> str | None:
        """The harness process that greeted last, if it is not known to be gone."""
        return self._of(agent).boot

    def is_ready(self, agent: AgentName) -> bool:
        """Whether that harness process has come to take messages (or was in a turn when it greeted): it has
        loaded all that a turn needs."""
        return self._of(agent).ready

    def ready(self, agent: AgentName) -> bool:
        """The harness takes messages; True if that is news."""
        memory = self._of(agent)
        if memory.ready:
            return False
        memory.ready = True
        return True

    def hello_of(self, agent: AgentName) -> float | None:
        """Epoch seconds of its hello to this process."""
        return self._of(agent).hello_at

    def turn_ended_at(self, agent: AgentName) -> float:
        """Epoch seconds at which its last turn ended, 0 if none did in this process."""
        return self._of(agent).turn_ended_at

    def generation_of(self, agent: AgentName) -> int | None:
        """The generation that it was told then."""
        return self._of(agent).generation

    def turn_of(self, agent: AgentName) -> int | None:
        """The live turn."""
        return self._of(agent).turn

    async def now(self, name: AgentName, row: Row | None = None) -> Now:
        """What the agent is doing, from its row (of `agents.get`, read here unless given); `OperatorError`
        code `not-found`."""
        row = row or await agents.get(self._store.state, name)
        if row is None:
            raise OperatorError(f"there is no agent {name[:60]!r}", code="not-found")
        shown = derive_state(self._facts(name, row))
        told = self._told.get(name) or await self._remembered(name)
        if told is not None and not self._is_known(name):
            shown = told[0]
        since = told[1] if told is not None and told[0].state is shown.state else micros(self._clock.now())
        used, window = await self._context_of(name) or (None, None)
        return Now(
            state=shown.state,
            since=since / MICRO,
            reason=shown.reason,
            until=None if shown.until is None else shown.until / MICRO,
            context_used=used,
            context_window=window,
            active_model=self._of(name).model,
            servers=tuple(self._of(name).servers),
            resident=self.residency is not None and self.residency.is_resident(name),
            nap_until=(_whole_ms(agents.napping_until(row, micros(self._clock.now()))) or 0) / MICRO or None,
        )

    def seats(self) -> Count:
        """Seats of resident sessions, and how many agents wait for one."""
        return self.residency.count() if self.residency is not None else Count(0, 0, 0, 0)

    # -------------------------------------------------------------------------------------------- telling
    async def run(self) -> None:
        """Tell of changes until cancelled; naps and parkings that end by themselves, too."""
        for row in await agents.existing(self._store.state):
            self._dirty.add(row["name"])
        while True:
            seen = self._news.version
            names, self._dirty = self._dirty, set()
            for name in sorted(names):
                await self.tell(name)
            ends = self._ends()
            pause_s = None if not ends else min(ends.values()) / MICRO - self._clock.now()
            if not await self._news.wait(seen, self._clock, pause_s):
                now = micros(self._clock.now())
                due = {name: at for name, at in ends.items() if at <= now}
                self._passed |= due
                self._dirty.update(due)

    def _ends(self) -> dict[str, int]:
        """When to look at agents again although nobody said so: each such instant counts once."""
        ends = {name: shown.until for name, (shown, _) in self._told.items() if shown.until is not None}
        ends |= dict.fromkeys(self._unsure, self._grace_until)
        return {name: at for name, at in ends.items() if self._passed.get(name) != at}

    async def tell(self, name: str) -> None:
        """Publish the agent's state if it is another than the last one told."""
        row = await agents.get(self._store.state, name)
        if row is None:
            return
        told = self._told.get(name) or await self._remembered(name)
        if told is not None:
            self._told[name] = told
            if not self._is_known(name):
                self._unsure.add(name)
                return  # nothing is known yet that history does not say better
        self._unsure.discard(name)
        shown = derive_state(self._facts(name, row))
        if told is not None and told[0] == shown:
            return
        since = told[1] if told is not None and told[0].state is shown.state else micros(self._clock.now())
        self._told[name] = (shown, since)
        await self._publish(
            "agent.state",
            name,
            state=str(shown.state),
            reason=shown.reason,
            until=stamp_or_none(shown.until),
            since=stamp(since),
        )

    # ------------------------------------------------------------------------------------------- inside
    def _of(self, agent: str) -> _Memory:
        return self._memories.setdefault(agent, _Memory())

    def _is_known(self, name: str) -> bool:
        """Whether this process knows more of the agent than history does."""
        memory = self._of(name)
        if memory.hello_at is not None or memory.turn is not None or memory.phase in {"absent", "exited"}:
            return True
        return memory.phase != "unknown" and micros(self._clock.now()) >= self._grace_until

    def _facts(self, name: str, row: Row) -> Facts:
        memory, now = self._of(name), micros(self._clock.now())
        parked_until, parked_reason = agents.parked_until(row, now), agents.parked_reason(row, now)
        gate = self.gate(name, row)
        if (
            gate is not None
            and parked_until is not None
            and (gate.until is None or gate.until > parked_until)
        ):
            parked_until, parked_reason = gate.until, gate.reason
        return Facts(
            desired=Desired(row["desired"]),
            phase=memory.phase,
            rest=memory.rest,
            waits=memory.waits,
            retry_at=_whole_ms(memory.retry_at),
            crashes=row["crashes"],
            hello=memory.hello_at is not None,
            turn=memory.turn is not None,
            compacting=memory.compacting,
            no_seat=self.residency is not None and self.residency.is_waiting(name),
            held=bool(row["held"]),
            hold_reason=row["hold_reason"] or "",
            parked_until=_whole_ms(parked_until),
            parked_reason=parked_reason,
            napping_until=_whole_ms(agents.napping_until(row, now)) or 0,
            nap_reason=row["nap_reason"],
        )

    async def _remembered(self, name: str) -> tuple[Shown, int] | None:
        """The last state that history tells of, and since when."""
        if name not in self._past:
            row = await history.last_state(self._store.events, name)
            self._past[name] = None if row is None else _shown(row)
        return self._past[name]

    async def _context_of(self, name: str) -> tuple[int, int] | None:
        memory = self._of(name)
        if memory.context is None and not memory.context_read:
            memory.context_read = True
            row = await history.last_context(self._store.events, name)
            if row is not None and memory.context is None:
                memory.context = _context(row)
        return memory.context


def _open(_name: str, _row: Row) -> None:
    """Nothing keeps anybody."""


def _shown(row: Row) -> tuple[Shown, int]:
    """The state that an event told, and since when (microseconds)."""
    data = json.loads(row["data"])
    until = None if data["until"] is None else parse_stamp(data["until"])
    return Shown(AgentState(data["state"]), data["reason"], until), parse_stamp(data["since"])


def _context(row: Row) -> tuple[int, int]:
    data = json.loads(row["data"])
    return data["used_tokens"], data["window_tokens"]


def _whole_ms(instant: int | None) -> int | None:
    """As it is told: in milliseconds, so that it equals what history gives back; never too early."""
    return None if instant is None else -(-instant // 1000) * 1000
