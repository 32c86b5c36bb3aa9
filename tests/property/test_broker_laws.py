"""Laws of delivery, over the real broker on real files: against a synchronous model, and with sudden deaths.

- What was sent is consumed by exactly one good turn, or still waits: never lost, never twice.
- Between two parties the order of sending is the order of delivery.
- A message is marked redelivered if and only if it was given back before.
- One that fails too many turns by its own fault is set aside, and never before.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args
from unittest import mock

import aiosqlite
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import wire
from reconciler.broker import outcomes
from reconciler.errors import AgentError
from reconciler.model.names import AgentName
from reconciler.store import db
from tests.support.brokers import SCOUT, SMITH, World

EXAMPLES = max(25, settings.default.max_examples // 4) if settings.default else 25
AGENTS = (SCOUT, SMITH)
# Half of the turns end well.
OUTCOMES: tuple[wire.Outcome, ...] = (*get_args(wire.Outcome), *["ok"] * len(get_args(wire.Outcome)))  # type: ignore[arg-type]
Kind = Literal["send", "poll", "begin", "recv", "end", "ack", "return", "gone", "restart", "greet", "anew"]
_AROUND: tuple[Kind, ...] = ("send", "send", "gone", "restart", "greet", "anew")
# What can happen to a harness that is idle, holds a lease, or is in a turn; repeats are weights.
IDLE: tuple[Kind, ...] = (*_AROUND, "poll", "poll", "poll", "begin")
LEASED: tuple[Kind, ...] = (*_AROUND, "poll", "begin", "begin", "begin", "begin", "ack", "return")
IN_TURN: tuple[Kind, ...] = (*_AROUND, "poll", "recv", "recv", "recv", "end", "end", "end")


@dataclass(frozen=True)
class Op:
    """One thing that happens to an agent; `pick` chooses it among what can happen now. `lost`: the answer
    does not arrive; `dies_at`: hived dies at its n-th call of SQLite, before it or (`late`) after it."""

    pick: int
    agent: AgentName
    outcome: wire.Outcome
    limit: int
    lost: bool
    dies_at: int | None
    late: bool

    def kind(self, *, lease: bool, turn: bool) -> Kind:
        """What happens."""
        kinds = IN_TURN if turn else LEASED if lease else IDLE
        return kinds[self.pick % len(kinds)]


def ops(*, deaths: bool) -> st.SearchStrategy[list[Op]]:
    """Scripts of one kind or the other: with answers that get lost, or with sudden deaths."""
    one = st.builds(
        Op,
        pick=st.integers(0, 10_000),
        agent=st.sampled_from(AGENTS),
        outcome=st.sampled_from(OUTCOMES),
        limit=st.sampled_from((1, 2, 50)),
        lost=st.just(False) if deaths else st.booleans(),
        dies_at=st.none() | st.integers(1, 30) if deaths else st.none(),
        late=st.booleans() if deaths else st.just(False),
    )
    return st.lists(one, min_size=20, max_size=60)


def run(scenario: Callable[[Path], Awaitable[None]]) -> None:
    """The scenario in a loop and a directory of its own; in memory and with few connections."""

    async def alone() -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            await scenario(Path(directory))

    with mock.patch.object(db, "READERS", 1):
        asyncio.run(alone())


def _other(agent: AgentName) -> AgentName:
    return SMITH if agent == SCOUT else SCOUT


async def fresh(directory: Path) -> World:
    world = await World.open(directory)
    for name in AGENTS:
        await world.agent(name, allow=("*",))
    return world


async def rest(world: World, agent: AgentName) -> None:
    """End what parks the agent after a failed turn: the laws are about delivery, not about delays."""
    await world.set(agent, parked_reason="", parked_until_at=None)


# ------------------------------------------------------------------------------------------ against a model
@dataclass
class Held:
    """A message as the model knows it."""

    id: int
    to: AgentName
    state: str = "queued"
    redelivered: bool = False
    failures: int = 0
    lease: int | None = None
    deferred: bool = False
    aside: bool = False


@dataclass
class Party:
    """One agent's harness and what it holds, in the model. `leases`: of the open turn, and which arrived."""

    boots: int = 1
    unbound: int | None = None
    known: int | None = None
    turn: int | None = None
    leases: dict[int, bool] = field(default_factory=dict)
    failed: int = 0

    @property
    def boot(self) -> str:
        return f"{self.boots:032x}"


