"""The one function that runs programs: argument lists, a spelled-out environment, a deadline, bounded output.

No shell, no inherited environment, no inherited descriptors. What a program leaves running in its session is
killed when its leader ends, at the deadline, on too much output, and on cancellation; with the daemon itself
dies what it was running (`setpriv --pdeathsig`). Effects import this module; nothing else does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from reconciler.effects.protocols import LogSink
from reconciler.errors import CommandError, CommandRecord, DiskFullError, PermanentError

MIB = 1024 * 1024
TAIL_BYTES = 64 * 1024
LINE_CHARACTERS = 4096
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE_ENVIRONMENT = {"PATH": PATH, "LANG": "C.UTF-8"}

# After the leader's end: how long reading its output may take (a slow log sink), and SIGKILL to bite.
_DRAIN_S = 5.0
_KILL_S = 5.0
_NO_ROOM = ("No space left on device", "Disk quota exceeded", "database or disk is full")
# Less than this is too little for what programs with something to hide write: a pack, a root of the store.
SHORT_BYTES = 1024 * MIB
SHORT_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Rlimits:
    """Resource limits of a program and its children; None leaves the daemon's own. Bytes, seconds, counts.

    `nproc` counts all processes of the real uid, so it is of use with a user of one's own only.
    """

    cpu_s: int | None = None
    address_space: int | None = None
    file_size: int | None = None
    nproc: int | None = None
    nofile: int | None = None
    core: int | None = 0

    def arguments(self) -> list[str]:
        """Options of prlimit(1)."""
        values = {
            "cpu": self.cpu_s, "as": self.address_space, "fsize": self.file_size, "nproc": self.nproc,
            "nofile": self.nofile, "core": self.core,
        }  # fmt: skip
        return [f"--{name}={value}:{value}" for name, value in values.items() if value is not None]


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that ended with an accepted status; `stderr` is its tail (64 KiB) only."""

    stdout: bytes
    stderr: bytes
    exit_code: int
    duration_s: float

    @property
    def text(self) -> str:
        """Standard output as text, invalid UTF-8 replaced."""
        return self.stdout.decode("utf-8", "replace")


@dataclass(slots=True)
class _Stream:
    """One output stream while it is read: `kept` is all of it or its tail, `seen` counts bytes."""

    limit: int
    tail_only: bool
    log: LogSink | None = None
    line_max: int = LINE_CHARACTERS
    kept: bytearray = field(default_factory=bytearray)
    seen: int = 0
    overflowed: bool = False
    line: bytearray = field(default_factory=bytearray)

    async def take(self, data: bytes) -> None:
        self.seen += len(data)
        if self.seen > self.limit:
            self.overflowed = True
            data = data[: max(0, len(data) - (self.seen - self.limit))]
        self.kept += data
        if self.tail_only and len(self.kept) > TAIL_BYTES:
            del self.kept[:-TAIL_BYTES]
        if self.log is not None:
            self.line += data
            *whole, rest = bytes(self.line).split(b"\n")
            if len(rest) > 4 * self.line_max:  # a line without an end must not grow without one
                whole.append(rest)
                rest = b""
            self.line = bytearray(rest)
            for line in whole:
                await self.emit(line)

    async def emit(self, line: bytes) -> None:
        if self.log is not None:
            await self.log(line.decode("utf-8", "replace").rstrip("\r")[: self.line_max])


async def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | str = "/",
    stdin: bytes | Path | None = None,
    user: str | tuple[int, int] | None = None,
    rlimits: Rlimits | None = None,
    max_stdout: int = 4 * MIB,
    max_stderr: int = 16 * MIB,
    log: LogSink | None = None,
    line_max: int = LINE_CHARACTERS,
    accept: Container[int] = (0,),
    umask: int = 0o022,
    room_in: Sequence[Path] | None = None,
) -> Completed:
    """Run a program to its end and return its output.

    `env` is the whole environment but for PATH and LANG, which it may replace. `stdin` is bytes or a file,
    else /dev/null. `user` (a name, or uid and gid) drops to that user without groups, capabilities or new
    privileges. `log` gets each line of standard error as it comes (`line_max` characters at most); a slow
    sink slows the program. `room_in`: an agent has a say in what it prints, so its words of a full disk count
    only if one of these paths, where it writes, lies on a file system that is short of room; None: it is
    believed.

    Raises `CommandError` with code `command-failed` (status not in `accept`), `command-timeout` or
    `output-too-large` (more than `max_stdout`, `max_stderr` bytes), `DiskFullError` if it says so,
    `PermanentError` if the program or user does not exist. Whatever happens, when this returns no process of
    its session is left.
    """
    words = [str(word) for word in argv]
    environment = {**BASE_ENVIRONMENT, **(env or {})}
    command = _wrapped(words, environment["PATH"], user, rlimits)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(  # noqa: ASYNC220 - returns at exec; the waiting below is by pidfd, without a thread
            command,
            stdin=_input(stdin, stack),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment,
            start_new_session=True,
            umask=umask,
        )
        out = _Stream(limit=max_stdout, tail_only=False)
        err = _Stream(limit=max_stderr, tail_only=True, log=log, line_max=line_max)
        timed_out = await _attend(process, out, err, timeout_s)
    duration = time.monotonic() - started
    if process.returncode in accept and not (timed_out or out.overflowed or err.overflowed):
        return Completed(bytes(out.kept), bytes(err.kept), process.returncode, duration)
    record = CommandRecord(
        argv=tuple(words),
        exit_code=process.returncode,
        duration_s=duration,
        stdout_tail=bytes(out.kept[-TAIL_BYTES:]).decode("utf-8", "replace"),
        stderr_tail=bytes(err.kept).decode("utf-8", "replace"),
        cwd=str(cwd),
        timed_out=timed_out,
    )
    if timed_out:
        raise CommandError(record, code="command-timeout")
    # What it says is all there is to see: its status is the same for any trouble.
    full = _no_room(record.stderr_tail) or _no_room(record.stdout_tail)
    if full and (room_in is None or any(_is_short(path) for path in room_in)):
        raise DiskFullError(f"{words[0]} could not write: {full}")
    raise CommandError(
        record, code="output-too-large" if out.overflowed or err.overflowed else "command-failed"
    )


