"""Whether an agent's repository shows the tags that its rows ask for, and their restoration, for passes."""

from __future__ import annotations

import structlog

from reconciler.approvals.projection import missing_tags, repair_tags
from reconciler.effects.protocols import Git
from reconciler.model.names import AgentName
from reconciler.store.db import Store

log = structlog.get_logger("approvals")


class ProposalTags:
    """Projections of the rows, so that what is wrong with them is known before anybody needs them.

    A tag whose commit is gone from the repository cannot be made: it is told in the log once and not asked
    for again by this process (`hive doctor` lists it).
    """

    def __init__(self, store: Store, git: Git) -> None:
        self._store = store
        self._git = git
        self._lost: dict[AgentName, frozenset[str]] = {}

    async def are_there(self, name: AgentName) -> bool:
        """Reads only, and starts no program while the repository lies as it lay."""
        drift = await missing_tags(self._git, self._store.state, name)
        return {one.tag for one in (*drift.missing, *drift.moved)} <= self._lost.get(name, frozenset())

    async def restore(self, name: AgentName) -> None:
        """Make again what is missing or moved."""
        drift = await missing_tags(self._git, self._store.state, name)
        lost = await repair_tags(self._git, name, drift)
        self._lost[name] = frozenset(one.tag for one in lost)
        if lost:
            log.warning("tags.lost", agent=name, tags=[one.tag for one in lost][:10], count=len(lost))
