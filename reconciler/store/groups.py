"""Transactions that share one commit: whoever waits for the disk waits for the same write of it.

Each is atomic by a savepoint of its own; what one of them breaks is undone alone. None returns before the
commit that holds it is on the disk, and none of their callbacks runs before it. If the commit fails, all of
them fail. Used by `Database.quick`, which says what may be done in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import aiosqlite

from reconciler.errors import DiskFullError, PermanentError

if TYPE_CHECKING:
    from reconciler.store.db import Tx

MEMBERS_MAX = 64


class _Group:
    """Members in order; `done` ends with their commit, which waits for the disk if `synced`."""

    def __init__(self, synced: bool) -> None:
        self.synced = synced
        self.members: list[Tx] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Groups:
    """The open group of one file, if any. `lock` is the file's write lock: held while a member's body runs
    and during the commit, not in between. `synced`: whether commits of this file wait for the disk at all."""

    def __init__(
        self,
        lock: asyncio.Lock,
        writer: aiosqlite.Connection,
        committed: Callable[[Tx], None],
        as_full: Callable[[sqlite3.Error], DiskFullError | None],
        *,
        synced: bool,
    ) -> None:
        self._lock = lock
        self._writer = writer
        self._committed = committed
        self._as_full = as_full
        self._can_sync = self._syncs = synced
        self._full: DiskFullError | None = None
        self._group: _Group | None = None
        self._coming = 0
        self._strays: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def member(self, begin: Callable[[], Tx], *, synced: bool = True) -> AsyncIterator[Tx]:
        """One transaction of a group. It commits when nobody is about to join it, or it is full. Who needs
        the disk does not join a group that does not wait for it."""
        await self._enter()
        try:
            if synced and self._group is not None and not self._group.synced:
                await finish(self.flush())
            tx = begin()
            group = self._group or await self._open(synced)
            self._raw.execute("SAVEPOINT member")
            try:
                yield tx
            except sqlite3.Error as error:
                tx.end(committed=False)
                self._full = self._as_full(error)
                self._undo()
                if self._full is not None:
                    raise self._full from error
                raise
            except BaseException:
                tx.end(committed=False)
                self._undo()
                raise
            self._raw.execute("RELEASE member")
            group.members.append(tx)
        finally:
            try:
                if not self._coming or self._is_over():
                    await finish(self.flush())
            finally:
                self._lock.release()
        await finish(_until(group.done))

    def will_sync(self, synced: bool) -> None:
        """Whether the transaction that begins next waits for the disk when it commits; the lock is held, and
        none is open. What was committed before without waiting is on the disk after the next one that waits:
        they are written to one log, in order."""
        if self._can_sync and synced != self._syncs:
            self._raw.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            self._syncs = synced

    @property
    def is_open(self) -> bool:
        """Whether members wait for their commit."""
        return self._group is not None

    async def flush(self) -> None:
        """Commit the open group, if any; the lock is held. Errors are its members', not the caller's."""
        group, self._group = self._group, None
        if group is None:
            return
        error = await self._commit()
        try:
            for tx in group.members:
                if error is None:
                    self._committed(tx)
                else:
                    tx.end(committed=False)
        finally:  # whatever a callback does, nobody waits for ever
            if error is None:
                group.done.set_result(None)
            else:
                group.done.set_exception(error)
                group.done.exception()  # nobody may be left to be told

    # ------------------------------------------------------------------------------------------- inside
    @property
    def _raw(self) -> sqlite3.Connection:
        raw: sqlite3.Connection = self._writer._conn  # noqa: SLF001 - statements without a change of threads
        return raw

    async def _open(self, synced: bool) -> _Group:
        self.will_sync(synced)
        group = self._group = _Group(synced)
        try:
            await finish(self._begin())
        except sqlite3.Error:
            self._group = None
            raise
        return group  # a caller who was cancelled meanwhile leaves it open, and empty

    async def _begin(self) -> None:
        await self._writer.execute("BEGIN IMMEDIATE")

    def _is_over(self) -> bool:
        """Whether nobody may join any more: it is full, or the database has given it up."""
        full = self._group is not None and len(self._group.members) >= MEMBERS_MAX
        return full or not self._raw.in_transaction

    async def _commit(self) -> Exception | None:
        """Why the members are not on the disk, and undone; None: they are."""
        if not self._raw.in_transaction:
            return self._full or PermanentError("the database rolled back the transaction that held this one")
        try:
            await self._writer.commit()
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):  # a disk that fails: members are told of the first error
                await self._writer.rollback()
            return self._as_full(error) or error
        return None

    async def _enter(self) -> None:
        self._coming += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self._coming -= 1
            if self._group is not None and not self._coming:
                # Members wait for whoever comes, and that was this one.
                stray = asyncio.ensure_future(self._flush_alone())
                self._strays.add(stray)
                stray.add_done_callback(self._strays.discard)
            raise
        self._coming -= 1

    async def _flush_alone(self) -> None:
        async with self._lock:
            await self.flush()

    def _undo(self) -> None:
        """Undo the member alone. Some errors (a full disk) have undone the whole transaction by then."""
        if self._raw.in_transaction:
            self._raw.execute("ROLLBACK TO member")
            self._raw.execute("RELEASE member")


async def _until(done: asyncio.Future[None]) -> None:
    await done


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end however often the caller is cancelled; the cancellation is raised after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
