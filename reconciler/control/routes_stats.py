"""Routes of figures."""

from __future__ import annotations

from reconciler.control import models as api
from reconciler.control.auth import Door
from reconciler.control.call import Call, Route
from reconciler.control.edge import Param

_QUERY = (
    Param(
        "agent", "string", "Of this agent; without it, of the whole hive.",
        pattern=r"[a-z][a-z0-9-]{0,30}",
    ),
    Param(
        "since", "string", "From when on: an RFC 3339 instant, or how long ago (90s, 15min, 24h, 7d, 2w).",
        default="24h", pattern=r"[^\0]{1,64}",
    ),
    Param("until", "string", "Until when, likewise; now without it.", pattern=r"[^\0]{1,64}"),
    Param("keys", "string", "Only these keys, separated by commas; `tool_*` is every tool. All without it."),
    Param("points", "integer", "At most so many values in a series.", default=120, low=1, high=500),
    Param(
        "by", "string", "Without `agent`: the hive put together, or every agent by itself.",
        default="hive", choices=("hive", "agent"),
    ),
)  # fmt: skip


async def _stats(call: Call) -> api.Stats:
    return await call.services.stats.query(
        agent=call.text("agent"),
        since=call.text("since") or "24h",
        until=call.text("until"),
        keys=call.text("keys"),
        points=call.count("points"),
        by=call.text("by") or "hive",
    )


STATS_ROUTES = (
    Route("GET", "/v1/stats", "Figures over time; see docs/statistics.md.", api.Stats, _stats, query=_QUERY),
    Route(
        "GET",
        "/v1/metrics",
        "What a monitor reads: all that was ever counted, and what is now.",
        api.MetricList,
        lambda c: c.services.stats.metrics(),
    ),
    Route(
        "POST",
        "/v1/scrape",
        "The same for a monitor, which has no session but the token of the host's configuration.",
        api.MetricList,
        lambda c: c.services.stats.scrape(c.body(api.Scrape)),
        None,
        api.Scrape,
        doors=frozenset({Door.UI}),
    ),
)
