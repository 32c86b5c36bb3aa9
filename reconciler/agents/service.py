"""Agents as the operator steers them. Writes desired state only; passes make it so."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import AsyncIterator

from reconciler.agents.reading import AgentReading
from reconciler.broker import outcomes
from reconciler.control import models as api
from reconciler.errors import OperatorError
from reconciler.model.instants import micros
from reconciler.model.names import AgentName
from reconciler.model.people import person
from reconciler.model.risk import is_allowed_model
from reconciler.model.states import Desired, UserRole
from reconciler.services import Actor
from reconciler.store import agents as agent_rows
from reconciler.store import fleet, messages
from reconciler.store.db import Row, Tx


class AgentService(AgentReading):
    """The service `Agents`."""

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
            napping = await fleet.agent(tx, name)
        if not request.dry_run:
            self._voice.nudge(AgentName(name))
        return await self._shown(napping)

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


def _operator(actor: Actor) -> None:
    if actor.role is not UserRole.OPERATOR:
        raise OperatorError("a viewer may only look", code="forbidden", hint="log in as an operator")


def _destroyed(name: str) -> OperatorError:
    return OperatorError(
        f"{name} is destroyed", code="conflict", hint=f"`hive revive {name}` lets it run again"
    )


def _not_held_by_people(actor: Actor, row: Row) -> None:
    """What the operator holds stays as it is, for people to look at: the manager may not end it."""
    if row["held"] and actor.name.startswith("agent:"):
        raise OperatorError(
            f"the operator holds {row['name']}",
            code="conflict",
            hint="ask the operator; a hold is theirs alone",
        )
