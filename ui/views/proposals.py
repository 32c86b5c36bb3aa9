"""A proposal in words: one sentence of what changes for whom, the table of settings, the five words of
progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reconciler.control.models import Change, Proposal
from ui.filters import count, person
from ui.views.values import Row, added, is_list, option_name, removed, row, single

STEPS = ("approved", "building", "activating", "probing", "deployed")
RUNNING = frozenset({"approved", "building", "activating"})
ENDS = frozenset({"deployed", "invalid", "denied", "superseded", "cancelled", "failed"})
_PHRASES_MAX = 4
_RISK_ORDER = {"dangerous": 0, "elevated": 1, "low": 2}


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a sentence; `code` is set in the fixed face."""

    text: str
    code: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One of the five words: `at` is when it was entered, None when unknown or not yet."""

    word: str
    mark: Literal["done", "now", "todo", "failed"]
    at: str | None


def summary(proposal: Proposal) -> list[Piece]:
    """What changes, without for whom: `model haiku → opus, shell + nix build .*`."""
    if proposal.kind == "spawn":
        model = next((single(c.after) for c in proposal.changes if option_name(c.option) == "model"), None)
        shell = next((added(c) for c in proposal.changes if option_name(c.option) == "bash.allow"), [])
        role = next((single(c.after) for c in proposal.changes if option_name(c.option) == "role"), None)
        pieces = [Piece("a new manager" if role == "manager" else "a new agent")]
        if model:
            pieces += [Piece(", model "), Piece(model, code=True)]
        pieces += [Piece(", shell "), *_listed(shell)] if shell else [Piece(", no shell")]
        if proposal.staged_files:
            pieces.append(Piece(f", {count(len(proposal.staged_files), 'staged file')}"))
        return pieces
    phrases = [_phrase(change) for change in _by_risk(proposal.changes)]
    if not phrases:
        return [Piece(_without_settings(proposal))]
    pieces = []
    for position, phrase in enumerate(phrases[:_PHRASES_MAX]):
        pieces += [Piece(", "), *phrase] if position else phrase
    more = len(phrases) - _PHRASES_MAX
    return [*pieces, Piece(f" and {more} more")] if more > 0 else pieces


def _by_risk(changes: Sequence[Change]) -> list[Change]:
    return sorted(changes, key=lambda change: _RISK_ORDER.get(str(change.risk), 3))


def _without_settings(proposal: Proposal) -> str:
    if proposal.state == "examining":
        return "being examined"
    if proposal.state == "invalid":
        return "does not evaluate"
    if proposal.files:
        return f"no setting changes, {count(len(proposal.files), 'file')} changed"
    return "no setting changes"


def _phrase(change: Change) -> list[Piece]:
    name = option_name(change.option)
    if name.startswith("file "):
        what = "new" if change.before is None else "gone" if change.after is None else "changed"
        return [Piece("file "), Piece(_brief(name.removeprefix("file ")), code=True), Piece(f" {what}")]
    word = {
        "bash.allow": "shell",
        "bash.deny": "shell denied",
        "tools.allow": "tools",
        "send.allow": "may send to",
    }
    if is_list(change):
        plus, minus = added(change), removed(change)
        pieces = [Piece(word.get(name, name))]
        pieces += [Piece(" + "), *_listed(plus)] if plus else []
        pieces += [Piece(" \N{MINUS SIGN} "), *_listed(minus)] if minus else []
        return pieces
    before, after = single(change.before), single(change.after)
    if before is None and after is None:
        return [Piece(_brief(name))]
    return [
        Piece(f"{name} "),
        Piece(_brief(before), code=True),
        Piece(" → "),
        Piece(_brief(after), code=True),
    ]


def _listed(texts: Sequence[str]) -> list[Piece]:
    pieces: list[Piece] = []
    for position, text in enumerate(texts[:3]):
        pieces += [Piece(", ")] if position else []
        pieces.append(Piece(_brief(text), code=True))
    return [*pieces, Piece(f" and {len(texts) - 3} more")] if len(texts) > 3 else pieces


def _brief(text: str | None) -> str:
    if text is None:
        return "unset"
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= 48 else f"{one_line[:47]}…"


def rows(proposal: Proposal) -> list[Row]:
    """The table of settings, the most dangerous first."""
    return [row(change) for change in _by_risk(proposal.changes)]


def progress(proposal: Proposal) -> list[Step]:
    """The five words. Empty when nothing was approved. A failure marks the step during which it came."""
    entered = {str(step.state): step.at for step in proposal.progress}
    if "approved" not in entered:
        return []
    reached = max((STEPS.index(word) for word in entered if word in STEPS), default=0)
    state = str(proposal.state)
    steps = []
    for position, word in enumerate(STEPS):
        mark: Literal["done", "now", "todo", "failed"]
        if state == "deployed" or position < reached:
            mark = "done"
        elif position > reached:
            mark = "todo"
        else:
            mark = "failed" if state in ENDS else "now"
        steps.append(Step(word, mark, entered.get(word)))
    return steps


def verdict(proposal: Proposal) -> str:
    """One sentence on where it stands, for the head of its page."""
    who = person(proposal.decided_by or "somebody")
    match str(proposal.state):
        case "examining":
            return "hived is evaluating it in a sandbox; you can decide when that is done"
        case "pending":
            return "waits for your decision"
        case "approved" | "building" | "activating":
            return f"approved by {who}"
        case "deployed":
            where = f"generation {proposal.generation}" if proposal.generation is not None else "it"
            return f"approved by {who}, {where} is running"
        case "denied":
            return f"denied by {who}"
        case "invalid":
            return "cannot be built; the proposer was told why"
        case "failed":
            return f"approved by {who}, failed, and the generation before is running again"
        case "superseded":
            return "a newer proposal took its place"
        case _:
            return f"cancelled by {who}"
