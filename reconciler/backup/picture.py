"""The consistent picture of a live hive: rows, refs and staged states of one instant, below `STATE/backup`.

While a transaction of `state.db` is held, no row can change and so no ref can follow one: in that moment the
database's picture is begun, every ref is read, and staged states get a second name. All else is taken after
it and only grows: objects of the repositories, history (shortened to what the rows know of), the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from reconciler import __version__
from reconciler.backup.format import FORMAT, AgentInside, Header
from reconciler.config import Config
from reconciler.effects import process
from reconciler.errors import PermanentError, TemporaryError
from reconciler.model.names import AGENT_NAME_PATTERN
from reconciler.store import copies, ledgercopy
from reconciler.store.db import Store

REFS_S = 10.0
LEDGER_S = 120.0
_MARGIN_BYTES = 32 << 20
_REPOSITORY = re.compile(rf"({AGENT_NAME_PATTERN})\.git")
_REF = re.compile(rb"[0-9a-f]{40}")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Taken:
    """The picture: files below `place`, refs as `packed-refs` by repository (`repos/NAME.git` or `meta`)."""

    place: Path
    header: Header
    refs: dict[str, bytes]
    has_ledger: bool


class Pictures:
    """Takes pictures, one at a time. `executor` is where disks are waited for."""

    def __init__(self, store: Store, config: Config, executor: Executor, now: Callable[[], float]) -> None:
        self._store = store
        self._config = config
        self._state = Path(config.state_dir)
        self._executor = executor
        self._now = now
        self.place = self._state / "backup"

    async def take(self, *, with_state: bool) -> Taken:
        """The picture; `forget` removes it. `PermanentError` if there is no room for it."""
        await self._thread(self._prepare)
        since = int(self._now() * 1_000_000)
        async with self._store.state.transaction() as tx:
            del tx  # nothing is written: it keeps others from writing
            # not an `async with`: the picture outlives the transaction
            held = self._store.state.picture()
            picture = await held.__aenter__()
            try:
                async with asyncio.timeout(REFS_S):
                    refs = await self._thread(self._read_refs)
                    await self._thread(self._link_staged)
            except TimeoutError as error:
                await held.__aexit__(None, None, None)
                raise TemporaryError(
                    f"reading the refs of all repositories took longer than {REFS_S:g} s", after_s=30
                ) from error
            except BaseException:
                await held.__aexit__(None, None, None)
                raise
        try:
            await picture.copy(self.place / "state.db")
        finally:
            await held.__aexit__(None, None, None)
        await self._store.events.backup(self.place / "events.db")
        facts = await self._thread(copies.facts, self.place / "state.db")
        await self._thread(copies.shorten_history, self.place / "events.db", facts.ends, since)
        schemas = {
            name: await self._thread(copies.schema, self.place / name) for name in ("state.db", "events.db")
        }
        ledger = await self._copy_ledger(facts.ends.turn)
        if ledger is not None:
            schemas["ledger.db"] = ledger
        header = Header(
            format=FORMAT,
            version=__version__,
            made_at=dt.datetime.fromtimestamp(self._now(), dt.UTC).isoformat(timespec="seconds"),
            host=socket.gethostname(),
            platform=self._config.platform,
            schemas=schemas,
            agents=[
                AgentInside(name=n, uid_base=u, role=r, desired=d, generation=g)
                for n, u, r, d, g in facts.agents
            ],
            audit_head=facts.audit_head,
            audit_rows=facts.audit_rows,
            with_state=with_state,
        )
        return Taken(self.place, header, refs, ledger is not None)

    def forget(self) -> None:
        """Remove what is there of a picture, also one that a killed hived left."""
        shutil.rmtree(self.place, ignore_errors=True)

    # ------------------------------------------------------------------------------------------- parts
    def _prepare(self) -> None:
        self.forget()
        needed = sum(database_bytes(self._state / name) for name in ("state.db", "events.db"))
        free = shutil.disk_usage(self._state).free
        if free < needed + _MARGIN_BYTES:
            raise PermanentError(
                f"copies of the databases need {needed} bytes, {self._state} has {free} free",
                code="no-space",
                hint="make room; `hive doctor` says where it went",
            )
        # 0711: the gateway's user passes through to the one directory that is its own.
        self.place.mkdir(mode=0o711)
        self.place.chmod(0o711)

    def _read_refs(self) -> dict[str, bytes]:
        return {name: read_refs(path) for name, path in repositories(self._state)}

    def _link_staged(self) -> None:
        """They are removed when their proposal ends, which may be in a moment."""
        target = self.place / "staged"
        target.mkdir(mode=0o700)
        for tar in (self._state / "staged").glob("[1-9]*.tar"):
            os.link(tar, target / tar.name, follow_symlinks=False)

    async def _copy_ledger(self, last_turn: int) -> int | None:
        """Copied by the user it belongs to; the number of its schema, None if there is none yet."""
        source = self._state / "gateway" / "ledger.db"
        if not os.path.lexists(source):
            return None
        user = self._config.gateway_user
        target = self.place / "ledger"
        target.mkdir(mode=0o700)
        os.chown(target, *process.identity(user))
        interpreter = str(Path(sys.executable).resolve())
        text = Path(ledgercopy.__file__).read_text()
        done = await process.run(
            [interpreter, "-I", "-S", "-c", text, source, target / "ledger.db", str(last_turn)],
            timeout_s=LEDGER_S,
            user=user,
            umask=0o077,
        )
        return int(done.text)

    async def _thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def call() -> T:
            return work(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


def database_bytes(path: Path) -> int:
    """How large a copy of a live database can be: the file and what still stands in its log beside it."""
    size = path.stat().st_size
    with contextlib.suppress(FileNotFoundError):  # it goes with the last connection
        size += path.with_name(f"{path.name}-wal").stat().st_size
    return size


def repositories(state: Path) -> list[tuple[str, Path]]:
    """Every repository of the hive: its name in a backup and its path."""
    folder = state / "repos"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = [(f"repos/{name}", folder / name) for name in names if _REPOSITORY.fullmatch(name)]
    return found + ([("meta", state / "meta")] if (state / "meta").is_dir() else [])


def trees(state: Path) -> list[tuple[str, Path]]:
    """Every agent that has directories: name and path."""
    folder = state / "agents"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [(name, folder / name) for name in names if re.fullmatch(AGENT_NAME_PATTERN, name)]


def read_refs(repository: Path) -> bytes:
    """All refs as the text of a `packed-refs`. Loose ones first: one that is packed meanwhile is seen twice
    and not missed."""
    refs: dict[bytes, bytes] = {}
    for here, _, files in os.walk(repository / "refs"):
        for file in files:
            if file.endswith(".lock"):
                continue
            path = Path(here, file)
            try:
                content = path.read_bytes().strip()
            except FileNotFoundError:
                continue
            if _REF.fullmatch(content):
                refs[os.fsencode(os.path.relpath(path, repository))] = content
    try:
        packed = (repository / "packed-refs").read_bytes().splitlines()
    except FileNotFoundError:
        packed = []
    for line in packed:
        commit, _, name = line.partition(b" ")
        if name and _REF.fullmatch(commit):
            refs.setdefault(name, commit)
    return b"".join(commit + b" " + name + b"\n" for name, commit in sorted(refs.items()))
