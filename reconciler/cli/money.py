"""Verbs about money: what may be spent today, and more of it."""

from __future__ import annotations

from argparse import Namespace

from reconciler.cli.api import Hive, Json, segment
from reconciler.cli.console import Cell, Console, ago, cell, usd
from reconciler.cli.failure import Exit, Failure

_COLOURS = {"warned": "yellow", "reached": "red"}


def budget(options: Namespace, console: Console) -> int:
    """`hive budget [AGENT | --hive] [--raise-today USD]`"""
    if options.agent is not None and options.hive:
        raise Failure("budget: either an agent or --hive", code="usage", status=Exit.USAGE)
    hive = Hive()
    one = options.agent is not None or options.hive
    path = "/budget" if options.hive else f"/agents/{segment(options.agent)}/budget" if one else "/budgets"
    if options.raise_today is not None:
        if not one:
            raise Failure("budget: --raise-today needs an agent or --hive", code="usage", status=Exit.USAGE)
        body: Json = {"usd": options.raise_today, "note": options.note, "dry_run": options.dry_run}
        found = hive.post(f"{path}/raise", body)
        if not options.json:
            would = "would raise" if options.dry_run else "raised"
            console.say(
                f"{would} today's budget of {_whom(found)} by {usd(options.raise_today)} to "
                f"{usd(found['limit_today_usd'])}, until {found['resets_at']}"
            )
    else:
        found = hive.get(path)
    if options.json:
        console.document(found)
        return Exit.DONE
    items = [found] if one else found["items"]
    rows = [_row(item) for item in items]
    headers = ["BUDGET", "STATE", "SPENT", "OF", "LEFT", "ADDED", "TURN", "RESETS", "WHY"]
    console.table(headers, rows, "there is none")
    return Exit.DONE


def _row(one: Json) -> list[Cell]:
    share, turn = one["share"], one["tokens_per_turn"]
    return [
        cell(_whom(one)),
        cell(one["state"], _COLOURS.get(one["state"], "")),
        cell(usd(one["spent_today_usd"]) + (f" ({100 * share:.0f} %)" if share is not None else "")),
        cell("no limit" if one["limit_today_usd"] is None else usd(one["limit_today_usd"])),
        cell("" if one["left_today_usd"] is None else usd(one["left_today_usd"])),
        cell(usd(one["added_today_usd"]) if one["added_today_usd"] else ""),
        cell("" if turn is None else f"{turn} tokens"),
        cell(ago(one["resets_at"])),
        cell(one["reason"]),
    ]


def _whom(one: Json) -> str:
    return "the hive" if one["scope"] == "*" else str(one["scope"])
