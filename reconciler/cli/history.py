"""Verbs about what happened, what it cost, and who may look."""

from __future__ import annotations

import json
import re
import time
from argparse import Namespace

from reconciler.cli.api import Hive, Json
from reconciler.cli.console import Console, ago, cell, clock, thousands, usd
from reconciler.cli.failure import Exit, Failure, Unreachable

COME_BACK_S = 1.0
_USER = re.compile(r"[a-z][a-z0-9_-]{0,30}")  # as hived's `NewLoginLink`, whose words are not for people
HINTS = {"turn.event"}  # they hide all else: shown when an agent or a kind is asked for


def events(options: Namespace, console: Console) -> int:
    """`hive events`"""
    hive = Hive()
    # Without --after the newest are read, and nothing between them and the end is of interest.
    end = hive.get("/status")["last_event_id"] if options.follow and options.after is None else 0
    found = hive.get(
        "/events", after=options.after, agent=options.agent, kind=options.kind, limit=options.limit
    )
    if options.follow:
        for event in found["items"]:
            _say(event, options, console)
        shown = found["items"][-1]["id"] if found["items"] else options.after or 0
        _follow(hive, max(end, shown), options, console)
    if options.json:
        console.document(found)
        return Exit.DONE
    for event in found["items"]:
        _say(event, options, console)
    if not found["items"]:
        kind = options.kind
        console.say(f"no event has the kind {kind}" if kind is not None else "there are none", "dim")
    return Exit.DONE


def _follow(hive: Hive, after: int, options: Namespace, console: Console) -> None:
    """Events for ever; when hived restarts, from where it was."""
    told = False
    while True:
        try:
            for event in hive.stream(after):
                told = False
                if event["kind"] == "resync":  # some were lost: read on from what was shown
                    break
                after = max(after, event["id"])
                _say(event, options, console)
        except Unreachable as away:
            if not told:  # once per absence
                console.err.write(f"hive: {away.message}; waiting for it\n")
            told = True
        time.sleep(COME_BACK_S)


def _say(event: Json, options: Namespace, console: Console) -> None:
    if options.agent not in {None, event["agent"]} or options.kind not in {None, event["kind"]}:
        return
    if event["kind"] in HINTS and options.agent is None and options.kind is None:
        return
    if options.json:
        console.json_line(event)
        return
    data = json.dumps(event["data"], ensure_ascii=False) if event["data"] else ""
    head = f"{clock(event['ts'])} {event['id']:>7} {event['agent'] or '-':<12} {event['kind']:<22}"
    console.line(f"{head} {data}")


def audit(options: Namespace, console: Console) -> int:
    """`hive audit`"""
    found = Hive().get("/audit", before=options.before, limit=options.limit)
    if options.json:
        console.document(found)
        return Exit.DONE
    rows = [
        [
            cell(row["id"]),
            cell(ago(row["at"])),
            cell(row["actor"]),
            cell(row["action"]),
            cell(row["target"]),
            cell(row["hash"][:12]),
            cell(json.dumps(row["data"], ensure_ascii=False) if row["data"] else ""),
        ]
        for row in found["items"]
    ]
    console.table(["ID", "WHEN", "WHO", "DID", "TO", "HASH", "WITH"], rows, "nothing was decided yet")
    console.say(f"head of the chain: {found['head']}", "dim")
    return Exit.DONE


def spending(options: Namespace, console: Console) -> int:
    """`hive spending`"""
    found = Hive().get("/spending")
    if options.json:
        console.document(found)
        return Exit.DONE
    rows = [
        [
            cell(one["day"]),
            cell(one["agent"]),
            cell(one["model"]),
            cell(one["requests"]),
            cell(thousands(one["input_tokens"])),
            cell(thousands(one["output_tokens"])),
            cell(thousands(one["cache_read_tokens"])),
            cell(thousands(one["cache_write_tokens"])),
            cell(usd(one["usd"])),
        ]
        for one in found["items"]
    ]
    headers = ["DAY", "AGENT", "MODEL", "REQUESTS", "IN", "OUT", "CACHE READ", "CACHE WRITE", "COST"]
    console.table(headers, rows, "nothing was spent yet")
    return Exit.DONE


def login(options: Namespace, console: Console) -> int:
    """`hive login`"""
    if not _USER.fullmatch(options.user):
        raise Failure(
            f"{options.user[:60]!r} is not a user name",
            "up to 31 characters: small letters, digits, '_' and '-', a letter first",
            code="invalid",
        )
    body: Json = {"user": options.user, "role": options.role, "dry_run": options.dry_run}
    made = Hive().post("/login-links", body)
    if options.json:
        console.document(made)
        return Exit.DONE
    if options.dry_run:
        console.say(f"would make a link that logs {made['user']} in, once")
        return Exit.DONE
    minutes = made["expires_in_s"] // 60
    console.say(made["url"])
    console.say(f"logs {made['user']} in, once, within {minutes} minutes", "dim")
    return Exit.DONE


def users(options: Namespace, console: Console) -> int:
    """`hive users`"""
    found = Hive().get("/users")
    if options.json:
        console.document(found)
        return Exit.DONE
    rows = [[cell(one["name"]), cell(one["role"]), cell(ago(one["created_at"]))] for one in found["items"]]
    console.table(["USER", "ROLE", "SINCE"], rows, "there are none: `hive login`")
    return Exit.DONE


def sessions(options: Namespace, console: Console) -> int:
    """`hive sessions`"""
    found = Hive().get("/sessions")
    if options.json:
        console.document(found)
        return Exit.DONE
    rows = [
        [cell(one["id"]), cell(one["user"]), cell(ago(one["created_at"])), cell(ago(one["last_seen_at"]))]
        for one in found["items"]
    ]
    console.table(["ID", "USER", "BEGUN", "SEEN"], rows, "nobody is logged in")
    return Exit.DONE
