"""Waiting for something that hived does: the end of a proposal, an answer. A restart of hived in between is
waited out."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from reconciler.cli.api import Hive, Json
from reconciler.cli.console import Console, span
from reconciler.cli.failure import Exit, Failure, Unreachable, WentAway

PAUSE_S = 0.25
AWAY_S = 60.0
ENDS = frozenset({"deployed", "invalid", "denied", "superseded", "cancelled", "failed"})


def persistent(ask: Callable[[], Json], sleep: Callable[[float], None] = time.sleep) -> Json:
    """The answer of `ask`, tried again for `AWAY_S` while nobody answers."""
    until = time.monotonic() + AWAY_S
    while True:
        try:
            return ask()
        except Unreachable:
            if time.monotonic() > until:
                raise
            sleep(PAUSE_S)


def once(act: Callable[[], Json], sleep: Callable[[float], None] = time.sleep) -> Json:
    """The answer of an act that may be repeated under its key: tried again if hived went away in the middle
    of it, not if nobody was there to begin with."""
    try:
        return act()
    except WentAway:
        return persistent(act, sleep)


def examined(hive: Hive, number: int) -> Json:
    """The proposal when its examination is over."""
    while True:
        found = persistent(partial(hive.get, f"/proposals/{number}"))
        if found["state"] != "examining":
            return found
        time.sleep(PAUSE_S)


def unless_moved(hive: Hive, number: int, decide: Callable[[], Json]) -> None:
    """`decide` on a pending proposal, so that it takes effect once: when hived went away in the middle, it
    is looked whether it did."""
    try:
        decide()
    except Unreachable:
        if persistent(partial(hive.get, f"/proposals/{number}"))["state"] == "pending":
            decide()


def watch(hive: Hive, number: int, console: Console) -> Json:
    """Follow a proposal's log to its end state; the proposal then."""
    after, state = 0, ""
    while True:
        found = persistent(partial(hive.get, f"/proposals/{number}"))
        log = persistent(partial(hive.get, f"/proposals/{number}/log", after=after))
        for line in log["items"]:
            after = line["id"]
            console.line(f"  {line['text']}", "dim")
        if found["state"] != state:
            state = found["state"]
            console.say(f"proposal {number} for {found['agent']}: {state}", "bold")
        console.status(building(log["progress"]))
        if state in ENDS and not log["items"]:
            console.status("")
            return found
        if not log["items"]:
            time.sleep(PAUSE_S)


def building(progress: Json | None) -> str:
    """How far a build is, on one line; empty without a build."""
    if progress is None:
        return ""
    if progress["queued"]:
        return "waits: other builds have all slots"
    parts = [f"built {progress['built']} of {progress['expected']}" if progress["expected"] else "evaluating"]
    parts += [", ".join(progress["running"])] if progress["running"] else []
    parts.append(span(progress["elapsed_s"]))
    if progress["left_s"] is not None:
        parts.append(f"about {span(progress['left_s'])} left")
    return " · ".join(parts)


def rehearsed(proposal: Json, console: Console) -> int:
    """Say what a dry run found about a proposal that was not made; its exit status."""
    if console.as_json:
        console.document(proposal)
    state, agent = proposal["state"], proposal["agent"]
    known = f"proposal {proposal['id']}" if proposal["id"] else "the proposal"
    if state == "invalid":
        if console.as_json:
            return Exit.FAILED
        raise Failure(f"{known} for {agent} would be invalid: {proposal['error']}")
    if not console.as_json:
        console.say(f"{known} for {agent} would be {state}, risk {proposal['risk'] or 'not known'}")
        for number in proposal["supersedes"]:
            console.say(f"it would supersede proposal {number}")
    return Exit.DONE


def outcome_of(proposal: Json, console: Console) -> int:
    """Print an ended proposal and exit by its end state."""
    if console.as_json:
        console.document(proposal)
    if proposal["state"] == "deployed":
        if not console.as_json:
            console.say(f"{proposal['agent']} runs generation {proposal['generation']}", "green")
        return Exit.DONE
    reason = proposal["error"] or proposal["note"]
    message = f"proposal {proposal['id']} is {proposal['state']}" + (f": {reason}" if reason else "")
    if console.as_json:
        return Exit.FAILED
    raise Failure(message, f"`hive why {proposal['agent']}` tells more")
