"""Metrics for a monitor: totals become counters, levels become gauges. Pure.

Labels have values that are bounded: agents that exist, tools that have a key, closed sets. Counters are of
all time, so that neither pruning nor a restart of any process lowers them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from reconciler.control import models as api
from reconciler.model.instants import MICRO
from reconciler.stats.catalogue import BY_NAME, GAUGES, PARTIES, TOOL_PREFIX
from reconciler.stats.counting import DURATIONS_S
from reconciler.stats.series import CARRY

PREFIX = "hyperhive_"
_GAUGES = {
    "notes_bytes": "notes_bytes",
    "rss": "memory_bytes",
    "context_used": "context_used_tokens",
}
Totals = Mapping[str, Mapping[str, float]]
Last = Mapping[tuple[str, str], tuple[int, float]]
_OUTCOMES = ("ok", "compact_retry", "cancelled", "failure")
_TOKENS = ("in", "out", "cache_read", "cache_write")


def metrics(
    names: Sequence[str], totals: Totals, last: Last, *, pending: int, depths: Mapping[str, int], now: int
) -> list[api.Metric]:
    """All metrics of these agents. `last`: the last row of each level; `depths`: messages that wait."""

    def of(name: str, key: str) -> float:
        return totals.get(name, {}).get(key, 0.0)

    def each(labels: Callable[[str], list[tuple[dict[str, str], float]]]) -> list[api.Sample]:
        return [
            api.Sample(labels={"agent": name} | more, value=value)
            for name in names
            for more, value in labels(name)
        ]

    def level(key: str) -> list[api.Sample]:
        found = [(name, *last.get((name, key), (0, 0.0))) for name in names]
        return [api.Sample(labels={"agent": n}, value=value) for n, at, value in found if now - at <= CARRY]

    return [
        _metric(
            "agents", "gauge", "Agents that are not destroyed.", [api.Sample(labels={}, value=len(names))]
        ),
        _metric(
            "approvals_pending", "gauge", "Proposals that wait for a decision.",
            [api.Sample(labels={}, value=pending)],
        ),
        _metric(
            "turns_total", "counter", "Turns that ended, by how.",
            each(lambda n: [({"outcome": o}, of(n, f"exit_{o}")) for o in _OUTCOMES]),
        ),
        _metric("turn_duration_seconds", "histogram", "How long turns took.", _histogram(names, of)),
        _metric(
            "tool_calls_total", "counter", "Tool calls, as containers tell.",
            each(lambda n: [
                ({"tool": key.removeprefix(TOOL_PREFIX)}, value)
                for key, value in sorted(totals.get(n, {}).items())
                if key.startswith(TOOL_PREFIX) and key != "tool_calls"
            ]),
        ),
        _metric(
            "messages_total", "counter", "Messages that turns were given and sent, by the other side.",
            each(lambda n: [
                ({"direction": way, "with": who}, of(n, f"{way}_{who}"))
                for way in ("received", "sent") for who in PARTIES
            ]),
        ),
        _metric(
            "tokens_total", "counter", "Tokens, as the gateway counts them.",
            each(lambda n: [({"kind": kind}, of(n, f"tokens_{kind}")) for kind in _TOKENS]),
        ),
        _metric(
            "cost_usd_total", "counter", "US dollars, by the gateway's prices.",
            each(lambda n: [({}, of(n, "usd"))]),
        ),
        _metric(
            "restarts_total", "counter", "Starts of the container after its first one.",
            each(lambda n: [({}, of(n, "restarts"))]),
        ),
        _metric(
            "inbox_messages", "gauge", "Messages that wait, those in turns left out.",
            each(lambda n: [({}, depths.get(n, 0))]),
        ),
        *(
            _metric(
                _GAUGES[key], "gauge", _sentence(BY_NAME[key].meaning),
                level(key),
            )
            for key in GAUGES if key in _GAUGES
        ),
        _metric(
            "since_last_turn_seconds", "gauge", "Since the end of the last turn that ended.",
            each(lambda n: [
                ({}, max(0, now - at) / MICRO) for at, _ in [last.get((n, "turn_duration"), (0, 0.0))] if at
            ]),
        ),
    ]  # fmt: skip


def _histogram(names: Sequence[str], of: Callable[[str, str], float]) -> list[api.Sample]:
    found = []
    for name in names:
        count = of(name, "turns")
        edges = [(str(edge), of(name, f"turn_duration_le_{edge}")) for edge in DURATIONS_S]
        for edge, value in [*edges, ("+Inf", count)]:
            found.append(api.Sample(suffix="_bucket", labels={"agent": name, "le": edge}, value=value))
        found.append(api.Sample(suffix="_sum", labels={"agent": name}, value=of(name, "turn_duration")))
        found.append(api.Sample(suffix="_count", labels={"agent": name}, value=count))
    return found


def _metric(name: str, kind: str, text: str, samples: list[api.Sample]) -> api.Metric:
    return api.Metric.model_validate({"name": PREFIX + name, "kind": kind, "help": text, "samples": samples})


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
