"""Connections and transactions: one writer per file, a few readers, backup.

The only way to write is `async with store.state.transaction() as tx`: it holds the file's write lock, begins
IMMEDIATE, and commits shielded from cancellation. What must happen after a commit outside this file goes
into the outbox with `tx.emit`; what this process must know of the commit hangs on `tx.after_commit`. A dry
run is the same transaction, rolled back at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import quote

import aiosqlite

from reconciler.errors import DiskFullError, OperatorError, PermanentError
from reconciler.model.states import ProposalState
from reconciler.store import migrate
from reconciler.store.groups import Groups, finish
from reconciler.store.pictures import Picture

Row = aiosqlite.Row
Value = str | int | float | bytes | None

READERS = 3
WAL_KEPT_BYTES = 16 * 1024 * 1024  # what a burst left of the log beyond that is given back at a checkpoint
BUSY_TIMEOUT_MS = 5000
# Of a write, and of making the index of the log larger.
_NO_ROOM = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
_BASE_PRAGMAS = (
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
)

StatementError = sqlite3.Error
"""What a statement or a commit raises when the file or the disk refuses it."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a statement did: the id of the row inserted and the number of rows changed."""

    row_id: int
    changed: int


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of a database: the file, what of it is free to be used again, the log beside it, one page."""

    file: int
    free: int
    log: int
    page: int


class Reader(Protocol):
    """What reads rows: a transaction (sees its own writes) or a database (sees what is committed)."""

    async def one(self, sql: str, *values: Value) -> Row | None:
        """The first row, if any."""
        ...

    async def all(self, sql: str, *values: Value) -> Sequence[Row]:
        """All rows."""
        ...


class Tx:
    """An open write transaction. `now` is its instant in microseconds, the same for every row it writes."""

    def __init__(self, connection: aiosqlite.Connection, now: int, *, inline: bool = False) -> None:
        self._connection = connection
        self._raw: sqlite3.Connection | None = connection._conn if inline else None  # noqa: SLF001
        self._ended = False
        self._callbacks: list[Callable[[], None]] = []
        self.now = now
        self.emitted = False

    async def run(self, sql: str, *values: Value) -> Written:
        """Execute one statement."""
        self._check()
        if self._raw is not None:
            done = self._raw.execute(sql, values)
            return Written(done.lastrowid or 0, done.rowcount)
        async with self._connection.execute(sql, values) as cursor:
            return Written(cursor.lastrowid or 0, cursor.rowcount)

    async def one(self, sql: str, *values: Value) -> Row | None:
        """The first row, if any."""
        rows = await self.all(sql, *values)
        return rows[0] if rows else None

    async def all(self, sql: str, *values: Value) -> Sequence[Row]:
        """All rows."""
        self._check()
        if self._raw is not None:
            return self._raw.execute(sql, values).fetchall()
        return list(await self._connection.execute_fetchall(sql, values))

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the commit has succeeded, even if the caller is cancelled meanwhile.

        Callbacks run in order, before the next transaction of the file begins: what they publish stands in
        the order of the commits. They must neither block nor raise.
        """
        self._callbacks.append(callback)

    def end(self, *, committed: bool) -> None:
        """Only for `Database`: nothing can be written through this value any more."""
        self._ended = True
        for callback in self._callbacks if committed else ():
            callback()

    def _check(self) -> None:
        if self._ended:
            raise PermanentError("a transaction was used after its end")

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
    """One SQLite file with one writer and a few readers. `full_since`: epoch seconds since which a write
    failed for lack of room, until the next one that does not."""

    def __init__(
        self,
        path: Path,
        writer: aiosqlite.Connection,
        readers: asyncio.Queue[aiosqlite.Connection],
        now: Callable[[], float],
        *,
        synced: bool,
    ) -> None:
        self.path = path
        self._writer = writer
        self._readers = readers
        self._lock = asyncio.Lock()
        self._groups = Groups(self._lock, writer, self._ends_well, self._as_full, synced=synced)
        self._now = now
        self.on_emit: Callable[[], None] = lambda: None
        self.full_since: float | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path, *, synchronous: str, now: Callable[[], float] = time.time) -> Self:
        """Open and migrate; `OperatorError` when the file is newer than this program or not ours."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = migrate.MIGRATIONS / path.stem
        async with contextlib.AsyncExitStack() as undo:
            writer = await _connect(path, "rwc")
            undo.push_async_callback(writer.close)
            version = await migrate.check(writer, path, folder)
            # Only now: to switch a foreign file to WAL would change it.
            migrate.close_to_others(path)
            await migrate.make_shrinkable(writer)
            await writer.execute("PRAGMA journal_mode = WAL")
            await writer.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
            await writer.execute(f"PRAGMA synchronous = {synchronous}")
            await migrate.migrate(writer, path, folder, version, now)
            readers: asyncio.Queue[aiosqlite.Connection] = asyncio.Queue(READERS)
            for _ in range(READERS):
                reader = await _connect(path, "ro")
                undo.push_async_callback(reader.close)
                await reader.execute("PRAGMA query_only = ON")
                readers.put_nowait(reader)
            undo.pop_all()
        return cls(path, writer, readers, now, synced=synchronous == "FULL")

    @contextlib.asynccontextmanager
    async def transaction(self, *, dry_run: bool = False) -> AsyncIterator[Tx]:
        """The write transaction; commits at the end, rolls back on an exception.

        With `dry_run` it is rolled back at its end, too, and returns normally: all checks and statements were
        made, nothing of them stays (no row, no id, no event), and no `after_commit` is called. The caller
        makes its answer from `tx` and leaves away what it does outside of the database.

        A cancelled caller leaves it either rolled back (cancelled in the body) or committed (cancelled during
        the commit), never open: what was begun runs to its end before the lock is given up. `DiskFullError`
        leaves nothing of it.
        """
        async with self._lock:
            if self._closed:
                raise PermanentError(f"{self.path.name} is closed")
            if self._groups.is_open:
                await finish(self._groups.flush())
            self._groups.will_sync(True)
            tx = Tx(self._writer, int(self._now() * 1_000_000))
            try:
                await self._writer.execute("BEGIN IMMEDIATE")
                yield tx
            except BaseException as error:
                await finish(self._roll_back(tx))
                self._raise_if_full(error)
                raise
            await finish(self._roll_back(tx) if dry_run else self._commit(tx))

    async def _commit(self, tx: Tx) -> None:
        try:
            await self._writer.commit()
        except BaseException as error:
            await self._roll_back(tx)
            self._raise_if_full(error)
            raise
        self._ends_well(tx)

    def _ends_well(self, tx: Tx) -> None:
        self.full_since = None
        tx.end(committed=True)
        if tx.emitted:
            self.on_emit()

    @contextlib.asynccontextmanager
    async def quick(self, *, synced: bool = True) -> AsyncIterator[Tx]:
        """A write transaction of a few short statements, which run in the thread of the caller and share
        their commit with others like it that come at the same time.

        Those others' callbacks may not have run yet when its body does: what `after_commit` writes here must
        be nothing that a body reads (it may ring and touch). In all else it is a `transaction`.

        Without `synced` it returns before it is on the disk: a death of this process cannot undo it, a power
        cut can, until the next transaction that is synced. Nothing may be told outside that such a cut would
        make untrue.
        """
        async with self._groups.member(self._quick_begins, synced=synced) as tx:
            yield tx

    def _quick_begins(self) -> Tx:
        if self._closed:
            raise PermanentError(f"{self.path.name} is closed")
        return Tx(self._writer, int(self._now() * 1_000_000), inline=True)

    def _raise_if_full(self, error: BaseException) -> None:
        if isinstance(error, sqlite3.Error) and (full := self._as_full(error)):
            raise full from error

    def _as_full(self, error: sqlite3.Error) -> DiskFullError | None:
        if getattr(error, "sqlite_errorcode", None) not in _NO_ROOM:
            return None
        if self.full_since is None:
            self.full_since = self._now()
        return DiskFullError(f"cannot write {self.path}: the disk is full")

    async def _roll_back(self, tx: Tx) -> None:
        tx.end(committed=False)
        await self._writer.rollback()  # statements of one connection run in order: this one is the last

    async def all(self, sql: str, *values: Value) -> Sequence[Row]:
        """Rows from a read-only connection."""
        if self._closed:
            raise PermanentError(f"{self.path.name} is closed")
        connection = await self._readers.get()
        try:
            return list(await connection.execute_fetchall(sql, values))
        finally:
            self._readers.put_nowait(connection)

    async def one(self, sql: str, *values: Value) -> Row | None:
        """The first row from a read-only connection."""
        rows = await self.all(sql, *values)
        return rows[0] if rows else None

    async def sync(self) -> None:
        """All that is committed outlives a power cut from here on. For a file whose commits do not wait for
        the disk (`synchronous=NORMAL`)."""
        await asyncio.to_thread(_sync, self.path.with_name(f"{self.path.name}-wal"))

    async def size(self) -> Size:
        """How large the file is, and how much of it is free."""
        row = await self.one(
            "SELECT page_size AS bytes, page_count AS pages, freelist_count AS free "
            "FROM pragma_page_size, pragma_page_count, pragma_freelist_count"
        )
        assert row is not None, "each pragma has one row"
        log = 0
        with contextlib.suppress(FileNotFoundError):
            log = self.path.with_name(f"{self.path.name}-wal").stat().st_size
        page = row["bytes"]
        return Size(row["pages"] * page, row["free"] * page, log, page)

    async def shrink(self, pages: int) -> None:
        """Give at most so many free pages back to the file system; a short write of its own."""
        async with self._lock:
            if not self._closed:
                await finish(self._groups.flush())
                await finish(self._vacuum(pages))

    async def _vacuum(self, pages: int) -> None:
        # As a script: `execute` stops after the first row, which is the first page.
        await self._writer.executescript(f"PRAGMA incremental_vacuum({pages:d})")

    @contextlib.asynccontextmanager
    async def picture(self) -> AsyncIterator[Picture]:
        """The file as it is now, for as long as this is held; writers go on meanwhile."""
        connection = await _connect(self.path, "ro")
        try:
            await connection.execute("PRAGMA query_only = ON")
            await connection.execute("BEGIN")
            await connection.execute_fetchall(
                "SELECT count(*) FROM sqlite_schema"
            )  # now it sees this instant
            yield Picture(connection)
        finally:
            await connection.close()

    async def backup(self, target: Path) -> None:
        """A consistent copy of the live file by SQLite's online backup."""
        async with self.picture() as picture:
            await picture.copy(target)

    async def close(self) -> None:
        """Close all connections; safe to repeat."""
        if self._closed:
            return
        async with self._lock:
            await finish(self._groups.flush())
            self._closed = True
            for _ in range(READERS):
                await (await self._readers.get()).close()
            await self._writer.close()


def _sync(log: Path) -> None:
    """The file itself needs it not: what a checkpoint moves there, it syncs before it forgets the log."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


async def _connect(path: Path, mode: str) -> aiosqlite.Connection:
    uri = f"file:{quote(str(path))}?mode={mode}"
    try:
        if mode == "rwc":
            migrate.create_private(path)
        connection = await aiosqlite.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.OperationalError) as error:
        raise OperatorError(f"cannot open {path}: {error}", hint="look at its owner and mode") from error
    try:
        connection.row_factory = aiosqlite.Row
        for pragma in _BASE_PRAGMAS:
            await connection.execute(pragma)
    except BaseException:
        await connection.close()
        raise
    return connection


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
