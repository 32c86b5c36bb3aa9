"""Agents as the operator sees and steers them. Writes desired state only; passes make it so."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, assert_never

from reconciler import __version__, causes
from reconciler.approvals import views
from reconciler.broker import outcomes
from reconciler.broker.outcomes import RULES
from reconciler.config import Config
from reconciler.control import models as api
from reconciler.effects.protocols import Containers, ContainerStatus
from reconciler.errors import OperatorError
from reconciler.explaining import explain
from reconciler.model.instants import MICRO, micros, stamp, stamp_or_none
from reconciler.model.names import AgentName
from reconciler.model.people import person
from reconciler.model.risk import is_allowed_model
from reconciler.model.states import AgentState, Desired, Role, UserRole
from reconciler.model.text import visible
from reconciler.modelchoice import Choice, choose
from reconciler.plan.steps import Again, Failed, Plan, Settled, Waiting
from reconciler.services import Actor, Approvals
from reconciler.store import agents as agent_rows
from reconciler.store import fleet, holds, loops, messages
from reconciler.store.db import Database, Row, Store, Tx


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


_ABSENT = ContainerStatus(phase="absent")

Look = Callable[[AgentName], Awaitable[Plan | None]]
LookAll = Callable[[], Awaitable[Mapping[AgentName, Plan]]]


class AgentService:
    """The service `Agents`."""

    def __init__(
        self,
        *,
        store: Store,
        config: Config,
        containers: Containers,
        look: Look,
        look_all: LookAll,
        presence: Presence,
        voice: Voice,
        approvals: Approvals,
        spending: Spending,
        wake: Callable[[AgentName], None],
        models: Sequence[str],
        last_event_id: Callable[[], Awaitable[int]],
        storage: Storage,
        trouble: Callable[[AgentName], str | None],
        troubled: Callable[[], set[AgentName]],
        shared: Callable[[], Sequence[str]] = list,
    ) -> None:
        self._store = store
        self._config = config
        self._containers = containers
        self._look = look
        self._look_all = look_all
        self._presence = presence
        self._voice = voice
        self._approvals = approvals
        self._spending = spending
        self._wake = wake
        self._models = models
        self._last_event_id = last_event_id
        self._storage = storage
        self._trouble = trouble
        self._troubled = troubled
        self._shared = shared

    # ------------------------------------------------------------------------------------------- reading
    async def all(self) -> list[api.Agent]:
        """All agents that are not destroyed, by name."""
        today = await self._spending.today()
        found = await self._containers.statuses()
        rows = await fleet.agents(self._store.state)
        return [await self._view(row, today, found.get(row["name"], _ABSENT)) for row in rows]

    async def get(self, name: str) -> api.Agent:
        """One agent."""
        return await self._shown(await fleet.agent(self._store.state, name))

    async def _shown(self, row: Row) -> api.Agent:
        status = await self._containers.status(AgentName(row["name"]))
        return await self._view(row, await self._spending.today(), status)

    async def _view(
        self, row: Row, today: dict[str, tuple[int, float]], status: ContainerStatus
    ) -> api.Agent:
        name = AgentName(row["name"])
        now = await self._presence.now(name, row)
        choice = self._choice(row)
        wanted = choice.wanted if row["spec"] else None
        active = now.active_model or row["last_model"]
        tokens, usd = today.get(name, (0, 0.0))
        return api.Agent(
            name=name,
            role=Role(row["role"]),
            desired=Desired(row["desired"]),
            state=now.state,
            state_since=stamp(int(now.since * MICRO)),
            reason=now.reason,
            until=None if now.until is None else stamp(int(now.until * MICRO)),
            status=row["status"],
            model=api.ModelStatus(
                active=active or wanted,
                queued=wanted if active and wanted != active else None,
                switched_at=stamp_or_none(row["model_switched_at"]),
                switched_by=row["model_switched_by"],
                default=choice.default if row["spec"] else "",
                override=row["model_override"],
                allowed=list(choice.allowed),
                other=row["last_other_model"],
                problem=choice.problem if row["spec"] else "",
            ),
            generation=row["generation"],
            commit=row["commit_id"],
            uid_base=row["uid_base"],
            inbox_depth=row["inbox_depth"],
            context=api.Context(used=now.context_used, window=now.context_window),
            cost_today_usd=usd,
            tokens_today=tokens,
            turn=row["turn_id"],
            last_turn_at=stamp_or_none(row["last_turn_at"]),
            last_outcome=_outcome(name, row),
            mcp_servers=[api.McpServer.model_validate(dict(one)) for one in now.servers],
            held=bool(row["held"]),
            container=api.Container(
                driver=self._containers.driver,
                unit=status.unit,
                leader_pid=status.leader_pid,
                limits_enforced=list(status.limits_enforced),
            ),
            trouble=visible(self._trouble(name) or ""),
            resident=now.resident,
            queued=_queued(row, now),
            status_at=stamp_or_none(row["status_at"]) if row["status"] else None,
            nap_until=None if now.nap_until is None else stamp(int(now.nap_until * MICRO)),
        )

    def _choice(self, row: Row) -> Choice:
        spec = json.loads(row["spec"]) if row["spec"] else {}
        return choose(spec, row["model_override"], self._config.gateway.allowed_models, self._models)

    async def policy(self, name: str, command: str, folder: str) -> api.PolicyAnswer:
        """How the Bash policy of the running generation decides on a command given in a folder."""
        return await explain(self._config, await self.spec(name), command, folder)

    async def spec(self, name: str) -> api.SpecView:
        """The approved spec of the running generation; empty before the first."""
        row = await fleet.agent(self._store.state, name)
        found = [
            g for g in await fleet.generations(self._store.state, name) if g["number"] == row["generation"]
        ]
        if not found:
            return api.SpecView(agent=name, generation=None, commit=None, digest=None, spec={})
        g = found[0]
        return api.SpecView(
            agent=name,
            generation=g["number"],
            commit=g["commit_id"],
            digest=g["spec_digest"],
            spec=json.loads(g["spec"]),
        )

    async def generations(self, name: str) -> api.GenerationList:
        """Newest first."""
        current = (await fleet.agent(self._store.state, name))["generation"]
        rows = await fleet.generations(self._store.state, name)
        return api.GenerationList(
            items=[
                api.Generation(
                    agent=name,
                    number=row["number"],
                    proposal=row["proposal_id"],
                    commit=row["commit_id"],
                    store_path=row["store_path"],
                    state=row["state"],
                    current=row["number"] == current,
                    created_at=stamp(row["created_at"]),
                )
                for row in rows
            ]
        )

    async def plan(self, name: str) -> api.Plan:
        """What the next passes would do, from the world as it is now; nothing is changed."""
        row = await fleet.agent(self._store.state, name)
        planned = await self._look(AgentName(row["name"]))
        assert planned is not None, "the row was read a moment ago and agents are never deleted"
        return _plan(name, planned)

    async def plans(self) -> list[api.Plan]:
        """The same of all agents, by name; of destroyed ones only where something is left to do."""
        living = {row["name"] for row in await agent_rows.existing(self._store.state)}
        planned = await self._look_all()
        return [_plan(name, one) for name, one in planned.items() if one.steps or name in living]

    async def why(self, name: str) -> api.Why:
        """What led to what it is, newest first, and why it rests or works now."""
        view, plan = await self.get(name), await self.plan(name)
        chain = await causes.of_agent(self._store, AgentName(view.name))
        return api.Why(agent=view.name, chain=chain, now=causes.at_rest(view, plan))

    async def logs(self, name: str, lines: int) -> api.LogLines:
        """Last lines of the console."""
        row = await fleet.agent(self._store.state, name)
        return api.LogLines(lines=list(await self._containers.logs(AgentName(row["name"]), lines)))

    async def status(self) -> api.HiveStatus:
        """The hive at a glance."""
        row = await fleet.counts(self._store.state)
        today = await self._spending.today()
        whole = [one for one in await holds.every(self._store.state) if one.scope == holds.EVERYBODY]
        held = await fleet.held(self._store.state)
        stuck = (await fleet.crashed(self._store.state) | self._troubled()) - held
        looping = await loops.held_pairs(self._store.state)
        return api.HiveStatus(
            version=__version__,
            platform=self._config.platform,
            driver=self._containers.driver,
            model_upstream=self._config.gateway.label,
            agents=row["agents"],
            thinking=row["thinking"],
            needs_operator=row["pending"] + row["questions"] + looping + len(held | stuck) + len(whole),
            approvals_pending=row["pending"],
            questions_open=row["questions"],
            cost_today_usd=sum(usd for _, usd in today.values()),
            audit_head=row["audit_head"] or "",
            last_event_id=await self._last_event_id(),
            gateway_connected=self._spending.connected,
            databases=list(await self._storage.sizes()),
            pruned_at=self._storage.pruned_at,
            troubles=[
                *(_no_room(db) for db in (self._store.state, self._store.events) if db.full_since),
                *self._shared(),
            ],
            hold=views.hold(whole[0]) if whole else None,
            held=sorted(held),
            stuck=sorted(stuck),
            loops_held=looping,
            seats=self._seats(),
        )

    def _seats(self) -> api.Seats:
        count = self._presence.seats()
        return api.Seats(cap=count.cap, taken=count.taken, busy=count.busy, waiting=count.waiting)

    # ------------------------------------------------------------------------------------------- steering
    async def new(self, actor: Actor, request: api.NewAgent) -> api.Proposal:
        """A new agent from the template, as a proposal (decided at once if the request says so)."""
        _operator(actor)
        return await self._approvals.new_agent(actor, request)

    async def start(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        """Let it run; earlier crashes are forgiven."""
        return await self._want(actor, name, request, Desired.RUNNING, "start")

    async def stop(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        """Stop its container; everything else is kept."""
        return await self._want(actor, name, request, Desired.STOPPED, "stop")

    async def destroy(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        """Remove its container; repository, state and messages are kept."""
        return await self._want(actor, name, request, Desired.DESTROYED, "destroy")

    async def _want(
        self, actor: Actor, name: str, request: api.Act, desired: Desired, verb: str
    ) -> api.Agent:
        _operator(actor)
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            before = await fleet.agent(tx, name)
            if before["desired"] == Desired.DESTROYED and desired is not Desired.DESTROYED:
                raise _destroyed(name)
            _not_held_by_people(actor, before)
            await fleet.set_desired(tx, name, desired)
            await tx.audit(actor.name, f"agent.{verb}", name, note=request.note)
            await tx.emit("agent.state", name, desired=str(desired))
        if request.dry_run:  # what it is now, and what it would be told
            return (await self._shown(before)).model_copy(update={"desired": desired})
        self._wake(AgentName(name))
        return await self.get(name)

    async def restart(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        """Restart its container now, a running turn is cut short and its messages come again."""
        _operator(actor)
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            row = await fleet.agent(tx, name)
            if row["desired"] == Desired.DESTROYED:
                raise _destroyed(name)
            _not_held_by_people(actor, row)
            if row["desired"] != Desired.RUNNING:
                raise OperatorError(
                    f"{name} is {row['desired']}", code="conflict", hint=f"`hive start {name}`"
                )
            await fleet.want_restart(tx, name)
            await tx.audit(actor.name, "agent.restart", name, note=request.note)
        if not request.dry_run:
            self._wake(AgentName(name))
        return await self.get(name)

    async def cancel(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        """Interrupt the running turn, end a nap."""
        return await self._direct(actor, name, request, "cancel")

    async def wake(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        """End a nap or a parking."""
        return await self._direct(actor, name, request, "wake")

    async def nap(self, actor: Actor, name: str, request: api.NapAgent) -> api.Agent:
        """No turn begins before `seconds` have passed, unless something urgent comes; a running one ends as
        it would. Nothing if something urgent waits: that would end it at once."""
        _operator(actor)
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            row = await fleet.agent(tx, name)
            if row["desired"] == Desired.DESTROYED:
                raise _destroyed(name)
            if await messages.urgent_waits(tx, name):
                raise OperatorError(
                    f"something urgent waits for {name}, and goes first",
                    code="conflict",
                    hint=f"let it nap once its turn over that has begun; `hive messages --agent {name}`",
                )
            reason = request.note or f"told to by {person(actor.name)}"
            await agent_rows.nap(tx, name, tx.now + micros(request.seconds), reason)
            await tx.audit(actor.name, "agent.nap", name, seconds=request.seconds, note=request.note)
        if not request.dry_run:
            self._voice.nudge(AgentName(name))
        return await self.get(name)

    async def _direct(self, actor: Actor, name: str, request: api.Act, kind: str) -> api.Agent:
        _operator(actor)
        row = await fleet.agent(self._store.state, name)
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            await fleet.end_nap(tx, name)
            await tx.audit(actor.name, f"agent.{kind}", name, note=request.note)
        if not request.dry_run:
            await self._voice.direct(AgentName(row["name"]), kind)
            self._voice.nudge(AgentName(row["name"]))
        return await self.get(name)

    async def compact(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        """Sum its conversation up when the running turn is over."""
        async with self._between_turns(actor, name, request, "compact") as tx:
            await agent_rows.want_compaction(tx, name, wanted=True)
            found = await fleet.agent(tx, name)
        if request.dry_run:
            return await self._shown(found)
        await self._voice.direct(AgentName(name), "compact")
        return await self.get(name)

    async def new_session(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        """A fresh conversation from the next turn on. A parking without end was over the old one: it ends."""
        session = str(uuid.uuid4())
        async with self._between_turns(actor, name, request, "new-session") as tx:
            too_long = outcomes.RULES["prompt_too_long"].reason
            await agent_rows.renew_session(tx, name, session, over=too_long)
            found = await fleet.agent(tx, name)
        if request.dry_run:
            return await self._shown(found)
        self._presence.fresh_session(AgentName(name))
        await self._voice.direct(AgentName(name), "session", session_id=session)
        self._voice.nudge(AgentName(name))
        return await self.get(name)

    @contextlib.asynccontextmanager
    async def _between_turns(self, actor: Actor, name: str, request: api.Act, verb: str) -> AsyncIterator[Tx]:
        """The transaction of an order that is carried out when the agent is between two turns."""
        _operator(actor)
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            if (await fleet.agent(tx, name))["desired"] == Desired.DESTROYED:
                raise _destroyed(name)
            yield tx
            await tx.audit(actor.name, f"agent.{verb}", name, note=request.note)
            await tx.emit("agent.ordered", name, order=verb)

    async def set_model(self, actor: Actor, name: str, request: api.SetModel) -> api.Agent:
        """Override the model from the next turn on; None goes back to the spec's."""
        _operator(actor)
        row = await fleet.agent(self._store.state, name)
        choice, model = self._choice(row), request.model
        allowed = ", ".join(choice.allowed) or "none"
        if model is not None and not is_allowed_model(model, self._models):
            raise OperatorError(f"{model[:60]!r} is not a model of this host", hint=f"allowed: {allowed}")
        spec = json.loads(row["spec"]) if row["spec"] else {}
        if model is not None and spec.get("models") and model not in choice.allowed:
            raise OperatorError(f"{name} may not run {model[:60]!r}", hint=f"its spec allows: {allowed}")
        wanted = model or choice.default
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            await fleet.set_model(tx, name, request.model, actor.name)
            await tx.audit(actor.name, "agent.model", name, model=request.model)
            await tx.emit("agent.state", name, model=request.model)
            row = await fleet.agent(tx, name)
        if request.dry_run:
            return await self._shown(row)
        await self._voice.direct(AgentName(name), "model", model=wanted)
        self._wake(AgentName(name))
        return await self.get(name)


