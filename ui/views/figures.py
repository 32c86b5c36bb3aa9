"""Figures as people read them: grouped, with their units, and a dash where there is nothing to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reconciler.control.models import Stats, StatSeries
from ui import filters

SPANS: Mapping[str, str] = {
    "1h": "last hour",
    "24h": "24 hours",
    "7d": "7 days",
    "30d": "30 days",
    "90d": "90 days",
}
NOTHING = "\N{EN DASH}"
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_EXITS = ("exit_ok", "exit_compact_retry", "exit_cancelled", "exit_failure")
# The first group that fits, by how keys begin.
_GROUPS = (
    ("Turns", ("turn", "exit_", "since_")),
    ("Messages", ("inbox_", "received_", "sent_", "approvals_")),
    ("Model", ("tokens_", "usd", "context_")),
    ("Tools", ("tool_",)),
    ("Container", ("",)),
)


def shown(value: float | None, unit: str) -> str:
    """A value with its unit, short."""
    if value is None:
        return NOTHING
    match unit:
        case "USD":
            return filters.usd(value)
        case "B":
            return size(value)
        case "tokens":
            return filters.tokens(round(value))
        case "s":
            return filters.duration(value * 1000) if value else "0 s"
        case _:
            return plain(value)


def plain(value: float) -> str:
    """A number without more digits than it is worth: `1,204`, `3.25`, `0.004`."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def size(value: float) -> str:
    """Bytes: `812 B`, `3.2 KiB`, `241 MiB`, `1.3 GiB`."""
    for unit, least in (("GiB", _GIB), ("MiB", _MIB), ("KiB", _KIB)):
        if value >= least:
            number = value / least
            return f"{number:.0f} {unit}" if number >= 100 else f"{number:.1f} {unit}"
    return f"{value:.0f} B"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure and its values, one per span."""

    key: str
    unit: str
    told_by: str
    meaning: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Figures that belong together."""

    name: str
    lines: tuple[Line, ...]


def groups(answers: Sequence[Stats]) -> list[Group]:
    """Figures of several spans beside each other. A tool that was used in one of them has a line."""
    first: dict[str, StatSeries] = {}
    for answer in answers:
        for series in answer.series:
            first.setdefault(series.key, series)
    totals = [{one.key: one.total for one in answer.series} for answer in answers]
    found: dict[str, list[Line]] = {name: [] for name, _ in _GROUPS}
    for key, series in first.items():
        values = tuple(shown(one.get(key), series.unit) for one in totals)
        if key.startswith("tool_") and not any(one.get(key) for one in totals):
            continue
        line = Line(key, series.unit, series.told_by, series.meaning, values)
        found[next(name for name, begins in _GROUPS if key.startswith(begins))].append(line)
    return [Group(name, tuple(lines)) for name, lines in found.items() if lines]


@dataclass(frozen=True, slots=True)
class Summary:
    """What one agent, or the hive (`agent` empty), did in a span. `bad`: whether a turn failed."""

    agent: str
    turns: str
    failed: str
    bad: bool
    median: str
    slow: str
    calls: str
    tokens_out: str
    usd: str
    inbox_max: str
    restarts: str
    memory: str
    since: str
    busy: int


SUMMARY_KEYS = (
    *_EXITS, "turn_duration_p50", "turn_duration_p95", "tool_calls_per_turn", "tokens_out", "usd",
    "inbox_depth_max", "restarts", "rss", "since_last_turn",
)  # fmt: skip


def summary(agent: str, series: Sequence[StatSeries], busiest: float = 0) -> Summary:
    """Of the series of one agent; `busiest`: the most turns that any has, for a bar (0 to 100)."""
    total = {one.key: one.total for one in series}
    turns = turns_of(series)
    failed = total.get("exit_failure") or 0

    def text(key: str, unit: str) -> str:
        return shown(total.get(key), unit)

    return Summary(
        agent=agent,
        turns=plain(turns),
        failed=plain(failed),
        bad=failed > 0,
        median=text("turn_duration_p50", "s"),
        slow=text("turn_duration_p95", "s"),
        calls=text("tool_calls_per_turn", ""),
        tokens_out=text("tokens_out", "tokens"),
        usd=text("usd", "USD"),
        inbox_max=text("inbox_depth_max", ""),
        restarts=text("restarts", ""),
        memory=text("rss", "B"),
        since=text("since_last_turn", "s"),
        busy=round(100 * turns / busiest) if busiest else 0,
    )


def turns_of(series: Sequence[StatSeries]) -> float:
    """How many turns ended, however."""
    return sum(one.total or 0 for one in series if one.key in _EXITS)


def by_agent(answer: Stats) -> list[Summary]:
    """One line per agent, the busiest first."""
    found: dict[str, list[StatSeries]] = {}
    for one in answer.series:
        found.setdefault(one.agent or "", []).append(one)
    ordered = sorted(found.items(), key=lambda item: (-turns_of(item[1]), item[0]))
    most = max((turns_of(series) for _, series in ordered), default=0)
    return [summary(name, series, most) for name, series in ordered]


def tools(answer: Stats) -> list[tuple[str, str, int]]:
    """Tools by how often they were called: name, calls, share of the most (0 to 100)."""
    used = [
        (one.key.removeprefix("tool_"), one.total or 0)
        for one in answer.series
        if one.key.startswith("tool_")
    ]
    used = sorted(
        ((n, c) for n, c in used if c and n != "calls_per_turn"), key=lambda item: (-item[1], item[0])
    )
    most = used[0][1] if used else 1
    return [(name, plain(calls), round(100 * calls / most)) for name, calls in used]
