"""The verb about figures."""

from __future__ import annotations

import csv
from argparse import Namespace

from reconciler.cli.api import Hive, Json
from reconciler.cli.console import Console, cell, thousands, usd
from reconciler.cli.failure import Exit, Failure

_MIB = 1024 * 1024


def stats(options: Namespace, console: Console) -> int:
    """`hive stats`"""
    if options.csv and options.json:
        raise Failure("--csv and --json are two formats", "take one of them", code="usage", status=Exit.USAGE)
    asked = options.points or (120 if options.csv or options.json else 1)
    found = Hive().get(
        "/stats",
        agent=options.agent,
        since=options.since,
        until=options.until,
        keys=options.keys,
        points=asked,
        by="agent" if options.each else None,
    )
    if options.json:
        console.document(found)
    elif options.csv:
        _csv(found, console)
    else:
        _table(found, options, console)
    return Exit.DONE


def _csv(found: Json, console: Console) -> None:
    """One line per bucket and series; an empty value is one that there is nothing to tell of."""
    writer = csv.writer(console.out, lineterminator="\n")
    writer.writerow(["time", "agent", "key", "unit", "value"])
    for series in found["series"]:
        for time, value in zip(found["times"], series["values"], strict=True):
            shown = "" if value is None else f"{value:.12g}"
            writer.writerow([time, series["agent"] or "*", series["key"], series["unit"], shown])
    console.out.flush()


def _table(found: Json, options: Namespace, console: Console) -> None:
    console.say(f"{found['since'][:19]} to {found['until'][:19]} UTC", "dim")
    told = [one for one in found["series"] if one["total"] not in {None, 0} or options.keys]
    rows = [
        [
            *([cell(one["agent"] or "all")] if options.each else []),
            cell(one["key"]),
            cell(amount(one["total"], one["unit"])),
            cell(one["told_by"], "warn" if one["told_by"] == "container" else "dim"),
            cell(one["meaning"], "dim"),
        ]
        for one in told
    ]
    headers = [*(["AGENT"] if options.each else []), "KEY", "VALUE", "TOLD BY", "WHAT"]
    console.table(headers, rows, "nothing happened in that time")


def amount(value: float | None, unit: str) -> str:
    """A value with its unit, as people read it."""
    if value is None:
        return "-"
    match unit:
        case "USD":
            return usd(value)
        case "B":
            return f"{value / _MIB:.1f} MiB" if value >= _MIB else f"{value / 1024:.1f} KiB"
        case "tokens":
            return f"{thousands(round(value))} tokens"
        case "s" if value >= 120:
            minutes, seconds = divmod(round(value), 60)
            hours, minutes = divmod(minutes, 60)
            return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02} min"
        case _:
            return f"{value:.4g} {unit}"
