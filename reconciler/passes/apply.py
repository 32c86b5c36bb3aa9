"""Apply one step of a plan to the world. Each is safe to be killed anywhere and to be run again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from reconciler.effects.protocols import (
    Clock,
    Containers,
    ContainerSpec,
    ContainerStatus,
    Git,
    HostFiles,
    Nix,
)
from reconciler.errors import PermanentError, TemporaryError
from reconciler.model.names import AgentName
from reconciler.model.spec import Limits
from reconciler.model.states import ProposalState, Role
from reconciler.passes.builds import Builds
from reconciler.passes.endings import LOG_LINES, Endings, Voice, describe_end, quoted
from reconciler.passes.rebuilds import Lost
from reconciler.plan.steps import Kind, Step
from reconciler.store import agents, deployments
from reconciler.store.db import Store
from reconciler.store.deployments import AgentFacts, Candidate
from reconciler.store.projections import Version

log = structlog.get_logger("passes")

PROMPT_MAX_BYTES = 65536


class Sockets(Protocol):
    """The agent sockets that this hived serves."""

    async def serve(self, name: AgentName, uid_base: int, role: Role) -> None: ...
    async def drop(self, name: AgentName) -> None: ...
    def is_served(self, name: AgentName) -> bool: ...
    def is_lost(self, name: AgentName) -> bool: ...
    def is_left(self, name: AgentName) -> bool:
        """Whether a socket lies there, be it a dead process's."""
        ...


class Tags(Protocol):
    """The tags of proposals in the agents' repositories, made from the rows."""

    async def version(self) -> Version:
        """Another value once the rows may ask for other tags than before."""
        ...

    async def are_there(self, name: AgentName, version: Version) -> bool: ...
    async def restore(self, name: AgentName) -> None: ...


@dataclass(frozen=True, slots=True)
class Paths:
    """Directories that container starts need."""

    agents: Path
    sockets: Path
    staged: Path