class Model:
    """What the broker should do, without time, files or concurrency."""

    def __init__(self) -> None:
        self.messages: list[Held] = []
        self.parties = {name: Party() for name in AGENTS}

    def due(self, agent: AgentName, limit: int) -> list[Held]:
        found: list[Held] = []
        for held in sorted(self.messages, key=lambda one: (one.deferred, one.id)):
            if held.to != agent or held.state != "queued":
                continue
            troubled = held.failures >= outcomes.ALONE_AFTER
            if len(found) == limit or (found and troubled):
                break
            found.append(held)
            if troubled:
                break
        return found

    def under(self, lease: int | None) -> list[Held]:
        return [held for held in self.messages if held.lease == lease and held.state == "leased"]

    def grant(self, messages: list[Held], lease: int) -> None:
        for held in messages:
            held.state, held.lease = "leased", lease

    def ack(self, lease: int) -> None:
        for held in self.under(lease):
            held.state = "acked"

    def give_back(self, lease: int, *, failed: bool, deferred: bool = False) -> None:
        for held in self.under(lease):
            held.state, held.redelivered, held.lease = "queued", True, None
            held.failures += failed
            held.deferred |= deferred
            if failed and held.failures >= outcomes.FAILURES_MAX:
                held.state, held.aside = "acked", True

    def close(self, party: Party, outcome: str) -> None:
        party.failed = 0 if outcome in outcomes.GOOD else party.failed + 1
        deferred = outcome == "unavailable" and party.failed >= outcomes.DEFER_AFTER
        for lease, arrived in party.leases.items():
            if outcome in outcomes.GOOD and arrived:
                self.ack(lease)
            else:
                failed = arrived and outcome in outcomes.COUNTED
                self.give_back(lease, failed=failed, deferred=arrived and deferred)
        party.turn, party.leases = None, {}

    def vanish(self, party: Party) -> None:
        if party.turn is not None:
            # The host does not know what arrived: all of it was with the harness.
            party.leases = dict.fromkeys(party.leases, True)
            self.close(party, "crashed")
        if party.unbound is not None:
            self.give_back(party.unbound, failed=False)
        party.unbound = party.known = None


