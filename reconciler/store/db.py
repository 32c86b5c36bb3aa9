"""Connections and transactions: one writer per file, a few readers, migrations, backup.

The only way to write is `async with store.state.transaction() as tx`: it holds the file's write lock, begins
IMMEDIATE, and commits shielded from cancellation. What must happen after a commit outside this file goes
into the outbox with `tx.emit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiosqlite

from reconciler.errors import OperatorError, PermanentError
from reconciler.model.states import ProposalState

Row = aiosqlite.Row
Value = str | int | float | bytes | None

READERS = 3
BUSY_TIMEOUT_MS = 5000
APPLICATION_ID = 0x48495645  # "HIVE"
MIGRATIONS = Path(__file__).parent / "migrations"
_BASE_PRAGMAS = (
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
)


@dataclass(frozen=True, slots=True)
class Written:
    """What a statement did: the id of the row inserted and the number of rows changed."""

    row_id: int
    changed: int


class Tx:
    """An open write transaction. `now` is its instant in microseconds, the same for every row it writes."""

    def __init__(self, connection: aiosqlite.Connection, now: int) -> None:
        self._connection = connection
        self.now = now
        self.emitted = False

    async def run(self, sql: str, *values: Value) -> Written:
        """Execute one statement."""
        async with self._connection.execute(sql, values) as cursor:
            return Written(cursor.lastrowid or 0, cursor.rowcount)

    async def one(self, sql: str, *values: Value) -> Row | None:
        """The first row, if any."""
        async with self._connection.execute(sql, values) as cursor:
            return await cursor.fetchone()

    async def all(self, sql: str, *values: Value) -> Sequence[Row]:
        """All rows."""
        async with self._connection.execute(sql, values) as cursor:
            return list(await cursor.fetchall())

    async def emit(self, kind: str, agent: str | None, **data: Any) -> None:
        """Put an event into the outbox; it reaches events.db and the stream after the commit, at least once,
        in order."""
        payload = json.dumps(
            {"agent": agent, "kind": kind, "data": data}, separators=(",", ":"), sort_keys=True
        )
        await self.run(
            "INSERT INTO outbox (kind, data, created_at) VALUES ('event', ?, ?)", payload, self.now
        )
        self.emitted = True

    async def audit(self, actor: str, action: str, target: str, **data: Any) -> None:
        """Append a decision to the hash chain: hash = sha256(previous hash + canonical JSON of the row)."""
        last = await self.one("SELECT hash FROM audit ORDER BY id DESC LIMIT 1")
        row = audit_payload(self.now, actor, action, target, data)
        digest = chain(last["hash"] if last else "", row)
        await self.run(
            "INSERT INTO audit (at, actor, action, target, data, hash) VALUES (?, ?, ?, ?, ?, ?)",
            self.now,
            actor,
            action,
            target,
            json.dumps(data, separators=(",", ":"), sort_keys=True),
            digest,
        )
        await self.emit("audit.row", None, action=action, target=target, actor=actor)

    async def move_proposal(self, proposal: int, after: ProposalState, **columns: Value) -> bool:
        """Move a proposal along the state table; False if it was in `after` already. Raises `OperatorError`
        on a forbidden move.

        Writes its progress, its event, and the projection of its tag to git; every state change goes through
        here.
        """
        from reconciler.store.moves import move

        return await move(self, proposal, after, columns)


def audit_payload(at: int, actor: str, action: str, target: str, data: dict[str, Any]) -> str:
    """Canonical JSON of an audit row, the input of its hash."""
    return json.dumps(
        [at, actor, action, target, data], separators=(",", ":"), sort_keys=True, ensure_ascii=False
    )


def chain(previous: str, payload: str) -> str:
    """The hash of a row that follows the row with hash `previous` (empty for the first)."""
    return hashlib.sha256(previous.encode() + b"\n" + payload.encode()).hexdigest()


class Database:
    """One SQLite file with one writer and a few readers."""

    def __init__(
        self,
        path: Path,
        writer: aiosqlite.Connection,
        readers: asyncio.Queue[aiosqlite.Connection],
        now: Callable[[], float],
    ) -> None:
        self.path = path
        self._writer = writer
        self._readers = readers
        self._lock = asyncio.Lock()
        self._now = now
        self.on_emit: Callable[[], None] = lambda: None
        self._closed = False

    @classmethod
    async def open(cls, path: Path, *, synchronous: str, now: Callable[[], float] = time.time) -> Self:
        """Open and migrate; `OperatorError` when the file is newer than this program or not ours."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        writer = await _connect(f"file:{path}", synchronous)
        try:
            await migrate(writer, path, MIGRATIONS / path.stem, now)
        except BaseException:
            await writer.close()
            raise
        readers: asyncio.Queue[aiosqlite.Connection] = asyncio.Queue(READERS)
        for _ in range(READERS):
            readers.put_nowait(await _connect(f"file:{path}?mode=ro", None))
        return cls(path, writer, readers, now)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        """The write transaction; commits at the end, rolls back on an exception."""
        async with self._lock:
            if self._closed:
                raise PermanentError(f"{self.path.name} is closed")
            await self._writer.execute("BEGIN IMMEDIATE")
            tx = Tx(self._writer, int(self._now() * 1_000_000))
            try:
                yield tx
            except BaseException:
                await asyncio.shield(asyncio.ensure_future(self._writer.rollback()))
                raise
            # A cancelled caller must not leave the transaction open or half-known: the commit always runs to
            # its end.
            await _finish(self._writer.commit())
        if tx.emitted:
            self.on_emit()

    async def all(self, sql: str, *values: Value) -> Sequence[Row]:
        """Rows from a read-only connection."""
        connection = await self._readers.get()
        try:
            async with connection.execute(sql, values) as cursor:
                return list(await cursor.fetchall())
        finally:
            self._readers.put_nowait(connection)

    async def one(self, sql: str, *values: Value) -> Row | None:
        """The first row from a read-only connection."""
        rows = await self.all(sql, *values)
        return rows[0] if rows else None

    async def backup(self, target: Path) -> None:
        """A consistent copy of the live file by SQLite's online backup."""
        async with aiosqlite.connect(target) as copy:
            await self._writer.backup(copy)

    async def close(self) -> None:
        """Close all connections; safe to repeat."""
        if self._closed:
            return
        async with self._lock:
            self._closed = True
            for _ in range(READERS):
                await (await self._readers.get()).close()
            await self._writer.close()


