"""How long a build may still take: a guess from earlier builds and from what is done of this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_ENOUGH_BUILT = 3


@dataclass(frozen=True, slots=True)
class BuildState:
    """A build that is under way, seen now. `queued`: others have all slots. `left_s`: a guess, None without
    one."""

    queued: bool
    built: int
    expected: int
    running: tuple[str, ...]
    elapsed_s: float
    left_s: float | None


def typical_s(durations_s: Sequence[float]) -> float | None:
    """The median of earlier builds; None without any."""
    ordered = sorted(duration for duration in durations_s if duration >= 0)
    if not ordered:
        return None
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def left_s(elapsed_s: float, built: int, expected: int, usual_s: float | None) -> float | None:
    """Seconds that a build still needs, never negative; None if nothing can be said.

    Earlier builds know best, until this one takes longer than they did. Then, and without them, the pace so
    far tells, once a few of the derivations are built.
    """
    if usual_s is not None and elapsed_s < usual_s:
        return usual_s - elapsed_s
    if built >= _ENOUGH_BUILT and expected > built:
        return elapsed_s * (expected - built) / built
    return None
