"""Bring a file to the newest schema: numbered scripts, one transaction each, hashes recorded, a backup
before the first. Refuses, before a byte is written, what is newer than this program, not ours, or of another
history.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import aiosqlite

from reconciler.errors import OperatorError, PermanentError

APPLICATION_ID = 0x48495645  # "HIVE"
_INCREMENTAL = 2  # of auto_vacuum
MIGRATIONS = Path(__file__).parent / "migrations"


def create_private(path: Path) -> None:
    """Make the file, empty and its owner's alone whatever the umask; nothing if it exists.

    Never opens one that exists: closing it again would drop the locks of this process's connections.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, flags, 0o600))


def close_to_others(path: Path) -> None:
    """Take a database and the files beside it from everybody but its owner."""
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).chmod(0o600)


async def check(connection: aiosqlite.Connection, path: Path, folder: Path) -> int:
    """The schema version of the file (0: empty); reads only. `OperatorError` when it must not be touched."""
    try:
        version = await _pragma(connection, "user_version")
        owner = await _pragma(connection, "application_id")
        tables = await _pragma(connection, "schema_version")
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
            raise
        raise OperatorError(
            f"{path} is not a database of hyperhive: {error}",
            hint="move it away, or set another state directory",
        ) from error
    # schema_version counts changes of the schema: 0 only in a file that never had a table.
    if owner != APPLICATION_ID and (owner or version or tables):
        raise OperatorError(
            f"{path} is not a database of hyperhive", hint="move it away, or set another state directory"
        )
    newest = _number(_scripts(folder)[-1])
    if version > newest:
        raise OperatorError(
            f"{path} has schema {version}, this program knows {newest}",
            code="conflict",
            hint="start the newer hyperhive, or restore the backup that was made before the upgrade",
        )
    if version:
        await _check_history(connection, path, folder, version)
    return version


async def _check_history(connection: aiosqlite.Connection, path: Path, folder: Path, version: int) -> None:
    """A released script never changes; a file that was made by other scripts has another schema than we
    think."""
    rows = await connection.execute_fetchall("SELECT number, sha256 FROM migrations ORDER BY number")
    applied = {int(row[0]): str(row[1]) for row in rows}
    expected = {_number(step): _digest(step.read_text()) for step in _scripts(folder)[:version]}
    if applied != expected:
        raise OperatorError(
            f"{path} was made by other migrations than this program's, though both say schema {version}",
            code="conflict",
            hint="start the hyperhive that made it, or move it away",
        )


async def make_shrinkable(connection: aiosqlite.Connection) -> None:
    """Let free pages be given back bit by bit. An empty file takes it as it is; one that was made without is
    rewritten once, unless there is no room for that: then it only does not shrink."""
    if await _pragma(connection, "auto_vacuum") == _INCREMENTAL:
        return
    await connection.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
    if await _pragma(connection, "schema_version"):
        with contextlib.suppress(sqlite3.OperationalError):
            await connection.execute("VACUUM")


async def migrate(
    connection: aiosqlite.Connection, path: Path, folder: Path, version: int, now: Callable[[], float]
) -> None:
    """Apply the scripts after `version`; the file is copied first if it holds anything."""
    steps = _scripts(folder)[version:]
    if steps and version:
        copy = path.with_name(f"{path.name}.before-{version + 1}-{int(now())}")
        create_private(copy)
        async with aiosqlite.connect(copy) as target:
            await connection.backup(target)
    for step in steps:
        await _apply(connection, step, int(now() * 1_000_000))


async def _apply(connection: aiosqlite.Connection, step: Path, at: int) -> None:
    text = step.read_text()
    await connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements(text):
            await connection.execute(statement)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, "
            "sha256 TEXT NOT NULL, applied_at INTEGER NOT NULL) STRICT"
        )
        await connection.execute(
            "INSERT INTO migrations VALUES (?, ?, ?, ?)", (_number(step), step.name, _digest(text), at)
        )
        await connection.execute(f"PRAGMA user_version = {_number(step)}")
        await connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        await connection.commit()
    except BaseException:
        await connection.rollback()
        raise


def statements(text: str) -> list[str]:
    """The statements of a script (`executescript` would commit the open transaction); `PermanentError` when
    the last one has no end."""
    found, current = [], ""
    for line in text.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            found.append(current.strip())
            current = ""
    rest = [line for line in current.splitlines() if line.strip() and not line.lstrip().startswith("--")]
    if rest:
        raise PermanentError(f"a migration ends in the middle of a statement: {rest[-1][:80]!r}")
    return found


def _scripts(folder: Path) -> Sequence[Path]:
    found = sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    if [_number(step) for step in found] != list(range(1, len(found) + 1)) or not found:
        raise PermanentError(f"the migrations in {folder} are not numbered 0001, 0002, …")
    return found


def _number(step: Path) -> int:
    return int(step.name[:4])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def _pragma(connection: aiosqlite.Connection, name: str) -> int:
    rows = list(await connection.execute_fetchall(f"PRAGMA {name}"))
    return int(rows[0][0]) if rows else 0
