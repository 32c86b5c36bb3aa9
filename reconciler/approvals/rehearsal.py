"""Dry runs of making proposals: the same checks, rows and examination as the real thing, and nothing is kept.

The rows are written twice, each time in a transaction that is rolled back: once to learn what would be
examined, which takes too long to hold the database meanwhile, and once to decide on it. Deciding itself needs
no rehearsal of its own: it is one transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from reconciler.approvals import views
from reconciler.approvals.decisions import Decisions
from reconciler.approvals.examination import Examiner, describe
from reconciler.approvals.own import OwnProposals
from reconciler.control import models as api
from reconciler.errors import HiveError
from reconciler.model.names import Commit
from reconciler.model.states import ProposalState
from reconciler.model.template import template_files
from reconciler.services import Actor
from reconciler.store import proposals
from reconciler.store.db import Store, Tx
from reconciler.store.proposals import Findings, ProposalRow

UNMADE = Commit("0" * 40)
"""Stands for the commit that a dry run does not make."""

Insert = Callable[[Tx], Awaitable[tuple[int, bool]]]


class Rehearsal:
    """Answers what would become of a proposal."""

    def __init__(self, store: Store, examiner: Examiner, own: OwnProposals, decisions: Decisions) -> None:
        self._store = store
        self._examiner = examiner
        self._own = own
        self._decisions = decisions

    async def new_agent(self, actor: Actor, request: api.NewAgent) -> api.Proposal:
        """A new agent from the template: pending, approved if the request says so, or invalid and why."""
        name = self._own.checked(request)
        same = await self._own.same_request(actor, name, request)
        if same is not None:
            if request.approve and same.state is ProposalState.PENDING and same.digest is not None:
                decision = api.Approve(digest=same.digest, dry_run=True)
                return await self._decisions.approve(actor, same.id, decision)
            return await views.read(self._store.state, same.id)

        async def insert(tx: Tx) -> tuple[int, bool]:
            return await self._own.new_row(tx, actor, name, UNMADE, request)

        files = template_files(request.role, request.model, request.bash_allow)
        return await self._rehearse(insert, files, actor if request.approve else None)

    async def own_commit(self, actor: Actor, request: api.Propose) -> api.Proposal:
        """A commit in the agent's repository: pending, or invalid and why; the proposal that there is for it
        already."""
        await self._own.check_own(request)

        async def insert(tx: Tx) -> tuple[int, bool]:
            return await self._own.own_row(tx, actor, request)

        return await self._rehearse(insert, None, None)

    async def _rehearse(
        self, insert: Insert, template: Mapping[str, str] | None, approver: Actor | None
    ) -> api.Proposal:
        state = self._store.state
        async with state.transaction(dry_run=True) as tx:
            number, fresh = await insert(tx)
            if not fresh:
                return await views.read(tx, number)
            row = await proposals.get(tx, number)
        found = await self._find(row, template)
        facts = await self._examiner.facts(state, row, None)
        async with state.transaction(dry_run=True) as tx:
            number, _ = await insert(tx)
            if isinstance(found, HiveError):
                await tx.move_proposal(number, ProposalState.INVALID, error=describe(found))
            else:
                await proposals.found(tx, number, found)
                if approver is not None:
                    row = await proposals.get(tx, number)
                    return views.rehearsed(await self._decisions.approve_in(tx, approver, row, facts))
            return views.rehearsed(await views.read(tx, number))

    async def _find(self, row: ProposalRow, template: Mapping[str, str] | None) -> Findings | HiveError:
        try:
            return await self._examiner.rehearse(row, template)
        except HiveError as error:
            return error
