"""What the host prunes, and above all what it does not: nothing live, referred to, or not copied yet."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import ValidationError

from harness import wire
from reconciler.config import Config
from reconciler.config import Retention as Bounds
from reconciler.control import models as api
from reconciler.model.names import AgentName
from reconciler.retention import PAUSE_S, Retention, Run
from reconciler.store import pruning
from reconciler.store.db import Database, Store, Tx
from tests.support.brokers import ALICE, BOSS, SCOUT, World, event, events, until

pytestmark = pytest.mark.asyncio

DAY_S = 86_400.0
BOUNDS = Bounds(
    events_days=10,
    transcripts_days=10,
    build_logs_days=10,
    stats_days=10,
    stats_raw_days=10,
    messages_days=10,
    turns_days=10,
    questions_days=10,
)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World.open(tmp_path)
    await world.agent(BOSS, role="manager", allow=["*"])
    await world.agent(SCOUT)
    yield world
    await world.close()


async def pruned(world: World, bounds: Bounds = BOUNDS) -> Run:
    """One run; its pauses pass at once. What waits in the outbox is copied before."""
    await world.events.drain()
    await world.events.outbox.sweep()
    return await cut_off(world, bounds)


async def cut_off(world: World, bounds: Bounds = BOUNDS) -> Run:
    """The same, with the outbox as it is."""
    job = asyncio.ensure_future(Retention(world.store, world.clock, world.events, bounds).prune())
    while not job.done():
        await asyncio.sleep(0)
        if world.clock.sleeping():
            world.clock.advance(PAUSE_S)
    return job.result()


async def ids(world: World, table: str, *, history: bool = False) -> list[int]:
    database = world.store.events if history else world.store.state
    return [row[0] for row in await database.all(f"SELECT id FROM {table} ORDER BY id")]


async def whole_turn(world: World, agent: AgentName = SCOUT, *, body: str = "hi") -> tuple[int, int]:
    """A message is sent, delivered and consumed in a turn that tells something; ids of message and turn."""
    message = await world.say(agent, body)
    turn, _ = await world.turn(agent)
    told = events(event(1), event(2, "context", used_tokens=5, window_tokens=100))
    await world.broker.turn_events(agent, turn, told)
    await world.end(agent, turn)
    return message, turn


async def test_what_is_old_and_over_goes_with_all_that_hangs_on_it(world: World) -> None:
    await world.hello(SCOUT)
    old = await whole_turn(world)
    await world.events.append_build_log(99, ["building"])
    world.clock.advance(11 * DAY_S)
    new = await whole_turn(world)

    done = await pruned(world)

    assert await ids(world, "messages") == [new[0]]
    assert await ids(world, "turns") == [new[1]]
    assert await ids(world, "leases") == [2]
    assert await world.scalar("SELECT COUNT(*) FROM transcript WHERE turn_id = ?", old[1], events=True) == 0
    assert await world.scalar("SELECT COUNT(*) FROM transcript WHERE turn_id = ?", new[1], events=True) == 4
    assert await world.scalar("SELECT COUNT(*) FROM build_log", events=True) == 0
    assert done.deleted["messages"] == done.deleted["turns"] == done.deleted["leases"] == 1
    assert (await pruned(world)).deleted == {}, "a second run finds nothing"


async def test_what_is_younger_than_the_bound_stays(world: World) -> None:
    await world.hello(SCOUT)
    await whole_turn(world)
    world.clock.advance(9 * DAY_S)
    assert (await pruned(world)).deleted == {}


async def test_messages_that_nobody_has_consumed_stay_however_old(world: World) -> None:
    await world.hello(SCOUT)
    waiting, mine = await world.say(BOSS), (await world.send(SCOUT, "operator"))[0]
    leased = await world.say(SCOUT)
    lease = (await world.poll(SCOUT)).lease
    world.clock.advance(100 * DAY_S)
    await pruned(world)
    assert set(await ids(world, "messages")) == {waiting, mine, leased}
    assert await ids(world, "leases") == [lease]

    await world.broker.mark_read(ALICE, mine)
    await pruned(world)
    assert set(await ids(world, "messages")) == {waiting, leased}, "read, so it is over"


async def test_a_message_stays_while_an_answer_to_it_waits(world: World) -> None:
    await world.hello(SCOUT)
    asked, _ = await whole_turn(world)
    answer = (await world.send(SCOUT, "operator", in_reply_to=asked))[0]
    world.clock.advance(100 * DAY_S)
    await pruned(world)
    assert await ids(world, "messages") == [asked, answer]
    await world.broker.mark_read(ALICE, answer)
    await pruned(world)
    assert await ids(world, "messages") == []


async def test_a_turn_that_goes_on_keeps_its_messages_and_its_lines(world: World) -> None:
    await world.hello(SCOUT)
    message = await world.say(SCOUT)
    turn, inbox = await world.turn(SCOUT)
    await world.broker.turn_events(SCOUT, turn, events(event(1), event(2)))
    world.clock.advance(100 * DAY_S)
    await pruned(world)
    assert await ids(world, "messages") == [message]
    assert await ids(world, "turns") == [turn]
    assert await world.scalar("SELECT COUNT(*) FROM transcript", events=True) == 3
    await world.end(SCOUT, turn)
    assert await world.scalar("SELECT state FROM leases WHERE id = ?", inbox.lease) == "acked"


@pytest.mark.parametrize(
    ("state", "generation", "kept"),
    [("pending", None, True), ("deployed", 2, True), ("denied", None, False), ("invalid", None, False)],
)
async def test_the_causes_of_what_was_approved_or_waits_stay(
    world: World, state: str, generation: int | None, kept: bool
) -> None:
    await world.hello(SCOUT)
    message, turn = await whole_turn(world)
    async with world.store.state.transaction() as tx:
        await tx.run(
            "INSERT INTO proposals (kind, agent, commit_id, state, requested_by, turn_id, generation, "
            "created_at) VALUES ('apply', 'scout', 'c', ?, 'scout', ?, ?, ?)",
            *(state, turn, generation, tx.now),
        )
    await world.events.append_build_log(await last_proposal(world), ["building"])
    world.clock.advance(100 * DAY_S)
    newest = await whole_turn(world)
    await pruned(world)
    causes = [message, newest[0]] if kept else [newest[0]]
    assert await ids(world, "messages") == causes
    assert len(await ids(world, "turns")) == len(await ids(world, "leases")) == len(causes)
    logs = await world.scalar("SELECT COUNT(*) FROM build_log", events=True)
    assert logs == (1 if state == "pending" else 0), "of a generation that runs, too: it does not here"


async def last_proposal(world: World) -> int:
    return int(await world.scalar("SELECT MAX(id) FROM proposals"))


async def test_the_build_log_of_the_generation_that_runs_stays(world: World) -> None:
    running = await world.scalar("SELECT proposal_id FROM generations WHERE agent = 'scout'")
    await world.events.append_build_log(running, ["building"])
    world.clock.advance(100 * DAY_S)
    await pruned(world)
    assert await world.scalar("SELECT proposal_id FROM build_log", events=True) == running


async def test_the_last_state_and_context_of_an_agent_outlive_a_restart(world: World) -> None:
    await world.hello(SCOUT)
    await world.runs(SCOUT)
    await whole_turn(world)
    await world.presence.tell(SCOUT)
    before = await world.presence.now(SCOUT)
    world.clock.advance(100 * DAY_S)
    await pruned(world)
    await world.restart()
    after = await world.presence.now(SCOUT)
    assert (after.state, after.since) == (before.state, before.since)
    assert (after.context_used, after.context_window) == (5, 100)
    assert await ids(world, "turns") != [], "the last one, which says which model was used"


async def test_nothing_is_pruned_that_might_be_copied_again(world: World) -> None:
    await world.hello(SCOUT)
    await whole_turn(world)
    while await world.events.outbox.copy_events():
        pass  # copied, but not swept: the process might die now, and copy them once more
    copied = await ids(world, "events", history=True)
    world.clock.advance(100 * DAY_S)
    await cut_off(world)
    assert await ids(world, "events", history=True) == copied
    await world.restart()
    assert await ids(world, "events", history=True) == copied, "the second copy is the first"
    await pruned(world)
    assert len(await ids(world, "events", history=True)) < len(copied)


async def test_effects_that_were_given_up_keep_what_is_younger(world: World) -> None:
    async with world.store.state.transaction() as tx:
        await tx.run(
            "INSERT INTO outbox (kind, data, created_at, error) VALUES ('notify', '{}', ?, 'no')", tx.now
        )
    world.clock.advance(DAY_S)
    await world.hello(SCOUT)
    await whole_turn(world)
    world.clock.advance(100 * DAY_S)
    assert (await pruned(world)).deleted == {}
    assert await world.scalar("SELECT COUNT(*) FROM outbox") == 1


async def test_the_audit_chain_and_proposals_are_never_touched(world: World) -> None:
    await world.hello(SCOUT)
    await whole_turn(world)
    chain = await world.store.state.all("SELECT * FROM audit")
    assert chain
    proposals = await world.scalar("SELECT COUNT(*) FROM proposals")
    world.clock.advance(3650 * DAY_S)
    await pruned(world)
    assert [tuple(r) for r in await world.store.state.all("SELECT * FROM audit")] == [tuple(r) for r in chain]
    assert await world.scalar("SELECT COUNT(*) FROM proposals") == proposals


async def test_questions_stay_while_they_are_open(world: World) -> None:
    await world.hello(SCOUT)
    asked = []
    for number in range(2):
        request = {"question": f"which {number}?", "key": world.key()}
        asked.append((await world.broker.ask(SCOUT, wire.AskOperator.model_validate(request))).id)
    await world.broker.answer(ALICE, asked[0], api.Answer(text="this"))
    world.clock.advance(100 * DAY_S)
    await pruned(world)
    assert await ids(world, "questions") == [asked[1]]


async def test_links_and_sessions_that_ended_go_and_those_that_live_stay(world: World) -> None:
    now = int(world.clock.now() * 1e6)
    day = int(DAY_S * 1e6)
    async with world.store.state.transaction() as tx:
        await tx.run("INSERT INTO users VALUES ('alice', 'operator', 1)")
        for name, expires in (("dead", now - 8 * day), ("young", now - day), ("live", now + day)):
            await tx.run("INSERT INTO login_tokens VALUES (?, 'alice', ?, NULL)", name, expires)
            await tx.run(
                "INSERT INTO sessions (secret_hash, csrf, user, created_at, last_seen_at, expires_at) "
                "VALUES (?, 'c', 'alice', 1, 1, ?)",
                *(name, expires),
            )
    await pruned(world)
    for table, column in (("login_tokens", "token_hash"), ("sessions", "secret_hash")):
        rows = await world.store.state.all(f"SELECT {column} AS name FROM {table} ORDER BY 1")
        assert [row["name"] for row in rows] == ["live", "young"]


async def test_a_clock_that_was_wrong_for_a_while_neither_ends_the_search_nor_loses_rows(
    world: World,
) -> None:
    async with world.store.events.transaction() as tx:
        await many(tx, pruning.WINDOW + 10, ts=tx.now + int(1e6 * 400 * DAY_S))
        await many(tx, 5, ts=tx.now)
    world.clock.advance(100 * DAY_S)
    done = await pruned(world)
    assert done.deleted == {"events": 5}


async def many(tx: Tx, count: int, ts: int, agent: str = "scout") -> None:
    for _ in range(count):
        await tx.run("INSERT INTO events (ts, agent, kind, data) VALUES (?, ?, 'x', '{}')", ts, agent)


async def test_no_transaction_looks_at_more_than_a_window(world: World) -> None:
    async with world.store.events.transaction() as tx:
        await many(tx, 3 * pruning.WINDOW + 1, ts=tx.now)
        before = tx.now + 1
    seen = []
    after, more = 0, True
    while more:
        async with world.store.events.transaction() as tx:
            window = await pruning.prune(tx, pruning.HISTORY["events"], before=before, after=after)
        seen.append(window.deleted)
        after, more = window.seen, window.more
    assert seen == [pruning.WINDOW] * 3 + [1]


async def test_a_reader_whose_cursor_was_pruned_is_told_to_read_anew(world: World) -> None:
    await world.hello(SCOUT)
    await world.runs(SCOUT)
    await world.presence.tell(SCOUT)  # its last state, which stays, is older than all that goes
    await whole_turn(world)
    world.clock.advance(100 * DAY_S)
    await pruned(world)
    kept = await ids(world, "events", history=True)
    last = await world.events.last_id()
    assert kept[0] < last
    stream = world.events.stream(after=kept[0])
    first = await anext(stream)
    await stream.aclose()
    assert first.kind == "resync", "what lies between is gone"


async def test_the_file_gets_smaller_and_its_size_is_told(world: World) -> None:
    job = Retention(world.store, world.clock, world.events, BOUNDS)
    async with world.store.events.transaction() as tx:
        for seq in range(3000):
            await tx.run(
                "INSERT INTO transcript (agent, turn_id, seq, at, kind, data) "
                "VALUES ('scout', 1, ?, ?, 'text', ?)",
                *(seq, tx.now, "x" * 8000),
            )
    full = (await job.sizes())[1]
    assert full.name == "events.db"
    assert full.bytes > 20_000_000
    assert job.pruned_at is None
    world.clock.advance(100 * DAY_S)
    assert (await pruned(world)).deleted["transcript"] == 3000
    size = (await job.sizes())[1]
    assert size.bytes < 8_000_000
    assert (await job.sizes())[0].name == "state.db"


async def test_a_file_made_without_room_for_shrinking_is_remade_at_the_next_start(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    await store.close()
    with sqlite3.connect(tmp_path / "events.db", isolation_level=None) as connection:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
        connection.execute("INSERT INTO events (ts, kind, data) VALUES (1, 'kept', '{}')")
        assert connection.execute("PRAGMA auto_vacuum").fetchone()[0] == 0
    connection.close()
    again = await Database.open(tmp_path / "events.db", synchronous="NORMAL")
    row = await again.one("SELECT kind, (SELECT auto_vacuum FROM pragma_auto_vacuum) AS mode FROM events")
    await again.close()
    assert row is not None
    assert tuple(row) == ("kept", 2)


async def test_beyond_the_size_of_history_those_who_fill_it_lose_their_lines_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.store.events.transaction() as tx:
        for turn in range(200):
            for agent, size in (("scout", 200), ("hm1nd", 20_000)):
                await tx.run(
                    "INSERT INTO transcript (agent, turn_id, seq, at, kind, data) "
                    "VALUES (?, ?, 1, ?, 'text', ?)",
                    *(agent, turn if agent == "scout" else 1000 + turn, tx.now, "x" * size),
                )
    monkeypatch.setattr("reconciler.retention._MIB", 16 * 1024)  # 64 of them are one
    done = await pruned(world, BOUNDS.model_copy(update={"history_max_mib": 64}))
    assert done.deleted == {"transcript": 200}, "all of the one who wrote most, and that was enough"
    assert await world.scalar("SELECT COUNT(*) FROM transcript WHERE agent = 'scout'", events=True) == 200


async def test_the_job_runs_by_itself_and_outlives_a_full_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    job = Retention(world.store, world.clock, world.events, BOUNDS)

    async def full() -> Run:
        runs.append("run")
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(job, "prune", full)
    task = asyncio.ensure_future(job.run())
    for number in (1, 2, 3):
        await world.clock.asleep(at_least_s=1.0)
        world.clock.advance(4000.0)
        await until(lambda number=number: len(runs) == number)  # type: ignore[misc]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    "bad", [{"events_days": 0}, {"messages_days": 4000}, {"history_max_mib": 1}, {"off": 1}]
)
async def test_retention_has_bounds_and_no_switch(bad: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({"retention": bad})
