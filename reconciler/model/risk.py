"""How risky one setting is when it grows: the rules behind the table of options in docs/agent-nix.md.

Pure. Each rule answers with a risk and the reason that the approval page shows beside it. Where a rule cannot
know (an unknown model, a pattern with a wildcard for a program) it takes the worse class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.policy.launching import launching
from harness.policy.patterns import SUBSTITUTIONS, Pattern
from harness.policy.words import Word
from reconciler.model.spec import ALIASES
from reconciler.model.states import RISK_ORDER, Risk


def highest(risks: Iterable[Risk]) -> Risk:
    """The worst of several; low for none."""
    return max(risks, key=RISK_ORDER.index, default=Risk.LOW)


def family(model: str) -> str | None:
    """The alias that a model id belongs to (`claude-opus-4-8` → `opus`), None if it is not known."""
    words = model.removesuffix("[1m]").split("-")
    return next((alias for alias in ALIASES if alias in words), None)


def is_allowed_model(model: str, allowed: Sequence[str]) -> bool:
    """Whether the host serves this model, with or without its long window. `allowed` are all names by which
    it does: another id of the same family is another model, of another price."""
    return model in allowed or model.removesuffix("[1m]") in allowed


def is_cheaper(before: str, after: str) -> bool:
    """Whether `after` surely costs less: a cheaper family, or the same model without its long window."""
    wider = after.endswith("[1m]") and not before.endswith("[1m]")
    if after == before.removesuffix("[1m]"):
        return after != before
    old, new = family(before), family(after)
    return old is not None and new is not None and not wider and ALIASES.index(new) < ALIASES.index(old)


def model_risk(before: str, after: str) -> tuple[Risk, str]:
    """Risk of another model."""
    if after == before or is_cheaper(before, after):
        return Risk.LOW, "not dearer"
    if family(after) is None:
        return Risk.ELEVATED, "the price of this model is not known here"
    return Risk.ELEVATED, "dearer, or not known to be cheaper"


def bash_risk(pattern: str) -> tuple[Risk, str]:
    """Risk of allowing the commands that a pattern of Claude Code's `Bash(...)` grammar matches.

    A pattern that spells out a launcher of the policy's own table lets anything run.
    """
    parsed = Pattern.parse(pattern)
    if parsed.assignments:
        return Risk.DANGEROUS, f"`{pattern}` sets the environment of a command"
    program = parsed.words[0] if parsed.words else "*"
    if "*" in program:
        return Risk.DANGEROUS, f"`{pattern}` is not bound to one program"
    named = [Word(program), *(Word(part.rstrip("*")) for part in parsed.words[1:] if part.strip("*"))]
    if found := launching(named):
        return Risk.DANGEROUS, f"`{found[0].word}` is a launcher: {found[0].why}"
    if substituted := [part for part in parsed.words if part in SUBSTITUTIONS]:
        return Risk.DANGEROUS, f"`{substituted[0]}` lets the output of commands stand for any words"
    return Risk.ELEVATED, f"`{program.rsplit('/', 1)[-1]}` may be run"
