"""Transactions that share a commit: each atomic, none answered before the disk has it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.errors import PermanentError
from reconciler.store.db import Database
from reconciler.store.groups import MEMBERS_MAX
from tests.support.brokers import SCOUT, SMITH, World, until

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(tmp_path / "state.db", synchronous="FULL")
    yield database
    await database.close()


class Gate:
    """Holds commits back until it is opened, and counts them."""

    def __init__(self, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()
        self.begun = 0
        self.error: sqlite3.Error | None = None
        real = db._writer.commit

        async def commit() -> None:
            self.begun += 1
            await self.open.wait()
            if self.error is not None:
                raise self.error
            await real()

        monkeypatch.setattr(db._writer, "commit", commit)


@pytest.fixture
def gate(db: Database, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(db, monkeypatch)


async def add(db: Database, name: str, after: Callable[[], None] = lambda: None) -> None:
    async with db.quick() as tx:
        await tx.run("INSERT INTO users VALUES (?, 'operator', 1)", name)
        tx.after_commit(after)


async def names(db: Database) -> list[str]:
    return [row["name"] for row in await db.all("SELECT name FROM users ORDER BY rowid")]


async def turns(count: int = 20) -> None:
    """Let others run for a while."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_those_who_come_during_a_commit_share_the_next_one(db: Database, gate: Gate) -> None:
    tasks = [asyncio.ensure_future(add(db, "first"))]
    await until(lambda: gate.begun > 0)
    tasks += [asyncio.ensure_future(add(db, f"user-{number}")) for number in range(10)]
    await turns()
    assert not any(task.done() for task in tasks), "nobody is answered before the disk has it"
    gate.open.set()
    await asyncio.gather(*tasks)
    assert gate.begun == 2
    assert await names(db) == ["first", *(f"user-{number}" for number in range(10))]


async def test_a_group_is_bounded(db: Database, gate: Gate) -> None:
    gate.open.set()
    await asyncio.gather(*(add(db, f"user-{number}") for number in range(3 * MEMBERS_MAX)))
    assert gate.begun >= 3


async def test_a_member_that_fails_undoes_itself_alone(db: Database) -> None:
    async def failing(name: str) -> None:
        async with db.quick() as tx:
            await tx.run("INSERT INTO users VALUES (?, 'operator', 1)", name)
            if name.endswith("bad"):
                raise ValueError(name)
            await tx.run("INSERT INTO users VALUES (?, 'viewer', 1)", name + " too")

    results = await asyncio.gather(
        *(failing(n) for n in ("a", "b bad", "c", "d bad")), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), ValueError, type(None), ValueError]
    assert await names(db) == ["a", "a too", "c", "c too"]
    await add(db, "later")
    assert (await names(db))[-1] == "later"


async def test_a_failing_statement_fails_its_member_only(db: Database) -> None:
    results = await asyncio.gather(*(add(db, n) for n in ("a", "b", "a", "c")), return_exceptions=True)
    assert [type(result) for result in results] == [
        type(None),
        type(None),
        sqlite3.IntegrityError,
        type(None),
    ]
    assert await names(db) == ["a", "b", "c"]


async def test_callbacks_run_in_order_after_the_commit_and_before_what_follows(
    db: Database, gate: Gate
) -> None:
    told: list[str] = []
    tasks = [asyncio.ensure_future(add(db, n, lambda n=n: told.append(n))) for n in "abc"]  # type: ignore[misc]
    await turns()

    async def exclusive() -> list[str]:
        async with db.transaction():
            return list(told)

    follows = asyncio.ensure_future(exclusive())
    await turns()
    assert told == []
    gate.open.set()
    await asyncio.gather(*tasks)
    assert await follows == ["a", "b", "c"]


async def test_a_commit_that_fails_fails_all_and_leaves_nothing(db: Database, gate: Gate) -> None:
    told: list[str] = []
    tasks = [asyncio.ensure_future(add(db, n, lambda n=n: told.append(n))) for n in "abc"]  # type: ignore[misc]
    gate.error = sqlite3.OperationalError("database or disk is full")
    gate.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {sqlite3.OperationalError}
    assert (told, await names(db)) == ([], [])
    gate.error = None
    await add(db, "later")
    assert await names(db) == ["later"]


