"""A hive's passes over a real store and fake effects; a new hived process over the same world at will."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from reconciler.effects.protocols import ContainerStatus
from reconciler.model.names import AgentName, Commit
from reconciler.model.states import ProposalState, Role
from reconciler.passes.apply import Applier, Paths
from reconciler.passes.builds import Builds
from reconciler.passes.loop import Passes, Presence
from reconciler.passes.roots import BareRoots, Interchangeable, never
from reconciler.plan.facts import Bounds
from reconciler.plan.steps import Again, Failed, Outcome, Settled, Waiting
from reconciler.store import deployments
from reconciler.store.db import Store
from tests.fakes.containers import FakeContainers, Start
from tests.fakes.faults import Died, Faults
from tests.fakes.hostfiles import FakeHostFiles
from tests.fakes.nix import FakeNix

SMITH = AgentName("smith")
BASE = 1_048_576


class FakeClock:
    """Time that moves only when somebody waits."""

    def __init__(self) -> None:
        self.at = 10_000.0

    def now(self) -> float:
        self.at += 0.001
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds
        await asyncio.sleep(0)


class FakeTrees:
    """The part of git that a deployment reads."""

    async def extract(self, name: AgentName, commit: Commit, into: Path) -> None:
        (into / "agent.nix").write_text("{ }")

    async def read(self, name: AgentName, commit: Commit, path: str, limit: int) -> str | None:
        return f"prompt of {name} at {commit[:4]}"

    async def remove(self, name: AgentName) -> None:
        pass


@dataclass
class Memory:
    """What only this hived process knows: gone when it dies."""

    hellos: dict[AgentName, float] = field(default_factory=dict)
    busy: set[AgentName] = field(default_factory=set)
    served: set[AgentName] = field(default_factory=set)
    known: set[AgentName] = field(default_factory=set)
    draining: set[AgentName] = field(default_factory=set)
    generations: dict[AgentName, int | None] = field(default_factory=dict)


@dataclass
class FakeTags:
    """Tags of proposals; `gone`: somebody removed them from these agents' repositories."""

    gone: set[AgentName] = field(default_factory=set)

    async def version(self) -> tuple[int, int]:
        return 0, 0

    async def are_there(self, name: AgentName, version: tuple[int, int]) -> bool:
        return name not in self.gone

    async def restore(self, name: AgentName) -> None:
        self.gone.discard(name)


@dataclass
class Told:
    """What harnesses are told directly."""

    gone: list[str] = field(default_factory=list)
    directed: list[tuple[str, str]] = field(default_factory=list)

    async def harness_gone(self, agent: AgentName) -> None:
        self.gone.append(agent)

    async def direct(self, agent: AgentName, kind: str, **data: object) -> None:
        self.directed.append((agent, kind))


