"""A live database as it was at one instant, copied and judged while writers go on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import aiosqlite

from reconciler.errors import PermanentError
from reconciler.store import migrate

_FAULTS_MAX = 20


class Picture:
    """A database at one instant, by a connection of its own: never half a transaction, however long it
    takes."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def copy(self, target: Path) -> None:
        """Write it to a new file, one file that needs no other beside it. `PermanentError` if the disk does
        not take it."""
        migrate.create_private(target)
        try:
            async with aiosqlite.connect(target) as copy:
                await self._connection.backup(copy)
                await copy.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error as error:
            raise PermanentError(
                f"{target.name} could not be copied: {error}", hint="is there room, and is the disk well?"
            ) from error

    async def faults(self, *, quick: bool) -> list[str]:
        """What SQLite finds wrong with it; empty when it is whole. `quick`: without comparing indices."""
        check = "quick_check" if quick else "integrity_check"
        try:
            found = [
                str(row[0])
                for row in await self._connection.execute_fetchall(f"PRAGMA {check}({_FAULTS_MAX})")
            ]
            loose = list(await self._connection.execute_fetchall("PRAGMA foreign_key_check"))[:_FAULTS_MAX]
        except sqlite3.DatabaseError as error:
            return [str(error)]
        wrong = [] if found == ["ok"] else found
        return wrong + [
            f"row {row[1]} of {row[0]} refers to a row of {row[2]} that is not there" for row in loose
        ]

    async def schema(self) -> int:
        """The number of its schema."""
        rows = list(await self._connection.execute_fetchall("PRAGMA user_version"))
        return int(rows[0][0])
