"""What an answer of the API says that it used, read on the way through. Pure, without copies of the
answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LINE_LIMIT_BYTES = 1024 * 1024
NAME_LIMIT = 100
_AMOUNT_LIMIT = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request. `cache_write` includes `cache_write_1h`, the part that is kept for an hour."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    web_searches: int = 0

    @property
    def prompt_tokens(self) -> int:
        """The whole prompt, cached parts included."""
        return self.input + self.cache_read + self.cache_write


def usage_of(raw: Any, before: Usage = Usage()) -> Usage:
    """The API's `usage` object over what an earlier event of the same answer said; odd values count as
    absent."""
    if not isinstance(raw, Mapping):
        return before
    kinds = raw.get("cache_creation")
    return Usage(
        input=_amount(raw, "input_tokens", before.input),
        output=_amount(raw, "output_tokens", before.output),
        cache_read=_amount(raw, "cache_read_input_tokens", before.cache_read),
        cache_write=_amount(raw, "cache_creation_input_tokens", before.cache_write),
        cache_write_1h=_amount(kinds, "ephemeral_1h_input_tokens", before.cache_write_1h),
        web_searches=_amount(raw.get("server_tool_use"), "web_search_requests", before.web_searches),
    )


class Meter:
    """Reads usage from a stream of server-sent events that passes by in pieces of any size.

    `started`: message_start was seen, so the input is known exactly. `finished`: the final numbers were
    seen and the message ended; only then is `usage` what the request cost. `model`: which one answered, by
    the answer's own word; empty until it said so.
    """

    def __init__(self) -> None:
        self.usage = Usage()
        self.model = ""
        self.started = False
        self.finished = False
        self._totalled = False
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        """Look at the next piece."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()[:LINE_LIMIT_BYTES]  # no line with usage is that long
        for line in lines:
            if line.startswith(b"data:") and (b'"usage"' in line or b"message_stop" in line):
                self._read(line[5:])

    def read_whole(self, answer: object) -> None:
        """Read an answer that came in one piece, as JSON."""
        try:
            message = json.loads(answer) if isinstance(answer, bytes) else None
        except (ValueError, RecursionError):
            return
        if isinstance(message, dict) and isinstance(message.get("usage"), dict):
            self.usage = usage_of(message["usage"])
            self.model = _name(message.get("model"))
            self.started = self.finished = True

    def _read(self, text: bytes) -> None:
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        kind = event.get("type")
        if kind == "message_start" and isinstance(event.get("message"), dict):
            self.usage = usage_of(event["message"].get("usage"), self.usage)
            self.model = _name(event["message"].get("model"))
            self.started = True
        elif kind == "message_delta":
            self.usage = usage_of(event.get("usage"), self.usage)
            self._totalled = True
        elif kind == "message_stop":
            self.finished = self.started and self._totalled


def _name(raw: Any) -> str:
    return raw[:NAME_LIMIT] if isinstance(raw, str) else ""


def _amount(raw: Any, name: str, default: int) -> int:
    value = raw.get(name) if isinstance(raw, Mapping) else None
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _AMOUNT_LIMIT
        else default
    )
