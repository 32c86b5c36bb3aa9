"""Verbs about the questions of agents."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime

from reconciler.cli.api import Hive, Json
from reconciler.cli.console import Console, ago, cell
from reconciler.cli.failure import Exit
from reconciler.cli.talk import became, text_of


def questions(options: Namespace, console: Console) -> int:
    """`hive questions [ID]`"""
    if options.id is not None:
        return _one(Hive().get(f"/questions/{options.id}"), options, console)
    state = "open" if options.open else options.state
    found = Hive().get(
        "/questions",
        agent=options.agent, state=state, q=options.search, before=options.before, limit=options.limit,
    )  # fmt: skip
    if options.json:
        console.document(found)
        return Exit.DONE
    rows = [
        [
            cell(one["id"]),
            cell(one["agent"]),
            cell(one["state"], "yellow" if one["state"] == "open" else ""),
            cell(ago(one["asked_at"])),
            cell(_left(one["expires_at"]) if one["state"] == "open" else ""),
            cell(" | ".join(one["options"])),
            cell(one["answer"]),
            cell(one["question"]),
        ]
        for one in found["items"]
    ]
    headers = ["ID", "AGENT", "STATE", "ASKED", "LEFT", "OPTIONS", "ANSWER", "QUESTION"]
    empty = "no question is like that" if options.agent or state or options.search else "nobody asks anything"
    console.table(headers, rows, empty)
    if found["next"] is not None:
        console.say(f"there are earlier ones: --before {found['next']}", "dim")
    return Exit.DONE


def _one(found: Json, options: Namespace, console: Console) -> int:
    if options.json:
        console.document(found)
        return Exit.DONE
    console.say(
        f"question {found['id']} of {found['agent']}, {ago(found['asked_at'])}, {found['state']}", "bold"
    )
    console.indented(found["question"])
    for number, one in enumerate(found["options"], 1):
        console.line(f"  {number}. {one}")
    if found["state"] == "open":
        left = f", it waits for another {_left(found['expires_at'])}" if found["expires_at"] else ""
        choice = "" if not found["options"] else " --option 1 --option 2" if found["multi"] else " --option 1"
        console.say(f"`hive answer {found['id']}{choice}` with words or without{left}", "dim")
    elif found["answer"] is not None:
        console.say(f"answered by {found['answered_by']}:", "dim")
        console.indented(found["answer"])
    return Exit.DONE


def _left(until: str | None) -> str:
    """How long from now, as `1:05:09`; empty for ever."""
    if until is None:
        return ""
    seconds = max(0, int((datetime.fromisoformat(until) - datetime.now(UTC)).total_seconds()))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def answer(options: Namespace, console: Console) -> int:
    """`hive answer ID [TEXT] [--option NUMBER]`"""
    text = text_of(options) if options.text or not options.option else ""
    body: Json = {"text": text, "options": options.option, "dry_run": options.dry_run}
    return became("question", Hive().post(f"/questions/{options.id}/answer", body), options, console)


def cancel_question(options: Namespace, console: Console) -> int:
    """`hive cancel-question ID`"""
    found = Hive().post(f"/questions/{options.id}/cancel", {"dry_run": options.dry_run})
    return became("question", found, options, console)
