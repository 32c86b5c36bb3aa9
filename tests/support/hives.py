"""A hive on disk with real databases, repositories and agents' trees, and ways to compare two of them."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from reconciler.backup.reading import Report, read
from reconciler.backup.restore import Restore, Restored
from reconciler.backup.service import BackupService
from reconciler.config import Config
from reconciler.effects.git import GitRepositories
from reconciler.effects.git.quarantine import Quarantine
from reconciler.effects.hostfiles import RealHostFiles
from reconciler.model.names import AgentName, Commit
from reconciler.model.states import UserRole
from reconciler.services import Actor
from reconciler.store.db import Store
from reconciler.store.ledger import Ceilings, Cost, Entry, Ledger, Tokens
from tests.fakes.clock import VirtualClock

OPERATOR = Actor("unix:root", UserRole.OPERATOR)
GATEWAY = "nobody"
SMITH, SCOUT, GONE = AgentName("smith"), AgentName("scout"), AgentName("gone")
BASES = {SMITH: 1_048_576, SCOUT: 1_114_112, GONE: 1_179_648}
FORMAT = "--format=%(refname) %(objectname) %(*objectname)"
NOT_UTF8 = b"caf\xe9 \n\x1b[31m"


@dataclass
class Hive:
    """A hive below `place`. `store` is open; `service` makes backups of it."""

    place: Path
    store: Store
    git: GitRepositories
    service: BackupService
    config: Config
    deletions: asyncio.Lock

    @property
    def state(self) -> Path:
        return Path(self.config.state_dir)

    def tree(self, agent: str) -> Path:
        return self.state / "agents" / agent / "state"

    async def close(self) -> None:
        self.service.close()
        self.git.close()
        await self.store.close()

    async def backup(self, file: Path, *, with_state: bool = True) -> Report:
        with file.open("wb") as target:
            async for chunk in self.service.stream(OPERATOR, with_state=with_state):
                target.write(chunk)
        with file.open("rb") as source:
            return read(source)


def config_in(place: Path) -> Config:
    return Config(state_dir=str(place / "state"), run_dir=str(place / "run"), gateway_user=GATEWAY)


@contextlib.contextmanager
def a_place() -> Iterator[Path]:
    """Not pytest's: its parents are closed to the gateway's user."""
    place = Path(tempfile.mkdtemp(prefix="hive-backup-"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        _remove(place)


def _remove(place: Path) -> None:
    """By rm(1), which does not mind how deep a tree is."""
    subprocess.run(["rm", "-rf", "--", place], check=True, timeout=60)


def target(place: Path) -> Config:
    """The configuration of another host, `new`."""
    (place / "new").mkdir(exist_ok=True)
    return config_in(place / "new")


def restored(file: Path, place: Path) -> tuple[Path, Restored]:
    """Restore on that host: its state directory, and what was said."""
    config = target(place)
    done = Restore(file, config, ranges=()).run()
    return Path(config.state_dir), done


async def a_hive(place: Path) -> Hive:
    """Three agents (one destroyed, its state kept), commits, tags, messages, audit rows, spending, staged
    state. Made once per run, then copied with all its owners, holes and links."""
    if not _MADE:
        first = Path(tempfile.mkdtemp(prefix="hive-pattern-"))
        first.chmod(0o755)
        atexit.register(_remove, first)
        made = open_hive(first, await _prepared(first))
        await _fill(made)
        await made.close()
        _MADE.append(first)
    await asyncio.to_thread(subprocess.run, ["cp", "-a", f"{_MADE[0]}/.", str(place)], check=True, timeout=60)
    return open_hive(place, await Store.open(place / "state"))


_MADE: list[Path] = []


async def _prepared(place: Path) -> Store:
    state = place / "state"
    state.mkdir(mode=0o711)
    state.chmod(0o711)
    return await Store.open(state)


def open_hive(place: Path, store: Store) -> Hive:
    """The hive that lies there."""
    config = config_in(place)
    state = Path(config.state_dir)
    git = GitRepositories(state, Quarantine(state / "quarantine", GATEWAY))
    lock = asyncio.Lock()
    return Hive(place, store, git, BackupService(store, config, VirtualClock(), lock), config, lock)


async def _fill(hive: Hive) -> None:
    state, files = hive.state, RealHostFiles(hive.config)
    for name, base in BASES.items():
        await files.ensure_agent(name, base, manager=name == SMITH)
        commit = await hive.git.create(
            name, {"agent.nix": f"{{ }} # {name}\n"}, author="ann", message="first"
        )
        await add_agent(hive, name, base, commit, "destroyed" if name == GONE else "running")
    await hive.git.create(AgentName("meta"), {"flake.nix": "{ }\n"}, author="hive", message="begins")
    fill_tree(hive.tree(SMITH), BASES[SMITH] + 1000)
    (state / "agents" / SCOUT / ".unpacked").write_text("digest")
    (state / "agents" / SCOUT / ".unpacked").chmod(0o600)
    (state / "staged").mkdir(mode=0o700)
    (state / "staged" / "2.tar").write_bytes(b"a staged state")
    (state / "staged" / "2.tar").chmod(0o600)
    await spend(state)


async def add_agent(hive: Hive, name: str, base: int, commit: Commit, desired: str) -> None:
    async with hive.store.state.transaction() as tx:
        await tx.run(
            "INSERT INTO agents (name, role, uid_base, desired, generation, session_id, created_at)"
            " VALUES (?, ?, ?, ?, 1, ?, ?)",
            *(name, "manager" if name == SMITH else "agent", base, desired, f"session-{name}", tx.now),
        )  # fmt: skip
        written = await tx.run(
            "INSERT INTO proposals (kind, agent, commit_id, state, requested_by, created_at)"
            " VALUES ('spawn', ?, ?, 'deployed', 'operator', ?)",
            *(name, commit, tx.now),
        )  # fmt: skip
        await tx.run(
            "INSERT INTO generations VALUES (?, 1, ?, ?, ?, '{}', 'd', '', 'deployed', ?)",
            *(name, written.row_id, commit, f"/nix/store/{'0' * 32}-hive-{name}", tx.now),
        )  # fmt: skip
        await tx.audit("operator:ann", "proposal.approve", name, note="näive \u2028")
    await hive.git.pin(AgentName(name), f"deployed/{written.row_id}", commit, "it came up")


def fill_tree(top: Path, owner: int) -> None:
    """What agents leave behind, the odd included."""
    deep = top
    for number in range(20):
        deep /= f"level-{number}"
        deep.mkdir()
    (deep / "bottom").write_text("deep")
    (top / "notes.md").write_text("# notes\n")
    (top / "empty").touch()
    (top / "program").write_text("#!/bin/sh\n")
    (top / "program").chmod(0o4755)
    (top / "secret").write_bytes(os.urandom(300_000))
    (top / "secret").chmod(0o400)
    Path(os.fsdecode(os.fsencode(top) + b"/" + NOT_UTF8)).write_text("odd name")
    (top / ("x" * 255)).write_text("long name")
    (top / "to-notes").symlink_to("notes.md")
    (top / "to-shadow").symlink_to("/etc/shadow")
    os.link(top / "notes.md", top / "again.md")
    with (top / "sparse").open("wb") as file:
        file.truncate(5 << 30)
        file.seek(1 << 30)
        file.write(b"in the middle")
        file.seek((5 << 30) - 3)
        file.write(b"end")
    (top / "closed").mkdir(mode=0o500)
    for here, folders, names in os.walk(top):
        for name in (*folders, *names):
            os.chown(Path(here, name), owner, owner, follow_symlinks=False)
            if not Path(here, name).is_symlink():
                os.utime(Path(here, name), (1_700_000_000, 1_600_000_000))
    (top / "program").chmod(0o4755)  # chown took it away
    (top / "of-root").write_text("put there by root")


async def spend(state: Path) -> None:
    gateway = state / "gateway"
    gateway.mkdir(mode=0o700)
    shutil.chown(gateway, GATEWAY)
    ledger = await Ledger.open(gateway)
    entry = Entry("smith", "2026-01-31", "claude-haiku", "turn 1")
    held = await ledger.reserve(entry, Cost(Tokens(10, 10), 500), Ceilings())
    assert isinstance(held, int)
    await ledger.settle(held, Cost(Tokens(5, 5), 250))
    future = await ledger.reserve(
        Entry("smith", "2026-01-31", "m", "turn 99"), Cost(Tokens(1, 1), 1), Ceilings()
    )
    assert isinstance(future, int)
    await ledger.settle(future, None)
    await ledger.close()
    for path in gateway.iterdir():
        shutil.chown(path, GATEWAY)


def git(repository: Path, *arguments: str) -> str:
    """What git says about a repository of the hive, asked from outside."""
    done = subprocess.run(
        ["git", f"--git-dir={repository}", *arguments], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


# ------------------------------------------------------------------------------------------------ comparing
def rows_of(database: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table."""
    with closing(sqlite3.connect(database)) as db:
        tables = [
            row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        ]
        return {table: sorted(db.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in tables}


def refs_of(state: Path) -> dict[str, list[str]]:
    """Every ref of every repository, each with all its objects there."""
    found = {}
    for repository in sorted([*(state / "repos").glob("*.git"), state / "meta"]):
        git(repository, "fsck", "--full", "--strict")
        found[repository.name] = git(repository, "for-each-ref", FORMAT).splitlines()
        assert found[repository.name], "a repository has at least its main"
    return found


def tree_of(top: Path) -> dict[str, tuple[object, ...]]:
    """Every entry below: kind, mode, owner, instant, content, which other names it has, and how much of it is
    a hole."""
    return dict(_entries(top))


def _entries(top: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    by_inode: dict[int, list[str]] = {}
    for here, folders, names in os.walk(top):
        for name in (*folders, *names):
            path = Path(here, name)
            by_inode.setdefault(path.lstat().st_ino, []).append(str(path.relative_to(top)))
    for twins in by_inode.values():
        for name in twins:
            status = (top / name).lstat()
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = str((top / name).readlink())
            elif stat.S_ISREG(status.st_mode):
                content = (status.st_size, _digest(top / name))
            # Not of links, and not of the directories that hived makes for each agent.
            kept = "/" in name and not stat.S_ISLNK(status.st_mode)
            instant = int(status.st_mtime) if kept else 0
            yield name, (status.st_mode, status.st_uid, status.st_gid, instant, content, sorted(twins))


def _digest(path: Path) -> str:
    """Of the data only: nobody reads gigabytes of holes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        at = 0
        while True:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return digest.hexdigest()
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            data = os.pread(file.fileno(), at - begin, begin)
            digest.update(f"{begin}:".encode() + data)
