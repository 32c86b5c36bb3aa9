"""Why a command did not do what it was asked, and its exit status."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit statuses of every verb."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    WAITS = 3  # for an approval


class Failure(Exception):  # noqa: N818 - it says what it is
    """Ends a command: `message` (may be hostile text), `hint` (may be empty), `code` as in the envelope."""

    def __init__(
        self, message: str, hint: str = "", *, code: str = "failed", status: Exit = Exit.FAILED
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.status = status

    def envelope(self) -> dict[str, dict[str, str]]:
        """The same shape as the API's errors."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class Unreachable(Failure):
    """Nobody answers at the socket; what waits for something may try again."""


class WentAway(Unreachable):
    """hived took the call and ended before its answer: whether it took effect is not known."""