def _no_room(text: str) -> str | None:
    """The line that tells of a full disk, 300 characters at most; in linear time, whatever the text is."""
    for words in _NO_ROOM:
        if (at := text.find(words)) >= 0:
            begin = max(text.rfind("\n", 0, at) + 1, at - 200)
            return text[begin : begin + 300].partition("\n")[0].strip()
    return None


def _is_short(path: Path) -> bool:
    """Whether the file system of a path, or of its nearest parent that is there, has next to no room."""
    there = next(place for place in (path, *path.parents) if place.exists())
    room = os.statvfs(there)
    few_files = room.f_files > 0 and room.f_favail < SHORT_FILES  # some file systems do not count them
    return room.f_bavail * room.f_frsize < SHORT_BYTES or few_files


def identity(user: str | tuple[int, int]) -> tuple[int, int]:
    """Uid and gid of a user; `PermanentError` if there is none of that name."""
    if isinstance(user, tuple):
        return user
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise PermanentError(f"the user {user!r} does not exist", hint="run `hive doctor`") from error
    return entry.pw_uid, entry.pw_gid


def _wrapped(
    words: Sequence[str], path: str, user: str | tuple[int, int] | None, rlimits: Rlimits | None
) -> list[str]:
    """The program behind prlimit and setpriv: no code of ours runs between fork and exec."""
    program = shutil.which(words[0], path=path)
    if program is None:
        raise PermanentError(f"cannot run {words[0]!r}: it is not installed", hint="run `hive doctor`")
    limits = rlimits or Rlimits()
    command = ["/usr/bin/prlimit", *limits.arguments(), "--", "/usr/bin/setpriv", "--pdeathsig=KILL"]
    if user is not None:
        uid, gid = identity(user)
        command += [f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--inh-caps=-all", "--no-new-privs"]
    return [*command, "--", program, *words[1:]]


def _input(stdin: bytes | Path | None, stack: contextlib.ExitStack) -> int | IO[bytes]:
    """Standard input as a descriptor: bytes lie in memory, so nobody has to pump them."""
    if stdin is None:
        return subprocess.DEVNULL
    if isinstance(stdin, Path):
        return stack.enter_context(stdin.open("rb"))
    memory = stack.enter_context(os.fdopen(os.memfd_create("stdin"), "w+b"))
    memory.write(stdin)
    memory.seek(0)
    return memory


async def _attend(process: subprocess.Popen[bytes], out: _Stream, err: _Stream, timeout_s: float) -> bool:
    """Read both streams until the program ends, then clear its session away; True if the deadline passed."""
    pidfd = os.pidfd_open(process.pid)
    timed_out = False
    readers = [
        asyncio.create_task(_read(pipe, stream, process))
        for pipe, stream in ((process.stdout, out), (process.stderr, err))
        if pipe is not None
    ]
    try:
        try:
            async with asyncio.timeout(timeout_s):
                await readable(pidfd)
        except TimeoutError:
            timed_out = True
        finally:
            # The leader is a zombie or alive, never reaped yet: its pid is still its session's.
            _kill_session(process)
            await _reap(process, pidfd)
        _, late = await asyncio.wait(readers, timeout=_DRAIN_S)
        for reader in readers:
            if reader not in late:
                reader.result()  # an error of the log sink is the caller's
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        os.close(pidfd)
    return timed_out


async def _read(pipe: IO[bytes], stream: _Stream, process: subprocess.Popen[bytes]) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=256 * 1024)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        while data := await reader.read(256 * 1024):
            await stream.take(data)
            if stream.overflowed:
                _kill_session(process)
                return
        if stream.line:
            await stream.emit(bytes(stream.line))
    except BaseException:
        _kill_session(process)
        raise
    finally:
        transport.close()


async def readable(fd: int) -> None:
    """Wait until a descriptor is readable (a pidfd: until its process has ended)."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(fd, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(fd)


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def _reap(process: subprocess.Popen[bytes], pidfd: int) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_KILL_S):
            await readable(pidfd)
        process.wait()
