"""Verbs that keep a hive: its backup, and making it anew from one."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import sys
import tarfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from reconciler.backup.format import Header, Place
from reconciler.backup.reading import Nowhere, Report, read
from reconciler.cli.api import Hive, Json
from reconciler.cli.console import Console, cell
from reconciler.cli.failure import Exit, Failure, Unreachable
from reconciler.errors import HiveError
from reconciler.model.text import visible

if TYPE_CHECKING:
    from reconciler.backup.restore import Restore

PLAN_S = 300.0
# The databases are copied before the first byte comes.
ARCHIVE_S = 1800.0
_NEWS_S = 0.5


def backup(options: Namespace, console: Console) -> int:
    """`hive backup FILE`"""
    hive = Hive()
    if options.dry_run:
        return _plan(hive, options, console)
    if options.file == "-":
        return _backup_to_output(hive, options, console)
    if os.environ.get("HIVE_DEMO"):
        raise Failure(
            "the demo has files of its own: one written here is not seen outside, and goes with it",
            f"let the shell write it: `hive backup - > {options.file}`",
        )
    file = Path(options.file)
    if file.exists() or file.is_symlink():
        raise Failure(f"{file} exists", "a backup overwrites nothing: choose another name", code="conflict")
    partial = file.with_name(f"{file.name}.partial")
    with os.fdopen(_open_partial(partial), "wb", buffering=0) as target:  # its lock ends with it
        try:
            report = _receive(hive, target, options, console)
            os.fsync(target.fileno())
            _into_place(partial, file)
        except OSError as error:
            raise Failure(f"cannot write {partial}: {error.strerror}", "is there room for it?") from error
        finally:
            partial.unlink(missing_ok=True)
    _tell_report(report, file, console)
    return Exit.DONE


def _backup_to_output(hive: Hive, options: Namespace, console: Console) -> int:
    """The file to standard output; what there is to say goes to standard error."""
    if sys.stdout.isatty():
        raise Failure("a backup is no text for a terminal", "redirect it: `hive backup - > FILE`")
    report = _receive(hive, sys.stdout.buffer, options, console)
    sys.stdout.buffer.flush()
    for path, why in report.left_out:
        console.err.write(f"left out: {visible(path)}: {visible(why)}\n")
    console.err.write(f"{size_text(report.size)} in {report.members} members, every hash compared\n")
    console.err.write(f"audit head  {report.header.audit_head}\nseal        {report.seal}\n")
    return Exit.DONE


def restore(options: Namespace, console: Console) -> int:
    """`hive restore FILE`"""
    from reconciler.backup.restore import Restore
    from reconciler.config import load

    if options.file == "-":
        raise Failure("a restore needs a file: it is read twice", "write it to the disk first", code="usage")
    try:
        config = load()
        control = Path(config.run_dir) / "control.sock"
        work = Restore(Path(options.file), config)
        if options.dry_run:
            return _tell_examined(work, control, options, console)
        _refuse_running(control)
        if not options.yes:
            checked = work.check()
            _tell_header(checked.report.header, console)
            if not console.ask(f"make this the hive in {config.state_dir}?"):
                raise Failure("nothing was done", code="declined")
        done = work.run()
    except HiveError as error:
        raise Failure(error.message, error.hint, code=error.code) from error
    except OSError as error:
        raise Failure(f"cannot restore from {options.file}: {error}") from error
    if options.json:
        console.document({**_report(done.report, Path(options.file)), "warnings": list(done.warnings)})
        return Exit.DONE
    for warning in done.warnings:
        console.line(f"warning: {warning}", "yellow")
    console.say(f"the hive of {done.report.header.host} is in {config.state_dir}; start hived")
    console.say("what agents run is built again from their approved commits, by the same inputs", "dim")
    return Exit.DONE


def _tell_examined(work: Restore, control: Path, options: Namespace, console: Console) -> int:
    """A dry run: what the file is, then everything that keeps it from being restored here."""
    done, found = work.examine()
    obstacles = [(error.message, error.hint) for error in found]
    try:
        _refuse_running(control)
    except Failure as running:
        obstacles.insert(0, (running.message, running.hint))
    status = Exit.FAILED if obstacles else Exit.DONE
    if options.json:
        told = [{"message": message, "hint": hint} for message, hint in obstacles]
        report = _report(done.report, Path(options.file))
        console.document({**report, "warnings": list(done.warnings), "obstacles": told})
        return status
    for warning in done.warnings:
        console.line(f"warning: {warning}", "yellow")
    _tell_header(done.report.header, console)
    if not obstacles:
        console.say("it is whole and could be restored here; nothing was changed")
        return status
    console.say("it is whole, but cannot be restored here now; nothing was changed:")
    for message, hint in obstacles:
        console.line(f"✗ {message}", "red")
        if hint:
            console.indented(f"→ {hint}")
    return status


def doctor(options: Namespace, console: Console) -> int:
    """`hive doctor`"""
    hive = Hive()
    try:
        if options.repair:
            health = hive.post("/doctor/repair", {"dry_run": options.dry_run}, deadline_s=PLAN_S)
        else:
            health = hive.get("/doctor", deadline_s=PLAN_S)
    except Unreachable as away:
        if options.repair or away.code != "unavailable":
            raise
        console.err.write(f"hive: {away.message}; checking what the disk tells\n")
        health = _offline()
    if options.json:
        console.document(health)
    else:
        _tell_health(health, console, everything=options.all)
    return Exit.FAILED if health["fail"] else Exit.DONE


def _offline() -> Json:
    from reconciler.config import load
    from reconciler.doctor.disk import offline_facts
    from reconciler.doctor.service import told

    try:
        facts = offline_facts(load())
    except HiveError as error:
        raise Failure(error.message, error.hint, code=error.code) from error
    health: Json = told(facts, offline=True).model_dump(mode="json")
    return health


def _tell_health(health: Json, console: Console, *, everything: bool) -> None:
    signs = {
        "ok": ("✓", "green"),
        "warn": ("!", "yellow"),
        "fail": ("✗", "red"),
        "not-applicable": ("-", "dim"),
    }
    for item in health["items"]:
        if not everything and item["status"] in {"ok", "not-applicable"}:
            continue
        sign, colour = signs[item["status"]]
        console.line(f"{sign} {item['id']}: {item['title']}", colour)
        console.indented(item["detail"])
        if item["remedy"]:
            console.indented(f"→ {item['remedy']}")
    counts = ", ".join(
        f"{health[key]} {word}" for key, word in (("ok", "ok"), ("warn", "warnings"), ("fail", "failed"))
    )
    left = len(health["items"]) - health["ok"] - health["warn"] - health["fail"]
    console.say(f"{len(health['items'])} checks: {counts}" + (f", {left} not applicable" if left else ""))


# ------------------------------------------------------------------------------------------------- receiving
class _Tee:
    """Reads the answer and writes what it read."""

    def __init__(self, source: BinaryIO, target: IO[bytes]) -> None:
        self._source = source
        self._target = target
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        left = memoryview(data)
        while left:
            left = left[self._target.write(left) :]
        self.size += len(data)
        return data


class _Progress(Nowhere):
    """Says on a terminal how far it is."""

    def __init__(self, tee: _Tee, console: Console) -> None:
        self._tee = tee
        self._err = console.err if console.err.isatty() else None
        self._next = 0.0

    def member(self, info: tarfile.TarInfo, place: Place, chunks: Iterator[bytes]) -> None:
        del place
        for _ in chunks:
            self._say("/".join(info.name.split("/")[:2]))
        self._say("/".join(info.name.split("/")[:2]))

    def _say(self, part: str) -> None:
        if self._err is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + _NEWS_S
            self._err.write(f"\r\033[K{size_text(self._tee.size)}  {part}")
            self._err.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._err is not None:
            self._err.write("\r\033[K")
            self._err.flush()


def _receive(hive: Hive, target: IO[bytes], options: Namespace, console: Console) -> Report:
    with hive.download("/backup", ARCHIVE_S, state=0 if options.without_state else 1) as answer:
        tee = _Tee(cast(BinaryIO, answer), target)  # an HTTPResponse reads like any file
        progress = _Progress(tee, console)
        try:
            report = read(cast(BinaryIO, tee), progress)
            while tee.read(1 << 16):  # the tar's own padding
                pass
        except HiveError as error:
            hint = "try again; nothing was written" if error.code == "damaged" else error.hint
            raise Failure(error.message, hint, code=error.code) from error
        except OSError as error:
            raise Failure(f"the backup stopped: {error}", "is there room for it?") from error
        else:
            return report
        finally:
            progress.clear()


def _open_partial(partial: Path) -> int:
    """The unfinished file, ours alone as long as the descriptor is open; what a killed `hive backup` left is
    written over."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(partial, flags, 0o600)
    except OSError as error:
        raise Failure(f"cannot write {partial}: {error.strerror}", "choose another place") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found, there = os.fstat(fd), partial.lstat()
        _check_partial(partial, found)
        if (found.st_dev, found.st_ino) != (there.st_dev, there.st_ino):
            raise BlockingIOError  # noqa: TRY301 - another one has just finished with it
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
    except (BlockingIOError, FileNotFoundError) as error:
        os.close(fd)
        raise Failure(f"another `hive backup` writes {partial}", "wait for it", code="conflict") from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_partial(partial: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
        raise Failure(f"{partial} is somebody else's", "choose another place")


def _into_place(partial: Path, file: Path) -> None:
    """Under its name at once and whole, and never over another."""
    try:
        os.link(partial, file, follow_symlinks=False)
    except FileExistsError as error:
        raise Failure(f"{file} exists", "a backup overwrites nothing", code="conflict") from error
    except OSError:  # a file system without hard links
        partial.rename(file)
    fd = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refuse_running(control: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(control))
        except OSError:
            return
    raise Failure("hived is running", "stop it first: a hive is restored into nothing", code="conflict")


# ------------------------------------------------------------------------------------------------- telling
def _plan(hive: Hive, options: Namespace, console: Console) -> int:
    plan = hive.get("/backup/plan", deadline_s=PLAN_S)
    if options.without_state:
        plan["parts"] = [part for part in plan["parts"] if not part["name"].startswith("agents/")]
        plan["left_out"] = []
        for key in ("entries", "bytes"):
            plan[key] = sum(part[key] for part in plan["parts"])
    if options.json:
        console.document(plan)
        return Exit.DONE
    rows = [
        [cell(part["name"]), cell(part["entries"]), cell(size_text(part["bytes"]))] for part in plan["parts"]
    ]
    console.table(["part", "entries", "size"], rows, "there is nothing")
    for path in plan["left_out"]:
        console.line(f"left out: {path}", "yellow")
    console.say(f"{plan['entries']} entries, {size_text(plan['bytes'])}")
    return Exit.DONE


def _report(report: Report, file: Path) -> dict[str, object]:
    header = report.header
    return {
        "file": str(file),
        "bytes": report.size,
        "members": report.members,
        "made_at": header.made_at,
        "host": header.host,
        "version": header.version,
        "with_state": header.with_state,
        "agents": [agent.name for agent in header.agents],
        "audit_head": header.audit_head,
        "seal": report.seal,
        "left_out": [{"path": path, "why": why} for path, why in report.left_out],
    }


def _tell_report(report: Report, file: Path, console: Console) -> None:
    if console.as_json:
        console.document(_report(report, file))
        return
    for path, why in report.left_out:
        console.line(f"left out: {path}: {why}", "yellow")
    console.say(f"{file}: {size_text(report.size)} in {report.members} members, every hash compared")
    console.fields(
        [
            ("agents", len(report.header.agents)),
            ("audit head", report.header.audit_head),
            ("seal", report.seal),
        ]
    )


def _tell_header(header: Header, console: Console) -> None:
    console.fields(
        [
            ("made", f"{header.made_at} on {header.host}, by hyperhive {header.version}"),
            ("agents", ", ".join(agent.name for agent in header.agents) or "none"),
            ("audit head", header.audit_head),
        ]
    )


def size_text(count: int) -> str:
    """Bytes for people."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
