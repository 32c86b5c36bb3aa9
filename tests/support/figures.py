"""A recorder and a reader of figures over a broker's world, and what the world around them says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reconciler.control import models as api
from reconciler.effects.protocols import ContainerStatus
from reconciler.gateway.messages import SpendingRow, UsageEvent
from reconciler.model.names import AgentName
from reconciler.stats.recorder import Recorder
from reconciler.stats.service import StatService
from tests.fakes.measures import FakeMeasures
from tests.support.brokers import World


@dataclass
class Ledger:
    """The gateway's ledger; `spend` is one request."""

    rows: dict[tuple[str, str, str], SpendingRow] = field(default_factory=dict)

    def ledger_rows(self) -> Sequence[SpendingRow]:
        return list(self.rows.values())

    def spend(
        self, agent: str, tokens: tuple[int, int, int, int], usd_micro: int, *, day: str, model: str = "haiku"
    ) -> UsageEvent:
        """The event that the gateway would tell."""
        key = (day, agent, model)
        before = self.rows.get(key)
        names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
        sums = {
            name: count + (getattr(before, name) if before else 0)
            for name, count in zip(names, tokens, strict=True)
        }
        row = self.rows[key] = SpendingRow(
            agent=agent,
            day=day,
            model=model,
            requests=(before.requests if before else 0) + 1,
            usd_micro=usd_micro + (before.usd_micro if before else 0),
            **sums,
        )
        return UsageEvent(
            agent=agent,
            turn=None,
            model=model,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cache_read_tokens=tokens[2],
            cache_write_tokens=tokens[3],
            usd_micro=usd_micro,
            certain=True,
            duration_ms=1,
            row=row,
        )


@dataclass
class Running:
    """Containers of agents, by the pid of their first process."""

    pids: dict[str, int] = field(default_factory=dict)

    async def statuses(self) -> Mapping[AgentName, ContainerStatus]:
        return {
            AgentName(name): ContainerStatus("running", leader_pid=pid) for name, pid in self.pids.items()
        }


class Figures:
    """`recorder` and `stats` of one hived process over the world; `restart` is a new process."""

    def __init__(self, world: World, *, sample_s: float = 60.0) -> None:
        self.world = world
        self.ledger = Ledger()
        self.running = Running()
        self.measures = FakeMeasures()
        self._sample_s = sample_s
        self.restart()

    def restart(self) -> None:
        """After `world.restart()`."""
        world = self.world
        self.recorder = Recorder(
            world.store,
            world.clock,
            ledger=self.ledger,
            containers=self.running,
            measures=self.measures,
            sample_s=self._sample_s,
        )
        self.stats = StatService(world.store, world.clock, None)

    async def write(self) -> None:
        """All that is due now: copies of events and figures."""
        await self.world.events.drain()
        await self.recorder.round()

    async def query(self, **asked: object) -> api.Stats:
        """Parameters of the route, with its defaults."""
        given: dict[str, object] = {
            "agent": None, "since": "24h", "until": None, "keys": None, "points": 1, "by": "hive"
        }  # fmt: skip
        return await self.stats.query(**(given | asked))  # type: ignore[arg-type]

    async def totals(self, **asked: object) -> dict[str, float | None]:
        """Key → total of one answer."""
        return {one.key: one.total for one in (await self.query(**asked)).series}

    async def rows(self) -> set[tuple[object, ...]]:
        """Every row there is."""
        return {tuple(row) for row in await self.world.store.events.all("SELECT * FROM stats")}
