"""From what the host saw to rows of figures. Pure: equal input makes equal rows, so that counting twice is
harmless."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from reconciler.model.instants import MICRO
from reconciler.model.names import OPERATOR, SYSTEM
from reconciler.stats.catalogue import TOOL_OTHER, TOOL_PREFIX, TOOLS_MAX, tool_word

DURATIONS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""Edges of the histogram of turns' durations among the totals."""


class Row(NamedTuple):
    """One row: agent, instant (microseconds), key, value, and the number of the turn or message it is of."""

    agent: str
    ts: int
    key: str
    value: float
    source: int = 0


@dataclass(frozen=True, slots=True)
class EndedTurn:
    """A turn as the host's own record of it says. `tools`: how often each tool was called, as the container
    told; `compacted`: it failed, the conversation was compacted, and it was tried again (told by it, too).
    `received`, `sent`: messages by party (see `catalogue.PARTIES`). Instants in microseconds."""

    id: int
    agent: str
    outcome: str
    begun_at: int
    ended_at: int
    received: Mapping[str, int] = field(default_factory=dict)
    sent: Mapping[str, int] = field(default_factory=dict)
    inbox_depth: int | None = None
    tools: Mapping[str, int] = field(default_factory=dict)
    compacted: bool = False


def party(name: str, manager: str | None) -> str:
    """Which party a sender or recipient is."""
    if name in {OPERATOR, SYSTEM}:
        return name
    return "manager" if name == manager else "peer"


def by_party(names: Mapping[str, int], manager: str | None) -> dict[str, int]:
    """Numbers of messages by who, as numbers by party."""
    found: Counter[str] = Counter()
    for name, count in names.items():
        found[party(name, manager)] += count
    return dict(found)


def exit_key(outcome: str, *, compacted: bool) -> str:
    """How the turn ended, as a key."""
    match outcome:
        case "ok":
            return "exit_compact_retry" if compacted else "exit_ok"
        case "cancelled":
            return "exit_cancelled"
        case _:
            return "exit_failure"


def fold_tools(told: Mapping[str, int], known: Iterable[str]) -> dict[str, int]:
    """Calls by the tool's word. At most `TOOLS_MAX` words per agent, `known` ones first, then those that were
    called most; the rest is one."""
    words: Counter[str] = Counter()
    for name, count in told.items():
        words[tool_word(name)] += count
    own = set(known) - {TOOL_OTHER}
    found: Counter[str] = Counter()
    for word, count in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        if word not in own and word != TOOL_OTHER and len(own) < TOOLS_MAX:
            own.add(word)
        found[word if word in own else TOOL_OTHER] += count
    return dict(found)


def turn_rows(turn: EndedTurn, tools: Mapping[str, int]) -> list[Row]:
    """All rows of a turn; `tools` as folded. What did not happen has no row: no row is a zero."""
    values: dict[str, float] = {
        "turn_duration": max(0, turn.ended_at - turn.begun_at) / MICRO,
        exit_key(turn.outcome, compacted=turn.compacted): 1,
    }
    values["tool_calls"] = sum(tools.values())
    values |= {TOOL_PREFIX + word: count for word, count in tools.items()}
    values |= {f"received_{who}": count for who, count in turn.received.items()}
    values |= {f"sent_{who}": count for who, count in turn.sent.items()}
    rows = [Row(turn.agent, turn.ended_at, key, value, turn.id) for key, value in values.items() if value]
    if not values["turn_duration"]:
        rows.append(Row(turn.agent, turn.ended_at, "turn_duration", 0, turn.id))
    if turn.inbox_depth is not None:
        rows.append(Row(turn.agent, turn.ended_at, "inbox_depth", turn.inbox_depth, turn.id))
    return rows


_LEVELS = frozenset({"inbox_depth"})


def totals(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """What these rows add to the sums that are never pruned, by agent and key; a duration also to its
    histogram."""
    found: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.key in _LEVELS:
            continue
        found[row.agent, row.key] += row.value  # type: ignore[assignment]
        if row.key == "turn_duration":
            found[row.agent, "turns"] += 1
            for edge in DURATIONS_S:
                if row.value <= edge:
                    found[row.agent, f"turn_duration_le_{edge}"] += 1
    return dict(found)


class Spent(NamedTuple):
    """One row of the gateway's ledger: an agent, a host-local day (YYYY-MM-DD), a model."""

    agent: str
    day: str
    model: str
    input: int
    output: int
    cache_read: int
    cache_write: int
    usd_micro: int

    @property
    def amounts(self) -> tuple[int, int, int, int, int]:
        """The numbers, in the order of `AMOUNTS`."""
        return self[3:]


AMOUNTS = ("tokens_in", "tokens_out", "tokens_cache_read", "tokens_cache_write", "usd")


def spent_rows(ledger: Iterable[Spent], counted: Mapping[tuple[str, str, str], Spent], now: int) -> list[Row]:
    """What the ledger has grown by since it was counted. What was spent on a day before today is of the end
    of that day. A row that shrank is of a ledger that was begun anew: from there on it is counted."""
    today = dt.datetime.fromtimestamp(now / MICRO, dt.UTC).astimezone().date().isoformat()
    grown: Counter[tuple[str, int, str]] = Counter()
    for row in ledger:
        before = counted.get((row.agent, row.day, row.model))
        ts = now if row.day >= today else day_end(row.day)
        for place, name in enumerate(AMOUNTS):
            more = row.amounts[place] - (before.amounts[place] if before else 0)
            if more > 0:
                grown[row.agent, ts, name] += more
    return [
        Row(agent, ts, key, value / MICRO if key == "usd" else value)
        for (agent, ts, key), value in grown.items()
    ]


def day_end(day: str) -> int:
    """The last second of a host-local day, in microseconds."""
    end = dt.datetime.fromisoformat(f"{day}T23:59:59").astimezone()
    return int(end.timestamp() * MICRO)


@dataclass(slots=True)
class Levels:
    """Which samples are worth a row: changed ones at once, others now and then, so that an idle hive writes
    little and its last value is never older than `every` (microseconds)."""

    every: int
    _last: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)

    def due(self, samples: Iterable[Row]) -> list[Row]:
        """Those of `samples` to write; they count as written."""
        found = []
        for row in samples:
            at, value = self._last.get((row.agent, row.key), (0, -1.0))
            if _differs(row.key, row.value, value) or row.ts - at >= self.every:
                self._last[row.agent, row.key] = (row.ts, row.value)
                found.append(row)
        return found

    def keep(self, agents: Sequence[str]) -> None:
        """Forget all others."""
        names = set(agents)
        self._last = {key: value for key, value in self._last.items() if key[0] in names}


def _differs(key: str, value: float, before: float) -> bool:
    # Memory never stands still: a change by less than a sixteenth is none.
    return abs(value - before) > before / 16 if key == "rss" and before > 0 else value != before
