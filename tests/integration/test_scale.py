"""What many agents cost, counted in statements, steps of SQLite and looks at the world, never in seconds."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from harness import wire
from reconciler.app import Hived
from reconciler.model.states import Role
from reconciler.store.db import Store
from tests.support.fleets import FIRST_BASE, Fleet, fleet, name_of
from tests.support.needs import needs_root

pytestmark = [
    pytest.mark.asyncio,
    needs_root,
]

FEW, MANY = 3, 60
BOOT = "b" * 32


class Cost:
    """Statements, hundreds of steps of SQLite's machine, and calls of effects."""

    def __init__(self) -> None:
        self.statements = 0
        self.steps = 0
        self.looks: Counter[str] = Counter()

    def count(self, statement: str) -> None:
        self.statements += not statement.startswith(("BEGIN", "COMMIT", "--"))

    def step(self) -> None:
        self.steps += 1


@contextlib.asynccontextmanager
async def costing(world: Fleet) -> AsyncIterator[Cost]:
    """What the body costs."""
    cost = Cost()
    connections = []
    for database in (world.store.state, world.store.events):
        readers: Any = database._readers
        connections += [database._writer, *readers._queue]
    for connection in connections:
        await connection.set_trace_callback(cost.count)
        await connection.set_progress_handler(cost.step, 100)
    before = len(world.faults.calls)
    try:
        yield cost
    finally:
        for connection in connections:
            await connection.set_trace_callback(None)
            await connection.set_progress_handler(None, 0)
        cost.looks.update(call.partition(" ")[0] for call in world.faults.calls[before:])


async def settled(world: Fleet) -> Hived:
    """A hived for which nothing is left to do."""
    hived = world.hived()
    await hived.broker.start()
    for number in range(world.count):
        name = name_of(number)
        await hived.sites.serve(name, FIRST_BASE + number * 65_536, Role.AGENT)
        await hived.broker.hello(name, wire.Hello(wire=wire.WIRE_VERSION, boot=BOOT))
        await hived.broker.inbox(name, BOOT, wait_s=0, limit=1, turn=None)
        await hived.passes.run_pass(name)
    hived.passes._queue.clear()
    return hived


Work = Callable[[Hived], Awaitable[Any]]


async def cost_of(folder: Path, count: int, work: Work, *, turns: int = 1) -> Cost:
    """What `work` costs a hive of so many agents, each with so many turns behind it."""
    async with fleet(folder / f"{count}-{turns}", count) as world:
        await add_turns(world.store, count, turns)
        hived = await settled(world)
        try:
            await work(hived)  # what is read once is read now
            async with costing(world) as cost:
                await work(hived)
        finally:
            await hived.sites.close()
    return cost


async def add_turns(store: Store, count: int, turns: int) -> None:
    async with store.state.transaction() as tx:
        for number in range(count):
            for turn in range(turns):
                await tx.run(
                    "INSERT INTO turns (agent, boot, start_key, session_id, model, state, outcome, "
                    "begun_at, ended_at) VALUES (?, 'b', ?, 's', 'haiku', 'ended', 'ok', ?, ?)",
                    *(name_of(number), f"key-{turn}", tx.now, tx.now),
                )


async def add_messages(store: Store, count: int, messages: int) -> None:
    """Consumed ones, from and to everybody, and closed questions."""
    async with store.state.transaction() as tx:
        for number in range(messages):
            for sender in range(count):
                await tx.run(
                    "INSERT INTO messages (sender, recipient, body, dedupe_key, state, sent_at) "
                    "VALUES (?, ?, 'old', ?, 'acked', 1)",
                    *(name_of(sender), name_of((sender + 1) % count), f"old-key-{number}"),
                )
            await tx.run(
                "INSERT INTO questions (agent, question, dedupe_key, asked_at, answered_at, state) "
                "VALUES ('hm1nd', 'old?', ?, 1, 1, 'answered')",
                f"old-key-{number}",
            )


_NUMBERS = itertools.count()


async def send_and_receive(hived: Hived) -> None:
    """A message from one agent to the manager, who consumes it."""
    message = wire.SendMessage(to="manager", body="hello", key=f"new-key-{next(_NUMBERS)}")
    await hived.broker.send(name_of(1), message)
    inbox = await hived.broker.inbox(name_of(0), BOOT, wait_s=0, limit=5, turn=None)
    assert inbox.lease is not None
    await hived.broker.ack(name_of(0), inbox.lease)


MESSAGES: dict[str, Work] = {
    "send and receive": send_and_receive,
    "page of an agent": lambda hived: hived.broker.messages(agent="hm1nd", before=None, limit=5),
    "page of all": lambda hived: hived.broker.messages(agent=None, before=None, limit=5),
    "overdue questions": lambda hived: hived.broker._questions.expire(),
    "page of questions": lambda hived: hived.broker.questions(),
    "status": lambda hived: hived.agents.status(),
}


