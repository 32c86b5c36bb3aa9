"""Build again what an agent should run when the store does not have it: after a restore on another host, or
when somebody collected what was not pinned.

It was approved and built once; the same spec, modules and inputs give the same path. Another path means that
this host would run something else than what was approved, and that is refused.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from reconciler.effects.protocols import Clock, Git, Nix
from reconciler.errors import HiveError, PermanentError
from reconciler.model.names import AgentName, Commit

log = structlog.get_logger("rebuilds")

RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class Lost:
    """What is to be built again: `store_path` is what must come out; `number` its generation, if it has
    one."""

    agent: AgentName
    commit: Commit
    spec: dict[str, Any]
    store_path: str
    number: int | None


class Rebuilds:
    """Rebuilds as tasks, one per agent. A pass asks `why`, calls `start`, and is woken when one ends."""

    def __init__(
        self,
        git: Git,
        nix: Nix,
        trees: Path,
        *,
        parallel: int,
        wake: Callable[[AgentName], None],
        clock: Clock,
    ) -> None:
        self._git = git
        self._nix = nix
        self._trees = trees
        self._slots = asyncio.Semaphore(parallel)
        self._wake = wake
        self._clock = clock
        self._failed: dict[AgentName, tuple[str, float]] = {}
        self.tasks: dict[AgentName, asyncio.Task[None]] = {}

    def why(self, name: AgentName) -> str:
        """What a pass waits for: the rebuild under way, or an end of what made the last one fail, which is
        tried again after a minute. Empty: nothing hinders a rebuild."""
        if name in self.tasks:
            return "its root, which is built again"
        text, until = self._failed.get(name, ("", 0.0))
        return text if self._clock.monotonic() < until else ""

    def start(self, lost: Lost) -> None:
        """Start unless one of this agent runs."""
        if lost.agent not in self.tasks:
            self.tasks[lost.agent] = asyncio.create_task(self._run(lost), name=f"rebuild-{lost.agent}")

    async def close(self) -> None:
        """End all; the next hived begins them again."""
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, lost: Lost) -> None:
        try:
            async with self._slots:
                await self._build(lost)
            self._failed.pop(lost.agent, None)
            log.info("rebuilt", agent=lost.agent, store_path=lost.store_path)
        except asyncio.CancelledError:
            raise
        except HiveError as error:
            log.warning("rebuild.failed", agent=lost.agent, error=error.message)
            hint = f" ({error.hint})" if error.hint else ""
            self._remember(lost.agent, f"the operator: its root cannot be built again: {error.message}{hint}")
        except Exception as error:
            log.exception("rebuild.bug", agent=lost.agent)
            self._remember(lost.agent, f"the operator: building its root again met a bug: {error}")
        finally:
            self.tasks.pop(lost.agent, None)
            self._wake(lost.agent)

    def _remember(self, name: AgentName, text: str) -> None:
        self._failed[name] = (text, self._clock.monotonic() + RETRY_S)

    async def _build(self, lost: Lost) -> None:
        self._trees.mkdir(parents=True, exist_ok=True, mode=0o711)
        tree = Path(tempfile.mkdtemp(prefix=f"build-{lost.agent}-again-", dir=self._trees))
        try:
            await self._git.extract(lost.agent, lost.commit, tree)
            path = await self._nix.build(lost.agent, tree, lost.spec, _quietly)
        finally:
            await asyncio.to_thread(shutil.rmtree, tree, ignore_errors=True)
        if path != lost.store_path:
            raise PermanentError(
                f"commit {lost.commit[:12]} was {lost.store_path}, and is {path} on this host",
                hint="this hyperhive or its inputs are not those that built it: propose the commit of "
                f"{lost.agent} again and approve it, or run the version that made the backup",
            )
        if lost.number is not None:
            await self._nix.set_generation(lost.agent, lost.number, path)


async def _quietly(line: str) -> None:
    """The log of a rebuild says nothing that the first build's did not."""
    del line
