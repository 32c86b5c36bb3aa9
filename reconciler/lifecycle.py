"""Acts of the operator on an agent as a whole: hold and release, rollback, what is kept of destroyed ones,
and who is inside its container. Writes desired state only; passes make it so.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from reconciler.approvals import views
from reconciler.control import models as api
from reconciler.errors import OperatorError
from reconciler.model.changes import Change, overall, setting_changes
from reconciler.model.instants import MICRO, micros, stamp
from reconciler.model.names import AgentName
from reconciler.model.spec import Spec
from reconciler.model.states import Desired, ProposalState, Role, UserRole
from reconciler.services import Actor, Agents, Approvals
from reconciler.sizes import Size, size_of
from reconciler.store import attachments, fleet, holds, proposals, rollbacks
from reconciler.store.db import Store, Tx

SIZE_KEPT_S = 300.0
ATTACHMENT_S = 60
"""An attachment ends after so many seconds unless it is renewed: a terminal that died holds nothing up."""


class LifecycleService:
    """The service `Lifecycle`."""

    def __init__(
        self,
        *,
        store: Store,
        agents: Agents,
        approvals: Approvals,
        wake: Callable[[AgentName], None],
        now: Callable[[], float],
        hold_now: Callable[[AgentName], None] | None = None,
        state_dir: Path | None = None,
    ) -> None:
        self._store = store
        self._agents = agents
        self._approvals = approvals
        self._wake = wake
        self._now = now
        self._state_dir = state_dir
        self._sizes: dict[str, tuple[Size, float]] = {}  # by name, with when it was looked at
        self._hold_now = hold_now or wake  # nobody else's pass is waited for

    # ------------------------------------------------------------------------------------------- holds
    async def hold(self, actor: Actor, scope: str, request: api.Act) -> api.HoldList:
        """Freeze one agent, or all with `*`: within a second nothing of it runs, until `release`."""
        return await self._hold(actor, scope, request, on=True)

    async def release(self, actor: Actor, scope: str, request: api.Act) -> api.HoldList:
        """Let it go on where it was. `*` takes the hive's hold away, not those that agents have of their
        own; the answer lists what is still held. Refused where only the hive's hold is on an agent."""
        return await self._hold(actor, scope, request, on=False)

    async def _hold(self, actor: Actor, scope: str, request: api.Act, *, on: bool) -> api.HoldList:
        _operator(actor)
        names = await self._names(scope)
        if not on and scope != holds.EVERYBODY:
            there = {hold.scope: hold for hold in await holds.every(self._store.state)}
            if scope not in there and holds.EVERYBODY in there:
                raise OperatorError(
                    f"the whole hive is held by {there[holds.EVERYBODY].by}, so {scope} stays held",
                    code="conflict",
                    hint="`hive release --all` releases the hive",
                )
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            put = holds.put(tx, scope, actor.name, request.note) if on else holds.lift(tx, scope)
            if await put:
                verb = "hold" if on else "release"
                await tx.audit(actor.name, f"agent.{verb}", scope, note=request.note)
                for name in names:
                    if on or not await holds.on(tx, name):
                        await tx.emit("agent.held" if on else "agent.released", name, by=actor.name)
            found = _holds(await holds.every(tx))
        for name in names if not request.dry_run else ():
            (self._hold_now if on else self._wake)(name)
        return found

    async def _names(self, scope: str) -> list[AgentName]:
        if scope == holds.EVERYBODY:
            return [AgentName(row["name"]) for row in await fleet.agents(self._store.state)]
        row = await fleet.agent(self._store.state, scope)
        _not_destroyed(row["desired"], scope)
        return [AgentName(row["name"])]

    async def holds(self) -> api.HoldList:
        """All holds, the hive's first."""
        return _holds(await holds.every(self._store.state))

    # ------------------------------------------------------------------------------------------- rollback
    async def rollback(self, actor: Actor, name: str, request: api.Rollback) -> api.Proposal:
        """Run an earlier generation again, under a new number: by default the last good one before the
        current. A decision of its own, so it ends what was approved and has not come up yet."""
        _operator(actor)
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            row = await fleet.agent(tx, name)
            _not_destroyed(row["desired"], name)
            target = await rollbacks.target(tx, name, request.generation)
            changes = _setting_changes(await proposals.running(tx, AgentName(name)), target["spec"])
            judged = (overall(changes), views.changes_json(changes))
            number = await rollbacks.insert(tx, AgentName(name), target, actor.name, request, judged)
            rivals = await rollbacks.rivals(tx, name, number)
            for rival in rivals:
                note = f"the operator rolled back to generation {target['number']} instead"
                await tx.move_proposal(rival, ProposalState.SUPERSEDED, note=note)
            await tx.audit(
                actor.name,
                "agent.rollback",
                name,
                generation=target["number"],
                commit=target["commit_id"],
                proposal=number,
                note=request.note,
            )
            if request.dry_run:
                view = await views.read(tx, number)
                return views.rehearsed(view.model_copy(update={"supersedes": rivals}))
        self._wake(AgentName(name))
        return await self._approvals.get(number)

    # ------------------------------------------------------------------------------------------- kept state
    async def kept(self) -> api.KeptList:
        """Destroyed agents whose repository and state are still there, by name."""
        rows = await fleet.kept(self._store.state)
        sizes = [await self._size(row["name"]) for row in rows]
        names = {row["name"] for row in rows}
        self._sizes = {name: seen for name, seen in self._sizes.items() if name in names}
        return api.KeptList(
            items=[
                api.Kept(
                    name=row["name"],
                    role=Role(row["role"]),
                    generation=row["generation"],
                    commit=row["commit_id"],
                    uid_base=row["uid_base"],
                    destroyed_at=stamp(row["destroyed_at"]) if row["destroyed_at"] else None,
                    purging=bool(row["purge_wanted"]),
                    size_bytes=None if size is None else size.used,
                    size_is_whole=size is None or size.whole,
                )
                for row, size in zip(rows, sizes, strict=True)
            ]
        )

    async def _size(self, name: str) -> Size | None:
        """Of its state, home and repository; None where nobody said where they are. Looked at seldom: pages
        ask with every event, and what is kept changes no more."""
        if self._state_dir is None:
            return None
        size, at = self._sizes.get(name, (None, 0.0))
        if size is None or self._now() - at > SIZE_KEPT_S:
            roots = (self._state_dir / "agents" / name, self._state_dir / "repos" / f"{name}.git")
            size = await asyncio.to_thread(size_of, roots)
            self._sizes[name] = (size, self._now())
        return size

    async def revive(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        """Let a destroyed agent run again from what was kept, as it was."""
        _operator(actor)
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            row = await fleet.agent(tx, name)
            if row["desired"] != Desired.DESTROYED:
                raise OperatorError(f"{name} is not destroyed", code="conflict", hint=f"`hive start {name}`")
            if row["purge_wanted"]:
                raise OperatorError(f"{name} is being purged", code="conflict", hint=f"`hive new {name}`")
            await self._one_manager(tx, name, Role(row["role"]))
            await fleet.set_desired(tx, name, Desired.RUNNING)
            await tx.audit(actor.name, "agent.revive", name, note=request.note)
            await tx.emit("agent.state", name, desired=str(Desired.RUNNING))
        if request.dry_run:
            return (await self._agents.get(name)).model_copy(update={"desired": Desired.RUNNING})
        self._wake(AgentName(name))
        return await self._agents.get(name)

    async def _one_manager(self, tx: Tx, name: str, role: Role) -> None:
        other = await proposals.other_manager(tx, AgentName(name)) if role is Role.MANAGER else None
        if other is not None:
            raise OperatorError(
                f"{name} was the manager, and {other} is now", code="conflict", hint=f"destroy {other} first"
            )

    async def purge(self, actor: Actor, name: str, request: api.Purge) -> api.Done:
        """Remove for good what was kept of a destroyed agent: state, home, repository, generations. Its name
        must be typed; its history stays."""
        _operator(actor)
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            row = await fleet.agent(tx, name)
            if row["desired"] != Desired.DESTROYED:
                raise OperatorError(
                    f"{name} is not destroyed", code="conflict", hint=f"`hive destroy {name}` first"
                )
            if request.confirm != name:
                raise OperatorError(
                    f"to purge {name} its name must be given as the confirmation", hint=f"`hive purge {name}`"
                )
            await fleet.want_purge(tx, name)
            await tx.audit(actor.name, "agent.purge", name, note=request.note)
        if not request.dry_run:
            self._wake(AgentName(name))
        return api.Done()

    # ------------------------------------------------------------------------------------------- attachments
    async def attach(self, actor: Actor, name: str) -> api.Attachment:
        """Somebody goes into the container: until they leave, or do not renew for a minute, a pass neither
        restarts it for drift nor activates what was approved without `now`."""
        _operator(actor)
        attachment = secrets.token_hex(8)
        ends = micros(self._now()) + ATTACHMENT_S * MICRO
        async with self._store.state.transaction() as tx:
            row = await fleet.agent(tx, name)
            _not_destroyed(row["desired"], name)
            await attachments.attach(tx, attachment, name, actor.name, ends)
            await tx.audit(actor.name, "agent.attach", name, attachment=attachment)
            await tx.emit("agent.attached", name, by=actor.name)
        self._wake(AgentName(name))
        return api.Attachment(id=attachment, agent=name, by=actor.name, expires_at=stamp(ends))

    async def renew(self, actor: Actor, name: str, attachment: str) -> api.Attachment:
        """They are still there; `OperatorError` code `not-found` if it is over."""
        _operator(actor)
        ends = micros(self._now()) + ATTACHMENT_S * MICRO
        async with self._store.state.transaction() as tx:
            if not await attachments.renew(tx, attachment, ends):
                raise OperatorError("this attachment is over", code="not-found", hint="attach again")
        return api.Attachment(id=attachment, agent=name, by=actor.name, expires_at=stamp(ends))

    async def detach(self, actor: Actor, name: str, attachment: str) -> api.Done:
        """They left. Safe to repeat."""
        _operator(actor)
        async with self._store.state.transaction() as tx:
            row = await attachments.detach(tx, attachment)
            if row is not None:
                await tx.audit(actor.name, "agent.detach", name, attachment=attachment)
                await tx.emit("agent.detached", name, by=row["by"])
        self._wake(AgentName(name))
        return api.Done()

    async def attached(self, name: str) -> api.AttachmentList:
        """Who is inside now."""
        await fleet.agent(self._store.state, name)
        rows = await attachments.of(self._store.state, name, micros(self._now()))
        return api.AttachmentList(
            items=[
                api.Attachment(id=r["id"], agent=name, by=r["by"], expires_at=stamp(r["expires_at"]))
                for r in rows
            ]
        )


def _setting_changes(running: proposals.Running | None, goal: str) -> tuple[Change, ...]:
    """What going back changes in the settings. A spec that this version cannot read says nothing: going back
    is the way out of trouble and never refused for what would only be shown."""
    try:
        before = Spec.model_validate(json.loads(running.spec)) if running is not None else None
        return setting_changes(before, Spec.model_validate(json.loads(goal)))
    except ValidationError:
        return ()


def _holds(found: Sequence[holds.Hold]) -> api.HoldList:
    return api.HoldList(items=[views.hold(one) for one in found])


def _operator(actor: Actor) -> None:
    if actor.role is not UserRole.OPERATOR:
        raise OperatorError("a viewer may only look", code="forbidden", hint="log in as an operator")


def _not_destroyed(desired: str, name: str) -> None:
    if desired == Desired.DESTROYED:
        raise OperatorError(f"{name} is destroyed", code="conflict", hint=f"`hive revive {name}`")
