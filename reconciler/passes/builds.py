"""Builds in the background: one per agent at a time, a bounded number over all, the log streamed to
history."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from reconciler.effects.protocols import Git, Nix
from reconciler.errors import HiveError
from reconciler.model.names import AgentName
from reconciler.store import deployments
from reconciler.store.db import Store
from reconciler.store.deployments import Candidate

log = structlog.get_logger("builds")

AppendLog = Callable[[int, list[str]], Awaitable[None]]


class Builds:
    """Runs builds as tasks; a pass asks `running` and calls `start`, and is woken when one ends."""

    def __init__(
        self,
        store: Store,
        git: Git,
        nix: Nix,
        trees: Path,
        *,
        parallel: int,
        append_log: AppendLog,
        wake: Callable[[AgentName], None],
    ) -> None:
        self._store = store
        self._git = git
        self._nix = nix
        self._trees = trees
        self._slots = asyncio.Semaphore(parallel)
        self._append_log = append_log
        self._wake = wake
        self.tasks: dict[AgentName, asyncio.Task[None]] = {}

    def running(self, name: AgentName) -> bool:
        """Whether a build of this agent is under way in this process."""
        return name in self.tasks

    def start(self, candidate: Candidate) -> None:
        """Start the build unless one of this agent runs."""
        if candidate.agent not in self.tasks:
            task = asyncio.create_task(self._build(candidate), name=f"build-{candidate.agent}")
            self.tasks[candidate.agent] = task

    async def close(self) -> None:
        """Cancel all; the next hived builds again from the rows."""
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _build(self, candidate: Candidate) -> None:
        try:
            async with self._slots:
                await self._build_one(candidate)
        except asyncio.CancelledError:
            raise
        except HiveError as error:
            await self._fail(candidate, str(error))
        except Exception as error:
            log.exception("build.bug", agent=candidate.agent, proposal=candidate.proposal)
            await self._fail(candidate, f"internal error: {type(error).__name__}: {error}")
        finally:
            self.tasks.pop(candidate.agent, None)
            self._wake(candidate.agent)

    async def _build_one(self, candidate: Candidate) -> None:
        self._trees.mkdir(parents=True, exist_ok=True, mode=0o711)
        tree = Path(tempfile.mkdtemp(prefix=f"{candidate.agent}-{candidate.proposal}-", dir=self._trees))

        async def sink(line: str) -> None:
            await self._append_log(candidate.proposal, [line])

        try:
            await self._append_log(
                candidate.proposal, [f"building {candidate.agent} at {candidate.commit[:12]}"]
            )
            await self._git.extract(candidate.agent, candidate.commit, tree)
            path = await self._nix.build(candidate.agent, tree, candidate.spec, sink)
            await self._append_log(candidate.proposal, [f"built {path}"])
            async with self._store.state.transaction() as tx:
                await deployments.set_built(tx, candidate.proposal, path)
        finally:
            await asyncio.to_thread(shutil.rmtree, tree, ignore_errors=True)

    async def _fail(self, candidate: Candidate, text: str) -> None:
        await self._append_log(candidate.proposal, [f"failed: {text}"])
        async with self._store.state.transaction() as tx:
            await deployments.fail(tx, candidate, f"the build failed: {text}")