class Comparison:
    """Runs each operation on the broker and on the model and compares what both say."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.model = Model()

    async def run(self, script: list[Op]) -> None:
        for name, party in self.model.parties.items():
            await self.world.hello(name, party.boot)
        for op in script:
            party = self.model.parties[op.agent]
            kind = op.kind(lease=party.known is not None, turn=party.turn is not None)
            await self.STEPS[kind](self, op, party)
            await self.compare()

    async def compare(self) -> None:
        rows = await self.world.store.state.all(
            "SELECT * FROM messages WHERE recipient <> 'operator' ORDER BY id"
        )
        found = [
            Held(
                r["id"],
                AgentName(r["recipient"]),
                r["state"],
                bool(r["redelivered"]),
                r["failures"],
                r["lease_id"],
                bool(r["deferred"]),
                r["set_aside_at"] is not None,
            )
            for r in rows
        ]
        assert found == self.model.messages
        for name, party in self.model.parties.items():
            assert self.world.presence.turn_of(name) == party.turn

    async def send(self, op: Op, _: Party) -> None:
        [number] = await self.world.send(_other(op.agent), op.agent)
        self.model.messages.append(Held(number, op.agent))

    async def poll(self, op: Op, party: Party) -> None:
        inbox = await self.world.poll(op.agent, party.boot, limit=op.limit)
        if party.turn is not None:
            assert inbox.lease is None
            return
        expected = self.model.under(party.unbound) if party.unbound else self.model.due(op.agent, op.limit)
        self.check(inbox, expected)
        if party.unbound is None and inbox.lease is not None:
            self.model.grant(expected, inbox.lease)
            party.unbound = inbox.lease
        assert inbox.lease == party.unbound
        if not op.lost:
            party.known = inbox.lease

    def check(self, inbox: wire.Inbox, expected: list[Held]) -> None:
        assert [(m.id, m.redelivered) for m in inbox.messages] == [(h.id, h.redelivered) for h in expected]

    async def begin(self, op: Op, party: Party) -> None:
        key = self.world.key()
        party.turn = await self.world.begin(op.agent, party.known, party.boot, key=key)
        assert await self.world.begin(op.agent, party.known, party.boot, key=key) == party.turn
        if party.known is not None:
            party.leases = {party.known: True}
            party.unbound = party.known = None

    async def recv(self, op: Op, party: Party) -> None:
        assert party.turn is not None
        expected = self.model.due(op.agent, op.limit)
        inbox = await self.world.poll(op.agent, party.boot, limit=op.limit, turn=party.turn)
        self.check(inbox, expected)
        if inbox.lease is not None:
            self.model.grant(expected, inbox.lease)
            party.leases[inbox.lease] = not op.lost

    async def end(self, op: Op, party: Party) -> None:
        assert party.turn is not None
        turn, arrived = party.turn, [lease for lease, here in party.leases.items() if here]
        for _ in range(2):
            await self.world.end(op.agent, turn, op.outcome, leases=arrived)
        self.model.close(party, op.outcome)
        await rest(self.world, op.agent)

    async def ack(self, op: Op, party: Party) -> None:
        assert party.known is not None
        await self.world.broker.ack(op.agent, party.known)
        self.model.ack(party.known)
        party.unbound = party.known = None

    async def give_back(self, op: Op, party: Party) -> None:
        assert party.known is not None
        await self.world.broker.return_lease(op.agent, party.known)
        self.model.give_back(party.known, failed=False)
        party.unbound = party.known = None

    async def gone(self, op: Op, party: Party) -> None:
        await self.world.broker.harness_gone(op.agent)
        self.model.vanish(party)
        party.boots += 1
        await self.world.hello(op.agent, party.boot)
        await rest(self.world, op.agent)

    async def anew(self, op: Op, party: Party) -> None:
        self.model.vanish(party)
        party.boots += 1
        await self.world.hello(op.agent, party.boot)
        await rest(self.world, op.agent)

    async def greet(self, op: Op, party: Party) -> None:
        await self.world.hello(op.agent, party.boot, turn=party.turn)

    async def restart(self, _: Op, __: Party) -> None:
        await self.world.restart()
        for name, party in self.model.parties.items():
            await self.world.hello(name, party.boot, turn=party.turn)

    STEPS: ClassVar[dict[Kind, Callable[[Comparison, Op, Party], Awaitable[None]]]] = {
        "send": send,
        "poll": poll,
        "begin": begin,
        "recv": recv,
        "end": end,
        "ack": ack,
        "return": give_back,
        "gone": gone,
        "restart": restart,
        "greet": greet,
        "anew": anew,
    }


@settings(max_examples=EXAMPLES)
@given(ops(deaths=False))
def test_the_broker_does_what_the_model_does(script: list[Op]) -> None:
    async def scenario(directory: Path) -> None:
        world = await fresh(directory)
        try:
            await Comparison(world).run(script)
        finally:
            await world.close()

    run(scenario)


# ---------------------------------------------------------------------------------------------- sudden deaths
class Died(BaseException):
    """The process is dead from here on: nothing of it may catch this."""


@contextlib.contextmanager
def dying(at: int | None, *, late: bool) -> Iterator[None]:
    """Within the body, the `at`-th call of SQLite is the last thing that this hived does (or does not do)."""
    calls = 0
    real: Any = aiosqlite.Connection._execute

    async def fatal(connection: aiosqlite.Connection, *args: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if at is not None and (calls > at or (calls == at and not late)):
            raise Died
        result = await real(connection, *args, **more)
        if calls == at:
            raise Died
        return result

    with mock.patch.object(aiosqlite.Connection, "_execute", fatal):
        yield


@dataclass
class Harness:
    """One harness process as it knows itself: what it has received, what it must say again after a death."""

    agent: AgentName
    boots: int = 1
    lease: int | None = None
    turn: int | None = None
    begin_key: str | None = None
    ending: wire.Outcome | None = None
    leases: list[int] = field(default_factory=list)
    got: dict[int, list[wire.Delivered]] = field(default_factory=dict)

    @property
    def boot(self) -> str:
        return f"{self.boots:032x}"

    def forget(self) -> None:
        self.lease = self.turn = self.begin_key = self.ending = None
        self.leases = []


class Deaths:
    """Harnesses at work while hived dies at any moment. Keeps what was promised to whom."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.harnesses = {name: Harness(name) for name in AGENTS}
        self.promised: set[int] = set()
        self.pending_sends: dict[AgentName, str] = {}
        self.consumed: list[int] = []
        self.first_seen: dict[AgentName, list[int]] = {name: [] for name in AGENTS}
        self.given: defaultdict[int, list[bool]] = defaultdict(list)

    async def run(self, script: list[Op]) -> None:
        for harness in self.harnesses.values():
            await self.world.hello(harness.agent, harness.boot)
        for op in script:
            me = self.harnesses[op.agent]
            kind = op.kind(lease=me.lease is not None, turn=me.turn is not None)
            if me.ending is not None and kind in {"poll", "recv"}:
                kind = "end"  # a harness tries to end its turn until it hears that it has
            if kind in {"restart", "gone", "anew", "greet"}:
                await self.away(kind, me)
                continue
            try:
                with dying(op.dies_at, late=op.late):
                    await self.act(kind, op, me)
            except Died:
                await self.come_back()
        await self.finish()

    async def act(self, kind: Kind, op: Op, me: Harness) -> None:
        match kind:
            case "send":
                await self.send(self.harnesses[_other(me.agent)])
            case "poll" if me.turn is None and me.begin_key is None:
                self.receive(me, await self.world.poll(me.agent, me.boot, limit=op.limit))
            case "begin":
                await self.begin(me)
            case "recv":
                inbox = await self.world.poll(me.agent, me.boot, limit=op.limit, turn=me.turn)
                self.receive(me, inbox)
            case "end":
                await self.end(me, op.outcome)
            case _:  # acking or returning a lease by itself: turns do both
                pass

    async def send(self, me: Harness) -> None:
        key = self.pending_sends.setdefault(me.agent, self.world.key())
        ids = await self.world.send(me.agent, _other(me.agent), key=key)
        del self.pending_sends[me.agent]
        self.promised.update(ids)

    def receive(self, me: Harness, inbox: wire.Inbox) -> None:
        if inbox.lease is None:
            return
        if inbox.lease not in me.got:  # else it is handed out again, because its answer was lost
            self.first_seen[me.agent] += [m.id for m in inbox.messages if not m.redelivered]
            for message in inbox.messages:
                self.given[message.id].append(message.redelivered)
        me.got[inbox.lease] = inbox.messages
        if me.turn is None:
            me.lease = inbox.lease
        else:
            me.leases.append(inbox.lease)

    async def begin(self, me: Harness) -> None:
        me.begin_key = me.begin_key or self.world.key()
        try:
            turn = await self.world.begin(me.agent, me.lease, me.boot, key=me.begin_key)
        except AgentError:
            me.forget()  # the turn that this key began has ended without us, or the lease is over
            return
        me.leases = [] if me.lease is None else [me.lease]
        me.turn, me.lease, me.begin_key = turn, None, None

    async def end(self, me: Harness, outcome: wire.Outcome) -> None:
        assert me.turn is not None
        outcome = me.ending = me.ending or outcome
        try:
            await self.world.end(me.agent, me.turn, outcome, leases=me.leases)
        except AgentError:
            # It had ended: by an answer that was lost, told with another outcome then.
            row = await self.world.store.state.one("SELECT outcome FROM turns WHERE id = ?", me.turn)
            assert row is not None
            outcome = row["outcome"]
        if outcome in outcomes.GOOD:
            self.consumed += [m.id for lease in me.leases for m in me.got[lease]]
        me.forget()
        await rest(self.world, me.agent)

    async def away(self, kind: Kind, me: Harness) -> None:
        if kind == "restart":
            await self.come_back()
            return
        if kind == "greet":
            await self.world.hello(me.agent, me.boot, turn=me.turn)
            return
        await self.settle_turn(me)
        if kind == "gone":
            await self.world.broker.harness_gone(me.agent)
        me.boots += 1
        me.forget()
        await self.world.hello(me.agent, me.boot)
        await rest(self.world, me.agent)

    async def settle_turn(self, me: Harness) -> None:
        """A process that dies after its end was committed, but before it heard so, consumed its messages."""
        if me.turn is not None:
            row = await self.world.store.state.one("SELECT outcome FROM turns WHERE id = ?", me.turn)
            assert row is not None
            if row["outcome"] in outcomes.GOOD:
                self.consumed += [m.id for lease in me.leases for m in me.got[lease]]

    async def come_back(self) -> None:
        await self.world.restart()
        for me in self.harnesses.values():
            await self.world.hello(me.agent, me.boot, turn=me.turn)
            await rest(self.world, me.agent)

    async def finish(self) -> None:
        """Nothing dies any more: whatever waits is consumed."""
        for me in self.harnesses.values():
            if me.agent in self.pending_sends:
                await self.send(me)
        for me in self.harnesses.values():
            if me.turn is not None:
                await self.end(me, "ok")
            me.forget()
            me.boots += 1
            await self.world.hello(me.agent, me.boot)
            while (inbox := await self.world.poll(me.agent, me.boot)).lease is not None:
                self.receive(me, inbox)
                await self.begin(me)
                await self.end(me, "ok")


