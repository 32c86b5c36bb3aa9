"""Backups of the running hive, streamed to who asks (hived is root, the operator writes the file).

Agents and operators go on meanwhile; only what deletes for good waits, by the one lock that it shares with
backups.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from reconciler.backup import format as form
from reconciler.backup.picture import Pictures, Taken, database_bytes, repositories, trees
from reconciler.backup.walk import walk
from reconciler.backup.writing import Archive, gathered
from reconciler.config import Config
from reconciler.control import models as api
from reconciler.effects.protocols import Clock
from reconciler.errors import HiveError, PermanentError, TemporaryError
from reconciler.services import Actor
from reconciler.store.db import Store

log = structlog.get_logger("backup")

T = TypeVar("T")


class BackupService:
    """The service `Backups`. `deletions` is held by whatever removes an agent's things for good."""

    def __init__(self, store: Store, config: Config, clock: Clock, deletions: asyncio.Lock) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._deletions = deletions
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="backup")
        self._pictures = Pictures(store, config, self._executor, clock.now)
        self._running = False

    def sweep(self) -> None:
        """At start: remove what a killed hived left of a backup."""
        self._pictures.forget()

    def close(self) -> None:
        """Nothing may be asked afterwards."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def plan(self) -> api.BackupPlan:
        """What a backup would hold now, and how large. Reads names and sizes, changes nothing."""
        return await self._thread(self._plan)

    async def stream(self, actor: Actor, *, with_state: bool) -> AsyncIterator[bytes]:
        """The archive in chunks. What goes wrong before the first is raised; what goes wrong later is told in
        the archive, which then has no end that anybody would take for one."""
        if self._running:
            raise TemporaryError("another backup is being made", code="busy", after_s=10)
        self._running = True
        began = False
        try:
            async with self._deletions:
                async with self._store.state.transaction() as tx:
                    await tx.audit(actor.name, "hive.backup", "", with_state=with_state)
                taken = await self._pictures.take(with_state=with_state)
                parts = gathered(self._parts(taken, with_state=with_state))
                try:
                    while chunk := await self._thread(lambda: next(parts, b"")):
                        yield chunk
                        began = True
                finally:
                    # Queued behind a `next` that a cancelled caller has left running.
                    await self._finish(lambda: _close(parts))
        except HiveError as error:
            if not began:
                raise
            log.warning("backup.failed", error=error.message)
            yield Archive.failure(error)
        except OSError as error:
            failure = PermanentError(f"the backup stopped: {error}", hint="run `hive doctor`")
            log.warning("backup.failed", error=failure.message)
            if not began:
                raise failure from error
            yield Archive.failure(failure)
        finally:
            self._running = False
            await self._finish(self._pictures.forget)

    # ------------------------------------------------------------------------------------------- inside
    def _parts(self, taken: Taken, *, with_state: bool) -> Iterator[bytes]:
        """All members in order; blocks, and must be drawn in one thread."""
        state = Path(self._config.state_dir)
        with (taken.place / "manifest.jsonl").open("w+b") as lines:
            archive = Archive(lines)
            yield from archive.text(form.HEADER, taken.header.model_dump_json(indent=1).encode())
            yield from archive.text(form.CONFIG, self._config.model_dump_json(indent=1).encode())
            yield from archive.file("state.db", taken.place / "state.db")
            yield from archive.file("events.db", taken.place / "events.db")
            if taken.has_ledger:
                yield from archive.file("ledger.db", taken.place / "ledger" / "ledger.db")
            for name, refs in taken.refs.items():
                path = state / "meta" if name == "meta" else state / name
                yield from archive.repository(name, path, refs)
            for tar in sorted((taken.place / "staged").iterdir()):
                yield from archive.file(f"staged/{tar.name}", tar)
            for name, path in trees(state) if with_state else ():
                for marker in form.MARKERS:
                    if (path / marker).is_file():
                        yield from archive.file(f"agents/{name}/{marker}", path / marker)
                for part in form.PARTS:
                    base = taken.header.base_of(name)
                    yield from archive.tree(f"agents/{name}/{part}", path / part, base)
            yield from archive.end()

    def _plan(self) -> api.BackupPlan:
        state = Path(self._config.state_dir)
        parts: list[api.BackupPart] = []
        left_out: list[str] = []
        parts += [
            api.BackupPart(name=name, entries=1, bytes=database_bytes(state / name))
            for name in ("state.db", "events.db")
        ]
        with contextlib.suppress(FileNotFoundError):
            size = (state / "gateway" / "ledger.db").lstat().st_size
            parts.append(api.BackupPart(name="ledger.db", entries=1, bytes=size))
        parts += [_sum(name, [path], left_out) for name, path in repositories(state)]
        parts += [
            _sum(f"agents/{name}", [path / part for part in form.PARTS], left_out)
            for name, path in trees(state)
        ]
        return api.BackupPlan(
            parts=parts,
            entries=sum(part.entries for part in parts),
            bytes=sum(part.bytes for part in parts),
            left_out=left_out[:100],
        )

    async def _thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def _finish(self, work: Callable[[], None]) -> None:
        """Tidy up even if who asked has gone; at the end of hived the next one does."""
        with contextlib.suppress(RuntimeError):  # the executor is closed
            await asyncio.shield(self._thread(work))


def _close(parts: Iterator[bytes]) -> None:
    close = getattr(parts, "close", None)
    assert close is not None, "a generator"
    close()


def _sum(name: str, tops: list[Path], left_out: list[str]) -> api.BackupPart:
    entries = size = 0
    for top in tops:

        def skip(path: str, why: str, top: Path = top) -> None:
            left_out.append(f"{name}/{top.name}/{path}: {why}".encode("utf-8", "backslashreplace").decode())

        for entry in walk(top, skip):
            entries += 1
            size += entry.data_bytes
    return api.BackupPart(name=name, entries=entries, bytes=size)
