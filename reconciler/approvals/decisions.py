"""The operator's decisions. Each is one transaction with its audit row; what follows from it in git and
in the inboxes goes through the outbox.
"""

from __future__ import annotations

import json
import secrets
import uuid

import structlog

from reconciler.approvals import rules, views
from reconciler.approvals.examination import Examiner
from reconciler.approvals.proposing import Proposing
from reconciler.control import models as api
from reconciler.errors import OperatorError
from reconciler.model.spec import Spec
from reconciler.model.states import DEPLOYING, ProposalKind, ProposalState, Role, UserRole
from reconciler.services import Actor, Wake
from reconciler.store import proposals
from reconciler.store.db import Store, Tx
from reconciler.store.proposals import ProposalRow

log = structlog.get_logger("approvals")

_UNDER_WAY = DEPLOYING | {ProposalState.DEPLOYED}


def require_operator(actor: Actor) -> None:
    """Decisions are the operator's; a viewer looks on."""
    if actor.role is not UserRole.OPERATOR:
        raise OperatorError(f"{actor.name} may look, but not decide", code="forbidden")


class Decisions:
    """Approve, deny, cancel."""

    def __init__(self, *, store: Store, examiner: Examiner, proposing: Proposing, wake: Wake) -> None:
        self._store = store
        self._examiner = examiner
        self._proposing = proposing
        self._wake = wake

    async def approve(self, actor: Actor, proposal: int, request: api.Approve) -> api.Proposal:
        """Pending → approved, if the digest is that of what was shown. Safe to repeat by the same person.

        The proposal as it is (in a dry run: would be) afterwards, with what it superseded.
        """
        require_operator(actor)
        row = await proposals.get(self._store.state, proposal)
        if not request.dry_run:  # it may write; a stale one is refused below all the same
            row = await self._examiner.refresh(row)
        # read before the transaction: it looks at files of the host
        facts = await self._examiner.facts(self._store.state, row, None)
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            row = await proposals.get(tx, proposal)
            same = row.digest is not None and secrets.compare_digest(
                row.digest.encode(), request.digest.encode("utf-8", "surrogatepass")
            )
            if row.state in _UNDER_WAY and row.decided_by == actor.name and same:
                return await views.read(tx, proposal)
            if row.state is ProposalState.PENDING and not (same and await self._is_fresh(tx, row)):
                raise OperatorError(
                    f"proposal {proposal} changed since you looked",
                    code="conflict",
                    hint="look at it again: what you were shown is not what it is now",
                )
            view = await self.approve_in(tx, actor, row, facts, note=request.note, now=request.now)
        if not request.dry_run:
            for rival in view.supersedes:
                self._proposing.discard_staged(rival)
            log.info("proposal.approved", proposal=proposal, agent=row.agent, by=actor.name)
            self._wake(row.agent)
        return view

    async def approve_in(
        self, tx: Tx, actor: Actor, row: ProposalRow, facts: rules.Facts, *, note: str = "", now: bool = False
    ) -> api.Proposal:
        """The writes of an approval, with all that the rows forbid. `facts` were read before `tx`."""
        await self._move(tx, actor, row, ProposalState.APPROVED, note, now=now)
        superseded = await self._make_way(tx, row, facts)
        return (await views.read(tx, row.id)).model_copy(update={"supersedes": superseded})

    async def deny(self, actor: Actor, proposal: int, request: api.Decide) -> api.Proposal:
        """Pending → denied; the note reaches the proposer."""
        require_operator(actor)
        note = request.note
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            row = await proposals.get(tx, proposal)
            if row.state is ProposalState.CANCELLED and row.decided_by == actor.name:
                raise OperatorError(f"proposal {proposal} was cancelled by you", code="conflict")
            if row.state is not ProposalState.DENIED or row.decided_by != actor.name:
                await self._move(tx, actor, row, ProposalState.DENIED, note)
                await proposals.tell(tx, row, ProposalState.DENIED, _words(note))
            view = await views.read(tx, proposal)
        if not request.dry_run:
            self._proposing.discard_staged(proposal)
        return view

    async def cancel(self, actor: Actor, proposal: int, request: api.Decide) -> api.Proposal:
        """Take a proposal back: the operator any, an agent its own. Too late once it is being activated."""
        note = request.note
        async with self._store.state.transaction(dry_run=request.dry_run) as tx:
            row = await proposals.get(tx, proposal)
            own = actor.name == f"agent:{row.requested_by}"
            if not own:
                require_operator(actor)
            if row.state is ProposalState.CANCELLED:
                return await views.read(tx, proposal)
            await self._move(tx, actor, row, ProposalState.CANCELLED, note)
            if row.kind is ProposalKind.SPAWN:
                await proposals.destroy_unborn(tx, row.agent)
            if not own:
                await proposals.tell(tx, row, ProposalState.CANCELLED, _words(note))
            view = await views.read(tx, proposal)
        if not request.dry_run:
            self._wake(row.agent)
            self._proposing.discard_staged(proposal)
        return view

    # ------------------------------------------------------------------------------------------- inner
    async def _is_fresh(self, tx: Tx, row: ProposalRow) -> bool:
        """Whether it was compared with what runs now: another deployment may have ended a moment ago."""
        running = await proposals.running(tx, row.agent)
        return row.kind is ProposalKind.SPAWN or (running.commit if running else None) == row.base

    async def _move(
        self, tx: Tx, actor: Actor, row: ProposalRow, after: ProposalState, note: str, *, now: bool = False
    ) -> None:
        clean = _clean(note)
        if not await tx.move_proposal(
            row.id, after, note=clean, decided_by=actor.name, decided_at=tx.now, activate_now=int(now)
        ):
            raise OperatorError(
                f"proposal {row.id} is {after} already, by {row.decided_by}",
                code="conflict",
                hint="somebody else was faster",
            )
        await tx.audit(
            actor.name,
            f"proposal.{after}",
            f"proposal:{row.id}",
            agent=row.agent,
            commit=row.commit,
            digest=row.digest,
            risk=row.risk,
            note=clean,
            now=now,
        )

    async def _make_way(self, tx: Tx, row: ProposalRow, facts: rules.Facts) -> list[int]:
        """Earlier proposals end as superseded (these are returned), and a new agent gets its row."""
        rivals = await proposals.older_rivals(tx, row)
        for rival in rivals:
            note = f"proposal {row.id} was approved instead"
            await tx.move_proposal(rival, ProposalState.SUPERSEDED, note=note)
        assert row.spec is not None, "a pending proposal was examined"
        spec = Spec.model_validate(json.loads(row.spec))
        other = await proposals.other_manager(tx, row.agent)
        if Role(spec.role) is Role.MANAGER and other is not None:
            raise OperatorError(
                f"{row.agent} cannot become manager: {other} is", code="conflict", hint="deny this proposal"
            )
        there = await proposals.agent(tx, row.agent)
        if row.kind is ProposalKind.APPLY:
            if there is None or there.destroyed:
                raise OperatorError(f"the agent {row.agent} is destroyed", code="conflict")
            return rivals
        if there is not None:
            raise OperatorError(
                f"the agent {row.agent} exists already", code="conflict", hint="deny this proposal"
            )
        base = await self._uid_base(tx, spec, facts)
        await proposals.insert_agent(tx, row.agent, Role(spec.role), base, str(uuid.uuid4()))
        return rivals

    async def _uid_base(self, tx: Tx, spec: Spec, facts: rules.Facts) -> int:
        """The range of a new agent, judged by what is true inside of this transaction."""
        taken = frozenset((await proposals.uid_bases(tx)).values())
        current = rules.Facts(
            facts.agent, None, taken, facts.uids, facts.reserved, None, facts.allowed_models, None
        )
        wanted = spec.uidMap.base
        if wanted is not None:
            why = rules.range_fault(wanted, current)
            if why is not None:
                raise OperatorError(
                    f"the uid range from {wanted} is not free any more: {why}", code="conflict"
                )
            return wanted
        free = rules.lowest_free(current)
        if free is None:
            raise OperatorError(
                "there is no free uid range left", code="conflict", hint="widen uid_range, or purge agents"
            )
        return free


def _clean(note: str) -> str:
    return note.replace("\0", "").strip()


def _words(note: str) -> str:
    return f", by the operator: {_clean(note)}" if _clean(note) else ", by the operator"
