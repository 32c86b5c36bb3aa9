"""What a Nix client says while it builds (`--log-format internal-json`): plain lines, and how far it is.

Each line of the client is one JSON object after `@nix `; the words of builders are strings inside. A builder
may be hostile: whatever it prints ends as text of the log, and can neither move the count nor name a
derivation. What is no such object is a plain line.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Sequence
from typing import Any

from reconciler.effects.protocols import BuildProgress, LogSink, ProgressSink

LINE_BYTES = 256 * 1024  # of the client: one line of a builder, escaped
LINES_MAX = 20_000
_TAIL_LINES = 100
_SHOWN = 4096
_ACTIVITIES_MAX = 4096
_RUNNING_SHOWN = 8
_INFO = 3
_BUILDS, _BUILD, _SUBSTITUTE = 104, 105, 108  # activities
_LOG_LINE, _PROGRESS, _POST_BUILD_LINE = 101, 105, 107  # results
_DERIVATION = re.compile(r"/[0-9a-z]{32}-([A-Za-z0-9+._?=-]{1,207})\.drv")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class BuildOutput:
    """Takes the client's lines one by one. `tail` holds the last plain lines, for the error of a build that
    fails."""

    def __init__(self, log: LogSink, progress: ProgressSink | None) -> None:
        self._log = log
        self._progress = progress
        self._lines = 0
        self._counts: dict[int, tuple[int, int]] = {}
        self._running: dict[int, str] = {}
        self._told: BuildProgress | None = None
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)

    async def take(self, line: str) -> None:
        """One line of standard error."""
        entry = _entry(line)
        if entry is None:
            await self._say(line if not line.startswith("@nix ") else "[a line of the log cannot be read]")
            return
        match entry.get("action"):
            case "msg" if _number(entry.get("level")) <= _INFO:
                await self._say(_text(entry.get("msg")))
            case "start":
                await self._start(entry)
                self._tell()
            case "stop":
                self._running.pop(_number(entry.get("id")), None)
                self._tell()
            case "result":
                await self._result(entry)

    async def end(self) -> None:
        """The client has ended: say how much was left out."""
        if self._lines > LINES_MAX:
            await self._log(f"[the log is too long: {self._lines - LINES_MAX} lines were left out]")

    # ------------------------------------------------------------------------------------------- inner
    async def _start(self, entry: dict[str, Any]) -> None:
        activity, kind = _number(entry.get("id")), _number(entry.get("type"))
        if kind == _BUILDS and len(self._counts) < _ACTIVITIES_MAX:
            self._counts[activity] = (0, 0)
        elif kind == _BUILD and len(self._running) < _ACTIVITIES_MAX:
            found = _DERIVATION.search(_text(_first(entry.get("fields"))))
            if found is not None:
                self._running[activity] = found[1]
        if kind in {_BUILD, _SUBSTITUTE}:
            await self._say(_text(entry.get("text")))

    async def _result(self, entry: dict[str, Any]) -> None:
        activity, fields = _number(entry.get("id")), entry.get("fields")
        match _number(entry.get("type")):
            case result if result in {_LOG_LINE, _POST_BUILD_LINE}:
                name = self._running.get(activity) if len(self._running) > 1 else None
                await self._say(f"{name}> {_text(_first(fields))}" if name else _text(_first(fields)))
            case result if result == _PROGRESS and activity in self._counts and isinstance(fields, list):
                done, expected = (_number(field) for field in [*fields, 0, 0][:2])
                self._counts[activity] = (max(0, done), max(0, expected))
                self._tell()

    async def _say(self, text: str) -> None:
        for line in _COLOUR.sub("", text).splitlines():
            self._lines += 1
            self.tail.append(line[:_SHOWN])
            if self._lines <= LINES_MAX:
                await self._log(line[:_SHOWN])

    def _tell(self) -> None:
        now = BuildProgress(
            built=sum(done for done, _ in self._counts.values()),
            expected=sum(max(done, expected) for done, expected in self._counts.values()),
            running=tuple(list(self._running.values())[:_RUNNING_SHOWN]),
        )
        if self._progress is not None and now != self._told:
            self._told = now
            self._progress(now)


def _entry(line: str) -> dict[str, Any] | None:
    if not line.startswith("@nix {"):
        return None
    try:
        found = json.loads(line[5:])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _number(value: object) -> int:
    """An integer of 53 bits; -1 for everything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else -1


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _first(value: object) -> object:
    return value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else None
