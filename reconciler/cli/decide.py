"""Verbs about proposals: looking at what would change, approving exactly that, denying, taking back."""

from __future__ import annotations

from argparse import Namespace

from reconciler.cli.api import Hive, Json, segment
from reconciler.cli.console import RISK_COLOURS, Console, ago, cell
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.follow import examined, outcome_of, rehearsed, unless_moved, watch


def proposals(options: Namespace, console: Console) -> int:
    """`hive proposals [ID]`"""
    hive = Hive()
    if options.id is not None:
        found = hive.get(f"/proposals/{options.id}")
        console.document(found) if options.json else show(found, console)
        return Exit.DONE
    found = hive.get("/proposals", state=options.state, agent=options.agent, limit=options.limit)
    if options.json:
        console.document(found)
        return Exit.DONE
    rows = [
        [
            cell(one["id"]),
            cell(one["agent"]),
            cell(one["state"], "yellow" if one["state"] == "pending" else ""),
            cell(one["risk"], RISK_COLOURS.get(one["risk"] or "", "")),
            cell(one["requested_by"]),
            cell(ago(one["created_at"])),
            cell(one["commit"][:12]),
            cell(one["error"] or one["description"]),
        ]
        for one in found["items"]
    ]
    console.table(["ID", "AGENT", "STATE", "RISK", "BY", "MADE", "COMMIT", "WHAT"], rows, "there are none")
    return Exit.DONE


def show(proposal: Json, console: Console) -> None:
    """What a proposal would change, for whom, and who asked for it."""
    kind = "a new agent" if proposal["kind"] == "spawn" else "a change"
    by = f", asked for by {proposal['requested_by']} {ago(proposal['created_at'])}"
    console.say(f"proposal {proposal['id']}: {kind} for {proposal['agent']}{by}", "bold")
    console.fields([
        ("state", proposal["state"]),
        ("decided", proposal["decided_by"] and f"by {proposal['decided_by']} {ago(proposal['decided_at'])}"),
        ("note", proposal["note"]),
        ("error", proposal["error"]),
        ("risk", proposal["risk"]),
        ("commit", proposal["commit"]),
        ("what", proposal["description"]),
        ("files", ", ".join(proposal["files"])),
        ("state files", ", ".join(proposal["staged_files"])),
        ("generation", proposal["generation"]),
        ("supersedes", ", ".join(map(str, proposal["supersedes"]))),
    ])  # fmt: skip
    console.say()
    changes(proposal, console)


def changes(proposal: Json, console: Console) -> None:
    """Its settings before and after, with their risk."""
    rows = [
        [
            cell(change["option"]),
            cell(change["before"]),
            cell(change["after"]),
            cell(change["risk"], RISK_COLOURS.get(change["risk"], "")),
            cell(change["reason"]),
        ]
        for change in proposal["changes"]
    ]
    unknown = proposal["state"] == "examining"  # what it changes is known when its agent.nix was evaluated
    empty = (
        "being examined: its settings are not known yet" if unknown else "no setting changes; see `hive diff`"
    )
    console.table(["SETTING", "BEFORE", "AFTER", "RISK", "WHY"], rows, empty)


def diff(options: Namespace, console: Console) -> int:
    """`hive diff ID`"""
    found = Hive().get(f"/proposals/{options.id}/diff", base=options.base)
    if options.json:
        console.document(found)
        return Exit.DONE
    base = (found["base_commit"] or "nothing")[:12]
    console.say(f"proposal {found['proposal']}: {base} ({found['base']}) → {found['commit'][:12]}", "bold")
    for file in found["files"]:
        renamed = f" (was {file['old_path']})" if file["old_path"] else ""
        console.line(f"{file['status']} {file['path']}{renamed}  +{file['added']} -{file['deleted']}", "bold")
        if file["note"]:
            console.line(f"  {file['note']}", "yellow")
        for hunk in file["hunks"]:
            console.line(hunk["header"], "blue")
            for line in hunk["lines"]:
                sign, colour = {"add": ("+", "green"), "del": ("-", "red")}.get(line["kind"], (" ", ""))
                console.line(f"{sign}{line['text']}", colour)
    if found["truncated"]:
        console.say("the rest is too large to show", "yellow")
    return Exit.DONE


