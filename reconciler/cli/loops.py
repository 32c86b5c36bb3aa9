"""Verbs about agents that only feed each other: what of theirs waits, and what becomes of it."""

from __future__ import annotations

from argparse import Namespace

from reconciler.cli.api import Hive, Json, segment
from reconciler.cli.console import Console, ago, cell
from reconciler.cli.failure import Exit


def loops(options: Namespace, console: Console) -> int:
    """`hive loops`"""
    return _show(Hive().get("/loops"), options, console)


def deliver(options: Namespace, console: Console) -> int:
    """`hive deliver AGENT PEER`"""
    return _decide(options, console, deliver=True)


def drop(options: Namespace, console: Console) -> int:
    """`hive drop AGENT PEER`"""
    question = f"Drop all that waits between {options.agent} and {options.peer}? It is never delivered."
    if not options.dry_run and not options.yes and not console.ask(question):
        console.say("nothing was dropped")
        return Exit.FAILED
    return _decide(options, console, deliver=False)


def _decide(options: Namespace, console: Console, *, deliver: bool) -> int:
    body: Json = {"deliver": deliver, "note": options.note, "dry_run": options.dry_run}
    found = Hive().post(f"/loops/{segment(options.agent)}/{segment(options.peer)}", body)
    if not options.json:
        done = "delivered" if deliver else "dropped"
        verb = f"would be {done}" if options.dry_run else f"is {done}"
        console.say(f"what waited between {options.agent} and {options.peer} {verb}")
    return _show(found, options, console)


def _show(found: Json, options: Namespace, console: Console) -> int:
    if options.json:
        console.document(found)
        return Exit.DONE
    rows = [
        [
            cell(" ⇄ ".join(one["agents"])),
            cell(one["state"], "yellow" if one["state"] == "held" else ""),
            cell(one["waiting"]),
            cell(one["hops"]),
            cell(ago(one["since"])),
            cell(one["last"]),
        ]
        for one in found["items"]
    ]
    headers = ["AGENTS", "STATE", "WAITING", "HOPS", "SINCE", "LAST"]
    console.table(headers, rows, "no messages of agents are slowed or held")
    return Exit.DONE
