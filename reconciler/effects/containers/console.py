"""The console of a container: its output in a file of bounded size, written at a bounded rate.

The writer is hostile. Two files of 8 MiB at most; over 4 MiB in a second the pipe is left alone until the
second is over, so that a flood slows its writer and not the host. Standard library only, as the shim
imports it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from reconciler.effects.containers.record import CONSOLE, CONSOLE_OLD

MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_BYTES_PER_S = 4 * 1024 * 1024
MAX_LINE_CHARACTERS = 2000
_CHUNK = 64 * 1024


class Console:
    """A pipe (`writer` for the container, `reader` to poll) and the file that it is copied to."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / CONSOLE
        self._old = directory / CONSOLE_OLD
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        self.ended = False
        self._file = self._open()
        self._size = os.fstat(self._file).st_size
        self._second = 0.0
        self._in_second = 0

    def close_writer(self) -> None:
        """After the fork: the end of the last writer inside must be seen."""
        os.close(self.writer)

    def copy(self) -> bool:
        """Copy one chunk; False at the end of the last writer."""
        try:
            data = os.read(self.reader, _CHUNK)
        except BlockingIOError:
            return True
        if not data:
            self.ended = True
            return False
        now = time.monotonic()
        if now - self._second >= 1.0:
            self._second, self._in_second = now, 0
        self._in_second += len(data)
        self._write(data)
        return True

    def is_paused(self) -> bool:
        """Whether this second's share is used up."""
        return self._in_second > MAX_BYTES_PER_S and time.monotonic() - self._second < 1.0

    def pause_s(self) -> float:
        """Seconds until reading may go on; infinite if it is not paused."""
        return max(0.01, 1.0 - (time.monotonic() - self._second)) if self.is_paused() else float("inf")

    def drain(self) -> None:
        """Copy what the ended container left in the pipe (64 KiB by default, 1 MiB at most)."""
        for _ in range(16):
            before = self._in_second
            if self.ended or not self.copy() or self._in_second == before:
                return

    def _write(self, data: bytes) -> None:
        try:
            if self._size + len(data) > MAX_FILE_BYTES:
                os.close(self._file)
                self._path.replace(self._old)
                self._file = self._open()
                self._size = 0
            self._size += os.write(self._file, data)
        except OSError:  # a full disk loses the log, not the container
            return

    def _open(self) -> int:
        return os.open(
            self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )


def append_line(directory: Path, line: str) -> None:
    """A line of our own, when there is no container to write it."""
    with (directory / CONSOLE).open("a") as file:
        file.write(f"{line}\n")


def last_lines(directory: Path, lines: int) -> list[str]:
    """The last lines of the console, oldest first, each cut at 2000 characters; at most 2 MiB are looked
    at."""
    limit = 2 * 1024 * 1024
    data = _tail(directory / CONSOLE, limit)
    if len(data) < limit and data.count(b"\n") < lines:
        data = _tail(directory / CONSOLE_OLD, limit - len(data)) + data
    found = data.decode("utf-8", "replace").split("\n")
    if found and not found[-1]:
        found.pop()
    return [line.rstrip("\r")[:MAX_LINE_CHARACTERS] for line in found[-lines:]] if lines > 0 else []


def _tail(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read(limit)
    except FileNotFoundError:
        return b""
