"""The store on real files: migrations, refusals, cancellation, the death of the process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.errors import DiskFullError, HiveError, OperatorError, PermanentError
from reconciler.store import migrate
from reconciler.store.db import Database, Store, Tx

pytestmark = [pytest.mark.asyncio, pytest.mark.integration]
ROOT = Path(__file__).parents[2]


async def opened(path: Path) -> Database:
    return await Database.open(path, synchronous="NORMAL", now=lambda: 1_700_000_000.5)


@pytest_asyncio.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = await opened(tmp_path / "state.db")
    yield database
    await database.close()


def tables(path: Path) -> dict[str, str]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return dict(rows)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Migrations of a later release: the first of today and a made-up 0002 for state.db."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, folder)
    for script in (folder / "state").glob("*.sql"):
        if script.name != "0001_first.sql":
            script.unlink()
    (folder / "state" / "0002_second.sql").write_text(
        "-- a comment; with a semicolon\nALTER TABLE agents ADD COLUMN colour TEXT;\n"
        "CREATE TABLE colours (\n  name TEXT PRIMARY KEY  -- not ; the end\n) STRICT;\n"
    )
    monkeypatch.setattr(migrate, "MIGRATIONS", folder)
    return folder


# ---------------------------------------------------------------------------------------------- migrations
async def test_a_fresh_store_has_the_newest_schema_and_says_whose_it_is(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "hive")
    await store.close()
    with sqlite3.connect(tmp_path / "hive" / "state.db") as connection:
        assert connection.execute("PRAGMA application_id").fetchone()[0] == migrate.APPLICATION_ID
        scripts = sorted(path.name for path in (migrate.MIGRATIONS / "state").glob("*.sql"))
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(scripts)
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        applied = connection.execute("SELECT name FROM migrations ORDER BY number").fetchall()
        assert applied == [(name,) for name in scripts]
    connection.close()
    assert {"messages", "outbox", "audit"} <= tables(tmp_path / "hive" / "state.db").keys()
    assert {"events", "transcript"} <= tables(tmp_path / "hive" / "events.db").keys()


async def test_the_commit_of_state_waits_for_the_disk(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "hive")
    async with store.state.transaction() as tx:
        row = await tx.one("PRAGMA synchronous")
    await store.close()
    assert row is not None
    assert row[0] == 2, "FULL: an approval or a message that was answered for must survive a power cut"


async def test_an_upgrade_makes_a_backup_first_and_ends_in_the_schema_of_a_fresh_file(
    tmp_path: Path, next_release: Path
) -> None:
    folder = next_release / "state"
    (folder / "0002_second.sql").rename(tmp_path / "later.sql")
    old = await opened(tmp_path / "a" / "state.db")
    async with old.transaction() as tx:
        await tx.run("INSERT INTO users VALUES ('alice', 'operator', 1)")
    await old.close()
    (tmp_path / "later.sql").rename(folder / "0002_second.sql")

    new = await opened(tmp_path / "a" / "state.db")
    row = await new.one("SELECT name FROM users")
    await new.close()
    fresh = await opened(tmp_path / "b" / "state.db")
    await fresh.close()

    assert row is not None
    assert row["name"] == "alice"
    assert tables(tmp_path / "a" / "state.db") == tables(tmp_path / "b" / "state.db")
    backups = list((tmp_path / "a").glob("state.db.before-2-*"))
    assert len(backups) == 1
    assert "colours" not in tables(backups[0])
    with sqlite3.connect(backups[0]) as connection:
        assert connection.execute("SELECT name FROM users").fetchall() == [("alice",)]
    connection.close()
    assert not list((tmp_path / "b").glob("*.before-*")), "a new file has nothing to keep"


async def test_what_integrity_check_says_of_tables_without_rowid_can_be_believed(tmp_path: Path) -> None:
    """SQLite 3.40 sees NULLs where there are none unless the columns begin with the key, in its order."""
    await (await Store.open(tmp_path)).close()
    seen = set()
    for name in ("state", "events"):
        with contextlib.closing(sqlite3.connect(tmp_path / f"{name}.db")) as db:
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE sql LIKE '%WITHOUT ROWID%'"):
                columns = db.execute("SELECT name, pk FROM pragma_table_info(?)", (table,)).fetchall()
                key = [column for column, _ in sorted((c for c in columns if c[1]), key=lambda c: int(c[1]))]
                assert [column for column, _ in columns][: len(key)] == key, table
                seen.add(table)
            if name == "events":
                db.execute("INSERT INTO stats (agent, key, ts, value) VALUES ('scout', 'starts', 5, 1.5)")
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert "stats" in seen


async def test_a_migration_that_fails_leaves_the_schema_before_it(tmp_path: Path, next_release: Path) -> None:
    second = next_release / "state" / "0002_second.sql"
    good = second.read_text()
    second.unlink()
    await (await opened(tmp_path / "state.db")).close()
    before = tables(tmp_path / "state.db")
    second.write_text(good + "CREATE TABLE colours (name TEXT) STRICT;\n")
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        await opened(tmp_path / "state.db")
    assert tables(tmp_path / "state.db") == before
    second.write_text(good)
    await (await opened(tmp_path / "state.db")).close()
    assert "colours" in tables(tmp_path / "state.db")


async def test_a_newer_schema_is_refused_and_untouched(tmp_path: Path, next_release: Path) -> None:
    await (await opened(tmp_path / "x" / "state.db")).close()
    (next_release / "state" / "0002_second.sql").unlink()
    before = bytes_of(tmp_path / "x")
    with pytest.raises(OperatorError, match="has schema 2, this program knows 1") as caught:
        await opened(tmp_path / "x" / "state.db")
    assert caught.value.code == "conflict"
    assert bytes_of(tmp_path / "x") == before


async def test_a_file_made_by_other_scripts_of_the_same_number_is_refused(
    tmp_path: Path, next_release: Path
) -> None:
    await (await opened(tmp_path / "state.db")).close()
    first = next_release / "state" / "0001_first.sql"
    first.write_text(first.read_text() + "CREATE TABLE sneaked_in (a INTEGER) STRICT;\n")
    with pytest.raises(OperatorError, match="other migrations"):
        await opened(tmp_path / "state.db")


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE bookmarks (url TEXT)",
        "PRAGMA application_id = 7",
        "PRAGMA user_version = 1",
    ],
    ids=["with tables", "with another owner", "with a version and no owner"],
)
async def test_a_foreign_database_is_refused_and_untouched(tmp_path: Path, script: str) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    with sqlite3.connect(folder / "state.db") as connection:
        connection.execute(script)
    connection.close()
    before = bytes_of(folder)
    with pytest.raises(OperatorError, match="not a database of hyperhive"):
        await opened(folder / "state.db")
    assert bytes_of(folder) == before


async def test_a_file_that_is_no_database_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("my diary\n" * 200)
    before = bytes_of(tmp_path)
    with pytest.raises(OperatorError, match="not a database of hyperhive"):
        await opened(tmp_path / "state.db")
    assert bytes_of(tmp_path) == before


async def test_a_path_with_marks_of_an_address_is_just_a_path(tmp_path: Path) -> None:
    database = await opened(tmp_path / "50% ?mode=memory#x" / "state.db")
    await database.close()
    assert (tmp_path / "50% ?mode=memory#x" / "state.db").exists()


async def test_databases_and_copies_are_their_owners_alone_whatever_the_umask(
    tmp_path: Path, next_release: Path
) -> None:
    second = next_release / "state" / "0002_second.sql"
    later = second.read_text()
    second.unlink()
    before = os.umask(0)
    try:
        database = await opened(tmp_path / "x" / "state.db")
        async with database.transaction() as tx:
            await add(tx, "ann")
        assert {path.name for path in (tmp_path / "x").iterdir()} >= {"state.db", "state.db-wal"}
        await database.backup(tmp_path / "x" / "copy.db")
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "x").iterdir()}
        assert set(modes.values()) == {0o600}, modes
        (tmp_path / "x" / "state.db").chmod(0o644)  # as an earlier release left it
        await database.close()
        second.write_text(later)
        await (await opened(tmp_path / "x" / "state.db")).close()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "x").iterdir()}
    assert any(name.startswith("state.db.before-2") for name in modes)
    assert set(modes.values()) == {0o600}, modes


async def test_a_script_without_an_end_is_refused() -> None:
    with pytest.raises(PermanentError, match="middle of a statement"):
        migrate.statements("CREATE TABLE a (b INTEGER);\nCREATE TABLE c (\n")
    assert len(migrate.statements("CREATE TABLE a (b INTEGER);\n-- the end\n\n")) == 1


# ---------------------------------------------------------------------------------------------- transactions
async def count(db: Database) -> int:
    row = await db.one("SELECT COUNT(*) AS n FROM users")
    assert row is not None
    return int(row["n"])


async def add(tx: Tx, name: str) -> None:
    await tx.run("INSERT INTO users VALUES (?, 'viewer', ?)", name, tx.now)


async def test_an_exception_takes_the_whole_transaction_back(db: Database) -> None:
    async def work() -> None:
        async with db.transaction() as tx:
            await add(tx, "a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()
    async with db.transaction() as tx:
        await add(tx, "b")
    assert [row["name"] for row in await db.all("SELECT name FROM users")] == ["b"]


async def test_cancelling_at_any_await_leaves_all_or_nothing_and_a_usable_database(db: Database) -> None:
    """Cancel after 0, 1, 2 … turns of the event loop until the work is through: every await is hit."""

    async def work(number: int) -> None:
        async with db.transaction() as tx:
            await add(tx, f"{number}-a")
            await add(tx, f"{number}-b")

    untouched = 0
    for number in range(400):
        before = await count(db)
        task = asyncio.ensure_future(work(number))
        for _ in range(number % 100):
            await asyncio.sleep(0)
            if task.done():
                break
        task.cancel()
        await asyncio.wait({task})
        written = await count(db) - before
        assert written in {0, 2}, f"cancelled after {number} turns of the loop"
        untouched += written == 0
    assert untouched, "no cancellation came early enough to mean anything"
    async with db.transaction() as tx:
        await add(tx, "last")


async def test_a_commit_goes_through_although_its_caller_is_cancelled_twice_and_its_news_are_told(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = asyncio.Event(), asyncio.Event()
    told: list[str] = []
    db.on_emit = lambda: told.append("emit")
    real = db._writer.commit

    async def slow() -> None:
        reached.set()
        await go.wait()
        await real()

    monkeypatch.setattr(db._writer, "commit", slow)

    async def work() -> None:
        async with db.transaction() as tx:
            await add(tx, "a")
            await tx.emit("user.made", None)
            tx.after_commit(lambda: told.append("callback"))

    task = asyncio.ensure_future(work())
    await reached.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done(), "the caller must not go on before it is known whether it was committed"
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await count(db) == 1
    assert told == ["callback", "emit"]


async def test_a_commit_that_fails_is_rolled_back_and_told_to_nobody(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    db.on_emit = lambda: told.append("emit")
    real = db._writer.commit

    async def full() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def work() -> None:
        async with db.transaction() as tx:
            await add(tx, "a")
            await tx.emit("user.made", None)
            tx.after_commit(lambda: told.append("callback"))

    monkeypatch.setattr(db._writer, "commit", full)
    with pytest.raises(sqlite3.OperationalError):
        await work()
    monkeypatch.setattr(db._writer, "commit", real)
    async with db.transaction() as tx:
        await add(tx, "b")
    assert [row["name"] for row in await db.all("SELECT name FROM users")] == ["b"]
    assert told == []


async def test_callbacks_of_commits_run_in_the_order_of_the_commits(db: Database) -> None:
    order: list[int] = []

    async def work(number: int) -> None:
        async with db.transaction() as tx:
            done = await tx.run("INSERT INTO users VALUES (?, 'viewer', 0)", str(number))
            tx.after_commit(lambda: order.append(done.row_id))

    await asyncio.gather(*(work(number) for number in range(20)))
    assert order == sorted(order)
    assert len(order) == 20


async def test_a_transaction_cannot_be_used_after_its_end(db: Database) -> None:
    async with db.transaction() as tx:
        await add(tx, "a")
    with pytest.raises(PermanentError, match="after its end"):
        await add(tx, "b")


async def test_readers_cannot_write_and_see_only_what_is_committed(db: Database) -> None:
    async with db.transaction() as tx:
        await add(tx, "a")
        assert await count(db) == 0
    assert await count(db) == 1
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await db.all("DELETE FROM users")


async def test_a_backup_of_the_live_file_is_whole(db: Database, tmp_path: Path) -> None:
    async with db.transaction() as tx:
        await add(tx, "a")
    await db.backup(tmp_path / "copy.db")
    with sqlite3.connect(tmp_path / "copy.db") as connection:
        assert connection.execute("SELECT name FROM users").fetchall() == [("a",)]
    connection.close()


async def test_a_closed_database_says_so_and_closing_again_is_nothing(db: Database) -> None:
    await db.close()
    await db.close()
    with pytest.raises(HiveError, match="closed"):
        await db.one("SELECT 1")
    with pytest.raises(HiveError, match="closed"):
        async with db.transaction():
            pass


# ---------------------------------------------------------------------------------------------- kill -9
WRITER = """
import asyncio, sys
from pathlib import Path
from reconciler.store.db import Database