class PassBench:
    """One hive with fakes; `hived()` makes a new process over the same world."""

    def __init__(
        self, store: Store, trees: Path, clock: FakeClock, interchangeable: Interchangeable = never
    ) -> None:
        self.interchangeable = interchangeable
        self.store, self.trees, self.clock = store, trees, clock
        self.faults = Faults()
        self.containers = FakeContainers(self.faults, now=clock.now)
        self.nix = FakeNix(self.faults)
        self.files = FakeHostFiles(self.faults)
        self.told = Told()
        self.tags = FakeTags()
        self.mute: set[str] = set()
        self.memory = Memory()
        self.logs: list[str] = []
        self.woken: set[AgentName] = set()
        self.troubles: list[str] = []
        self.containers.on_start = self.say_hello
        self.passes = self.hived()

    def say_hello(self, start: Start) -> None:
        self.memory.generations.pop(start.spec.name, None)
        if start.spec.toplevel not in self.mute:
            self.memory.hellos[start.spec.name] = self.clock.now()

    def hived(self) -> Passes:
        memory = self.memory = Memory()
        # Harnesses that live on say hello again to the new hived.
        for name in self.containers.running():
            if self.containers.running()[name] not in self.mute:
                memory.hellos[name] = self.clock.now()

        async def serve(name: AgentName, uid_base: int, role: Role) -> None:
            memory.served.add(name)
            memory.known.add(name)

        async def drop(name: AgentName) -> None:
            memory.served.discard(name)

        async def phase(name: AgentName, status: ContainerStatus, outcome: Outcome) -> None:
            pass

        def drain(agent: AgentName, *, on: bool) -> None:
            (memory.draining.add if on else memory.draining.discard)(agent)

        async def append_log(proposal: int, lines: list[str]) -> None:
            self.logs += lines

        sockets = SimpleNamespace(
            serve=serve,
            drop=drop,
            is_served=lambda name: name in memory.served,
            is_left=lambda name: False,
            is_lost=lambda name: name in memory.known and name not in memory.served,
        )
        git: Any = FakeTrees()
        self.builds = Builds(
            self.store, git, self.nix, self.trees, parallel=2, append_log=append_log,
            wake=self.woken.add, clock=self.clock,
        )  # fmt: skip
        self.applier = Applier(
            store=self.store, containers=self.containers, nix=self.nix, git=git, host_files=self.files,
            sockets=sockets, voice=self.told, tags=self.tags, builds=self.builds, clock=self.clock,
            append_log=append_log, paths=Paths(agents=self.trees, sockets=self.trees, staged=self.trees),
        )  # fmt: skip
        return Passes(
            store=self.store, containers=self.containers, nix=self.nix, tags=self.tags,
            host_files=self.files, sockets=sockets, builds=self.builds, applier=self.applier,
            clock=self.clock, bounds=Bounds(), resync_s=10,
            after_step=lambda: None, on_failure=lambda name, error: self.troubles.append(error),
            presence=Presence(
                memory.hellos.get, memory.hellos.__contains__, memory.busy.__contains__, phase, drain,
                memory.generations.get,
            ),
            interchangeable=self.interchangeable,
        )  # fmt: skip

    async def die(self) -> None:
        """Hived is gone and a new one starts."""
        await self.builds.close()
        self.passes = self.hived()

    async def settle(self, name: AgentName = SMITH) -> Outcome:
        """Passes until the agent rests; builds finish, time goes by."""
        for _ in range(200):
            self.woken.discard(name)
            outcome = await self.passes.run_pass(name)
            if self.builds.running(name):
                await self.built(name)
                continue
            if name in self.woken:  # the build ended while the pass said that it waits for it
                continue
            match outcome:
                case Settled() | Waiting():
                    return outcome
                case Again(after_s):
                    await self.clock.sleep(max(after_s, 0.01))
                case Failed():
                    await self.clock.sleep(0.5)
        raise AssertionError("it never rests")

    async def built(self, name: AgentName) -> None:
        async with asyncio.timeout(60):
            while self.builds.running(name):
                await asyncio.sleep(0)
                for task in list(self.builds.tasks.values()):
                    with contextlib.suppress(Died, asyncio.CancelledError):
                        await task
                    if not task.cancelled() and isinstance(task.exception(), Died):
                        raise Died("in a build")

    async def say_hello_again(self, name: AgentName = SMITH) -> None:
        """The harness takes up what the host serves now."""
        row = await deployments.serving_generation(self.store.state, name)
        self.memory.generations[name] = None if row is None else row["number"]

    async def approve(self, model: str, **more: Any) -> int:
        """An approved proposal of smith, as the approvals service leaves it."""
        spec = {"model": model, "role": "agent", **more}
        async with self.store.state.transaction() as tx:
            done = await tx.run(
                "INSERT INTO proposals (kind, agent, commit_id, state, spec, spec_digest, requested_by, "
                "created_at) VALUES ('apply', 'smith', ?, 'approved', ?, 'd', 'hm1nd', ?)",
                f"{model:0<40}".encode().hex()[:40], json.dumps(spec), tx.now,
            )  # fmt: skip
            return done.row_id

    async def state_of(self, proposal: int) -> ProposalState:
        row = await self.store.state.one("SELECT state FROM proposals WHERE id = ?", proposal)
        assert row is not None
        return ProposalState(row["state"])

    async def notes(self) -> dict[str, str]:
        """Messages of the system that are committed, by key; a key twice is an error here."""
        found: dict[str, str] = {}
        for row in await self.store.state.all("SELECT data FROM outbox WHERE kind = 'notify'"):
            told = json.loads(row["data"])
            assert told["key"] not in found, told["key"]
            found[told["key"]] = told["body"]
        return found

    async def agent(self) -> Any:
        return await self.store.state.one("SELECT * FROM agents WHERE name = 'smith'")


@contextlib.asynccontextmanager
async def pass_bench(directory: Path, *, in_place: bool = False) -> AsyncIterator[PassBench]:
    """With one agent, smith, that was never deployed. `in_place`: containers serve other generations as on
    the bare platform, where a root holds nothing but its spec."""
    clock = FakeClock()
    store = await Store.open(directory / "db", now=clock.now)
    interchangeable = BareRoots(store) if in_place else never
    async with store.state.transaction() as tx:
        await tx.run(
            "INSERT INTO agents (name, role, uid_base, desired, session_id, created_at) "
            "VALUES ('smith', 'agent', ?, 'running', 's', ?)", BASE, tx.now,
        )  # fmt: skip
    made = PassBench(store, directory, clock, interchangeable)
    yield made
    await made.builds.close()
    await store.close()


async def future_path(bench: PassBench, model: str) -> AsyncIterator[str]:
    async def quiet(line: str) -> None:
        pass

    yield await FakeNix().build(SMITH, bench.trees, {"model": model, "role": "agent"}, quiet)
