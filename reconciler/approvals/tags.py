"""Whether an agent's repository shows the tags that its rows ask for, and their restoration, for passes."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from reconciler.approvals.projection import compare_tags, missing_tags, repair_tags
from reconciler.effects.protocols import Git
from reconciler.model.names import AgentName
from reconciler.store.db import Store
from reconciler.store.projections import ExpectedTag, Version, expected_tags, tags_version

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
        self._expected: dict[AgentName, tuple[Version, Sequence[ExpectedTag]]] = {}

    async def version(self) -> Version:
        """Of the rows."""
        return await tags_version(self._store.state)

    async def are_there(self, name: AgentName, version: Version) -> bool:
        """Reads only, asks the rows once for each version of them, and starts no program while the repository
        lies as it lay."""
        known = self._expected.get(name)
        if known is None or known[0] != version:
            # Read after the version: at worst it is read once more.
            known = self._expected[name] = version, await expected_tags(self._store.state, name)
        drift = await compare_tags(self._git, name, known[1])
        return {one.tag for one in (*drift.missing, *drift.moved)} <= self._lost.get(name, frozenset())

    async def restore(self, name: AgentName) -> None:
        """Make again what is missing or moved."""
        drift = await missing_tags(self._git, self._store.state, name)
        lost = await repair_tags(self._git, name, drift)
        self._lost[name] = frozenset(one.tag for one in lost)
        if lost:
            log.warning("tags.lost", agent=name, tags=[one.tag for one in lost][:10], count=len(lost))