async def main():
    db = await Database.open(Path(sys.argv[1]), synchronous="FULL")
    number = 0
    while True:
        async with db.transaction() as tx:
            for part in "abc":
                await tx.run("INSERT INTO users VALUES (?, 'viewer', ?)", f"{number}-{part}", number)
            await tx.emit("user.made", None, number=number)
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


async def test_kill_9_in_the_middle_of_transactions_leaves_whole_ones_and_every_one_that_was_answered_for(
    tmp_path: Path,
) -> None:
    for round_number, answers in enumerate((1, 2, 7, 19)):
        path = tmp_path / str(round_number) / "state.db"
        child = subprocess.Popen(  # noqa: ASYNC220 - a process of its own that can be killed
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert child.stdout is not None
        last = [int(child.stdout.readline()) for _ in range(answers)][-1]
        child.send_signal(signal.SIGKILL)  # at once: it is somewhere in the next transactions
        rest = child.stdout.read().split()
        child.stdout.close()
        assert child.wait(10) == -signal.SIGKILL
        last = max([last, *map(int, rest)])

        db = await Database.open(path, synchronous="FULL")
        rows = await db.all("SELECT created_at AS number, COUNT(*) AS parts FROM users GROUP BY created_at")
        outbox = await db.one("SELECT COUNT(*) AS n FROM outbox")
        check = await db.one("PRAGMA integrity_check")
        await db.close()
        assert {row["parts"] for row in rows} == {3}
        assert [row["number"] for row in rows][: last + 1] == list(range(last + 1))
        assert len(rows) - (last + 1) in {0, 1}, "at most one commit can be unanswered"
        assert outbox is not None
        assert outbox["n"] == len(rows)
        assert check is not None
        assert check[0] == "ok"


async def test_without_room_nothing_is_written_and_it_is_remembered_until_there_is(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)

    async def much() -> None:
        async with store.state.transaction() as tx:
            for number in range(50):
                await tx.emit("x", None, text=f"{number}" * 4000)

    try:
        await store.state._writer.execute_fetchall("PRAGMA max_page_count = 1")  # what it has already
        with pytest.raises(DiskFullError, match="the disk is full"):
            await much()
        assert store.state.full_since is not None
        assert await store.state.all("SELECT * FROM outbox") == []
        await store.state._writer.execute_fetchall("PRAGMA max_page_count = 100000")
        async with store.state.transaction() as tx:
            await tx.emit("x", None)
        assert store.state.full_since is None
    finally:
        await store.close()
