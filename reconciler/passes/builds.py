"""Builds in the background: one per agent at a time, a bounded number over all, the log streamed to
history."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from reconciler.effects.protocols import BuildProgress, Clock, Git, Nix
from reconciler.errors import DiskFullError, HiveError, OperatorError, TemporaryError, disk_full
from reconciler.model import estimates
from reconciler.model.estimates import BuildState
from reconciler.model.names import AgentName
from reconciler.model.states import ProposalState
from reconciler.passes.buildlog import AppendLog, LogWriter
from reconciler.passes.rebuilds import Rebuilds
from reconciler.store import deployments
from reconciler.store.db import Store
from reconciler.store.deployments import Candidate

log = structlog.get_logger("builds")

REST_S = 10.0


@dataclass(slots=True)
class _Going:
    """A build under way: `since` is the monotonic instant it got its slot, `usual_s` what others took."""

    candidate: Candidate
    task: asyncio.Task[None] | None = None
    since: float | None = None
    usual_s: float | None = None
    progress: BuildProgress = field(default_factory=BuildProgress)

    def report(self, progress: BuildProgress) -> None:
        self.progress = progress


class Builds:
    """Runs builds as tasks; a pass asks `running`, calls `start` and `tend`, and is woken when one ends."""

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
        clock: Clock,
    ) -> None:
        self._store = store
        self._git = git
        self._nix = nix
        self._trees = trees
        self._slots = asyncio.Semaphore(parallel)
        self._append_log = append_log
        self._wake = wake
        self._clock = clock
        self._going: dict[AgentName, _Going] = {}
        self._rests: dict[AgentName, float] = {}
        self.again = Rebuilds(git, nix, trees, parallel=parallel, wake=wake, clock=clock)

    @property
    def tasks(self) -> dict[AgentName, asyncio.Task[None]]:
        """Builds under way in this process, by agent."""
        return {name: going.task for name, going in self._going.items() if going.task is not None}

    def running(self, name: AgentName) -> bool:
        """Whether a build of this agent is under way in this process."""
        return name in self._going

    def state(self, proposal: int) -> BuildState | None:
        """How far the build of a proposal is; None if none is under way here."""
        going = next((one for one in self._going.values() if one.candidate.proposal == proposal), None)
        if going is None:
            return None
        progress = going.progress
        elapsed = 0.0 if going.since is None else max(0.0, self._clock.monotonic() - going.since)
        left = estimates.left_s(elapsed, progress.built, progress.expected, going.usual_s)
        return BuildState(
            queued=going.since is None,
            built=progress.built,
            expected=progress.expected,
            running=progress.running,
            elapsed_s=elapsed,
            left_s=left,
        )

    def start(self, candidate: Candidate) -> None:
        """Start the build unless one of this agent runs. `TemporaryError` while the end of the last one could
        not be written down: a full disk must not build without end."""
        if candidate.agent in self._going:
            return
        left = self._rests.get(candidate.agent, 0.0) - self._clock.monotonic()
        if left > 0:
            raise TemporaryError(
                f"the end of the last build of {candidate.agent} could not be written down", after_s=left
            )
        going = self._going[candidate.agent] = _Going(candidate)
        going.task = asyncio.create_task(self._build(going), name=f"build-{candidate.agent}")
        going.task.add_done_callback(_unseen)

    async def tend(self, name: AgentName, candidate: Candidate | None) -> None:
        """End the agent's build unless it is the one that is wanted now, and let go of what an earlier one
        left in the store. Returns when nothing of an unwanted build runs any more."""
        going = self._going.get(name)
        wanted = candidate if candidate is not None and candidate.state is ProposalState.BUILDING else None
        if going is not None and (wanted is None or wanted.proposal != going.candidate.proposal):
            log.info("build.ended", agent=name, proposal=going.candidate.proposal)
            await _end(going)
            await self._append_log(
                going.candidate.proposal, ["the build was ended: it is not wanted any more"]
            )
        if not self.running(name) and name not in self.again.tasks:
            await self._nix.release(name, candidate.store_path if candidate is not None else None)

    async def sweep(self) -> None:
        """Remove what builds of a killed hived left on the disk. Before any is started."""
        for tree in await asyncio.to_thread(lambda: sorted(self._trees.glob("*"))):
            if not tree.name.startswith("examine-"):
                await asyncio.to_thread(shutil.rmtree, tree, ignore_errors=True)
        await self._nix.sweep()

    async def close(self) -> None:
        """End all; the next hived builds again from the rows."""
        await asyncio.gather(self.again.close(), *[_end(going) for going in list(self._going.values())])

    # ------------------------------------------------------------------------------------------- one build
    async def _build(self, going: _Going) -> None:
        candidate = going.candidate
        try:
            async with self._slots:
                going.usual_s = await deployments.usual_build_s(self._store.state, candidate.agent)
                going.since = self._clock.monotonic()
                await self._build_one(going)
        except asyncio.CancelledError:
            raise
        except DiskFullError as error:
            await self._pause(candidate, error)
        except HiveError as error:
            await self._fail(candidate, str(error))
        except Exception as error:
            if full := disk_full(error):
                await self._pause(candidate, full)
                return
            log.exception("build.bug", agent=candidate.agent, proposal=candidate.proposal)
            await self._fail(candidate, f"internal error: {type(error).__name__}: {error}")
        finally:
            self._going.pop(candidate.agent, None)
            self._wake(candidate.agent)

    async def _build_one(self, going: _Going) -> None:
        candidate = going.candidate
        self._trees.mkdir(parents=True, exist_ok=True, mode=0o711)
        prefix = f"build-{candidate.agent}-{candidate.proposal}-"
        tree = Path(tempfile.mkdtemp(prefix=prefix, dir=self._trees))
        began = self._clock.monotonic()
        try:
            async with LogWriter(self._append_log, candidate.proposal) as lines:
                await lines.add(f"building {candidate.agent} at {candidate.commit[:12]}")
                await self._git.extract(candidate.agent, candidate.commit, tree)
                path = await self._nix.build(
                    candidate.agent, tree, candidate.spec, lines.add, progress=going.report
                )
                await lines.add(f"built {path}")
            took_s = self._clock.monotonic() - began
            async with self._store.state.transaction() as tx:
                await deployments.set_built(tx, candidate.proposal, path, took_s)
        finally:
            await asyncio.to_thread(shutil.rmtree, tree, ignore_errors=True)

    async def _pause(self, candidate: Candidate, error: DiskFullError) -> None:
        """It says nothing about the commit: the build stays wanted, and the next pass begins it again."""
        log.warning("build.later", agent=candidate.agent, proposal=candidate.proposal, error=str(error))
        await self._clock.sleep(error.after_s)

    async def _fail(self, candidate: Candidate, text: str) -> None:
        self._rests[candidate.agent] = self._clock.monotonic() + REST_S
        await self._append_log(candidate.proposal, [f"failed: {text}"])
        try:
            async with self._store.state.transaction() as tx:
                await deployments.fail(tx, candidate, f"the build failed: {text}")
        except OperatorError as conflict:  # cancelled or superseded in the same moment
            log.info("build.outrun", proposal=candidate.proposal, why=conflict.message)
        del self._rests[candidate.agent]


def _unseen(task: asyncio.Task[None]) -> None:
    """An error that nobody awaits: what a build met could not be written down."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("build.unrecorded", task=task.get_name(), error=f"{type(error).__name__}: {error}")


async def _end(going: _Going) -> None:
    """Cancel a build and wait for its end."""
    if going.task is not None:
        going.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([going.task])