async def _finish(work: Any) -> None:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


async def _connect(uri: str, synchronous: str | None) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(uri, uri=True, isolation_level=None)
    connection.row_factory = aiosqlite.Row
    for pragma in _BASE_PRAGMAS:
        await connection.execute(pragma)
    if synchronous is None:
        await connection.execute("PRAGMA query_only = ON")
    else:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection


async def migrate(
    connection: aiosqlite.Connection, path: Path, folder: Path, now: Callable[[], float]
) -> None:
    """Bring the file to the newest schema: numbered files, one transaction each, hashes recorded, a backup
    before the first."""
    version = await _pragma(connection, "user_version")
    owner = await _pragma(connection, "application_id")
    if owner not in (0, APPLICATION_ID) or (version and owner == 0):
        raise OperatorError(
            f"{path} is not a database of hyperhive", hint="move it away, or set another state directory"
        )
    steps = sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    newest = int(steps[-1].name[:4])
    if version > newest:
        raise OperatorError(
            f"{path} has schema {version}, this program knows {newest}",
            code="conflict",
            hint="start the newer hyperhive, or restore the backup that was made before the upgrade",
        )
    if version == newest:
        return
    if version:
        copy = path.with_name(f"{path.name}.before-{version + 1}-{int(now())}")
        async with aiosqlite.connect(copy) as target:
            await connection.backup(target)
    for step in steps[version:]:
        await _apply(connection, step, int(now() * 1_000_000))


async def _apply(connection: aiosqlite.Connection, step: Path, at: int) -> None:
    text = step.read_text()
    await connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in _statements(text):
            await connection.execute(statement)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, "
            "sha256 TEXT NOT NULL, applied_at INTEGER NOT NULL) STRICT"
        )
        await connection.execute(
            "INSERT INTO migrations VALUES (?, ?, ?, ?)",
            (int(step.name[:4]), step.name, hashlib.sha256(text.encode()).hexdigest(), at),
        )
        await connection.execute(f"PRAGMA user_version = {int(step.name[:4])}")
        await connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        await connection.commit()
    except BaseException:
        await connection.rollback()
        raise


def _statements(text: str) -> list[str]:
    """The statements of a script; `executescript` would commit the open transaction."""
    found, current = [], ""
    for line in text.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            found.append(current.strip())
            current = ""
    return found


async def _pragma(connection: aiosqlite.Connection, name: str) -> int:
    async with connection.execute(f"PRAGMA {name}") as cursor:
        row = await cursor.fetchone()
    return int(row[0]) if row else 0


class Store:
    """Both files. `state` is the truth, `events` the history."""

    def __init__(self, state: Database, events: Database) -> None:
        self.state = state
        self.events = events

    @classmethod
    async def open(cls, directory: Path, *, now: Callable[[], float] = time.time) -> Self:
        """Open `state.db` and `events.db` in `directory`."""
        state = await Database.open(directory / "state.db", synchronous="FULL", now=now)
        try:
            events = await Database.open(directory / "events.db", synchronous="NORMAL", now=now)
        except BaseException:
            await state.close()
            raise
        return cls(state, events)

    async def close(self) -> None:
        """Close both; safe to repeat."""
        await self.state.close()
        await self.events.close()
