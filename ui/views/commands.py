"""The prompt line of an agent's page: plain text is a message, a line that begins with `/` is a command."""

from __future__ import annotations

import re
from dataclasses import dataclass

HELP = (
    ("/model NAME", "use another model from the next turn on; without NAME the agent's own again"),
    ("/cancel", "end the running turn"),
    ("/nap [TIME] [WHY]", "no turn for ten minutes, or for 90s or 2h; your next message ends it"),
    ("/wake", "end a nap or a wait"),
    ("/compact", "sum the conversation up at the end of the turn; the agent notes first what it must keep"),
    ("/new-session", "begin a fresh conversation at the end of the turn; notes and files stay"),
    ("/stop", "stop the agent at the end of its turn"),
    ("/start", "start it"),
    ("/restart", "restart its container"),
    ("/clear", "clear the view; nothing is forgotten"),
    ("/help", "this list; //text sends a message that begins with /"),
)
VERBS = frozenset({"cancel", "wake", "stop", "start", "restart", "compact", "new-session"})


@dataclass(frozen=True, slots=True)
class Say:
    """Send `body` to the agent."""

    body: str


@dataclass(frozen=True, slots=True)
class Act:
    """One of `VERBS`."""

    verb: str


@dataclass(frozen=True, slots=True)
class UseModel:
    """Override the model; None takes the override away."""

    model: str | None


@dataclass(frozen=True, slots=True)
class Nap:
    """Rest for `seconds`."""

    seconds: int
    reason: str


@dataclass(frozen=True, slots=True)
class Clear:
    """Empty the view."""


@dataclass(frozen=True, slots=True)
class Help:
    """Show the list of commands."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Not a command; nothing is sent, because a mistyped command is hardly meant as a message."""

    word: str


Command = Say | Act | UseModel | Nap | Clear | Help | Unknown


_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}


def nap_of(text: str) -> Nap | None:
    """`10m waiting for CI` as a nap, ten minutes for nothing; None if it does not begin with a time between a
    second and a day."""
    if not text:
        return Nap(600, "")
    found = re.match(r"(\d{1,5})([smh]?)(?:\s+(.*))?$", text, re.DOTALL)
    if found is None:
        return None
    seconds = int(found[1]) * _UNITS_S[found[2]]
    return Nap(seconds, (found[3] or "").strip()[:400]) if 1 <= seconds <= 86400 else None


def parse(text: str) -> Command:
    """What the line asks for. The text of a message is kept as typed, without blank lines around it."""
    line = text.strip("\n")
    if line.startswith("//"):
        return Say(line[1:])
    if not line.startswith("/"):
        return Say(line)
    word, _, rest = line[1:].partition(" ")
    argument = rest.strip()
    match word:
        case "help" | "clear" if not argument:
            return Help() if word == "help" else Clear()
        case "model":
            return UseModel(argument or None)
        case "nap" if (nap := nap_of(argument)) is not None:
            return nap
        case _ if word in VERBS and not argument:
            return Act(word)
        case _:
            return Unknown(word)
