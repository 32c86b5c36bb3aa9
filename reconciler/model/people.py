"""Who did something, in words."""

from __future__ import annotations

from reconciler.model.names import OPERATOR, SYSTEM


def person(actor: str) -> str:
    """An actor of the audit (`operator:alice`, `unix:root`, `agent:smith`), or a sender or proposer (a name,
    `operator`, `system`), as a sentence begins with it."""
    kind, _, name = actor.rpartition(":")
    match kind, name:
        case (("" | "operator"), _) if name == OPERATOR:
            return "the operator"
        case "", _ if name == SYSTEM:
            return "the hive"
        case "operator" | "viewer", _:
            return f"{name} ({kind})"
        case "unix" | "uid", _:
            return f"{name if kind == 'unix' else f'uid {name}'} (on the host)"
        case _:
            return name
