"""The service `Approvals`: what servers and passes call. Reading is here; proposing, examining and
deciding have modules of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import structlog

from harness import wire
from reconciler import causes
from reconciler.approvals import patches, views
from reconciler.approvals.decisions import Decisions, require_operator
from reconciler.approvals.drafting import Drafting
from reconciler.approvals.examination import Examiner
from reconciler.approvals.own import OwnProposals
from reconciler.approvals.proposing import Proposing
from reconciler.approvals.rehearsal import Rehearsal
from reconciler.approvals.resuming import Resuming
from reconciler.approvals.voice import Voice
from reconciler.config import Config
from reconciler.control import models as api
from reconciler.effects.protocols import Clock, Git, HostFiles, Nix
from reconciler.errors import AgentError, HiveError, OperatorError
from reconciler.model.estimates import BuildState
from reconciler.model.instants import stamp
from reconciler.model.names import AgentName, agent_name
from reconciler.model.states import DEPLOYING, ProposalState, Role
from reconciler.services import Actor, Wake
from reconciler.store import agents, proposals
from reconciler.store.db import Store
from reconciler.store.proposals import ProposalRow

log = structlog.get_logger("approvals")

LIST_MAX = 200
_BASES: tuple[str, ...] = get_args(api.Diff.model_fields["base"].annotation)


class ApprovalService:
    """Implements `reconciler.services.Approvals`. `building`: a proposal's build while it is under way."""

    def __init__(
        self,
        *,
        store: Store,
        git: Git,
        nix: Nix,
        host_files: HostFiles,
        broker: Voice,
        config: Config,
        clock: Clock,
        wake: Wake,
        etc: Path = Path("/etc"),
        building: Callable[[int], BuildState | None] = lambda _: None,
    ) -> None:
        self._store = store
        self._git = git
        self._clock = clock
        self._building = building
        self._scan_s = config.timeouts.resync_s
        self.examiner = Examiner(store=store, git=git, nix=nix, config=config, clock=clock, etc=etc)
        self._proposing = Proposing(
            store=store,
            git=git,
            host_files=host_files,
            broker=broker,
            config=config,
            examiner=self.examiner,
        )
        self._drafting = Drafting(store, git, broker, self._proposing)
        self._resuming = Resuming(
            store=store, git=git, config=config, clock=clock, examiner=self.examiner,
            proposing=self._proposing,
        )  # fmt: skip
        self._decisions = Decisions(store=store, examiner=self.examiner, proposing=self._proposing, wake=wake)
        self._own = OwnProposals(store=store, git=git, config=config, proposing=self._proposing)
        self._rehearsal = Rehearsal(store, self.examiner, self._own, self._decisions)

    async def resume(self) -> None:
        """Continue examinations that a crash interrupted, and clear away what it left."""
        await self._resuming.start()

    async def run(self) -> None:
        """Look for pushed commits, and for proposals that nobody examines, until cancelled."""
        while True:
            await self._clock.sleep(self._scan_s)
            await self._resuming.look()
            for row in await agents.existing(self._store.state):
                try:
                    await self.scan(AgentName(row["name"]))
                except HiveError as error:
                    log.warning("scan.failed", agent=row["name"], error=error.message)

    async def close(self) -> None:
        """Stop examining; the rows stay as they are."""
        await self.examiner.close()

    # ------------------------------------------------------------------------------------------- agents
    async def propose_bundle(
        self, agent: AgentName, target: str, commit: str, description: str, bundle: Path
    ) -> wire.Proposed:
        """An agent proposes for itself, the manager for all."""
        return await self._proposing.bundle(agent, target, commit, description, bundle)

    async def propose_draft(
        self, agent: AgentName, name: str, commit: str, description: str, bundle: Path, state: Path
    ) -> wire.Proposed:
        """The manager proposes a draft with its state."""
        return await self._proposing.draft(agent, name, commit, description, bundle, state)

    async def start_draft(self, agent: AgentName, request: wire.SpawnDraft) -> wire.DraftMade:
        """The manager begins a draft."""
        return await self._drafting.start(agent, request)

    async def request_spawn(self, agent: AgentName, request: wire.Spawn) -> wire.Proposed:
        """The manager asks for a new agent from the template."""
        return await self._proposing.spawn(agent, request)

    async def repository_bundle(self, agent: AgentName, name: str) -> bytes:
        """The bundle of `main`: of the agent's own repository; for the manager, of any."""
        wanted = agent_name(name)
        if wanted != agent:
            row = await proposals.agent(self._store.state, agent)
            if row is None or row.role is not Role.MANAGER:
                raise AgentError(f"{agent} may read its own repository only", code="forbidden")
        return await self._git.bundle(wanted)

    # ------------------------------------------------------------------------------------------- the operator
    async def propose(self, actor: Actor, request: api.Propose) -> api.Proposal:
        """A commit that is in the agent's repository already."""
        require_operator(actor)
        if request.dry_run:
            return await self._rehearsal.own_commit(actor, request)
        return await self.get(await self._own.own_commit(actor, request))

    async def new_agent(self, actor: Actor, request: api.NewAgent) -> api.Proposal:
        """A new agent from the template; with `approve`, examined and decided before this returns (a proposal
        that comes out invalid is returned as such)."""
        require_operator(actor)
        if request.dry_run:
            return await self._rehearsal.new_agent(actor, request)
        number = await self._own.new_agent(actor, request)
        if not request.approve:
            self.examiner.begin(number)
            return await self.get(number)
        await self.examiner.run(number)
        row = await proposals.get(self._store.state, number)
        if row.state is ProposalState.PENDING and row.digest is not None:
            await self._decisions.approve(actor, number, api.Approve(digest=row.digest))
        return await self.get(number)

    async def scan(self, name: AgentName) -> int | None:
        """Propose what was pushed to `main`; the proposal's id, None if there is nothing new."""
        return await self._own.scan(name)

    async def approve(self, actor: Actor, proposal: int, request: api.Approve) -> api.Proposal:
        """Approve what was shown."""
        return await self._decisions.approve(actor, proposal, request)

    async def deny(self, actor: Actor, proposal: int, request: api.Decide) -> api.Proposal:
        """Refuse it, with a note for the proposer."""
        return await self._decisions.deny(actor, proposal, request)

    async def cancel(self, actor: Actor, proposal: int, request: api.Decide) -> api.Proposal:
        """Take it back."""
        return await self._decisions.cancel(actor, proposal, request)

    # ------------------------------------------------------------------------------------------- reading
    async def get(self, proposal: int) -> api.Proposal:
        """One proposal, its meaning against what runs now."""
        await self.examiner.refresh(await proposals.get(self._store.state, proposal))
        return await views.read(self._store.state, proposal)

    async def diff(self, proposal: int, base: str) -> api.Diff:
        """The text diff against `running`, `approved` or `proposal`; against nothing where there is no
        such."""
        row = await proposals.get(self._store.state, proposal)
        match base:
            case "running":
                running = await proposals.running(self._store.state, row.agent)
                against = running.commit if running is not None else None
            case "approved":
                against = await proposals.last_approved(self._store.state, row)
            case "proposal":
                against = await proposals.previous(self._store.state, row)
            case _:
                raise OperatorError(f"{base[:40]!r} is no base of a diff", hint=f"one of {', '.join(_BASES)}")
        if not await self._git.exists(row.agent, row.commit):
            raise OperatorError(
                f"the commit of proposal {proposal} was not taken in", code="not-found", hint=row.error[:500]
            )
        files, truncated = patches.file_diffs(await self._git.diff(row.agent, against, row.commit))
        return api.Diff(
            proposal=row.id,
            base=base,
            base_commit=against,
            commit=row.commit,
            files=files,
            truncated=truncated,
        )

    async def log(self, proposal: int, after: int) -> api.BuildLog:
        """Lines of the build after a line's id."""
        row = await proposals.get(self._store.state, proposal)
        lines = await proposals.build_log(self._store.events, proposal, after)
        items = [api.LogLine(id=line["id"], at=stamp(line["at"]), text=line["text"]) for line in lines]
        full = len(items) == proposals.LOG_LINES
        done = _is_over(row) and not full
        return api.BuildLog(items=items, done=done, progress=views.build_progress(self._building(proposal)))

    async def why(self, proposal: int) -> api.Why:
        """Who asked for it, in which turn, after which messages; newest first."""
        row = await proposals.get(self._store.state, proposal)
        return api.Why(agent=row.agent, chain=await causes.of_proposal(self._store, row))

    async def drafts(self) -> api.DraftList:
        """Drafts that became no agent yet."""
        return await self._drafting.all()

    async def discard_draft(self, actor: Actor, name: str, request: api.Act) -> api.DraftList:
        """The operator discards one; what is left."""
        return await self._drafting.discard(actor, name, request)

    async def list(
        self, *, state: str | None, agent: str | None, before: int | None, limit: int
    ) -> api.ProposalList:
        """Newest first."""
        try:
            wanted = None if state is None else ProposalState(state)
        except ValueError as error:
            words = ", ".join(ProposalState)
            raise OperatorError(f"{state!r} is no state of a proposal", hint=f"one of {words}") from error
        count = max(1, min(limit, LIST_MAX))
        rows = await proposals.listing(
            self._store.state, state=wanted, agent=agent, before=before, limit=count
        )
        entered = await proposals.progress(self._store.state, [row.id for row in rows])
        return api.ProposalList(
            items=[views.proposal(row, entered[row.id]) for row in rows],
            next=rows[-1].id if len(rows) == count else None,
        )


def _is_over(row: ProposalRow) -> bool:
    return row.state not in DEPLOYING and row.state is not ProposalState.PENDING
