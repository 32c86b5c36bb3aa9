"""Figures that a believable hive could have, the same for equal questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reconciler.control import models as api
from reconciler.errors import OperatorError
from reconciler.stats import catalogue

TOOLS = ("Bash", "Read", "Edit", "mcp__hyperhive__send", "mcp__hyperhive__recv", "Write", "Grep", "other")
_SPANS_H = {"1h": 1, "24h": 24, "7d": 168, "30d": 720, "90d": 2160}
_VALUES: Mapping[str, float] = {
    "turns_per_min": 0.067,
    "turn_duration_p50": 14.2,
    "turn_duration_p95": 187.0,
    "exit_ok": 4.0,
    "exit_failure": 0.05,
    "since_last_turn": 95.0,
    "tool_calls_per_turn": 6.25,
    "inbox_depth": 1,
    "inbox_depth_max": 7,
    "tokens_in": 1830,
    "tokens_out": 2410,
    "tokens_cache_read": 61_200,
    "tokens_cache_write": 9_400,
    "usd": 0.0193,
    "context_used": 74_000,
    "notes_bytes": 11_304,
    "rss": 251_000_000,
    "received_per_turn_operator": 0.4,
    "received_per_turn_peer": 1.1,
    "sent_per_turn_operator": 0.8,
    "approvals_pending": 2,
}


def stats_of(agents: Sequence[str], query: Mapping[str, str]) -> api.Stats:
    """An answer of hived to that query."""
    asked = query.get("agent")
    if asked is not None and asked not in agents:
        raise OperatorError(f"there is no agent {asked!r}", code="not-found")
    each = asked is not None or query.get("by") == "agent"
    keys = catalogue.chosen(query.get("keys"), TOOLS, of_agent=each)
    names: list[str | None] = [asked] if asked else [*agents] if each else [None]
    hours = _SPANS_H.get(query.get("since", "24h"), 24)
    series = [
        api.StatSeries(
            agent=name,
            key=key.name,
            unit=key.unit,
            aggregate=key.aggregate,
            told_by=key.teller.value,
            meaning=key.meaning,
            values=[(value := _value(key, place, hours))],
            total=value,
        )
        for place, name in enumerate(names)
        for key in keys
    ]
    return api.Stats(
        since="2026-11-22T12:00:00.000Z",
        until="2026-11-22T13:00:00.000Z",
        bucket_s=3600,
        times=["2026-11-22T12:00:00.000Z"],
        series=series,
    )


def _value(key: catalogue.Key, place: int, hours: int) -> float | None:
    share = 1 / (1 + place * 0.7)
    if key.name.startswith("tool_") and key.name != "tool_calls_per_turn":
        word = key.name.removeprefix("tool_")
        return round(hours * 9 * share / (1 + TOOLS.index(word))) if word in TOOLS else 0
    value = _VALUES.get(key.name, 0)
    if key.aggregate is catalogue.Aggregate.SUM:
        value = value * hours * share
        return value if key.unit == "USD" else round(value)
    if place > 3 and key.aggregate in {catalogue.Aggregate.P50, catalogue.Aggregate.P95}:
        return None
    return value * share if key.unit == "s" else value


def metrics_of(agents: Sequence[str]) -> api.MetricList:
    """One counter per agent."""
    samples = [api.Sample(labels={"agent": name, "outcome": "ok"}, value=3) for name in agents]
    odd = api.Sample(labels={"agent": 'a"b\\c\nd', "outcome": "ok"}, value=0.5)
    one = api.Metric(
        name="hyperhive_turns_total",
        kind="counter",
        help="Turns that ended, by how.",
        samples=[*samples, odd],
    )
    return api.MetricList(items=[one])
