"""Examinations that nobody works on: hived died, or the disk was full when the commit came.

What has arrived is examined; what has not, and cannot be had any more, ends as invalid with the reason. At
the start of hived at once; later by looking again and again, since whoever had no room may ask again itself.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import structlog

from reconciler.approvals.examination import Examiner
from reconciler.approvals.proposing import Proposing
from reconciler.config import Config
from reconciler.effects.protocols import Clock, Git
from reconciler.errors import HiveError, InvalidError
from reconciler.model.names import OPERATOR
from reconciler.model.states import ProposalState
from reconciler.store import proposals
from reconciler.store.db import Store
from reconciler.store.proposals import ProposalRow

log = structlog.get_logger("approvals")

# Between a proposal's row and its examination others are at work for a moment.
IDLE_S = 10.0
# How long whoever met a full disk may take to send its commit again.
ASK_AGAIN_S = 300.0
_NEEDED = (
    ProposalState.EXAMINING, ProposalState.PENDING, ProposalState.APPROVED, ProposalState.BUILDING,
    ProposalState.ACTIVATING,
)  # fmt: skip


class Resuming:
    """Goes on with proposals in `examining`."""

    def __init__(
        self,
        *,
        store: Store,
        git: Git,
        config: Config,
        clock: Clock,
        examiner: Examiner,
        proposing: Proposing,
    ) -> None:
        self._store = store
        self._git = git
        self._state = Path(config.state_dir)
        self._clock = clock
        self._examiner = examiner
        self._proposing = proposing
        self._idle: dict[int, float] = {}

    async def start(self) -> None:
        """After a death: go on with what has arrived, end what has not, and clear away what was left."""
        for row in await proposals.in_state(self._store.state, ProposalState.EXAMINING):
            if not await self._examine(row):
                await self._give_up(row, "hived was restarted before the commit had arrived")
        await asyncio.to_thread(self._sweep, await self._needed())

    async def look(self) -> None:
        """Take up what has been lying for a while; `DiskFullError` of one is the next look's matter."""
        rows = await proposals.in_state(self._store.state, ProposalState.EXAMINING)
        now = self._clock.monotonic()
        idle = [row for row in rows if not self._is_worked_on(row.id)]
        self._idle = {row.id: self._idle.get(row.id, now) for row in idle}
        for row in idle:
            waited = now - self._idle[row.id]
            if waited < IDLE_S:
                continue
            try:
                if not await self._examine(row) and waited >= ASK_AGAIN_S:
                    await self._give_up(row, "there was no room for the commit when it was offered")
            except HiveError as error:
                log.warning("examination.later", proposal=row.id, error=error.message)

    def _is_worked_on(self, proposal: int) -> bool:
        return self._examiner.is_running(proposal) or self._proposing.is_arriving(proposal)

    async def _examine(self, row: ProposalRow) -> bool:
        """Whether its commit is there. One that came from outside is only with its tag: until then a part of
        it may be missing."""
        tags = await self._git.tags(row.agent)
        if f"proposal/{row.id}" not in tags:
            is_template = tags.get(f"template/{row.commit[:12]}") == row.commit
            if not is_template and row.requested_by != OPERATOR:
                return False
            if not await self._git.exists(row.agent, row.commit):
                return False
            await self._git.pin(row.agent, f"proposal/{row.id}", row.commit)
        log.info("examination.resumed", proposal=row.id, agent=row.agent)
        self._examiner.begin(row.id)
        return True

    async def _give_up(self, row: ProposalRow, why: str) -> None:
        await self._examiner.invalidate(row.id, InvalidError(why, hint="propose it again"))
        self._proposing.discard_staged(row.id)

    async def _needed(self) -> set[str]:
        alive = set()
        for state in _NEEDED:
            rows = await proposals.in_state(self._store.state, state)
            alive |= {self._proposing.staged(row.id).name for row in rows}
        return alive

    def _sweep(self, needed: set[str]) -> None:
        """Remove what a killed hived left: trees of examinations, staged states of ended proposals."""
        for tree in (self._state / "trees").glob("examine-*"):
            if not self._examiner.is_running(int(tree.name.split("-")[1])):
                shutil.rmtree(tree, ignore_errors=True)
        for tar in (self._state / "staged").glob("*.tar*"):
            if tar.name not in needed:
                tar.unlink(missing_ok=True)
