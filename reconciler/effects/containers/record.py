"""What is written down about one start of a container: the only way back to it after the daemon's death.

`$HIVE_STATE/containers/NAME/` (root, 0700) holds `start.json` (the driver's order), `record.json` (written
atomically by whoever supervises: the shim, or the unit's helper), and for the shim `lock` (held while it
lives), `console.log` and its predecessor, `shim.log`. Standard library only, as both import it; named
tuples, as importing dataclasses would cost each start of a container 10 ms of processor time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from reconciler.effects.containers.proc import ProcessRef

START = "start.json"
RECORD = "record.json"
LOCK = "lock"
CONSOLE = "console.log"
CONSOLE_OLD = "console.log.1"
SHIM_LOG = "shim.log"
_ADDED = {"stop_asked": False, "result": ""}


class Order(NamedTuple):
    """What the supervisor is told to start; see `ContainerCommand` for the command's fields. A unit ignores
    `invocation` (systemd has its own) and `start_timeout_s`."""

    name: str
    invocation: str
    toplevel: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    hardened: tuple[str, ...]
    memory_bytes: int
    cpu_percent: int
    tasks: int
    start_timeout_s: float


class Record(NamedTuple):
    """One start. `phase` is starting, running or exited; `world` says what the pids are relative to.

    `exit_code` and `signal` are nspawn's; `stop_asked`: by SIGTERM to the shim or a stop job of the unit;
    `why` is a sentence when it ended before its leader was known. A unit's record has no `shim` and, as
    systemd does not tell it, no `leader`; `result` is systemd's word for its end.
    """

    name: str
    invocation: str
    toplevel: str
    world: str
    started_at: float
    phase: str = "starting"
    shim: ProcessRef | None = None
    nspawn: ProcessRef | None = None
    leader: ProcessRef | None = None
    cgroups: tuple[str, ...] = ()
    limits_enforced: tuple[str, ...] = ()
    exit_code: int | None = None
    signal: int | None = None
    oom: bool = False
    ended_at: float | None = None
    why: str = ""
    stop_asked: bool = False
    result: str = ""


def read_record(directory: Path) -> Record | None:
    """The record of a container; None if there is none or it is damaged (then its start is told by
    nobody)."""
    data = _read(directory / RECORD)
    if data is None:
        return None
    try:
        for key in ("shim", "nspawn", "leader"):
            data[key] = None if data[key] is None else ProcessRef(*data[key])
        data["cgroups"], data["limits_enforced"] = tuple(data["cgroups"]), tuple(data["limits_enforced"])
        for key, default in _ADDED.items():  # a shim of an older version, which outlived the upgrade
            data.setdefault(key, default)
        return Record(**{field: data[field] for field in Record._fields})
    except (KeyError, TypeError):
        return None


class Records:
    """The records below a directory. One that was read before and whose file is the same is not read again: a
    record is only ever replaced, by a file of its own."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._seen: dict[str, tuple[tuple[int, int, int], Record | None]] = {}

    def names(self) -> list[str]:
        """Whose record is there, damaged or not."""
        try:
            found = os.listdir(self._root)  # noqa: PTH208 - names, not paths
        except OSError:
            return []
        return [name for name in found if self._stamp(name) is not None]

    def read(self, name: str) -> Record | None:
        """See `read_record`."""
        stamp = self._stamp(name)  # first: what is replaced between the two is read again next time
        if stamp is None:
            self._seen.pop(name, None)
            return None
        seen = self._seen.get(name)
        if seen is None or seen[0] != stamp:
            seen = self._seen[name] = (stamp, read_record(Path(self._root, name)))
        return seen[1]

    def _stamp(self, name: str) -> tuple[int, int, int] | None:
        try:
            found = os.stat(f"{self._root}/{name}/{RECORD}")  # noqa: PTH116 - hundreds in each full read
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def write_record(directory: Path, record: Record) -> None:
    """Replace the record; after a power cut it is the old or the new one."""
    _write(directory / RECORD, record._asdict())


def read_order(directory: Path) -> Order:
    """The driver's order; raises `ValueError` if it is damaged."""
    data = _read(directory / START)
    if data is None:
        raise ValueError(f"{directory / START} is missing or no JSON object")
    try:
        data["argv"], data["hardened"] = tuple(data["argv"]), tuple(data["hardened"])
        return Order(**data)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{directory / START} is damaged: {error}") from error


def write_order(directory: Path, order: Order) -> None:
    """Write the driver's order atomically."""
    _write(directory / START, order._asdict())


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Hold the container's lock; False if somebody else (a shim that lives) holds it, or the directory
    went."""
    path = directory / LOCK
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            same = os.fstat(lock).st_ino == path.stat().st_ino
        except FileNotFoundError:
            same = False
        yield same
    finally:
        os.close(lock)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _write(path: Path, data: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
