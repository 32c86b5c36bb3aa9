"""Notes before the summary: a short turn in which the agent writes down what it must not forget.

A summary keeps what the model thinks of at that moment; the notes are the agent's own file and survive it.
The turn is limited: only the file tools, only on the notes, so many calls and so many seconds. Whatever comes
of it, the conversation is summed up afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from harness.buffer import Emit
from harness.outcomes import Facts, Result, Verdict, classify
from harness.policy.engine import Decision
from harness.wire import EventKind

NOTES_PATH = "/state/notes.md"
NOTES_S = 120.0
CALLS_MAX = 8
CALLS_ENOUGH = CALLS_MAX + 3
_STATUS = re.compile(r"(?:API Error: |\()([45]\d\d)\b")
_TOOLS = frozenset({"Read", "Edit", "Write"})
_WRITING = frozenset({"Edit", "Write"})


class Decider(Protocol):
    """What decides on calls of tools: the policy, or something narrower in front of it."""

    async def decide(self, tool: object, arguments: object, cwd: str) -> Decision: ...


class Talks(Protocol):
    """What is needed of a session."""

    async def run(self, prompt: str, emit: Emit, *, command: bool = False) -> Facts: ...
    async def interrupt(self) -> None: ...


def can_write(tools: tuple[str, ...]) -> bool:
    """Whether an agent with these built-in tools can write a file."""
    return not _WRITING.isdisjoint(tools)


@dataclass(slots=True)
class Watched:
    """What `/compact` told: the CLI's own result is a success also when it came to nothing."""

    emit: Emit
    done: bool = False
    error: str = ""

    def take(self, kind: EventKind, data: Mapping[str, Any], /) -> None:
        """Passes an event on."""
        if kind == "compaction":
            self.done = self.done or "after_tokens" in data
            self.error = str(data.get("error", ""))
        self.emit(kind, data)

    def verdict(self, told: Verdict) -> Verdict:
        """That of the CLI, or why there is no summary."""
        if told.outcome != "ok" or self.done or not self.error:
            return told
        status = _STATUS.search(self.error)
        reason = "prompt_too_long" if "too long" in self.error.lower() else "api_error"
        text = f"the conversation could not be summed up: {self.error}"
        number = int(status[1]) if status else None
        return classify(Facts(Result(True, "compaction", reason, number, text)))


class NotesOnly:
    """A policy under which nothing but the notes can be read and written, and that not for long. What the
    agent's own policy refuses stays refused. `enough` is called when the model does not stop at all."""

    def __init__(self, inner: Decider, enough: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._enough = enough
        self._calls = 0

    async def decide(self, tool: object, arguments: object, cwd: str) -> Decision:
        """The decision on one call; every call counts."""
        self._calls += 1
        if self._calls >= CALLS_ENOUGH:
            await self._enough()
        if self._calls > CALLS_MAX:
            return Decision(False, f"refused: {CALLS_MAX} calls are enough for notes; end the turn now")
        if tool not in _TOOLS or not isinstance(arguments, Mapping) or not _is_notes(arguments, cwd):
            names = ", ".join(sorted(_TOOLS))
            return Decision(False, f"refused: in this turn only {names} work, and only on {NOTES_PATH}")
        return await self._inner.decide(tool, arguments, cwd)


def _is_notes(arguments: Mapping[str, Any], cwd: str) -> bool:
    path = arguments.get("file_path")
    return isinstance(path, str) and posixpath.normpath(posixpath.join(cwd, path)) == NOTES_PATH


class Limits(Protocol):
    """Narrows what the session may do while it is entered; gives whether notes can be written at all."""

    def __call__(self, enough: Callable[[], Awaitable[None]]) -> AbstractContextManager[bool]: ...


def note_prompt(max_bytes: int) -> str:
    """What asks for the notes."""
    return (
        "hyperhive: your conversation is about to be summed up; of all that was said only a short summary "
        f"stays. Write into {NOTES_PATH} now what you must not forget: what you were asked, by whom and in "
        "which message; what is done; what is open and what comes next; decisions and their reasons; where "
        f"things lie. Keep what still holds, drop what does not, stay below {max_bytes // 1024} KiB, and "
        f"keep a heading for each matter. In this turn only Read, Edit and Write of {NOTES_PATH} work, "
        f"{CALLS_MAX} calls at most. Then end with one short sentence; this turn is read by nobody else."
    )


async def take_notes(session: Talks, limits: Limits, emit: Emit, *, max_bytes: int) -> None:
    """The turn itself. It raises nothing, ends in bounded time, and says in a `note` when it came to
    nothing."""
    with limits(session.interrupt) as able:
        if not able:
            emit("note", {"text": "no notes before the summary: tools.allow has neither Edit nor Write"})
            return
        prompt = note_prompt(max_bytes)
        emit("prompt", {"text": prompt})
        async with interrupted_after(session, NOTES_S) as late:
            verdict = classify(await session.run(prompt, emit))
    if late.is_set() and verdict.outcome == "cancelled":
        verdict = Verdict("stalled", f"it took more than {NOTES_S:.0f} s")
    if verdict.outcome != "ok":
        told = f"{verdict.outcome}: {verdict.error}" if verdict.error else verdict.outcome
        emit("note", {"text": f"no notes were taken ({told}); the conversation is summed up all the same"})


@contextlib.asynccontextmanager
async def interrupted_after(session: Talks, seconds: float) -> AsyncIterator[asyncio.Event]:
    """Interrupts what the session does in the body when it takes longer, and sets the event; the session sees
    to its end."""
    late = asyncio.Event()

    async def watch() -> None:
        await asyncio.sleep(seconds)
        late.set()
        await session.interrupt()

    watching = asyncio.create_task(watch(), name="time-limit")
    try:
        yield late
    finally:
        watching.cancel()
        await asyncio.wait({watching})
