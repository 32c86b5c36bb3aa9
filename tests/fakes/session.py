"""A session without a CLI: each run plays what the test put into `plays`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from harness.buffer import Emit
from harness.outcomes import Facts, Result, Verdict
from harness.turn import Between, Runner
from harness.wire import Welcome

GOOD = Facts(Result(is_error=False, subtype="success", terminal_reason="completed"))
ABORTED = Facts(
    Result(is_error=True, subtype="error_during_execution", terminal_reason="aborted_streaming"),
    cancelled=True,
)
TOO_LONG = Facts(Result(is_error=True, subtype="success", terminal_reason="prompt_too_long", text="too long"))

Play = Callable[[Emit], Awaitable[Facts]]


async def well(emit: Emit) -> Facts:
    """A turn that says a word and ends well."""
    emit("text", {"text": "done"})
    return GOOD


async def compacts(emit: Emit) -> Facts:
    """What `/compact` tells when it worked."""
    emit("compaction", {"before_tokens": 9})
    emit("compaction", {"before_tokens": 9, "after_tokens": 2})
    return GOOD


class FakeSession:
    """Plays one after the other, then `well` for ever. `prompts` are what was asked."""

    def __init__(self, *plays: Play) -> None:
        self.context: tuple[int, int] | None = None
        self.plays = list(plays)
        self.prompts: list[str] = []
        self.interrupted = asyncio.Event()
        self.closed = 0
        self._open = False

    @property
    def is_open(self) -> bool:
        return self._open

    async def run(self, prompt: str, emit: Emit, *, command: bool = False) -> Facts:
        self._open = True
        self.prompts.append(prompt)
        self.interrupted.clear()
        play = self.plays.pop(0) if self.plays else well
        return await play(emit)

    async def until_interrupted(self, _emit: Emit) -> Facts:
        """A play that only an interrupt ends."""
        await self.interrupted.wait()
        return ABORTED

    async def interrupt(self) -> None:
        self.interrupted.set()

    async def close(self) -> None:
        self._open = False
        self.closed += 1


class FakeBetween:
    """Notes what the loop asked for between turns."""

    def __init__(self, compact_at: float = 0.75) -> None:
        self.asked: list[tuple[str, str]] = []
        self.notes_due = False
        self._compact_at = compact_at

    async def take_model(self, model: str) -> None:
        self.asked.append(("model", model))

    async def take_session(self, session_id: str) -> None:
        self.asked.append(("session", session_id))

    async def take_welcome(self, welcome: Welcome) -> None:
        self.asked.append(("welcome", welcome.model))

    async def refresh_trees(self) -> None:
        self.asked.append(("repos", ""))

    def compact_at(self) -> float:
        return self._compact_at

    def has_conversation(self) -> bool:
        return True

    async def take_notes(self, emit: Emit) -> None:
        emit("note", {"text": "noted"})
        self.asked.append(("take-notes", ""))

    async def notes_are_due(self) -> bool:
        due, self.notes_due = self.notes_due, False
        return due

    async def rewrite_notes(self, emit: Emit) -> Verdict:
        emit("notes", {"before_bytes": 9, "after_bytes": 5})
        self.asked.append(("rewrite-notes", ""))
        return Verdict("ok")

    async def interrupt(self) -> None:
        self.asked.append(("interrupt", ""))


def _checked(session: FakeSession, between: FakeBetween) -> tuple[Runner, Between]:
    """mypy: the fakes are what the loop takes."""
    return session, between
