"""Approvals over real databases and fake effects: a hive with agents, proposers, and an operator."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from reconciler.approvals import ApprovalService
from reconciler.config import Config, Gateway
from reconciler.control import models as api
from reconciler.effects.protocols import Evaluation, Git
from reconciler.model.names import AgentName, Commit
from reconciler.model.states import Role, UserRole
from reconciler.services import Actor
from reconciler.store import deployments
from reconciler.store.db import Database, Store
from tests.fakes.clock import VirtualClock
from tests.fakes.faults import Faults
from tests.fakes.git import FakeCommit, FakeGit, write_bundle
from tests.fakes.hostfiles import FakeHostFiles
from tests.fakes.nix import FakeNix

ALICE = Actor("operator:alice", UserRole.OPERATOR)
BOB = Actor("operator:bob", UserRole.OPERATOR)
VICTOR = Actor("operator:victor", UserRole.VIEWER)
SMITH, SCOUT, BOSS, SCRIBE = (AgentName(name) for name in ("smith", "scout", "hm1nd", "scribe"))


class CountingNix(FakeNix):
    """Waits at `gate`, if there is one, and knows how many evaluations ran at once."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults)
        self.gate: asyncio.Event | None = None
        self.at_once = 0
        self.most = 0

    async def evaluate(self, tree: Path) -> Evaluation:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            if self.gate is not None:
                await self.gate.wait()
            return await super().evaluate(tree)
        finally:
            self.at_once -= 1


class World:
    """One hived's approvals. `restart` is its sudden death and a new process over the same files."""

    def __init__(self, directory: Path, git: Git | None) -> None:
        self.directory = directory
        self.clock = VirtualClock()
        self.faults = Faults()
        self.fake = FakeGit(self.faults)
        self.git: Git = git or self.fake
        self.nix = CountingNix(self.faults)
        self.files = FakeHostFiles(self.faults)
        self.woken: list[str] = []
        self.directed: list[tuple[str, str]] = []
        self.etc = directory / "etc"
        self.etc.mkdir(parents=True, exist_ok=True)
        self.config = Config(
            state_dir=str(directory / "state"), gateway=Gateway(allowed_models=["haiku", "sonnet", "opus"])
        )

    @classmethod
    async def open(cls, directory: Path, git: Git | None = None) -> Self:
        """`git`: the real one, instead of `fake`."""
        world = cls(directory, git)
        await world._start()
        return world

    async def _start(self) -> None:
        state, now = self.directory / "state", self.clock.now
        self.store = Store(
            await Database.open(state / "state.db", synchronous="OFF", now=now),
            await Database.open(state / "events.db", synchronous="OFF", now=now),
        )
        self.service = ApprovalService(
            store=self.store,
            git=self.git,
            nix=self.nix,
            host_files=self.files,
            broker=self,
            config=self.config,
            clock=self.clock,
            wake=self.wake,
            etc=self.etc,
        )

    def wake(self, name: AgentName) -> None:
        """Names on their way to a pass."""
        self.woken.append(name)

    async def direct(self, agent: AgentName, kind: str, **data: object) -> None:
        """Orders to harnesses."""
        self.directed.append((agent, kind))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.service.close()
        await self.store.close()

    async def restart(self) -> None:
        await self.close()
        await self._start()
        await self.service.resume()

    async def settled(self) -> None:
        await self.service.examiner.settled()

    # ------------------------------------------------------------------------------------------- agents
    async def agent(self, name: AgentName, role: Role = Role.AGENT) -> Commit:
        """An agent that runs its first generation; its commit."""
        made = await self.service.new_agent(ALICE, api.NewAgent(name=name, role=role, approve=True))
        assert made.state == "approved", made.error
        await self.deploy(made.id)
        return Commit(made.commit)

    async def deploy(self, proposal: int) -> None:
        """What passes do with an approved proposal."""
        await deploy(self.store, proposal)

    # ------------------------------------------------------------------------------------------- proposing
    async def bundle(self, name: AgentName, changes: Mapping[str, str]) -> tuple[Path, Commit]:
        """A bundle of one commit on top of `main` with some files changed."""
        repository = self.fake.repositories[name]
        assert repository.main is not None
        base = repository.commits[repository.main]
        files = {**base.files, **{path: text.encode() for path, text in changes.items()}}
        commit = FakeCommit(files, repository.main)
        path = self.directory / f"{commit.id[:12]}.bundle"
        return path, write_bundle(path, [base, commit])

    async def propose(
        self, by: AgentName, target: AgentName, changes: Mapping[str, str], description: str = "a change"
    ) -> int:
        """Propose and examine; the id."""
        path, commit = await self.bundle(target, changes)
        made = await self.service.propose_bundle(by, target, commit, description, path)
        await self.settled()
        return made.proposal

    def tar(self, **files: str) -> Path:
        """A state tar of some files."""
        path = self.directory / "state.tar"
        with tarfile.open(path, "w") as archive:
            for name, text in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text.encode()))
        return path

    # ------------------------------------------------------------------------------------------- looking
    async def get(self, proposal: int) -> api.Proposal:
        return await self.service.get(proposal)

    async def approve(self, proposal: int, actor: Actor = ALICE, **fields: Any) -> api.Proposal:
        """Approve what is shown now."""
        shown = await self.get(proposal)
        return await self.service.approve(actor, proposal, api.Approve(digest=shown.digest or "", **fields))

    async def outbox(self, kind: str) -> list[dict[str, Any]]:
        rows = await self.store.state.all("SELECT data FROM outbox WHERE kind = ? ORDER BY id", kind)
        return [json.loads(row["data"]) for row in rows]

    async def told(self, agent: str) -> list[str]:
        """Messages of the system on their way to an agent."""
        return [row["body"] for row in await self.outbox("notify") if row["agent"] == agent]

    async def count(self, table: str) -> int:
        row = await self.store.state.one(f"SELECT COUNT(*) AS n FROM {table}")
        assert row is not None
        return int(row["n"])


def agent_nix(**options: str) -> str:
    """An `agent.nix` of options given as Nix text (`bash_allow` for `bash.allow`)."""
    lines = "".join(f"    {key.replace('_', '.')} = {value};\n" for key, value in options.items())
    return "{ ... }:\n{\n  hyperhive = {\n" + lines + "  };\n}\n"


async def deploy(store: Store, proposal: int) -> None:
    """What passes do with an approved proposal, in the rows."""
    row = await store.state.one("SELECT agent FROM proposals WHERE id = ?", proposal)
    assert row is not None
    name = AgentName(row["agent"])
    for step in ("build", "activate", "confirm"):
        facts = await deployments.read(store.state, name, now=0, building=lambda _: False)
        assert facts is not None
        candidate = facts.candidate
        assert candidate is not None
        assert candidate.proposal == proposal
        async with store.state.transaction() as tx:
            if step == "build":
                await deployments.begin_build(tx, candidate)
                await deployments.set_built(tx, proposal, f"/nix/store/{proposal}")
            elif step == "activate":
                number = await deployments.next_generation(store.state, name)
                await deployments.activate(tx, candidate, number, "")
                await deployments.record_start(tx, name, proposal, generation=number, reason="")
            else:
                await deployments.confirm(tx, candidate)
