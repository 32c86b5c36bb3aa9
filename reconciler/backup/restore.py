"""`hive restore`: make an empty host hold the hive of a backup. Offline, as root, all or nothing.

Everything is unpacked into `STATE/restoring` and moved into place when all of it is there and was checked,
`state.db` last. hived does not start while that directory exists; a restore that was killed is run again.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.approvals.hostids import reserved
from reconciler.approvals.rules import RANGE, Reserved
from reconciler.backup.format import Header, Place, damaged
from reconciler.backup.reading import Nowhere, Report, read
from reconciler.backup.unpacking import Unpacking
from reconciler.config import Config
from reconciler.effects.git.layout import disarm
from reconciler.errors import HiveError, OperatorError, PermanentError
from reconciler.store import copies

RESTORING = "restoring"
_MARGIN_BYTES = 64 << 20
# What a restore puts into the state directory, in the order in which it is moved there.
_TOPS = ("agents", "repos", "meta", "staged", "gateway", "events.db", "state.db")


@dataclass(frozen=True, slots=True)
class Restored:
    """What was (or would be) restored, and what the operator should know of."""

    report: Report
    warnings: tuple[str, ...]


def refuse_half_restored(state: Path) -> None:
    """No hived may make a new hive where a restore was interrupted."""
    if (state / RESTORING).exists():
        raise OperatorError(
            f"a restore into {state} was interrupted",
            code="conflict",
            hint=f"run `hive restore FILE` again, or remove {state / RESTORING} to begin an empty hive",
        )


class Restore:
    """One restore of `file`. `ranges` are the uids of the host that belong to somebody else."""

    def __init__(self, file: Path, config: Config, ranges: Sequence[Reserved] | None = None) -> None:
        self._file = file
        self._config = config
        self._state = Path(config.state_dir)
        self._ranges = reserved() if ranges is None else ranges

    def check(self) -> Restored:
        """Whether it can be restored here: nothing is changed. `OperatorError` says why not."""
        self._check_host()
        with self._file.open("rb") as stream:
            report = read(stream, _Check(self))
        self._check_room(report)
        return Restored(report, tuple(self._warnings(report.header)))

    def examine(self) -> tuple[Restored, tuple[HiveError, ...]]:
        """Whether the file is whole (else `OperatorError`), and all that keeps it from being restored here:
        nothing is changed, so that a backup can be looked at on any host, also by others than root."""
        with self._file.open("rb") as stream:
            report = read(stream, Nowhere())
        found: list[HiveError] = []
        checks: list[Callable[[], None]] = [
            _check_root,
            self._check_user,
            self._check_empty,
            lambda: self.check_header(report.header),
            lambda: self._check_room(report),
        ]
        for check in checks:
            try:
                check()
            except HiveError as error:
                found.append(error)
            except OSError as error:
                found.append(OperatorError(f"cannot look at {error.filename}: {error.strerror}"))
        return Restored(report, tuple(self._warnings(report.header))), tuple(found)

    def run(self) -> Restored:
        """Check all of it, then do it."""
        checked = self.check()
        place = self._state / RESTORING
        self._clean()
        self._state.mkdir(parents=True, exist_ok=True)
        self._state.chmod(0o711)
        place.mkdir(mode=0o700)
        try:
            with Unpacking(place) as sink, self._file.open("rb") as stream:
                report = read(stream, sink)
            _check_same(report, checked.report)
            self._check_databases(place, report.header)
            if not report.header.with_state:
                copies.forget_conversations(place / "state.db")
            warnings = [*checked.warnings, *_disarm(place)]
            self._arrange(place)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        _sync_all(place)  # what is moved into place is on the disk
        for name in _TOPS:
            if (place / name).exists():
                (place / name).rename(self._state / name)
        place.rmdir()
        _sync(self._state)
        return Restored(report, tuple(warnings))

    # ------------------------------------------------------------------------------------------- checks
    def check_header(self, header: Header) -> None:
        """What can be known before anything else is read."""
        for name, schema in sorted(header.schemas.items()):
            newest = copies.newest_schema(name)
            if schema > newest:
                raise OperatorError(
                    f"its {name} has schema {schema}, this program knows {newest}",
                    code="conflict",
                    hint=f"restore it with hyperhive {header.version} or newer",
                )
        bases: dict[int, str] = {}
        for agent in header.agents:
            other = bases.setdefault(agent.uid_base, agent.name)
            if other != agent.name:
                raise damaged(f"{agent.name} and {other} have the same uids")
            for taken in self._ranges:
                if agent.uid_base < taken.first + taken.count and taken.first < agent.uid_base + RANGE:
                    raise OperatorError(
                        f"the uids {agent.uid_base} to {agent.uid_base + RANGE - 1} of {agent.name} are "
                        f"taken on this host: {taken.source}",
                        code="conflict",
                        hint="an agent's uids never change: free them here, or restore on another host",
                    )

    def _check_host(self) -> None:
        _check_root()
        self._check_user()
        self._check_empty()

    def _check_user(self) -> None:
        try:
            pwd.getpwnam(self._config.gateway_user)
        except KeyError as error:
            raise PermanentError(
                f"the user {self._config.gateway_user!r} of the gateway does not exist",
                hint="install hyperhive first, or name another as gateway_user in the configuration",
            ) from error

    def _check_empty(self) -> None:
        if (self._state / RESTORING).exists():
            return  # ours, and half done
        kept = [name for name in _present(self._state) if not _is_empty(self._state / name)]
        if kept:
            raise OperatorError(
                f"{self._state} is not empty: it has {', '.join(sorted(kept)[:5])}",
                code="conflict",
                hint="a restore never overwrites: move that hive away first",
            )

    def _check_room(self, report: Report) -> None:
        place = self._state
        while not place.exists():
            place = place.parent
        room = os.statvfs(place)
        if room.f_bavail * room.f_frsize < report.size + _MARGIN_BYTES:
            raise OperatorError(
                f"{place} has {room.f_bavail * room.f_frsize} bytes free, the hive needs {report.size}",
                code="no-space",
                hint="make room",
            )
        if room.f_files and room.f_favail < report.members:
            raise OperatorError(
                f"{place} has only {room.f_favail} inodes free", code="no-space", hint="make room"
            )

    def _warnings(self, header: Header) -> Iterator[str]:
        for agent in header.agents:
            if not self._config.uid_range.start <= agent.uid_base <= self._config.uid_range.end - RANGE:
                yield f"the uids of {agent.name} lie outside of this host's uid_range; it keeps them"
        if not header.with_state:
            yield "the agents' trees are not in it: they begin empty"
        if header.platform != self._config.platform:
            yield f"it comes from a host of platform {header.platform}, this is {self._config.platform}"

    @staticmethod
    def _check_databases(place: Path, header: Header) -> None:
        for name, schema in header.schemas.items():
            file = place / name
            faults = copies.faults(file, schema)
            if faults:
                raise damaged(f"{name}: {faults[0]}")
        found = copies.facts(place / "state.db")
        if (found.audit_head, found.audit_rows) != (header.audit_head, header.audit_rows):
            raise damaged("the audit chain of its state.db does not end where its header says")
        # By the header it was judged whether their uids are free here.
        told = {(a.name, a.uid_base, a.role, a.desired, a.generation) for a in header.agents}
        if set(found.agents) != told:
            raise damaged("the agents of its state.db are not those of its header")

    # ------------------------------------------------------------------------------------------- placing
    def _arrange(self, place: Path) -> None:
        """The ledger goes to the gateway's user."""
        user = pwd.getpwnam(self._config.gateway_user)
        gateway = place / "gateway"
        gateway.mkdir(mode=0o700)
        if (place / "ledger.db").exists():
            (place / "ledger.db").rename(gateway / "ledger.db")
            os.chown(gateway / "ledger.db", user.pw_uid, user.pw_gid)
        os.chown(gateway, user.pw_uid, user.pw_gid)

    def _clean(self) -> None:
        """What an interrupted restore left; there is nothing else, else `check` had refused."""
        if (self._state / RESTORING).exists():
            for name in (*_TOPS, RESTORING):
                path = self._state / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def _check_root() -> None:
    if os.geteuid() != 0:
        raise OperatorError("only root can restore a hive", code="forbidden", hint="use sudo")