async def test_a_disk_that_fails_again_at_the_rollback_leaves_nobody_waiting(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = db._writer.rollback, 0

    async def rollback() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            await real()
            raise sqlite3.OperationalError("disk I/O error")
        await real()

    monkeypatch.setattr(db._writer, "rollback", rollback)
    gate.error = sqlite3.OperationalError("disk I/O error")
    gate.open.set()

    async def write(tag: int) -> None:
        async with db.quick() as tx:
            await tx.run("INSERT INTO outbox (kind, data, created_at) VALUES ('event', ?, 1)", str(tag))

    async with asyncio.timeout(10):
        told = await asyncio.gather(*[write(tag) for tag in range(5)], return_exceptions=True)
    assert [type(error) for error in told] == [sqlite3.OperationalError] * 5


async def test_a_callback_that_breaks_its_promise_leaves_nobody_waiting(db: Database) -> None:
    async def write(tag: int) -> None:
        async with db.quick() as tx:
            await tx.run("INSERT INTO outbox (kind, data, created_at) VALUES ('event', ?, 1)", str(tag))
            if tag == 0:
                tx.after_commit([].pop)

    async with asyncio.timeout(10):
        told = await asyncio.gather(*[write(tag) for tag in range(5)], return_exceptions=True)
    assert sum(error is not None for error in told) <= 1
    row = await db.one("SELECT COUNT(*) AS n FROM outbox")
    assert row is not None
    assert row["n"] == 5


async def test_when_the_database_gives_up_a_whole_transaction_all_members_are_told(db: Database) -> None:
    async def broken() -> None:
        async with db.quick() as tx:
            await tx.run("ROLLBACK")  # as a full disk does in the middle of a statement
            raise sqlite3.OperationalError("disk I/O error")

    tried = [add(db, "a"), broken(), add(db, "c"), broken(), broken(), add(db, "f")]
    results = await asyncio.gather(*tried, return_exceptions=True)
    assert [type(results[n]) for n in (1, 3, 4)] == [sqlite3.OperationalError] * 3
    kept = await names(db)
    for name, result in (("a", results[0]), ("c", results[2]), ("f", results[5])):
        assert (name in kept) == (result is None), "who is answered well is on the disk"
        assert result is None or isinstance(result, PermanentError)
    await add(db, "later")
    assert "later" in await names(db)


async def test_members_do_not_wait_for_ever_for_one_who_does_not_come(db: Database, gate: Gate) -> None:
    holder = asyncio.ensure_future(add(db, "first"))
    await until(lambda: gate.begun > 0)
    member, coming = (asyncio.ensure_future(add(db, n)) for n in ("member", "coming"))
    await turns()
    coming.cancel()  # it waits for the lock, and the member may have been counting on it
    gate.open.set()
    async with asyncio.timeout(5):
        await asyncio.gather(holder, member)
    with contextlib.suppress(asyncio.CancelledError):
        await coming
    assert set(await names(db)) >= {"first", "member"}


async def test_the_last_one_can_be_cancelled_while_a_group_is_open(db: Database) -> None:
    gone = asyncio.Event()

    async def slow() -> None:
        async with db.quick() as tx:
            await tx.run("INSERT INTO users VALUES ('slow', 'operator', 1)")
            await gone.wait()

    first = asyncio.ensure_future(slow())
    await turns()
    second = asyncio.ensure_future(add(db, "second"))
    await turns()
    second.cancel()
    await turns()
    gone.set()
    async with asyncio.timeout(5):
        await first
    await asyncio.gather(second, return_exceptions=True)
    assert "slow" in await names(db)


async def test_a_cancelled_member_is_committed_or_undone_never_open(db: Database, gate: Gate) -> None:
    task = asyncio.ensure_future(add(db, "first"))
    await until(lambda: gate.begun > 0)
    task.cancel()
    await turns()
    assert not task.done(), "what was begun runs to its end"
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names(db) == ["first"]
    await add(db, "later")


async def test_messages_of_many_senders_share_commits_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await World.open(tmp_path / "world")
    for name in (SCOUT, SMITH):
        await world.agent(name, allow=["*"])
    counting = Gate(world.store.state, monkeypatch)
    counting.open.set()
    ids = await asyncio.gather(*(world.send(SCOUT, SMITH, f"message {n}") for n in range(100)))
    assert counting.begun < 20
    rows = await world.store.state.all("SELECT id, body FROM messages ORDER BY id")
    assert [([row["id"]], row["body"]) for row in rows] == [(i, f"message {n}") for n, i in enumerate(ids)]
    await world.close()


async def test_who_needs_the_disk_shares_no_commit_that_does_not_wait_for_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, waited = db._writer.commit, []
    first = asyncio.Event()

    async def commit() -> None:
        rows = await db._writer.execute_fetchall("PRAGMA synchronous")
        waited.append({1: False, 2: True}[next(iter(rows))[0]])
        if len(waited) == 1:
            await first.wait()
        await real()

    async def soft(name: str) -> None:
        async with db.quick(synced=False) as tx:
            await tx.run("INSERT INTO users VALUES (?, 'operator', 1)", name)

    monkeypatch.setattr(db._writer, "commit", commit)
    tasks = [asyncio.ensure_future(add(db, "first"))]
    await until(lambda: bool(waited))
    for number, one in enumerate((soft, soft, add, soft)):  # the last one shares what is waited for
        tasks.append(asyncio.ensure_future(one(f"user-{number}") if one is soft else add(db, "synced")))
        await turns(3)
    first.set()
    await asyncio.gather(*tasks)
    assert waited == [True, False, True]
    await soft("alone")
    async with db.transaction() as tx:
        await tx.run("INSERT INTO users VALUES ('last', 'operator', 1)")
    assert waited[3:] == [False, True]
    assert len(await names(db)) == 7
