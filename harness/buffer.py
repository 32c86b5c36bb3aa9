"""The events of one turn that the host has not acknowledged yet. Pure; `harness.sender` sends what is in
here.

The buffer is bounded, because the host may be away for long. When it is full, new events are dropped,
counted, and one `note` in their place says how many; a `result` is always kept. Sequence numbers stay without
gaps.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from harness.wire import EVENT_TEXT_MAX, EventKind, TurnEvent

BATCH_MAX = 200
_BATCH_BYTES = 512 * 1024
_ALWAYS_KEPT = frozenset({"result", "context"})
_DEPTH_MAX = 12
_ITEMS_MAX = 500
_ITEM_COST = 20


class Emit(Protocol):
    """Takes one event of the transcript."""

    def __call__(self, kind: EventKind, data: Mapping[str, Any], /) -> object: ...


def now() -> str:
    """The present as RFC 3339, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class EventBuffer:
    """Events in order, numbered from 1."""

    def __init__(
        self, *, max_events: int = 5000, max_bytes: int = 8 * 1024 * 1024, clock: Callable[[], str] = now
    ) -> None:
        self._pending: deque[tuple[TurnEvent, int]] = deque()
        self._bytes = 0
        self._last = 0
        self._dropped = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._clock = clock

    def add(self, kind: EventKind, data: Mapping[str, Any]) -> bool:
        """Appends an event, its texts cut and cleaned; False when it was dropped because the buffer is
        full."""
        if len(self._pending) >= self._max_events or self._bytes >= self._max_bytes:
            if kind not in _ALWAYS_KEPT:
                self._dropped += 1
                return False
        elif self._dropped:
            count, self._dropped = self._dropped, 0
            self._append(
                "note", {"text": f"{count} events were dropped here: the host was away for too long"}
            )
        self._append(kind, clipped(data))
        return True

    def batch(self) -> tuple[TurnEvent, ...]:
        """The next events to send, oldest first: at most 200, and about half a megabyte; empty if all is
        acknowledged."""
        events: list[TurnEvent] = []
        size = 0
        for event, cost in self._pending:
            if events and (len(events) == BATCH_MAX or size + cost > _BATCH_BYTES):
                break
            events.append(event)
            size += cost
        return tuple(events)

    def acknowledge(self, seq: int) -> None:
        """Forgets all events up to and including `seq`."""
        while self._pending and self._pending[0][0].seq <= seq:
            self._bytes -= self._pending.popleft()[1]

    def clear(self) -> None:
        """Forgets everything: the host does not want it."""
        self.acknowledge(self._last)

    def __len__(self) -> int:
        return len(self._pending)

    def _append(self, kind: EventKind, data: dict[str, Any]) -> None:
        self._last += 1
        event = TurnEvent(seq=self._last, at=self._clock(), kind=kind, data=data)
        cost = len(json.dumps(data, ensure_ascii=False).encode()) + 100
        self._pending.append((event, cost))
        self._bytes += cost


def clipped(data: Mapping[str, Any]) -> dict[str, Any]:
    """An event's data, made safe to send: valid UTF-8, no NaN, depth and number of items bounded, and all
    texts together at most `EVENT_TEXT_MAX` characters (a text that is cut ends in `…`)."""
    clipper = _Clipper()
    return {key: clipper.value(value, 0) for key, value in list(data.items())[:_ITEMS_MAX]}


class _Clipper:
    """Counts down what may still be sent; values cost a little beside their text, so that many small ones
    end, too."""

    def __init__(self) -> None:
        self._left = EVENT_TEXT_MAX

    def value(self, value: Any, depth: int) -> Any:
        match value:
            case str():
                return self._text(value)
            case dict() if depth < _DEPTH_MAX:
                return {
                    self._text(str(key)[:200]): self.value(value[key], depth + 1) for key in self._some(value)
                }
            case list() | tuple() if depth < _DEPTH_MAX:
                return [self.value(item, depth + 1) for item in self._some(value)]
            case bool() | None:
                return value
            case int() if abs(value) < 2**63:
                return value
            case float():
                return value if math.isfinite(value) else None
            case _:
                return self._text(str(value)[:1000])

    def _some(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in itertools.islice(items, _ITEMS_MAX):
            if self._left <= 0:
                return
            self._left -= _ITEM_COST
            yield item

    def _text(self, text: str) -> str:
        kept = text if len(text) <= self._left else text[: max(0, self._left - 1)] + "…"
        self._left = max(0, self._left - len(kept))
        return kept.encode("utf-8", "replace").decode()
