"""How often one agent may call: a bucket of tokens for each sort of call, so that nobody inside a container
can fill the host's databases with rows. Pure but for the time that is passed in.

The figures are several times what the harness sends in its busiest minutes; over a day they bound the rows
that one agent can cause to about what the host prunes without being noticed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from reconciler.errors import TemporaryError

Sort = Literal["hello", "turns", "lines", "acts", "uploads", "reads"]


@dataclass(frozen=True, slots=True)
class Rate:
    """A bucket that holds `burst` calls and gets `per_s` back each second."""

    burst: float
    per_s: float


RATES: Mapping[Sort, Rate] = {
    "hello": Rate(120, 1.5),  # a harness that waits for its first approval asks once a second
    "turns": Rate(300, 2.0),  # a turn is two: its begin and its end
    "lines": Rate(1200, 20.0),  # a batch of a transcript goes out when the one before has arrived
    "acts": Rate(300, 2.0),  # messages, questions, naps, status, leases, steering others
    "uploads": Rate(60, 0.2),  # proposals and drafts
    "reads": Rate(600, 20.0),  # long polls and looks
}

TEXT_BYTES = 4096
"""An act with a body counts once more for each so many bytes."""


class Meter:
    """One bucket. Seconds are monotonic."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._level = rate.burst
        self._at = -math.inf
        self._told = False

    def take(self, cost: float, now_s: float) -> tuple[float, bool]:
        """Take `cost` (at most a whole burst) if it is there. After how many seconds it will be (0: it was
        taken), and whether this refusal is the first since the bucket was full."""
        rate = self._rate
        level = min(rate.burst, self._level + max(0.0, now_s - self._at) * rate.per_s)
        self._at = now_s
        if level >= rate.burst:
            self._told = False
        cost = min(cost, rate.burst)
        if cost <= level:
            self._level = level - cost
            return 0.0, False
        self._level = level
        first, self._told = not self._told, True
        return (cost - level) / rate.per_s, first


class TooManyError(TemporaryError):
    """429: the agent calls more often than any honest harness does. `first`: of this burst."""

    status = 429

    def __init__(self, sort: Sort, after_s: float, *, first: bool) -> None:
        super().__init__(
            f"too many calls of this sort ({sort}) in a short time",
            after_s=after_s,
            code="too-many",
            hint=f"wait {math.ceil(after_s)} s, and do less at a time",
        )
        self.sort = sort
        self.first = first


class Meters:
    """All buckets of one agent."""

    def __init__(self, rates: Mapping[Sort, Rate] = RATES) -> None:
        self._meters = {sort: Meter(rate) for sort, rate in rates.items()}

    def take(self, sort: Sort, cost: float, now_s: float) -> TooManyError | None:
        """Count a call; what to answer if it is one too many."""
        wait_s, first = self._meters[sort].take(cost, now_s)
        return TooManyError(sort, wait_s, first=first) if wait_s else None
