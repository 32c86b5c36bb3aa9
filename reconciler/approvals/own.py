"""The operator's own proposals: new agents from the template, commits in an agent's repository, pushes to it.

Checks and rows stand in methods of their own, so that a dry run goes the same way.
"""

from __future__ import annotations

from reconciler.approvals.proposing import Proposing, clean_description
from reconciler.config import Config
from reconciler.control import models as api
from reconciler.effects.protocols import Git
from reconciler.errors import OperatorError
from reconciler.gateway.catalog import known
from reconciler.model.names import OPERATOR, AgentName, Commit, agent_name
from reconciler.model.names import commit as commit_id
from reconciler.model.risk import is_allowed_model
from reconciler.model.states import ProposalKind
from reconciler.model.template import template_files
from reconciler.services import Actor
from reconciler.store import proposals
from reconciler.store.db import Store, Tx
from reconciler.store.proposals import ProposalRow


class OwnProposals:
    """What the operator proposes."""

    def __init__(self, *, store: Store, git: Git, config: Config, proposing: Proposing) -> None:
        self._store = store
        self._git = git
        self._config = config
        self._proposing = proposing

    def checked(self, request: api.NewAgent) -> AgentName:
        """The name of a new agent, if the request may be made at all."""
        name = agent_name(request.name)
        clean_description(request.description)
        served = known().names(self._config.gateway.allowed_models)
        if request.model is not None and not is_allowed_model(request.model, served):
            allowed = ", ".join(served)
            raise OperatorError(
                f"the model {request.model[:80]!r} is not served here", hint=f"allowed: {allowed}"
            )
        return name

    async def new_agent(self, actor: Actor, request: api.NewAgent) -> int:
        """A new agent from the template; the id of its proposal, which may be examined yet or not. The same
        person's same request again, after a lost answer, finds its own."""
        name = self.checked(request)
        same = await self.same_request(actor, name, request)
        if same is not None:
            await self._git.pin(
                name, f"proposal/{same.id}", same.commit
            )  # the first time found no room for it
            return same.id
        async with self._store.state.transaction() as tx:
            await self._proposing.require_new(tx, name, decides=True)
        patterns = tuple(request.bash_allow)
        commit = await self._proposing.template(
            name, request.role, request.model, patterns, AgentName(OPERATOR)
        )
        async with self._store.state.transaction() as tx:
            number, _ = await self.new_row(tx, actor, name, commit, request)
        await self._git.pin(name, f"proposal/{number}", commit)
        return number

    async def new_row(
        self, tx: Tx, actor: Actor, name: AgentName, commit: Commit, request: api.NewAgent
    ) -> tuple[int, bool]:
        """The row of a new agent's proposal, if nobody has the name: its id, and that it is a new one."""
        await self._proposing.require_new(tx, name, decides=True)
        text = clean_description(request.description)
        number, fresh = await self._proposing.row(tx, ProposalKind.SPAWN, name, commit, OPERATOR, text)
        await tx.audit(actor.name, "agent.new", f"agent:{name}", proposal=number, commit=commit)
        return number, fresh

    async def same_request(self, actor: Actor, name: AgentName, request: api.NewAgent) -> ProposalRow | None:
        """The unfinished proposal that this very request made before."""
        there = await proposals.open_spawn(self._store.state, name)
        if there is None or there.description != clean_description(request.description):
            return None
        if await proposals.maker_of_new(self._store.state, name, there.id) != actor.name:
            return None
        for path, text in template_files(request.role, request.model, request.bash_allow).items():
            if await self._git.read(name, there.commit, path, len(text.encode()) + 1) != text:
                return None
        return there

    async def own_commit(self, actor: Actor, request: api.Propose) -> int:
        """A commit that the operator put into the agent's repository; the id of its proposal."""
        await self.check_own(request)
        async with self._store.state.transaction() as tx:
            number, fresh = await self.own_row(tx, actor, request)
        name = agent_name(request.agent)
        if fresh or not await self._proposing.has_arrived(number, name):
            await self._proposing.arrive(number, name, commit_id(request.commit), None)
        return number

    async def check_own(self, request: api.Propose) -> None:
        """Whether the commit is there."""
        name, wanted = agent_name(request.agent), commit_id(request.commit)
        if not await self._git.exists(name, wanted):
            raise OperatorError(
                f"there is no commit {wanted} in the repository of {name}",
                code="not-found",
                hint="push it there first",
            )

    async def own_row(self, tx: Tx, actor: Actor, request: api.Propose) -> tuple[int, bool]:
        """The row of the operator's proposal: its id, and whether it is a new one."""
        name, wanted = agent_name(request.agent), commit_id(request.commit)
        there = await proposals.agent(tx, name)
        kind = ProposalKind.SPAWN if there is None else ProposalKind.APPLY
        if kind is ProposalKind.SPAWN or (there is not None and there.destroyed):
            await self._proposing.require_new(tx, name, OPERATOR, decides=True)
        text = clean_description(request.description)
        number, fresh = await self._proposing.row(tx, kind, name, wanted, OPERATOR, text)
        if fresh:
            await tx.audit(actor.name, "proposal.new", f"proposal:{number}", agent=name, commit=wanted)
        return number, fresh

    async def scan(self, name: AgentName) -> int | None:
        """Propose the commit of `main`, if somebody pushed one that hived does not know."""
        main = await self._git.main(name)
        if main is None or main in (await self._git.tags(name)).values():
            return None
        async with self._store.state.transaction() as tx:
            there = await proposals.agent(tx, name)
            if there is None or there.destroyed or await proposals.has_commit(tx, name, main):
                return None
            text = "pushed to main"
            number, _ = await self._proposing.row(tx, ProposalKind.APPLY, name, main, OPERATOR, text)
        await self._proposing.arrive(number, name, main, None)
        return number
