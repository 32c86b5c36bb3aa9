"""The verb about figures; a part of the table in `verbs.py`."""

from __future__ import annotations

from reconciler.cli.grammar import Verb, option, positional, switch, whole

STATS = Verb(
    "stats",
    "The hive",
    "Show figures of an agent or of the whole hive.",
    "stats:stats",
    (
        positional("agent", "of this agent; without it, of the hive", nargs="?"),
        option("--since", about="from when on: 24h (default), 7d, or an RFC 3339 instant", default="24h"),
        option("--until", about="until when, likewise (default now)"),
        option("--keys", about="only these, as usd,tokens_out,tool_* (docs/statistics.md lists them)"),
        option(
            "--points", about="with --csv or --json: values per series (1 to 500, default 120)", type=whole
        ),
        switch("--each", about="without AGENT: every agent by itself"),
        switch("--csv", about="one line per instant and figure"),
    ),
    (
        ("hive stats scout --since 7d", "one value for each figure"),
        ("hive stats --each --keys usd,turns_per_min", "who costs what"),
        ("hive stats scout --keys turn_duration_p95 --csv > scout.csv", "for a spreadsheet"),
    ),
)
