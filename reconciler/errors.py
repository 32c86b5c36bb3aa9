"""Errors by who must act, as they cross every edge (CLI, HTTP, agent socket) in one shape.

Anything that is not a `HiveError` is a bug: it is logged with its traceback and counted, and the daemon
lives on.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass


class HiveError(Exception):
    """Base of all expected errors.

    `code` is a stable word for programs, `message` says what was attempted and found (lower case, no full
    stop), `hint` what to do next (may be empty). Neither ever holds a secret.
    """

    status = 500

    def __init__(self, message: str, *, code: str = "error", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint

    def as_json(self) -> dict[str, dict[str, str]]:
        """The error envelope of design section 11: `{"error": {"code", "message", "hint"}}`."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class OperatorError(HiveError):
    """The caller's input or request is wrong; nothing was changed. HTTP 400 unless `code` says otherwise."""

    status = 400

    def __init__(self, message: str, *, code: str = "invalid", hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)
        self.status = {
            "not-found": 404,
            "conflict": 409,
            "hello-first": 409,
            "forbidden": 403,
            "unauthenticated": 401,
            "too-large": 413,
        }.get(code, 400)


class AgentError(OperatorError):
    """What an agent asked for is refused, in words it can use."""


class TemporaryError(HiveError):
    """The world is not ready; the same request may succeed after `after_s` seconds."""

    status = 503

    def __init__(
        self, message: str, *, after_s: float = 1.0, code: str = "unavailable", hint: str = ""
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.after_s = after_s


ROOM_AFTER_S = 5.0


class DiskFullError(TemporaryError):
    """There is no room for something that must be written. Whoever meets it leaves all as it was and tries
    again later; nothing is given up for it."""

    def __init__(self, message: str) -> None:
        hint = "make room (`hive doctor` shows where); hived goes on by itself"
        super().__init__(message, after_s=ROOM_AFTER_S, code="disk-full", hint=hint)


def disk_full(error: BaseException) -> DiskFullError | None:
    """An error of the operating system as one of a full disk, if it is one."""
    if isinstance(error, DiskFullError):
        return error
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        where = f" {error.filename}" if error.filename else ""
        return DiskFullError(f"cannot write{where}: the disk is full")
    return None


class PermanentError(HiveError):
    """Retrying cannot help; somebody must change something."""


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """What is known of a program that was run: bounded tails of its output (64 KiB each at most)."""

    argv: tuple[str, ...]
    exit_code: int | None
    duration_s: float
    stdout_tail: str = ""
    stderr_tail: str = ""
    cwd: str = "/"
    timed_out: bool = False


class CommandError(PermanentError):
    """A program failed or ran out of its limits."""

    def __init__(self, record: CommandRecord, *, code: str = "command-failed") -> None:
        what = "timed out" if record.timed_out else f"exited with {record.exit_code}"
        last = (record.stderr_tail or record.stdout_tail).strip().splitlines()[-3:]
        super().__init__(
            f"{record.argv[0]} {what} after {record.duration_s:.1f} s: " + " / ".join(last), code=code
        )
        self.record = record


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason among several why something is refused (`where`: option, path or field)."""

    where: str
    why: str
    allowed: str = ""


class InvalidError(AgentError):
    """A proposal, spec or bundle that cannot be accepted; `refusals` name every reason found."""

    def __init__(
        self, message: str, refusals: tuple[Refusal, ...] = (), *, code: str = "invalid", hint: str = ""
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.refusals = refusals


__all__ = [
    "AgentError",
    "CommandError",
    "CommandRecord",
    "DiskFullError",
    "HiveError",
    "InvalidError",
    "OperatorError",
    "PermanentError",
    "Refusal",
    "TemporaryError",
    "disk_full",
]
