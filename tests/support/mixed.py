"""Many agents of which some have real containers: one driver over both kinds, and a fleet that nobody has
started."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness import wire
from reconciler.app import Effects, Hived, Supervisor
from reconciler.config import Timeouts, UidRange
from reconciler.effects.clock import SystemClock
from reconciler.effects.protocols import Containers, ContainerSpec, ContainerStatus, LogSink, ProgressSink
from reconciler.model.names import AgentName
from reconciler.model.spec import Limits
from reconciler.model.states import UserRole
from reconciler.notify import Notifier
from reconciler.services import Actor
from reconciler.store.db import Store
from tests.fakes.containers import Start
from tests.fakes.faults import Faults
from tests.fakes.measures import FakeMeasures
from tests.fakes.nix import FakeNix
from tests.integration.containers_kit import FIRST_BASE, GREETER, Yard
from tests.support.fleets import Fleet, name_of

BOOT = "b" * 32
ROOT = Actor("unix:root", UserRole.OPERATOR)
PEOPLE = {"ui_user": "root", "gateway_user": "root", "build_user": "root", "operator_group": "root"}


class MixedContainers:
    """`Containers` over two drivers: `is_real` says whose a name is."""

    driver: Literal["shim", "systemd"] = "shim"

    def __init__(self, real: Containers, simulated: Containers, is_real: Callable[[AgentName], bool]) -> None:
        self._real = real
        self._simulated = simulated
        self._is_real = is_real

    def _of(self, name: AgentName) -> Containers:
        return self._real if self._is_real(name) else self._simulated

    async def status(self, name: AgentName) -> ContainerStatus:
        return await self._of(name).status(name)

    async def statuses(self) -> Mapping[AgentName, ContainerStatus]:
        return {**await self._real.statuses(), **await self._simulated.statuses()}

    async def list(self) -> Sequence[AgentName]:
        return sorted([*await self._real.list(), *await self._simulated.list()])

    async def start(self, spec: ContainerSpec) -> ContainerStatus:
        return await self._of(spec.name).start(spec)

    async def stop(self, name: AgentName, *, timeout_s: float = 10.0) -> None:
        await self._of(name).stop(name, timeout_s=timeout_s)

    async def clear(self, name: AgentName) -> None:
        await self._of(name).clear(name)

    async def freeze(self, name: AgentName) -> None:
        await self._of(name).freeze(name)

    async def thaw(self, name: AgentName) -> None:
        await self._of(name).thaw(name)

    async def refresh(self, name: AgentName) -> None:
        await self._of(name).refresh(name)

    async def forbid_user_namespaces(self, name: AgentName) -> None:
        await self._of(name).forbid_user_namespaces(name)

    async def logs(self, name: AgentName, lines: int) -> Sequence[str]:
        return await self._of(name).logs(name, lines)

    async def changes(self) -> AsyncIterator[AgentName]:
        queue: asyncio.Queue[AgentName] = asyncio.Queue(maxsize=1000)

        async def pump(source: Containers) -> None:
            async for name in source.changes():
                await queue.put(name)

        pumps = [asyncio.create_task(pump(source)) for source in (self._real, self._simulated)]
        try:
            while True:
                yield await queue.get()
        finally:
            for one in pumps:
                one.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


class OneRootNix(FakeNix):
    """Whatever is built is the one root that real containers can be started from."""

    def __init__(self, root: str, faults: Faults) -> None:
        super().__init__(faults)
        self._root = root

    async def build(
        self,
        name: AgentName,
        tree: Path,
        spec_json: Mapping[str, Any],
        log: LogSink,
        progress: ProgressSink | None = None,
    ) -> str:
        await super().build(name, tree, spec_json, log, progress)
        self.store.add(self._root)
        self.held[name] = self._root
        return self._root


@dataclass
class MixedFleet(Fleet):
    """`count` agents that should run and whom nobody has started; the first `real` have real containers of
    the shim driver, the others simulated ones, whose harnesses say hello to the hived of that time.

    Directories, databases, sockets and services are all real.
    """

    real: int = 0
    driver: Literal["shim", "systemd"] = "shim"
    _greeting: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.yard = Yard.make(self.folder, self.driver, harness=GREETER)
        self.nix = OneRootNix(str(self.yard.root), self.faults)
        bounds = UidRange(start=FIRST_BASE, end=FIRST_BASE + (self.count + 16) * 65_536)
        changed = {"uid_range": bounds, "timeouts": Timeouts(resync_s=3600), **PEOPLE}
        self.config = self.yard.config = self.yard.config.model_copy(update=changed)
        self._simulated = frozenset(self.names[self.real :])
        self.running: Hived | None = None

    def is_real(self, name: AgentName) -> bool:
        """All but the simulated ones: whoever is made later has a real one, too."""
        return name not in self._simulated

    @property
    def real_names(self) -> list[AgentName]:
        return [name_of(number) for number in range(self.real)]

    @property
    def names(self) -> list[AgentName]:
        return [name_of(number) for number in range(self.count)]

    def base_of(self, number: int) -> int:
        return FIRST_BASE + number * 65_536

    def toplevel_of(self, number: int) -> str:
        return str(self.yard.root) if number < self.real else super().toplevel_of(number)

    async def spec(self, name: AgentName) -> ContainerSpec:
        """As hived starts the container of this agent."""
        row = await self.store.state.one("SELECT role, uid_base FROM agents WHERE name = ?", name)
        assert row is not None
        return ContainerSpec(
            name=name,
            toplevel=str(self.yard.root),
            uid_base=row["uid_base"],
            state_dir=Path(self.config.state_dir) / "agents" / name,
            run_dir=Path(self.config.run_dir) / "agents" / name,
            manager=row["role"] == "manager",
            limits=Limits(),
        )

    async def _start(self, number: int) -> None:
        """That is what the passes are there for."""

    def hived(self, containers: Containers | None = None) -> Hived:
        real = self.yard.systemd() if self.driver == "systemd" else self.yard.driver()
        mixed = MixedContainers(real, self.containers, self.is_real)
        effects = Effects(
            containers or mixed,
            self.nix,
            self.git,
            self.yard.files,
            SystemClock(),
            lambda: None,
            FakeMeasures(),
        )
        return Hived(self.config, self.store, effects, Supervisor(Notifier.from_environment({}), {}))

    @contextlib.contextmanager
    def watching_changes(self) -> Iterator[list[str]]:
        """The calls of effects that change the world (simulated containers, Nix, git), seen at its end."""
        before, counted = len(self.faults.calls), self.faults.only
        seen: list[str] = []
        self.faults.watch(())
        try:
            yield seen
        finally:
            self.faults.watch(counted)
            seen += self.faults.calls[before:]

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[Hived]:
        """One hived process's worth of it, from its start to its orderly end."""
        hived, stop = self.hived(), asyncio.Event()
        self.running = hived
        self.containers.on_start = self._begins
        running = asyncio.create_task(hived.run(stop))
        for start in list(self.containers.running()):
            self._begins(self.containers.current(start))  # harnesses come back to a host that was away
        try:
            yield hived
        finally:
            self.running = None
            stop.set()
            async with asyncio.timeout(30):
                await running
            await asyncio.gather(*self._greeting)
            await hived.close()

    def _begins(self, start: Start) -> None:
        task = asyncio.create_task(self._greet(start.spec.name))
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)

    async def _greet(self, name: AgentName) -> None:
        """What a harness does first, once its socket is there."""
        hived = self.running
        while hived is not None and hived is self.running:
            if hived.sites.is_served(name):
                await hived.broker.hello(name, wire.Hello(wire=wire.WIRE_VERSION, boot=BOOT))
                await hived.broker.inbox(name, BOOT, wait_s=0, limit=1, turn=None)
                return
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def mixed_fleet(
    folder: Path, count: int, real: int, driver: Literal["shim", "systemd"] = "shim"
) -> AsyncIterator[MixedFleet]:
    """Declared, with its open store; what runs at the end is ended. The systemd driver writes its unit file:
    only on a host that is thrown away."""
    made = MixedFleet(folder, count, real=real, driver=driver)
    made.store = await Store.open(Path(made.config.state_dir))
    try:
        await made.populate()
        yield made
    finally:
        await made.store.close()
        await made.yard.clean()


__all__ = ["ROOT", "MixedContainers", "MixedFleet", "OneRootNix", "mixed_fleet"]
