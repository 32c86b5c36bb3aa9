"""Verbs about messages."""

from __future__ import annotations

import secrets
import sys
import time
from argparse import Namespace

from reconciler.cli.api import Hive, Json
from reconciler.cli.console import Console, ago, cell
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.follow import PAUSE_S, once, persistent

STDIN_MAX = 16 << 20  # more than hived takes: it says what its limit is
_SHARED = {"*", "manager"}
# What people read, as on the pages; --json has the API's words.
_STATES = {"queued": "waiting", "leased": "in turn", "acked": "taken", "set_aside": "set aside"}


def text_of(options: Namespace) -> str:
    """The words on the command line, else standard input."""
    if options.text and options.text != ["-"]:
        return " ".join(options.text)
    if not options.text and sys.stdin.isatty():
        raise Failure("there is no text", "give it as an argument, or '-' for standard input", code="usage",
                      status=Exit.USAGE)  # fmt: skip
    text = sys.stdin.buffer.read(STDIN_MAX).decode("utf-8", "replace").removesuffix("\n")
    if not text:
        raise Failure("standard input is empty", "give the text as an argument, or pipe it in", code="usage",
                      status=Exit.USAGE)  # fmt: skip
    return text


def send(options: Namespace, console: Console) -> int:
    """`hive send TO TEXT`"""
    hive = Hive()
    body: Json = {"to": options.to, "body": text_of(options), "in_reply_to": options.reply_to}
    body |= {"key": secrets.token_hex(16), "dry_run": options.dry_run}
    sent = once(lambda: hive.post("/messages", body))
    if not options.wait or options.dry_run:
        if options.json:
            console.document(sent)
        elif options.dry_run:
            console.say(f"would send it to {sent['to']}")
        else:
            console.say(f"message {sent['id']} to {sent['to']}")
        return Exit.DONE
    answer = _answer_to(hive, sent, options.timeout)
    if options.json:
        console.document(answer)
    else:
        console.say(f"message {answer['id']} from {answer['from']}:", "dim")
        console.say(answer["body"])
    return Exit.DONE


def _answer_to(hive: Hive, sent: Json, timeout_s: int) -> Json:
    """The first message to the operator that answers `sent`."""
    until = time.monotonic() + timeout_s
    agent = None if sent["to"] in _SHARED else sent["to"]
    while True:
        found = persistent(lambda: hive.get("/messages", agent=agent, limit=100))
        answers = [m for m in found["items"] if m["in_reply_to"] == sent["id"] and m["to"] == "operator"]
        if answers:
            return min(answers, key=_id)
        if time.monotonic() >= until:
            raise Failure(
                f"{sent['to']} has not answered message {sent['id']} within {timeout_s} s",
                "the message stays with it: see `hive messages`",
                code="timeout",
            )
        time.sleep(PAUSE_S)


def _id(message: Json) -> int:
    number = message["id"]
    assert isinstance(number, int)
    return number


def _state(message: Json) -> str:
    state = str(message["state"])
    if message["to"] == "operator":
        return "read" if state in {"read", "acked"} else "unread"
    return _STATES.get(state, state)


def messages(options: Namespace, console: Console) -> int:
    """`hive messages`"""
    hive = Hive()
    if options.mark_read is not None:
        found = hive.post(f"/messages/{options.mark_read}/read", {"dry_run": options.dry_run})
        return became("message", found, options, console)
    if options.dry_run:
        raise Failure("messages: --dry-run needs --mark-read", code="usage", status=Exit.USAGE)
    found = hive.get("/messages", agent=options.agent, before=options.before, limit=options.limit)
    if options.json:
        console.document(found)
        return Exit.DONE
    if options.full:
        for one in found["items"]:
            reply = f", answers {one['in_reply_to']}" if one["in_reply_to"] else ""
            head = f"message {one['id']} from {one['from']} to {one['to']}, {ago(one['sent_at'])}{reply}"
            console.say(head, "bold")
            console.indented(one["body"])
            console.say()
        return Exit.DONE
    rows = [
        [
            cell(one["id"]),
            cell(one["from"]),
            cell(one["to"]),
            cell(ago(one["sent_at"])),
            cell(f"{_state(one)}{', again' if one['redelivered'] else ''}"),
            cell(one["in_reply_to"]),
            cell(one["body"]),
        ]
        for one in found["items"]
    ]
    console.table(["ID", "FROM", "TO", "SENT", "STATE", "ANSWERS", "TEXT"], rows, "there are none")
    return Exit.DONE


def redeliver(options: Namespace, console: Console) -> int:
    """`hive redeliver ID`"""
    found = Hive().post(f"/messages/{options.id}/redeliver", {"dry_run": options.dry_run})
    return became("message", found, options, console)


def became(what: str, found: Json, options: Namespace, console: Console) -> int:
    """Say which state it has now, or would have."""
    if options.json:
        console.document(found)
    else:
        state = _state(found) if what == "message" else found["state"]
        console.say(f"{what} {found['id']} {'would be' if options.dry_run else 'is'} {state}")
    return Exit.DONE