@pytest.mark.parametrize("what", MESSAGES)
async def test_a_month_of_messages_makes_none_dearer(tmp_path: Path, what: str) -> None:
    found = []
    for behind in (600, 2600):  # more than any page in both
        async with fleet(tmp_path / str(behind), FEW) as world:
            await add_messages(world.store, FEW, behind)
            hived = await settled(world)
            try:
                await MESSAGES[what](hived)
                async with costing(world) as cost:
                    await MESSAGES[what](hived)
            finally:
                await hived.sites.close()
            found.append(cost.steps)
    assert found[1] <= found[0] + 5, "hundreds of steps"


async def test_a_long_queue_makes_a_message_to_its_end_hardly_dearer(tmp_path: Path) -> None:
    found = []
    for waiting in (10, 900):  # of the same sender, who may have 1000
        async with fleet(tmp_path / str(waiting), FEW) as world:
            hived = await settled(world)
            try:
                await _send(hived, waiting)
                async with costing(world) as cost:
                    await _send(hived, 1)
            finally:
                await hived.sites.close()
            found.append(cost.steps)
    assert found[1] <= found[0] + 70, "hundreds of steps: what waits is passed by in an index, no row is read"


async def _send(hived: Hived, count: int) -> None:
    for _ in range(count):
        message = wire.SendMessage(to="manager", body="hello", key=f"new-key-{next(_NUMBERS)}")
        await hived.broker.send(name_of(1), message)


CHEAP: dict[str, Work] = {
    "list": lambda hived: hived.agents.all(),
    "plans": lambda hived: hived.agents.plans(),
    "full read": lambda hived: hived.passes.full_read(),
    "policies of the gateway": lambda hived: hived.gateway_sync._policies({}),
    "status": lambda hived: hived.agents.status(),
}


@pytest.mark.parametrize("what", CHEAP)
async def test_statements_do_not_grow_with_the_number_of_agents(tmp_path: Path, what: str) -> None:
    few = await cost_of(tmp_path, FEW, CHEAP[what])
    many = await cost_of(tmp_path, MANY, CHEAP[what])
    assert many.statements == few.statements <= 8
    assert many.looks["containers.status"] == 0, "all are read at once"
    assert many.looks["containers.statuses"] <= 1
    assert many.looks["hostfiles.agent_is_ready"] in {0, MANY}


@pytest.mark.parametrize("what", CHEAP)
async def test_what_lies_behind_an_agent_does_not_make_it_dearer(tmp_path: Path, what: str) -> None:
    young = await cost_of(tmp_path, FEW, CHEAP[what], turns=1)
    old = await cost_of(tmp_path, FEW, CHEAP[what], turns=2000)
    assert old.steps <= young.steps + 5, "hundreds of steps"


async def test_the_start_reads_history_with_few_statements(tmp_path: Path) -> None:
    found = []
    for count in (FEW, MANY):
        async with fleet(tmp_path / str(count), count) as world:
            hived = world.hived()
            async with costing(world) as cost:
                await hived.broker.start()
                await hived.agents.all()
            found.append(cost.statements)
    assert found[0] == found[1] <= 10


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path, FEW) as made:
        yield made


async def test_a_full_read_wakes_only_whom_there_is_something_to_do_for(world: Fleet) -> None:
    hived = await settled(world)
    changed = [call for call in world.faults.calls if "start" in call]
    await hived.passes.full_read()
    assert dict(hived.passes._queue) == {}

    await world.containers.stop(name_of(1))
    await hived.passes.full_read()
    assert hived.passes._timers.keys() == {name_of(1)}, "its pass comes at once"
    assert [call for call in world.faults.calls if "start" in call] == changed, "a read does nothing itself"
    for timer in hived.passes._timers.values():
        timer.cancel()
    await hived.sites.close()


async def test_one_agent_that_cannot_be_read_does_not_keep_the_others_from_it(
    world: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    hived = await settled(world)
    real = world.files.agent_is_ready

    async def broken(name: str, *arguments: Any, **more: Any) -> bool:
        if name == name_of(0):
            raise OSError("input/output error")
        return await real(name, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(world.files, "agent_is_ready", broken)
    await world.containers.stop(name_of(2))
    await hived.passes.full_read()
    assert "input/output error" in (hived.passes.error_of(name_of(0)) or "")
    assert {name_of(0), name_of(2)} == hived.passes._timers.keys()
    for timer in hived.passes._timers.values():
        timer.cancel()
    await hived.sites.close()
