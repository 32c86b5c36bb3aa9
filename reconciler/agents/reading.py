"""Agents as they are shown, and the hive at a glance."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, assert_never

from reconciler import __version__, causes
from reconciler.agents.ports import Now, Presence, Spending, Storage, Voice
from reconciler.approvals import views
from reconciler.broker.outcomes import RULES
from reconciler.config import Config
from reconciler.control import models as api
from reconciler.effects.protocols import Containers, ContainerStatus
from reconciler.explaining import explain
from reconciler.model.instants import MICRO, stamp, stamp_or_none
from reconciler.model.names import AgentName
from reconciler.model.states import Desired, Role
from reconciler.model.text import visible
from reconciler.modelchoice import Choice, choose
from reconciler.plan.steps import Again, Failed, Plan, Settled, Waiting
from reconciler.services import Approvals
from reconciler.store import agents as agent_rows
from reconciler.store import fleet, holds, loops
from reconciler.store.db import Database, Row, Store

_ABSENT = ContainerStatus(phase="absent")

Look = Callable[[AgentName], Awaitable[Plan | None]]
LookAll = Callable[[], Awaitable[Mapping[AgentName, Plan]]]


class AgentReading:
    """What is shown of agents, from rows, containers and the broker's presence."""

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


def _no_room(db: Database) -> str:
    since = stamp(int((db.full_since or 0) * MICRO))
    return (
        f"cannot write {db.path} since {since}: the disk is full; make room, and it goes on by itself "
        "(agents at work go on, nothing is lost)"
    )
