"""What a container tells of its turns, cut to what may be stored: known fields of the right type, texts and
numbers within bounds, and a budget of bytes per agent. Pure but for the clock that is passed in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from harness import wire
from reconciler.errors import AgentError
from reconciler.model.instants import MICRO, parse_stamp
from reconciler.store.events import SEQ_END, Line

INPUT_MAX_BYTES = 256 * 1024
WORD_MAX = 200
NUMBER_MAX = 2**53
SERVERS_MAX = 50
LINES_PER_TURN = 20_000
BURST_BYTES = 64 * 1024 * 1024
BYTES_PER_S = 32 * 1024
_CUT = " … [cut]"

Clean = Callable[[Any, str], Any]


class _OddError(Exception):
    """A field is not what the wire models say."""


def _text(limit: int) -> Clean:
    def clean(value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise _OddError(f"{where} is not a text")
        return value if len(value) <= limit else value[:limit] + _CUT

    return clean


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _OddError(f"{where} is neither true nor false")
    return value


def _number(value: Any, where: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= NUMBER_MAX:
        raise _OddError(f"{where} is not a number from 0 to 2^53")
    return value


def _tokens(value: Any, where: str) -> int:
    return int(_number(value, where))


def _tree(value: Any, _: str) -> Any:
    """Any JSON, replaced by a note of its size when it is too large or too deep."""
    try:
        size = len(json.dumps(value, allow_nan=False))
    except (RecursionError, ValueError):
        return {"cut": "nested too deeply, or a number that is none"}
    if size <= INPUT_MAX_BYTES:
        return value
    return {"cut": f"{size} bytes, the limit is {INPUT_MAX_BYTES}"}


def _servers(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise _OddError(f"{where} is not a list of servers")
    return [
        {
            "name": _text(WORD_MAX)(one.get("name"), "name"),
            "status": _text(WORD_MAX)(one.get("status"), "status"),
            "tools": _tokens(one.get("tools"), "tools"),
            "error": _text(500)(one.get("error", ""), "error"),
        }
        for one in value[:SERVERS_MAX]
    ]


_word, _long = _text(WORD_MAX), _text(wire.EVENT_TEXT_MAX)

# Kind → field → (how to clean it, whether it must be there); the table of harness.wire.TurnEvent.
FIELDS: Mapping[str, Mapping[str, tuple[Clean, bool]]] = {
    "prompt": {"text": (_long, True)},
    "text": {"text": (_long, True)},
    "thinking": {"text": (_long, True)},
    "tool_call": {"id": (_word, True), "name": (_word, True), "input": (_tree, True)},
    "tool_result": {
        "id": (_word, True),
        "text": (_long, True),
        "is_error": (_flag, True),
        "duration_ms": (_number, False),
    },
    "policy_refusal": {"tool": (_word, True), "command": (_long, False), "reason": (_long, True)},
    "note": {"text": (_long, True)},
    "stderr": {"text": (_long, True)},
    "model": {"model": (_word, True)},
    "compaction": {
        "before_tokens": (_tokens, True),
        "after_tokens": (_tokens, False),
        "error": (_word, False),
    },
    "result": {
        "is_error": (_flag, True),
        "subtype": (_word, True),
        "terminal_reason": (_word, False),
        "api_error_status": (_number, False),
        "duration_ms": (_number, True),
        "num_turns": (_number, True),
        "text": (_long, False),
    },
    "context": {"used_tokens": (_tokens, True), "window_tokens": (_tokens, True)},
    "mcp": {"servers": (_servers, True)},
    "notes": {"before_bytes": (_tokens, True), "after_bytes": (_tokens, False), "error": (_long, False)},
}


def clean(event: wire.TurnEvent, *, now: int) -> Line:
    """The line that is stored for an event: known fields only, null is absent, a time of no sense becomes
    `now` (microseconds). Of a malformed event a note stays: one oddity must not hold up the rest."""
    if event.seq >= SEQ_END:
        raise AgentError(f"seq {event.seq} is too large")
    at = _instant(event.at, now)
    try:
        return Line(event.seq, at, event.kind, _fields(event))
    except _OddError as error:
        return Line(event.seq, at, "note", {"text": f"left out, malformed: {event.kind}: {error}"})


def _fields(event: wire.TurnEvent) -> dict[str, Any]:
    data = {}
    for name, (cleaner, needed) in FIELDS[event.kind].items():
        value = event.data.get(name)
        if value is not None:
            data[name] = cleaner(value, name)
        elif needed:
            raise _OddError(f"{name} is missing")
    return data


def _instant(text: str, now: int) -> int:
    try:
        at = parse_stamp(text[:64])
    except (ValueError, OverflowError):
        return now
    return at if now - 86_400 * MICRO < at <= now else now


class Allowance:
    """How many bytes an agent may still have stored: a bucket that fills slowly. Seconds are monotonic."""

    def __init__(self, burst: int = BURST_BYTES, per_s: int = BYTES_PER_S) -> None:
        self._burst = burst
        self._per_s = per_s
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, agent: str, size: int, now_s: float) -> bool:
        """Whether `size` bytes fit; if so they are taken."""
        level, at = self._levels.get(agent, (float(self._burst), now_s))
        level = min(self._burst, level + (now_s - at) * self._per_s)
        fits = size <= level
        self._levels[agent] = (level - size if fits else level, now_s)
        return fits