class _Check:
    """The sink of the first pass: looks at the header, keeps nothing."""

    def __init__(self, restore: Restore) -> None:
        self._restore = restore

    def begin(self, header: Header) -> None:
        self._restore.check_header(header)

    def member(self, info: tarfile.TarInfo, place: Place, chunks: Iterator[bytes]) -> None:
        del info, place
        for _ in chunks:
            pass


def _check_same(now: Report, before: Report) -> None:
    if now.seal != before.seal:
        raise damaged("it changed while it was read")


def _disarm(place: Path) -> Iterator[str]:
    """Repositories come without what git would run as root: their objects prove themselves, the rest does
    not."""
    for repository in (*sorted((place / "repos").glob("*.git")), place / "meta"):
        if repository.is_dir() and (changed := disarm(repository)):
            yield f"{repository.relative_to(place)} comes without its own {', '.join(changed)[:200]}"


def _present(state: Path) -> list[str]:
    return sorted(path.name for path in state.iterdir()) if state.is_dir() else []


def _is_empty(path: Path) -> bool:
    """Nothing but directories: what a host's installation makes before there is a hive."""
    if path.is_symlink() or not path.is_dir():
        return False
    return all(
        not files and not any(Path(here, f).is_symlink() for f in folders)
        for here, folders, files in os.walk(path)
    )


def _sync_all(directory: Path) -> None:
    """Everything of that file system. Not sync(2), which waits for all disks of the host."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), "the disk did not take what was restored", str(directory))
    finally:
        os.close(fd)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


__all__ = ["RESTORING", "Restore", "Restored", "refuse_half_restored"]