def check_laws(deaths: Deaths, rows: list[tuple[int, str, bool]]) -> None:
    assert deaths.promised <= {number for number, _, _ in rows}, "a message that was promised is gone"
    assert {state for _, state, _ in rows} <= {"acked"}, "everything was consumed in the end"
    good = [number for number, _, aside in rows if not aside]
    assert sorted(deaths.consumed) == good, "each by exactly one good turn, or set aside"
    for number, _, aside in rows:
        tries = deaths.given[number]
        assert all(tries[1:]), "whenever a message comes again, it is marked"
        if aside:
            assert len(tries) >= outcomes.FAILURES_MAX, "set aside only after so many tries"
    for seen in deaths.first_seen.values():
        assert seen == sorted(seen), "first deliveries of a pair are in the order of sending"


@settings(max_examples=EXAMPLES)
@given(ops(deaths=True))
def test_nothing_is_lost_or_done_twice_whenever_hived_dies(script: list[Op]) -> None:
    async def scenario(directory: Path) -> None:
        world = await fresh(directory)
        try:
            deaths = Deaths(world)
            await deaths.run(script)
            rows = await world.store.state.all(
                "SELECT id, state, set_aside_at FROM messages WHERE recipient <> 'operator' ORDER BY id"
            )
            check_laws(deaths, [(r["id"], r["state"], r["set_aside_at"] is not None) for r in rows])
        finally:
            await world.close()

    run(scenario)
