"""A broker over real files with a clock of its own, and the rows that a deployed agent has."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from harness import wire
from reconciler.broker.broker import MessageBroker
from reconciler.broker.core import SEATS, Seats
from reconciler.broker.events import EventLog
from reconciler.broker.outbox import Handler
from reconciler.broker.presence import Presence
from reconciler.control import models as api
from reconciler.effects.protocols import ContainerStatus
from reconciler.model.names import AgentName
from reconciler.model.states import UserRole
from reconciler.plan.steps import Settled
from reconciler.services import Actor
from reconciler.store import holds
from reconciler.store.db import Database, Store
from tests.fakes.clock import VirtualClock

ALICE = Actor("operator:alice", UserRole.OPERATOR)
VIEWER = Actor("viewer:victor", UserRole.VIEWER)
BOOT, OTHER_BOOT = "b" * 32, "c" * 32
SCOUT, SMITH, BOSS = AgentName("scout"), AgentName("smith"), AgentName("hm1nd")


class World:
    """One hived's broker. `restart` is its sudden death and a new process over the same files."""

    def __init__(self, directory: Path, synchronous: str, seats: Seats = SEATS) -> None:
        self.directory = directory
        self.seats = seats
        self.synchronous = synchronous
        self.clock = VirtualClock()
        self.handlers: dict[str, Handler] = {}
        self.woken: list[str] = []
        self.greeted: list[str] = []
        self.refusal: BaseException | None = None
        self._keys = 0

    @classmethod
    async def open(cls, directory: Path, *, synchronous: str = "OFF", seats: Seats = SEATS) -> Self:
        world = cls(directory, synchronous, seats)
        await world._start()
        return world

    async def _start(self) -> None:
        self.store = Store(
            await Database.open(
                self.directory / "state.db", synchronous=self.synchronous, now=self.clock.now
            ),
            await Database.open(
                self.directory / "events.db", synchronous=self.synchronous, now=self.clock.now
            ),
        )
        self.events = EventLog(self.store, self.clock, handlers=self.handlers, spending=_no_spending)
        self.presence = Presence(self.store, self.clock, self.events.publish)
        self.broker = MessageBroker(
            self.store,
            self.clock,
            self.events,
            self.presence,
            wake=self._wake,
            on_hello=self._on_hello,
            seats=self.seats,
        )
        await self.broker.start()

    async def _on_hello(self, agent: AgentName) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.greeted.append(agent)

    def _wake(self, name: AgentName) -> None:
        self.woken.append(name)

    async def close(self) -> None:
        await self.store.close()

    async def restart(self) -> None:
        await self.close()
        await self._start()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The background tasks of events and broker, while the body runs."""
        tasks = [asyncio.ensure_future(self.events.run()), asyncio.ensure_future(self.broker.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        broken = [r for r in results if not isinstance(r, asyncio.CancelledError)]
        assert not broken, broken

    # ------------------------------------------------------------------------------------------------- rows
    async def agent(
        self,
        name: str,
        *,
        role: str = "agent",
        allow: Sequence[str] = ("manager", "operator"),
        spec: Mapping[str, Any] | None = None,
        deployed: bool = True,
    ) -> AgentName:
        """An agent with generation 1 of that spec."""
        async with self.store.state.transaction() as tx:
            row = await tx.one("SELECT COUNT(*) AS n FROM agents")
            base = 1_048_576 + 65_536 * (row["n"] if row else 0)
            await tx.run(
                "INSERT INTO agents (name, role, uid_base, desired, session_id, created_at) "
                "VALUES (?, ?, ?, 'running', ?, ?)",
                name,
                role,
                base,
                f"session-{name}",
                tx.now,
            )
        await self.generation(
            name, 1, {"role": role, "send": {"allow": list(allow)}, **(spec or {})}, deployed=deployed
        )
        return AgentName(name)

    async def generation(
        self, name: str, number: int, spec: Mapping[str, Any], *, deployed: bool, prompt: str = ""
    ) -> None:
        """A generation: deployed, or the candidate of an activating proposal."""
        async with self.store.state.transaction() as tx:
            proposal = await tx.run(
                "INSERT INTO proposals (kind, agent, commit_id, state, requested_by, generation, created_at) "
                "VALUES ('apply', ?, ?, ?, 'operator:alice', ?, ?)",
                name,
                f"{number:040x}",
                "deployed" if deployed else "activating",
                number,
                tx.now,
            )
            await tx.run(
                "INSERT INTO generations VALUES (?, ?, ?, ?, '/nix/store/x', ?, 'digest', ?, ?, ?)",
                name,
                number,
                proposal.row_id,
                f"{number:040x}",
                json.dumps(spec),
                prompt,
                "deployed" if deployed else "candidate",
                tx.now,
            )
            if deployed:
                await tx.run("UPDATE agents SET generation = ? WHERE name = ?", number, name)

    async def set(self, name: str, **columns: Any) -> None:
        """Columns of an agent, as another service would write them."""
        async with self.store.state.transaction() as tx:
            for column, value in columns.items():
                await tx.run(f"UPDATE agents SET {column} = ? WHERE name = ?", value, name)

    async def hold(self, scope: str) -> None:
        """As the operator does it."""
        async with self.store.state.transaction() as tx:
            await holds.put(tx, scope, "unix:root", "")

    async def scalar(self, sql: str, *values: Any, events: bool = False) -> Any:
        row = await (self.store.events if events else self.store.state).one(sql, *values)
        return None if row is None else row[0]

    # ------------------------------------------------------------------------------------------------ acting
    def key(self) -> str:
        self._keys += 1
        return f"key-{self._keys:06}"

    async def hello(
        self, agent: AgentName, boot: str = BOOT, turn: int | None = None, *, resident: bool | None = False
    ) -> wire.Welcome:
        request = wire.Hello(wire=wire.WIRE_VERSION, boot=boot, turn=turn, resident=resident)
        return await self.broker.hello(agent, request)

    async def runs(self, agent: AgentName) -> None:
        """A pass has seen its container running."""
        await self.presence.set_phase(agent, ContainerStatus("running"), Settled())

    async def say(self, to: str, body: str = "hi") -> int:
        """The operator writes; the message's id."""
        return (await self.broker.send_as_operator(ALICE, api.NewMessage(to=to, body=body))).id

    async def event(self, to: AgentName, body: str = "psst") -> None:
        """The system tells something that is not urgent."""
        await self.broker.notify(to, body, key=self.key())

    async def send(self, sender: AgentName, to: str, body: str = "hi", **more: Any) -> list[int]:
        request = wire.SendMessage(to=to, body=body, key=more.pop("key", None) or self.key(), **more)
        return (await self.broker.send(sender, request)).ids

    async def poll(
        self,
        agent: AgentName,
        boot: str = BOOT,
        *,
        wait_s: float = 0,
        limit: int = 50,
        turn: int | None = None,
    ) -> wire.Inbox:
        return await self.broker.inbox(agent, boot, wait_s=wait_s, limit=limit, turn=turn)

    async def begin(self, agent: AgentName, lease: int | None, boot: str = BOOT, key: str = "") -> int:
        request = wire.BeginTurn(lease=lease, key=key or self.key())
        return (await self.broker.begin_turn(agent, boot, request)).turn

    async def end(self, agent: AgentName, turn: int, outcome: wire.Outcome = "ok", **more: Any) -> None:
        await self.broker.end_turn(agent, turn, wire.EndTurn(outcome=outcome, **more))

    async def turn(self, agent: AgentName) -> tuple[int, wire.Inbox]:
        """Poll and begin a turn over what came."""
        inbox = await self.poll(agent)
        return await self.begin(agent, inbox.lease), inbox


async def until(check: Callable[[], bool]) -> None:
    """Let others run until `check` holds; the test's own time limit ends a vain wait."""
    while not check():  # noqa: ASYNC110 - it looks at memory that no event stands for
        await asyncio.sleep(0)


async def _no_spending() -> Sequence[api.Spending]:
    return []


def event(seq: int, kind: str = "text", **data: Any) -> wire.TurnEvent:
    return wire.TurnEvent.model_validate(
        {"seq": seq, "at": "2023-11-14T22:13:20.000Z", "kind": kind, "data": data or {"text": f"line {seq}"}}
    )


def events(*items: wire.TurnEvent) -> wire.TurnEvents:
    return wire.TurnEvents(events=list(items))
