"""Fakes whose world lies in a directory: it outlives the process that changes it, and several processes share
it, as the real one does.

Each call of such a fake reads the world under a lock, acts, and writes it back by rename; so whoever is
killed in between leaves the world before the call or after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pickle
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from reconciler.effects.protocols import ContainerStatus
from reconciler.model.names import AgentName
from tests.fakes.containers import FakeContainers, Start
from tests.fakes.faults import Faults
from tests.fakes.nix import FakeNix

POLL_S = 0.01


class Kept:
    """Attributes of a fake, kept in a file. `world` may be nested: the outermost reads and writes."""

    def __init__(self, file: Path, owner: object, names: Sequence[str]) -> None:
        self.file = file
        self._owner = owner
        self._names = names
        self._depth = 0
        self._seen = b""
        file.parent.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def world(self) -> Iterator[None]:
        """The attributes are those of the file inside, and the file's are theirs afterwards."""
        if self._depth:
            yield
            return
        lock = os.open(self.file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._depth += 1
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._read()
            yield
            self._write()
        finally:
            self._depth -= 1
            os.close(lock)

    def stamp(self) -> int:
        """Changes whenever the file does."""
        try:
            return self.file.stat().st_ino
        except FileNotFoundError:
            return 0

    def _read(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._seen = self.file.read_bytes()
            for name, value in pickle.loads(self._seen).items():
                setattr(self._owner, name, value)

    def _write(self) -> None:
        data = pickle.dumps({name: getattr(self._owner, name) for name in self._names})
        if data != self._seen:
            new = self.file.with_suffix(".new")
            new.write_bytes(data)
            new.replace(self.file)


class _Through(Faults):
    """Every call of the fake goes through its kept world; faults are put around the fake, not into it."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self._kept = kept

    @asynccontextmanager
    async def call(self, method: str, subject: str = "", *, changes: bool = True) -> AsyncIterator[None]:
        with self._kept.world():
            yield


class FileContainers(FakeContainers):
    """`FakeContainers` in `directory`."""

    def __init__(self, directory: Path, *, now: Callable[[], float] = time.time) -> None:
        names = ("history", "_last", "deaf", "refuse_start")
        self.kept = Kept(directory / "containers", self, names)
        super().__init__(_Through(self.kept), now=now)

    async def changes(self) -> AsyncIterator[AgentName]:
        """Looked for, not announced: the one who changed it may be another process."""
        seen, before = 0, dict[AgentName, ContainerStatus]()
        while True:
            if seen != (seen := self.kept.stamp()):
                with self.kept.world():
                    now = {name: start.status for name, start in self._last.items()}
                changed = [name for name in {*before, *now} if before.get(name) != now.get(name)]
                before = now
                for name in sorted(changed):
                    yield name
            await asyncio.sleep(POLL_S)

    def say(self, name: AgentName, line: str) -> None:
        with self.kept.world():
            super().say(name, line)

    def current(self, name: AgentName) -> Start:
        with self.kept.world():
            return super().current(name)

    def running(self) -> dict[AgentName, str]:
        with self.kept.world():
            return super().running()

    def reboot(self) -> None:
        with self.kept.world():
            super().reboot()

    def _change(self, name: AgentName, **changes: Any) -> None:
        with self.kept.world():
            super()._change(name, **changes)


class FileNix(FakeNix):
    """`FakeNix` in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.kept = Kept(
            directory / "nix", self, ("broken", "profiles", "pointers", "held", "builds", "store")
        )
        super().__init__(_Through(self.kept))

    def lose(self, store_path: str) -> None:
        with self.kept.world():
            super().lose(store_path)

    async def release(self, name: AgentName, keep: str | None) -> None:
        with self.kept.world():
            await super().release(name, keep)
