"""hived in a process of its own: its real composition, databases, repositories, owners and sockets, over
containers and Nix that lie in files (or real ones, if the file `real.json` says where), with points of faults
around all of them."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import structlog
from aiosqlite import Connection

from reconciler import errors, sockets
from reconciler.app import Effects, serve
from reconciler.backup.picture import Pictures
from reconciler.backup.service import BackupService
from reconciler.broker import outbox
from reconciler.config import Config, Harness, Timeouts, UidRange
from reconciler.control import agentserver, server
from reconciler.effects import process
from reconciler.effects.clock import SystemClock
from reconciler.effects.containers.driver import ShimContainers
from reconciler.effects.git import GitRepositories, command, quarantine
from reconciler.effects.git.quarantine import Quarantine
from reconciler.effects.hostfiles import RealHostFiles
from reconciler.effects.nix import RealNix
from reconciler.effects.protocols import Containers, HostFiles, Nix
from reconciler.errors import DiskFullError
from reconciler.gateway import client
from reconciler.passes import loop
from reconciler.store.db import Database, Tx, Written
from tests.fakes.measures import FakeMeasures
from tests.fakes.stored import FileContainers, FileNix
from tests.integration.nix_kit import BUILD_USER
from tests.support.crash.points import Fault, Pointed, Points

NOW = 1_750_000_000.0
"""The instant of every commit: equal commits have equal ids."""

_ID = re.compile(r"[0-9a-f]{40}")
_READING = tuple(f"git {verb}" for verb in (
    "for-each-ref", "cat-file", "rev-parse", "merge-base", "ls-tree", "fsck", "bundle", "diff",
))  # fmt: skip
_CHANGE = re.compile(r"\s*(?:INSERT(?: OR \w+)? INTO|UPDATE|DELETE FROM|REPLACE INTO) (\w+)")


def config_of(directory: Path, hello_s: float = 20.0) -> Config:
    """The configuration of the hive in `directory`."""
    return Config(
        state_dir=str(directory / "state"),
        run_dir=str(directory / "run"),
        ui_user=BUILD_USER,
        gateway_user=BUILD_USER,
        build_user=BUILD_USER,
        operator_group="root",
        uid_range=UidRange(start=65536 * 5000, end=65536 * 5100),
        timeouts=Timeouts(hello_s=hello_s, resync_s=3.0),
    )


def real_of(directory: Path) -> tuple[Config, dict[str, str]] | None:
    """The configuration and Nix's environment of a hive over real containers and Nix."""
    try:
        found = json.loads((directory / "real.json").read_text())
    except FileNotFoundError:
        return None
    timeouts = Timeouts(resync_s=1.0)
    harness = Harness(package=str(directory / "package"), venv=str(directory / "venv"))
    changes = {"modules": found["modules"], "harness": harness, "timeouts": timeouts}
    return config_of(directory).model_copy(update=changes), found["environment"]


def main(directory: Path, faults: Sequence[Fault], hello_s: float) -> None:
    """Run until killed or told to stop."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    points = Points(directory, faults)
    _point_commits(points)
    _point_sockets(points)
    _point_programs(points)
    _point_backups(points)
    outbox.SWEEP_S = 0.01  # rows of the outbox that are done go at once, so that a test sees when all is done
    errors.ROOM_AFTER_S = loop.RETRY_FIRST_S = outbox.RETRY_FIRST_S = 0.05

    real = real_of(directory)

    def effects(config: Config) -> Effects:
        state = Path(config.state_dir)
        repositories = GitRepositories(
            state, Quarantine(state / "quarantine", config.build_user), now=lambda: NOW
        )
        containers: object = FileContainers(directory / "fakes")
        nix: object = FileNix(directory / "fakes")
        if real is not None:
            containers, nix = ShimContainers(config), RealNix(config, real[1])

        def pointed(effect: object, prefix: str) -> Any:
            return Pointed(effect, points, prefix)

        # git is pointed at each program that it runs: that is before and after it, and in the middle
        return Effects(
            containers=cast(Containers, pointed(containers, "containers")),
            nix=cast(Nix, pointed(nix, "nix")),
            git=repositories,
            host_files=cast(HostFiles, pointed(RealHostFiles(config), "hostfiles")),
            clock=SystemClock(),
            close=repositories.close,
            measures=FakeMeasures(),
        )

    asyncio.run(serve(real[0] if real is not None else config_of(directory, hello_s), effects))


def _point_commits(points: Points) -> None:
    """Every commit, of a transaction alone or of several together, is a point: named by what was changed."""
    start, run, write, undo = Database.__init__, Tx.run, Connection.commit, Connection.rollback
    names: dict[Connection, str] = {}
    tables: defaultdict[Connection, set[str]] = defaultdict(set)

    def named(self: Database, path: Path, writer: Connection, *more: Any, **options: Any) -> None:
        names[writer] = path.stem
        start(self, path, writer, *more, **options)

    async def noted(self: Tx, sql: str, *values: Any) -> Written:
        found = _CHANGE.match(sql)
        if found is not None:
            tables[self._connection].add(found[1])
        return await run(self, sql, *values)

    async def pointed(self: Connection) -> None:
        label = f"commit {names.get(self)}: {','.join(sorted(tables.pop(self, set())))}"
        await points.around(label, lambda: write(self), full=_sqlite_full)

    async def forgotten(self: Connection) -> None:
        tables.pop(self, None)
        await undo(self)

    # mypy: methods of the classes themselves are replaced, for this process only
    Database.__init__ = named  # type: ignore[method-assign]
    Tx.run = noted  # type: ignore[method-assign]
    Connection.commit = pointed  # type: ignore[method-assign]
    Connection.rollback = forgotten  # type: ignore[method-assign]


def _sqlite_full(label: str) -> BaseException:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
    return error


def _point_sockets(points: Points) -> None:
    bind = sockets.bind

    def pointed(path: Path, **more: Any) -> sockets.Bound:
        label = f"bind {path.parent.name}/{path.name}"
        return points.around_at_once(label, lambda: bind(path, **more))

    for module in (agentserver, server, client):
        vars(module)["bind"] = pointed


def _point_programs(points: Points) -> None:
    run = process.run

    async def pointed(argv: Sequence[str | Path], **more: Any) -> process.Completed:
        label = _program([str(word) for word in argv])
        if label.startswith(_READING):
            return await run(argv, **more)
        return await points.around(
            f"run {label}", lambda: run(argv, **more), full=lambda label: DiskFullError(f"{label}: no space")
        )

    for module in (process, command, quarantine):
        vars(module)["run"] = pointed


def _point_backups(points: Points) -> None:
    """What a backup does in its thread: copies, links, and each chunk of what it sends."""
    for part in (BackupService, Pictures):
        work = part._thread

        def pointed(self: Any, act: Any, *args: Any, work: Any = work, **more: Any) -> Any:
            name = getattr(act, "__name__", "work")
            return points.around(f"backup {name}", lambda: work(self, act, *args, **more))

        part._thread = pointed  # type: ignore[method-assign, assignment]


def _program(words: Sequence[str]) -> str:
    """`git update-ref refs/heads/main` of the many words that it takes: what it does, and to what."""
    if "git" not in words:
        return Path(words[0]).name
    rest = words[len(words) - words[::-1].index("git") :]
    plain = [word for word in rest if not word.startswith(("-", "/")) and not _ID.fullmatch(word)]
    return " ".join(["git", *plain[:2]])