def _queued(row: Row, now: Now) -> list[Literal["compact", "new-session", "nap"]]:
    found: list[Literal["compact", "new-session", "nap"]] = []
    if row["turn_id"] is not None and now.nap_until is not None:
        found.append("nap")
    if row["turn_id"] is not None and row["turn_session"] != row["session_id"]:
        found.append("new-session")
    if row["compact_wanted"] and row["turn_purpose"] != "compaction":
        found.append("compact")
    return found


def _outcome(name: AgentName, row: Row) -> api.LastOutcome | None:
    """How its last turn ended, and what helps where it did not end well."""
    if row["ended_id"] is None:
        return None
    rule = RULES.get(row["ended_outcome"])
    return api.LastOutcome(
        turn=row["ended_id"],
        outcome=row["ended_outcome"] or "",
        error=visible(row["ended_error"])[:1000],
        ended_at=stamp(row["ended_at"]),
        hint="" if rule is None else rule.hint.replace("NAME", name),
    )


def _plan(name: str, planned: Plan) -> api.Plan:
    match planned.outcome:
        case Settled():
            outcome = "settled"
        case Again(after_s):
            outcome = f"again in {after_s:.1f} s" if after_s else "again at once"
        case Waiting(on):
            outcome = f"waiting for {on}"
        case Failed(error):
            outcome = f"failed: {error}"
        case _:
            assert_never(planned.outcome)
    steps = [api.Step(kind=str(s.kind), cost=str(s.cost), reason=s.reason) for s in planned.steps]
    return api.Plan(agent=name, steps=steps, outcome=outcome)


def _operator(actor: Actor) -> None:
    if actor.role is not UserRole.OPERATOR:
        raise OperatorError("a viewer may only look", code="forbidden", hint="log in as an operator")


def _destroyed(name: str) -> OperatorError:
    return OperatorError(
        f"{name} is destroyed", code="conflict", hint=f"`hive revive {name}` lets it run again"
    )


def _no_room(db: Database) -> str:
    since = stamp(int((db.full_since or 0) * MICRO))
    return (
        f"cannot write {db.path} since {since}: the disk is full; make room, and it goes on by itself "
        "(agents at work go on, nothing is lost)"
    )


def _not_held_by_people(actor: Actor, row: Row) -> None:
    """What the operator holds stays as it is, for people to look at: the manager may not end it."""
    if row["held"] and actor.name.startswith("agent:"):
        raise OperatorError(
            f"the operator holds {row['name']}",
            code="conflict",
            hint="ask the operator; a hold is theirs alone",
        )
