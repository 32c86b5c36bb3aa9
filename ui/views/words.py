"""How states look: glyph, word and class for each, in one place. Shape and word always, colour never
alone."""

from __future__ import annotations

from typing import Literal

GLYPHS = {
    "thinking": "●",
    "compacting": "●",
    "idle": "○",
    "napping": "◐",
    "starting": "◌",
    "parked": "▲",
    "held": "▲",
    "stopped": "■",
    "crashed": "✕",
    # proposals
    "examining": "◌",
    "pending": "▲",
    "approved": "●",
    "building": "●",
    "activating": "●",
    "deployed": "✓",
    "invalid": "✕",
    "denied": "■",
    "superseded": "○",
    "cancelled": "■",
    "failed": "✕",
}
# Classes carry the colour: `work` accent-less busy, `calm`, `asks` the operator, `bad`, `good`, `off`.
STATE_CLASS = {
    "thinking": "work",
    "compacting": "work",
    "idle": "calm",
    "napping": "calm",
    "starting": "calm",
    "parked": "warn",
    "held": "warn",
    "stopped": "off",
    "crashed": "bad",
    "examining": "calm",
    "pending": "asks",
    "approved": "work",
    "building": "work",
    "activating": "work",
    "deployed": "done",
    "invalid": "bad",
    "denied": "off",
    "superseded": "off",
    "cancelled": "off",
    "failed": "bad",
}
RISKS = {"low": "low", "elevated": "elevated", "dangerous": "dangerous"}

LEGEND = (
    ("●", "work", "thinking, compacting", "a turn is going on"),
    ("○", "calm", "idle", "waits for a message"),
    ("◐", "calm", "napping 😴", "asked not to be woken for a while"),
    ("◌", "calm", "starting", "the container is coming up"),
    (
        "▲",
        "warn",
        "parked, held",
        "parked waits for a limit to pass; held was stopped by the hive, or by you",
    ),
    ("■", "off", "stopped", "you stopped it"),
    ("✕", "bad", "crashed", "its container ended by itself"),
)


def state_clock(state: str, until: str | None) -> Literal["clock", "until", "age"]:
    """How an agent's state counts: work runs up by the second, a nap runs down, rest is told roughly."""
    if until is not None and state in {"napping", "parked"}:
        return "until"
    return "clock" if state in {"thinking", "compacting", "starting"} else "age"