class Applier:
    """All steps, over the effects."""

    def __init__(
        self,
        *,
        store: Store,
        containers: Containers,
        nix: Nix,
        git: Git,
        host_files: HostFiles,
        sockets: Sockets,
        voice: Voice,
        tags: Tags,
        builds: Builds,
        clock: Clock,
        paths: Paths,
        append_log: Callable[[int, list[str]], Awaitable[None]],
        deletions: asyncio.Lock | None = None,
    ) -> None:
        self._store = store
        self._containers = containers
        self._nix = nix
        self._git = git
        self._host_files = host_files
        self._sockets = sockets
        self._voice = voice
        self._tags = tags
        self._endings = Endings(store=store, containers=containers, voice=voice, clock=clock)
        self._builds = builds
        self._paths = paths
        self._append_log = append_log
        self.asked: dict[AgentName, int | None] = {}
        self._deletions = deletions or asyncio.Lock()  # shared with backups

    async def apply(self, step: Step, facts: AgentFacts, status: ContainerStatus) -> None:
        """Do one step. `facts` and `status` are what the plan was made from."""
        name = facts.desired.name
        log.info("step", agent=name, step=str(step.kind), reason=step.reason)
        match step.kind:
            case Kind.MAKE_DIRECTORIES:
                await self._make_directories(step, facts)
            case Kind.SERVE_SOCKETS | Kind.DROP_SOCKETS:
                serve = step.kind is Kind.SERVE_SOCKETS
                await (self._serve_sockets(step, facts) if serve else self._sockets.drop(name))
            case Kind.START:
                await self._start(step, facts)
            case Kind.STOP:
                await self._stop(name, status)
            case Kind.CLEAR:
                await self._voice.harness_gone(name)
                await self._containers.clear(name)
            case Kind.TAKE_UP:
                await self._take_up(facts)
            case Kind.REPORT_START | Kind.REPORT_CRASH | Kind.REPORT_STOP:
                await self._report(step, facts, status)
            case Kind.FREEZE | Kind.THAW:
                frozen = step.kind is Kind.FREEZE
                await (self._containers.freeze(name) if frozen else self._containers.thaw(name))
            case Kind.REFRESH_UNIT | Kind.PIN_GENERATION | Kind.RESTORE_TAGS | Kind.REBUILD:
                await self._repair(step, facts)
            case Kind.PURGE:
                await self._purge(name)
            case Kind.BUILD | Kind.ACTIVATE | Kind.CONFIRM | Kind.ROLL_BACK | Kind.ABANDON:
                await self._deploy(step, facts, _candidate(facts), status)

    async def _report(self, step: Step, facts: AgentFacts, status: ContainerStatus) -> None:
        if step.kind is Kind.REPORT_START:
            await self._tell_start(facts.desired.name, status)
        else:
            await self._endings.report(facts, status, crashed=step.kind is Kind.REPORT_CRASH)

    async def _take_up(self, facts: AgentFacts) -> None:
        """Ask the harness to serve another generation; it does so between two turns, and says hello. That it
        was asked is forgotten with this process: asked again, it says hello again."""
        name, candidate, current = facts.desired.name, facts.candidate, facts.desired.current
        probed = candidate is not None and candidate.state is ProposalState.ACTIVATING
        if candidate is not None and probed:
            async with self._store.state.transaction() as tx:
                await deployments.record_probe(tx, candidate.proposal)
            text = "the running container serves it, without a restart"
            await self._append_log(candidate.proposal, [text])
        await self._voice.direct(name, "spec")
        of = candidate if candidate is not None and probed else current
        self.asked[name] = of.generation if of is not None else None

    async def _serve_sockets(self, step: Step, facts: AgentFacts) -> None:
        name, lost = facts.desired.name, self._sockets.is_lost(facts.desired.name)
        await self._sockets.serve(name, facts.uid_base, facts.role)
        if lost:
            async with self._store.state.transaction() as tx:
                await deployments.record_repair(tx, name, str(step.kind), step.reason)

    async def _make_directories(self, step: Step, facts: AgentFacts) -> None:
        """For an agent that was deployed before, somebody else must have changed them."""
        name, manager = facts.desired.name, facts.role is Role.MANAGER
        changed = await self._host_files.ensure_agent(name, facts.uid_base, manager=manager)
        if changed and facts.desired.current is not None:
            async with self._store.state.transaction() as tx:
                await deployments.record_repair(tx, name, str(step.kind), step.reason)

    async def _repair(self, step: Step, facts: AgentFacts) -> None:
        """Mend in place what somebody else changed, and write it down."""
        name, current = facts.desired.name, facts.desired.current
        match step.kind:
            case Kind.REFRESH_UNIT:
                await self._containers.refresh(name)
            case Kind.RESTORE_TAGS:
                await self._tags.restore(name)
            case Kind.REBUILD:
                self._builds.again.start(await self._lost(facts))
            case _:
                assert current is not None, "only a deployed generation is pinned"
                await self._nix.set_generation(name, current.generation, current.toplevel)
                await self._nix.select(name, current.generation)
        async with self._store.state.transaction() as tx:
            await deployments.record_repair(tx, name, str(step.kind), step.reason)

    async def _lost(self, facts: AgentFacts) -> Lost:
        """What should run next and is not in the store."""
        name, current, candidate = facts.desired.name, facts.desired.current, facts.candidate
        if candidate is not None and candidate.store_path is not None:
            return Lost(name, candidate.commit, candidate.spec, candidate.store_path, candidate.generation)
        assert current is not None, "only what was built can be lost"
        row = await agents.generation_number(self._store.state, name, current.generation)
        assert row is not None, "generations are deleted with their agent only"
        return Lost(name, row["commit_id"], json.loads(row["spec"]), current.toplevel, current.generation)

    async def _purge(self, name: AgentName) -> None:
        """The row goes last: killed in between, the next pass does the rest."""
        if self._deletions.locked():
            raise TemporaryError(f"a backup is being made; {name} is purged after it", after_s=5)
        async with self._deletions:
            await self._purge_all(name)

    async def _purge_all(self, name: AgentName) -> None:
        await self._nix.drop_generations(name)
        await self._host_files.remove_agent(name)
        await self._git.remove(name)
        async with self._store.state.transaction() as tx:
            await deployments.purge(tx, name)

    async def _deploy(
        self, step: Step, facts: AgentFacts, candidate: Candidate, status: ContainerStatus
    ) -> None:
        match step.kind:
            case Kind.BUILD:
                await self._build(candidate)
            case Kind.ACTIVATE:
                await self._activate(candidate)
            case Kind.CONFIRM:
                await self._confirm(candidate)
            case Kind.ROLL_BACK:
                await self._roll_back(step, facts, status)
            case _:
                async with self._store.state.transaction() as tx:
                    await deployments.fail(tx, candidate, step.reason)
                self._drop_staged(candidate)

    async def _build(self, candidate: Candidate) -> None:
        async with self._store.state.transaction() as tx:
            await deployments.begin_build(tx, candidate)
        self._builds.start(candidate)

    async def _activate(self, candidate: Candidate) -> None:
        assert candidate.store_path is not None, "the planner activates only what is built"
        prompt = ""
        path = candidate.spec.get("prompt")
        if path:
            text = await self._git.read(candidate.agent, candidate.commit, path, PROMPT_MAX_BYTES)
            prompt = text or ""
        number = await deployments.next_generation(self._store.state, candidate.agent)
        # The GC root comes first: after a crash in between, the next pass writes the same number again.
        await self._nix.set_generation(candidate.agent, number, candidate.store_path)
        async with self._store.state.transaction() as tx:
            await deployments.activate(tx, candidate, number, prompt)
        await self._append_log(candidate.proposal, [f"activating generation {number}"])

    async def _start(self, step: Step, facts: AgentFacts) -> None:
        name = facts.desired.name
        assert step.toplevel is not None, "a start names what it starts"
        manager = facts.role is Role.MANAGER
        await self._host_files.ensure_agent(name, facts.uid_base, manager=manager)
        candidate, current = facts.candidate, facts.desired.current
        probed = candidate is not None and candidate.state is ProposalState.ACTIVATING
        if candidate is None or not probed or candidate.store_path != step.toplevel:
            candidate = None  # what starts is not what is being deployed
        if candidate is not None and candidate.state_digest is not None:
            tar = self._paths.staged / f"{candidate.proposal}.tar"
            await self._host_files.unpack_state(name, facts.uid_base, tar, candidate.state_digest)
        of = candidate or current
        async with self._store.state.transaction() as tx:
            await deployments.record_start(
                tx,
                name,
                candidate.proposal if candidate is not None else None,
                generation=of.generation if of is not None else None,
                reason=step.reason,
            )
        started = await self._containers.start(
            ContainerSpec(
                name=name,
                toplevel=step.toplevel,
                uid_base=facts.uid_base,
                state_dir=self._paths.agents / name,
                run_dir=self._paths.sockets / name,
                manager=manager,
                limits=Limits.model_validate(facts.limits_spec.get("limits", {})),
            )
        )
        await self._tell_start(name, started)

    async def _tell_start(self, name: AgentName, status: ContainerStatus) -> None:
        async with self._store.state.transaction() as tx:
            await deployments.tell_start(tx, name, status.invocation)

    async def _stop(self, name: AgentName, status: ContainerStatus) -> None:
        if status.invocation is not None:
            async with self._store.state.transaction() as tx:
                await deployments.intend_stop(tx, name, status.invocation)
        await self._containers.stop(name)
        await self._voice.harness_gone(name)

    async def _confirm(self, candidate: Candidate) -> None:
        assert candidate.generation is not None, "what is probed has a generation"
        await self._nix.select(candidate.agent, candidate.generation)
        async with self._store.state.transaction() as tx:
            await deployments.confirm(tx, candidate)
        self._drop_staged(candidate)
        await self._append_log(candidate.proposal, [f"deployed as generation {candidate.generation}"])

    async def _roll_back(self, step: Step, facts: AgentFacts, status: ContainerStatus) -> None:
        candidate = _candidate(facts)
        name = facts.desired.name
        lines = await self._containers.logs(name, LOG_LINES)
        current = facts.desired.current
        back = (
            f"rolled back to generation {current.generation}" if current else "there is no earlier generation"
        )
        how = f" ({describe_end(status)})" if status.phase == "exited" else ""
        text = f"{step.reason}{how}; {back}"
        await self._append_log(candidate.proposal, [*lines, f"failed: {text}"])
        await self._stop(name, status)
        # Before its container is cleared away: after a death in between it would be probed once more.
        async with self._store.state.transaction() as tx:
            await deployments.fail(tx, candidate, "\n".join([text, *quoted(lines)]))
        await self._containers.clear(name)
        self._drop_staged(candidate)

    def _drop_staged(self, candidate: Candidate) -> None:
        """The proposal has ended; killed before this, the next start of hived does it."""
        (self._paths.staged / f"{candidate.proposal}.tar").unlink(missing_ok=True)


def _candidate(facts: AgentFacts) -> Candidate:
    if facts.candidate is None:
        raise PermanentError(f"{facts.desired.name} has no deployment")
    return facts.candidate
