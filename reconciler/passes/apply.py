"""Apply one step of a plan to the world. Each is safe to be killed anywhere and to be run again."""

from __future__ import annotations

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
from reconciler.errors import PermanentError
from reconciler.model.names import AgentName
from reconciler.model.spec import Limits
from reconciler.model.states import Role
from reconciler.passes.builds import Builds
from reconciler.plan.steps import Kind, Step
from reconciler.store import deployments
from reconciler.store.db import Store
from reconciler.store.deployments import AgentFacts, Candidate

log = structlog.get_logger("passes")

PROMPT_MAX_BYTES = 65536
HEALTHY_AFTER_S = 60.0
CRASH_LOG_LINES = 20
BODY_MAX = 60_000


class Sockets(Protocol):
    """The agent sockets that this hived serves."""

    async def serve(self, name: AgentName, uid_base: int, role: Role) -> None: ...
    async def drop(self, name: AgentName) -> None: ...
    def is_served(self, name: AgentName) -> bool: ...


class Voice(Protocol):
    """What passes tell agents and the operator."""

    async def harness_gone(self, agent: AgentName) -> None: ...


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
        builds: Builds,
        clock: Clock,
        paths: Paths,
        append_log: Callable[[int, list[str]], Awaitable[None]],
    ) -> None:
        self._store = store
        self._containers = containers
        self._nix = nix
        self._git = git
        self._host_files = host_files
        self._sockets = sockets
        self._voice = voice
        self._builds = builds
        self._clock = clock
        self._paths = paths
        self._append_log = append_log

    async def apply(self, step: Step, facts: AgentFacts, status: ContainerStatus) -> None:
        """Do one step. `facts` and `status` are what the plan was made from."""
        name = facts.desired.name
        log.info("step", agent=name, step=str(step.kind), reason=step.reason)
        match step.kind:
            case Kind.MAKE_DIRECTORIES:
                await self._host_files.ensure_agent(name, facts.uid_base, manager=facts.role is Role.MANAGER)
            case Kind.SERVE_SOCKETS:
                await self._sockets.serve(name, facts.uid_base, facts.role)
            case Kind.DROP_SOCKETS:
                await self._sockets.drop(name)
            case Kind.START:
                await self._start(step, facts)
            case Kind.STOP:
                await self._stop(name, status)
            case Kind.CLEAR:
                await self._voice.harness_gone(name)
                await self._containers.clear(name)
            case Kind.REPORT_CRASH:
                await self._report_crash(facts, status)
            case Kind.BUILD | Kind.ACTIVATE | Kind.CONFIRM | Kind.ROLL_BACK | Kind.ABANDON:
                await self._deploy(step, facts, _candidate(facts), status)

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
        candidate = facts.candidate
        if (
            candidate is not None
            and candidate.state_digest is not None
            and candidate.store_path == step.toplevel
        ):
            tar = self._paths.staged / f"{candidate.proposal}.tar"
            await self._host_files.unpack_state(name, facts.uid_base, tar, candidate.state_digest)
        async with self._store.state.transaction() as tx:
            await deployments.record_start(tx, name)
        await self._containers.start(
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

    async def _stop(self, name: AgentName, status: ContainerStatus) -> None:
        if status.invocation is not None:
            async with self._store.state.transaction() as tx:
                await deployments.intend_stop(tx, name, status.invocation)
        await self._containers.stop(name)
        await self._voice.harness_gone(name)

    async def _report_crash(self, facts: AgentFacts, status: ContainerStatus) -> None:
        name = facts.desired.name
        assert status.invocation is not None, "an exited container has an invocation"
        how = describe_end(status)
        lines = await self._containers.logs(name, CRASH_LOG_LINES)
        ran_s = self._clock.now() - (status.started_at or self._clock.now())
        detail = {
            "unit": status.unit,
            "exit_code": status.exit_code,
            "signal": status.signal,
            "oom": status.oom,
            "how": how,
        }
        await self._voice.harness_gone(name)
        receiver = "operator" if facts.role is Role.MANAGER else "manager"
        body = "\n".join(
            [
                f"container_crash: {name} ended and nobody asked for it: {how}",
                f"unit {status.unit or '-'}, invocation {status.invocation}",
                "last lines of its console:",
                *lines,
            ]
        )
        async with self._store.state.transaction() as tx:
            await deployments.record_crash(
                tx,
                name,
                status.invocation,
                healthy=ran_s >= HEALTHY_AFTER_S,
                detail=detail,
                receiver=receiver,
                body=body[:BODY_MAX],
            )

    async def _confirm(self, candidate: Candidate) -> None:
        async with self._store.state.transaction() as tx:
            await deployments.confirm(tx, candidate)
        await self._append_log(candidate.proposal, [f"deployed as generation {candidate.generation}"])

    async def _roll_back(self, step: Step, facts: AgentFacts, status: ContainerStatus) -> None:
        candidate = _candidate(facts)
        name = facts.desired.name
        lines = await self._containers.logs(name, CRASH_LOG_LINES)
        current = facts.desired.current
        back = (
            f"rolled back to generation {current.generation}" if current else "there is no earlier generation"
        )
        text = f"{step.reason}; {back}"
        await self._append_log(candidate.proposal, [*lines, f"failed: {text}"])
        await self._stop(name, status)
        await self._containers.clear(name)
        async with self._store.state.transaction() as tx:
            await deployments.fail(tx, candidate, "\n".join([text, *lines]))


def _candidate(facts: AgentFacts) -> Candidate:
    if facts.candidate is None:
        raise PermanentError(f"{facts.desired.name} has no deployment")
    return facts.candidate


def describe_end(status: ContainerStatus) -> str:
    """How a container ended, in words."""
    if status.oom:
        return "out of memory"
    if status.signal is not None:
        return f"killed by signal {status.signal}"
    if status.exit_code is not None:
        return f"exited with {status.exit_code}"
    return "its exit status is not known"
