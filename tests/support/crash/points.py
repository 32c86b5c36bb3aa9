"""Faults in hived's effects: at the n-th call of one kind, fail, hang, or kill hived before or after it.

A point is `label#n`. The label says what is called (`containers.start smith`, `commit state: outbox`), never
when: so the point of one run is found again in the next, whatever went on beside it. Points count from when
the file `armed` appears, over all restarts; each is written to the file `trace` when it is reached.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from reconciler.errors import TemporaryError

T = TypeVar("T")
Kind = Literal["fail", "full", "hang", "die-before", "die-amid", "die-after"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DEATHS: tuple[Kind, ...] = ("die-before", "die-after")

AMID_S = 0.03

# What only reads: to die around it is to die after what was done before it. (`release` is asked at every
# look, and changes something hardly ever.)
READS = frozenset({
    "status", "list", "logs", "changes", "evaluate", "generations", "check_tree", "exists", "tags", "main",
    "extract", "read", "diff", "bundle", "is_ancestor", "agent_is_ready", "freeze_state", "selected",
    "release", "statuses", "runs",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` at the point `at`; `full` is an error of a full disk, `die-amid` a death while the call is under
    way."""

    at: str
    kind: Kind


def reached(directory: Path) -> list[str]:
    """The points that were reached so far, in order."""
    try:
        return (directory / "trace").read_text().splitlines()
    except FileNotFoundError:
        return []


def _no_room(label: str) -> BaseException:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), label)


class Points:
    """All points of one hived."""

    def __init__(self, directory: Path, faults: Sequence[Fault]) -> None:
        self._armed = directory / "armed"
        self._trace = os.open(directory / "trace", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._faults = {fault.at: fault.kind for fault in faults}
        # Counted over all lives of hived: each fault happens once, and a later one after an earlier one.
        self._counts = Counter(point.rpartition("#")[0] for point in reached(directory))

    async def around(
        self,
        label: str,
        act: Callable[[], Awaitable[T]],
        *,
        full: Callable[[str], BaseException] = _no_room,
    ) -> T:
        """An asynchronous call. `full` makes its error of a full disk."""
        kind = self._reach(label)
        if kind == "hang":
            await asyncio.Event().wait()
        self._before(kind, label, full)
        if kind == "die-amid":
            asyncio.get_running_loop().call_later(AMID_S, _die)
        result = await act()
        if kind in {"die-after", "die-amid"}:
            _die()
        return result

    def around_at_once(self, label: str, act: Callable[[], T]) -> T:
        """A synchronous call; it cannot hang."""
        kind = self._reach(label)
        self._before(kind, label, _no_room)
        result = act()
        if kind in {"die-after", "die-amid"}:
            _die()
        return result

    def _reach(self, label: str) -> Kind | None:
        if not self._armed.exists():
            return None
        self._counts[label] += 1
        point = f"{label}#{self._counts[label]}"
        os.write(self._trace, f"{point}\n".encode())
        return self._faults.get(point)

    @staticmethod
    def _before(kind: Kind | None, label: str, full: Callable[[str], BaseException]) -> None:
        if kind == "die-before":
            _die()
        if kind == "fail":
            raise TemporaryError(f"injected: {label} failed", after_s=0.01)
        if kind == "full":
            raise full(label)


class Pointed:
    """An effect whose changing calls are points."""

    def __init__(self, inner: object, points: Points, prefix: str) -> None:
        self._inner = inner
        self._points = points
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found) or name in READS:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            subject = [str(a) for a in args[:2] if isinstance(a, str | int) and len(str(a)) < 40]
            name_of = getattr(args[0], "name", None) if args else None
            words = subject or [str(name_of)]
            return self._points.around(
                f"{self._prefix}.{name} {' '.join(words)}", lambda: found(*args, **kwargs)
            )

        return call


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
