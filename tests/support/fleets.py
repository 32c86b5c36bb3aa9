"""Many agents at once: rows and fakes of a hive in which all is as it should be, and a hived over them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.app import Effects, Hived, Supervisor
from reconciler.config import Config, UidRange
from reconciler.effects.clock import SystemClock
from reconciler.effects.protocols import Containers, ContainerSpec
from reconciler.model.names import AgentName
from reconciler.model.spec import Limits, Spec
from reconciler.notify import Notifier
from reconciler.store.db import Store
from tests.fakes.containers import FakeContainers
from tests.fakes.faults import Faults
from tests.fakes.git import FakeGit
from tests.fakes.hostfiles import FakeHostFiles
from tests.fakes.measures import FakeMeasures
from tests.fakes.nix import FakeNix

FIRST_BASE = 1_048_576
LOOKS = ("containers.status", "containers.statuses", "hostfiles.agent_is_ready")
"""Effects that only read; a pass without anything to do may call no other."""


def name_of(number: int) -> AgentName:
    """The agents' names; number 0 is the manager."""
    return AgentName("hm1nd" if number == 0 else f"worker-{number:03}")


@dataclass
class Fleet:
    """`count` agents that run their generation 1. `looked` counts reading calls of effects."""

    folder: Path
    count: int
    allow: Sequence[str] = ("manager", "operator")
    faults: Faults = field(default_factory=lambda: Faults(only=frozenset(LOOKS)))

    def __post_init__(self) -> None:
        end = FIRST_BASE + (self.count + 16) * 65_536
        self.config = Config(
            state_dir=str(self.folder / "state"),
            run_dir=str(self.folder / "run"),
            ui_user="nobody",
            gateway_user="nobody",
            build_user="nobody",
            operator_group="nogroup",
            uid_range=UidRange(start=FIRST_BASE, end=end),
        )
        self.containers = FakeContainers(self.faults, now=SystemClock().now)
        self.nix, self.git = FakeNix(self.faults), FakeGit(self.faults)
        self.files = FakeHostFiles(self.faults)
        self.store: Store

    @property
    def looked(self) -> list[str]:
        return [call.partition(" ")[0] for call in self.faults.calls]

    async def populate(self) -> None:
        """Rows, repositories, generations and running containers."""
        for part in ("state", "run", "run/agents"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        spec = Spec().model_dump(mode="json") | {"send": {"allow": list(self.allow)}}
        for number in range(self.count):
            name, base, path = name_of(number), self.base_of(number), self.toplevel_of(number)
            role = "manager" if number == 0 else "agent"
            commit = await self.git.create(
                name, {"agent.nix": "{ }", "flake.nix": f"# {name}"}, author="t", message="m"
            )
            async with self.store.state.transaction() as tx:
                await tx.run(
                    "INSERT INTO agents (name, role, uid_base, desired, session_id, created_at, generation) "
                    "VALUES (?, ?, ?, 'running', ?, ?, 1)",
                    *(name, role, base, f"session-{name}", tx.now),
                )
                done = await tx.run(
                    "INSERT INTO proposals (kind, agent, commit_id, state, requested_by, generation, "
                    "store_path, spec, spec_digest, created_at) "
                    "VALUES ('spawn', ?, ?, 'deployed', 'operator:alice', 1, ?, ?, 'digest', ?)",
                    *(name, commit, path, json.dumps(spec), tx.now),
                )
                await tx.run(
                    "INSERT INTO generations VALUES (?, 1, ?, ?, ?, ?, 'digest', '', 'deployed', ?)",
                    *(name, done.row_id, commit, path, json.dumps(spec | {"role": role}), tx.now),
                )
            self.nix.store.add(path)
            await self.nix.set_generation(name, 1, path)
            await self.nix.select(name, 1)
            await self._start(number)

    def base_of(self, number: int) -> int:
        """The first uid of an agent's range."""
        return FIRST_BASE + number * 65_536

    def toplevel_of(self, number: int) -> str:
        """The root of an agent's generation 1."""
        return f"/nix/store/{number:032x}-hive-{name_of(number)}"

    async def _start(self, number: int) -> None:
        """Make of a row what a pass would make of it."""
        name, base, manager = name_of(number), self.base_of(number), number == 0
        await self.files.ensure_agent(name, base, manager=manager)
        await self.containers.start(
            ContainerSpec(
                name=name,
                toplevel=self.toplevel_of(number),
                uid_base=base,
                state_dir=self.folder / "state/agents" / name,
                run_dir=self.folder / "run/agents" / name,
                manager=manager,
                limits=Limits(),
            )
        )

    def hived(self, containers: Containers | None = None) -> Hived:
        """A hived over this world."""
        effects = Effects(
            containers or self.containers,
            self.nix,
            self.git,
            self.files,
            SystemClock(),
            lambda: None,
            FakeMeasures(),
        )
        return Hived(self.config, self.store, effects, Supervisor(Notifier(), {}))


@contextlib.asynccontextmanager
async def fleet(
    folder: Path, count: int, *, allow: Sequence[str] = ("manager", "operator")
) -> AsyncIterator[Fleet]:
    """A populated fleet with its open store."""
    made = Fleet(folder, count, allow)
    made.store = await Store.open(folder / "state")
    try:
        await made.populate()
        yield made
    finally:
        await made.store.close()
