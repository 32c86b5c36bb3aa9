"""The service `Doctor`: find, judge, tell; and make anew what is only a picture of the rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from reconciler.approvals.projection import project_meta
from reconciler.control import models as api
from reconciler.doctor.checks import judge
from reconciler.doctor.facts import Facts
from reconciler.doctor.gather import Gathering, deployed
from reconciler.effects.protocols import Git
from reconciler.errors import HiveError, TemporaryError
from reconciler.model.names import AgentName
from reconciler.model.text import visible
from reconciler.services import Actor
from reconciler.store import health, outbox
from reconciler.store.db import Store

log = structlog.get_logger("doctor")


class Tags(Protocol):
    """Restores an agent's tags."""

    async def restore(self, name: AgentName) -> None: ...


class DoctorService:
    """One examination at a time: it reads every file of the databases."""

    def __init__(
        self, *, store: Store, gathering: Gathering, git: Git, tags: Tags, wake: Callable[[AgentName], None]
    ) -> None:
        self._store = store
        self._gathering = gathering
        self._git = git
        self._tags = tags
        self._wake = wake
        self._busy = asyncio.Lock()

    async def examine(self, actor: Actor, *, repair: bool) -> api.Health:
        """Every check. What `repair` cannot do is in the findings that follow."""
        if self._busy.locked():
            raise TemporaryError("another examination is under way", code="busy", after_s=5)
        async with self._busy:
            if repair:
                await self._repair(actor)
            return told(await self._gathering.facts(), offline=False)

    async def _repair(self, actor: Actor) -> None:
        """Tags, deploy log, effects that were given up; profiles are mended by passes, which are woken."""
        async with self._store.state.transaction() as tx:
            await outbox.forgive(tx)
            await tx.audit(actor.name, "hive.repair", "")
            tx.emitted = True  # the outbox is looked at again
        for row in await health.agents(self._store.state):
            name = AgentName(row["name"])
            try:
                await self._tags.restore(name)
                if row["generation"] is not None and row["desired"] != "destroyed":
                    await project_meta(self._git, deployed(row))
            except HiveError as error:
                log.warning("doctor.not-repaired", agent=name, error=error.message)
            self._wake(name)


def told(facts: Facts, *, offline: bool) -> api.Health:
    """The findings as the API tells them; what comes from files' names and repositories is made visible."""
    items = [
        api.Check(
            id=check.id,
            title=check.title,
            status=found.status,
            detail=visible(found.detail),
            remedy=visible(found.remedy),
        )
        for check, found in judge(facts)
    ]
    counts = {status: sum(item.status == status for item in items) for status in ("ok", "warn", "fail")}
    return api.Health(items=items, ok=counts["ok"], warn=counts["warn"], fail=counts["fail"], offline=offline)