def propose(options: Namespace, console: Console) -> int:
    """`hive propose AGENT COMMIT`"""
    if options.wait and not options.approve:
        raise Failure("propose: --wait needs --approve", code="usage", status=Exit.USAGE)
    hive = Hive()
    body: Json = {"agent": options.agent, "commit": options.commit, "description": options.description}
    made = hive.post("/proposals", body | {"dry_run": options.dry_run})
    if options.dry_run:
        if not options.json:
            changes(made, console)
        return rehearsed(made, console)
    if options.approve:
        return _approve(hive, examined(hive, made["id"]), options, console)
    if options.json:
        console.document(made)
    else:
        console.say(f"proposal {made['id']} for {made['agent']} is {made['state']}")
        console.say(f"it waits for an approval: `hive approve {made['id']}`")
    return Exit.WAITS


def approve(options: Namespace, console: Console) -> int:
    """`hive approve ID`"""
    hive = Hive()
    found = hive.get(f"/proposals/{options.id}")
    if found["state"] == "examining":  # a matter of seconds, and what follows asks for its outcome anyway
        found = examined(hive, options.id)
    return _approve(hive, found, options, console)


def _approve(hive: Hive, proposal: Json, options: Namespace, console: Console) -> int:
    """Show, ask, and approve what was shown."""
    show(proposal, console)
    number, state = proposal["id"], proposal["state"]
    if state != "pending":
        message = f"proposal {number} is {state}: there is nothing to approve"
        raise Failure(message, f"`hive proposals {number}`", code="conflict")
    if options.dry_run:
        trial = {"digest": proposal["digest"], "note": options.note, "now": options.now, "dry_run": True}
        return rehearsed(hive.post(f"/proposals/{number}/approve", trial), console)
    if not options.yes and not console.ask(f"Approve and build proposal {number}?"):
        console.say(f"proposal {number} was not approved: it goes on waiting")
        return Exit.WAITS
    note = getattr(options, "note", "")
    body: Json = {"digest": proposal["digest"], "note": note, "now": options.now}
    path = f"/proposals/{number}/approve"
    if options.wait:
        unless_moved(hive, number, lambda: hive.post(path, body))
        return outcome_of(watch(hive, number, console), console)
    decided = hive.post(path, body)
    if options.json:
        console.document(decided)
    else:
        console.say(f"approved: proposal {number} for {decided['agent']} is {decided['state']}", "green")
    return Exit.DONE


def deny(options: Namespace, console: Console) -> int:
    """`hive deny ID`"""
    return _decide("deny", options, console)


def cancel(options: Namespace, console: Console) -> int:
    """`hive cancel-proposal ID`"""
    return _decide("cancel", options, console)


def _decide(verb: str, options: Namespace, console: Console) -> int:
    body: Json = {"note": options.note, "dry_run": options.dry_run}
    found = Hive().post(f"/proposals/{options.id}/{verb}", body)
    if options.json:
        console.document(found)
    elif options.dry_run:
        console.say(f"proposal {found['id']} for {found['agent']} would be {found['state']}")
    else:
        console.say(f"proposal {found['id']} for {found['agent']} is {found['state']}")
    return Exit.DONE


def drafts(options: Namespace, console: Console) -> int:
    """`hive drafts`"""
    found = Hive().get("/drafts")
    if options.json:
        console.document(found)
        return Exit.DONE
    _drafts(found, console)
    return Exit.DONE


def _drafts(found: Json, console: Console) -> None:
    rows = [
        [
            cell(one["name"]),
            cell(one["created_by"]),
            cell(ago(one["created_at"])),
            cell(one["commit"][:12]),
            cell(f"{one['proposal']} {one['proposal_state']}" if one["proposal"] else "not proposed yet"),
            cell(one["state_files"] or ""),
            cell(one["description"]),
        ]
        for one in found["items"]
    ]
    console.table(["NAME", "BY", "BEGUN", "FROM", "PROPOSAL", "FILES", "WHAT FOR"], rows, "there are none")


def discard(options: Namespace, console: Console) -> int:
    """`hive discard NAME`"""
    question = f"Discard the draft {options.name}? The manager is told."
    if not options.dry_run and not options.yes and not console.ask(question):
        console.say("nothing was discarded")
        return Exit.FAILED
    body: Json = {"note": options.note, "dry_run": options.dry_run}
    found = Hive().post(f"/drafts/{segment(options.name)}/discard", body)
    if options.json:
        console.document(found)
        return Exit.DONE
    console.say(f"the draft {options.name} {'would be' if options.dry_run else 'is'} discarded")
    _drafts(found, console)
    return Exit.DONE
