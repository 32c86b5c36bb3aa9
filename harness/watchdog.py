"""When a turn has stalled: silence of the model before its first byte, between bytes, or of a tool. Pure.

The command line has limits of its own, which are longer or, for a stream, do not hold; these end a turn
whatever it waits for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Waiting = Literal["first byte", "next byte", "tool"]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long each silence may last, in seconds."""

    first_byte_s: float
    next_byte_s: float
    tool_s: float

    def of(self, waiting: Waiting) -> float:
        """The limit for what is waited for."""
        return {"first byte": self.first_byte_s, "next byte": self.next_byte_s, "tool": self.tool_s}[waiting]

    @property
    def shortest_s(self) -> float:
        """No check need come more often than a part of this."""
        return min(self.first_byte_s, self.next_byte_s, self.tool_s)


def stall(waiting: Waiting, silent_s: float, patience: Patience, tools: tuple[str, ...]) -> str | None:
    """Why the turn has stalled, in words; None if it has not. `tools`: the calls without a result yet."""
    limit = patience.of(waiting)
    if silent_s <= limit:
        return None
    match waiting:
        case "tool":
            named = ", ".join(tools)[:200] or "a tool"
            return f"{named} gave no result and no sign of life for {limit:.0f} s"
        case "first byte":
            return f"the model did not begin to answer within {limit:.0f} s"
        case "next byte":
            return f"the model's answer stopped in the middle for {limit:.0f} s"
