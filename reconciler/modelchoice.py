"""Which model an agent uses and may use: its spec's, the operator's override, what this host serves. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.model.risk import is_allowed_model


@dataclass(frozen=True, slots=True)
class Choice:
    """`default` is the spec's, `wanted` what the next turn gets, `allowed` what the operator may choose from,
    `problem` why turns with `wanted` fail (empty: they do not)."""

    default: str
    wanted: str
    allowed: tuple[str, ...]
    problem: str


def choose(
    spec: Mapping[str, Any], override: str | None, offered: Sequence[str], served: Sequence[str]
) -> Choice:
    """From the approved spec (its JSON, empty before the first), the override, the names that the host's
    configuration offers, and all names (aliases and ids) that the gateway serves under it."""
    default = str(spec.get("model", "haiku"))
    own = list(dict.fromkeys([default, *map(str, spec.get("models") or ())]))
    restricted = bool(spec.get("models"))
    names = [name for name in own if is_allowed_model(name, served)]
    allowed = tuple(names if restricted else dict.fromkeys([*offered, *names]))
    wanted = override if override is not None and (not restricted or override in own) else default
    problem = ""
    if not is_allowed_model(wanted, served):
        problem = f"{wanted} is not served by this host: the gateway refuses every request of it"
    return Choice(default, wanted, allowed, problem)
