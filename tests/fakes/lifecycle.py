"""The service `Lifecycle` in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from reconciler.control import models as api
from reconciler.errors import OperatorError
from reconciler.model.states import ProposalState, Role
from reconciler.services import Actor
from tests.fakes.objects import AT, a_proposal, an_agent

Recorded = list[tuple[str, tuple[object, ...]]]


@dataclass
class FakeLifecycle:
    """Holds and attachments it remembers; the rest it only records in `calls`."""

    on: dict[str, api.Hold] = field(default_factory=dict)
    inside: dict[str, api.Attachment] = field(default_factory=dict)
    calls: Recorded = field(default_factory=list)

    async def hold(self, actor: Actor, scope: str, request: api.Act) -> api.HoldList:
        self.calls.append(("hold", (actor, scope, request)))
        if not request.dry_run:
            self.on[scope] = api.Hold(scope=scope, by=actor.name, reason=request.note, at=AT)
        return await self.holds()

    async def release(self, actor: Actor, scope: str, request: api.Act) -> api.HoldList:
        self.calls.append(("release", (actor, scope, request)))
        if not request.dry_run:
            self.on.pop(scope, None)
        return await self.holds()

    async def holds(self) -> api.HoldList:
        return api.HoldList(items=[self.on[scope] for scope in sorted(self.on)])

    async def rollback(self, actor: Actor, name: str, request: api.Rollback) -> api.Proposal:
        self.calls.append(("rollback", (actor, name, request)))
        goal = request.generation or 1
        state = ProposalState.DEPLOYED if request.dry_run else ProposalState.APPROVED
        return a_proposal(9, name, state=state).model_copy(
            update={"rollback_of": goal, "generation": goal, "description": f"back to generation {goal}"}
        )

    async def kept(self) -> api.KeptList:
        one = api.Kept(
            name="gone", role=Role.AGENT, generation=3, commit="c" * 40, uid_base=1 << 20, destroyed_at=AT,
            purging=False,
        )  # fmt: skip
        return api.KeptList(items=[one])

    async def revive(self, actor: Actor, name: str, request: api.Act) -> api.Agent:
        self.calls.append(("revive", (actor, name, request)))
        return an_agent(name)

    async def purge(self, actor: Actor, name: str, request: api.Purge) -> api.Done:
        self.calls.append(("purge", (actor, name, request)))
        if request.confirm != name:
            raise OperatorError("the name must be typed")
        return api.Done()

    async def attach(self, actor: Actor, name: str) -> api.Attachment:
        made = api.Attachment(id=f"{len(self.inside) + 1:016x}", agent=name, by=actor.name, expires_at=AT)
        self.inside[made.id] = made
        return made

    async def renew(self, actor: Actor, name: str, attachment: str) -> api.Attachment:
        if attachment not in self.inside:
            raise OperatorError("this attachment is over", code="not-found")
        return self.inside[attachment]

    async def detach(self, actor: Actor, name: str, attachment: str) -> api.Done:
        self.inside.pop(attachment, None)
        return api.Done()

    async def attached(self, name: str) -> api.AttachmentList:
        return api.AttachmentList(items=list(self.inside.values()))
