"""Drafts: new agents that the manager prepares in its own tree. The host keeps the name, the first commit
and, once it was offered, the proposal; what the manager makes of it meanwhile is in its container only."""

from __future__ import annotations

import asyncio

from harness import wire
from reconciler.approvals import views
from reconciler.approvals.proposing import Proposing
from reconciler.approvals.voice import Voice
from reconciler.control import models as api
from reconciler.effects.protocols import Git
from reconciler.errors import AgentError, OperatorError
from reconciler.model.names import MANAGER, AgentName, agent_name
from reconciler.model.states import Role, UserRole
from reconciler.services import Actor
from reconciler.store import deployments, drafts, proposals
from reconciler.store.db import Store

DRAFTS_MAX = 20


class Drafting:
    """Begins drafts, lists them, and lets the operator discard one."""

    def __init__(self, store: Store, git: Git, broker: Voice, proposing: Proposing) -> None:
        self._store = store
        self._git = git
        self._broker = broker
        self._proposing = proposing
        self._repositories = asyncio.Lock()  # one is not removed while it is made

    async def start(self, agent: AgentName, request: wire.SpawnDraft) -> wire.DraftMade:
        """The first commit of a new agent, for the manager to go on from; the same again for the same
        name."""
        name = agent_name(request.name)
        async with self._repositories:
            async with self._store.state.transaction() as tx:
                await self._proposing.require_manager(tx, agent, "start a draft")
                there = await drafts.get(tx, name)
                await self._proposing.require_new(tx, name, agent)
                if there is None and len(await drafts.all_drafts(tx)) >= DRAFTS_MAX:
                    raise AgentError(
                        f"there are {DRAFTS_MAX} drafts already",
                        hint="propose some of them, or ask the operator to discard them (`hive discard`)",
                    )
            if there is None:
                commit = await self._proposing.template(name, Role.AGENT, None, (), agent)
                async with self._store.state.transaction() as tx:
                    there = await drafts.get(tx, name) or await drafts.insert(tx, name, agent, commit)
        await self._broker.direct(agent, "repos")
        return wire.DraftMade(name=name, commit=there.commit)

    async def all(self) -> api.DraftList:
        """Drafts that became no agent yet, by name, with what was offered of them last."""
        found = []
        for row in await drafts.all_drafts(self._store.state):
            offered = None
            if row.proposal is not None:
                offered = await proposals.get(self._store.state, row.proposal)
            found.append(views.draft(row, offered))
        return api.DraftList(items=found)

    async def discard(self, actor: Actor, name: str, request: api.Act) -> api.DraftList:
        """Forget a draft; the manager is told. What is left. A proposal of it is decided, not discarded."""
        if actor.role is not UserRole.OPERATOR:
            raise OperatorError("a viewer may only look", code="forbidden", hint="log in as an operator")
        draft = agent_name(name)
        async with self._repositories:
            async with self._store.state.transaction(dry_run=request.dry_run) as tx:
                row = await drafts.get(tx, draft)
                if row is None:
                    raise OperatorError(
                        f"there is no draft {name[:60]!r}", code="not-found", hint="`hive drafts`"
                    )
                waiting = await proposals.open_spawn(tx, draft)
                if waiting is not None:
                    raise OperatorError(
                        f"proposal {waiting.id} for {draft} is {waiting.state}",
                        code="conflict",
                        hint=f"`hive deny {waiting.id}` or `hive cancel-proposal {waiting.id}` first",
                    )
                await drafts.discard(tx, draft)
                await tx.audit(actor.name, "draft.discard", draft, note=request.note)
                note = f", and says: {request.note}" if request.note else ""
                await deployments.notify(
                    tx,
                    AgentName(MANAGER),
                    f"The operator discarded your draft {draft}{note}\nWhat you have of it in "
                    f"/agents/{draft} stays with you; request_spawn_draft begins it anew.",
                    key=f"draft-discarded-{draft}-{row.created_at}",
                )
            if not request.dry_run:
                await self._clear(draft)
        if request.dry_run:
            left = await self.all()
            return api.DraftList(items=[one for one in left.items if one.name != draft])
        return await self.all()

    async def _clear(self, name: AgentName) -> None:
        """Its repository goes, unless a proposal still shows it. Should hived die before, `hive doctor` tells
        of it."""
        if await proposals.agent(self._store.state, name) is None and not await proposals.any_of(
            self._store.state, name
        ):
            await self._git.remove(name)
