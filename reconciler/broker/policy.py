"""Who may write to whom: the literal `send.allow` of the sender's approved spec decides. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reconciler.errors import AgentError, OperatorError
from reconciler.model.names import MANAGER, OPERATOR

ALL = "*"
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Roster:
    """The agents of the hive that are not destroyed, and which of them is the manager."""

    names: tuple[str, ...]
    manager: str | None


@dataclass(frozen=True, slots=True)
class Policy:
    """What one sender may do: its own name and its `send.allow`."""

    sender: str
    allow: tuple[str, ...]

    def permits(self, name: str, roster: Roster) -> bool:
        """Whether it may write to the agent `name` or to the operator."""
        if name == self.sender:
            return False
        is_manager = name == roster.manager and MANAGER in self.allow
        return ALL in self.allow or name in self.allow or is_manager

    def reachable(self, roster: Roster) -> tuple[str, ...]:
        """All it may write to: agents by name, then the operator."""
        return tuple(name for name in (*roster.names, OPERATOR) if self.permits(name, roster))

    def peers(self, roster: Roster) -> list[str]:
        """The same as a harness shows it: with `manager` for whoever that is."""
        found = list(self.reachable(roster))
        if roster.manager in found:
            found.insert(0, MANAGER)
        return found

    def resolve(self, to: str, roster: Roster) -> tuple[str, ...]:
        """The recipients that `to` means, at least one; `AgentError` that names those it may write to."""
        if to == ALL:
            names = self.reachable(roster)
            if not names:
                raise AgentError("there is nobody you may write to", code="forbidden")
            return names
        name = roster.manager if to == MANAGER else to
        if name is None:
            raise AgentError("the hive has no manager", code="not-found", hint=self._hint(roster))
        if name == self.sender:
            raise AgentError("you cannot write to yourself", hint=self._hint(roster))
        if name != OPERATOR and name not in roster.names:
            raise AgentError(
                f"there is no agent {to[:64]!r} to write to", code="not-found", hint=self._hint(roster)
            )
        if not self.permits(name, roster):
            raise AgentError(
                f"you may not write to {to!r}",
                code="forbidden",
                hint=f"{self._hint(roster)}; ask for it in send.allow of your agent.nix",
            )
        return (name,)

    def _hint(self, roster: Roster) -> str:
        names = self.peers(roster)
        if not names:
            return "there is nobody you may write to"
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"you may write to: {', '.join(names[:_SHOWN])}{more}"


def resolve_for_operator(to: str, roster: Roster) -> Sequence[str]:
    """Whom the operator's `to` means; `OperatorError` if nobody."""
    if to == ALL:
        if not roster.names:
            raise OperatorError("the hive has no agents", code="not-found")
        return roster.names
    name = roster.manager if to == MANAGER else to
    if name is None or name not in roster.names:
        known = f"there are: {', '.join(roster.names[:_SHOWN])}" if roster.names else "the hive has no agents"
        raise OperatorError(f"there is no agent {to[:64]!r} to write to", code="not-found", hint=known)
    return (name,)
