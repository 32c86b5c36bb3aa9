"""What needs the operator, counted and ordered the same way on every page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reconciler.control.models import Agent, HiveStatus, Proposal, Question

_FIRST = {"crashed": 0, "held": 1, "parked": 2, "stopped": 9}


@dataclass(frozen=True, slots=True)
class Needs:
    """Everything that waits for a decision of the operator."""

    approvals: list[Proposal]
    questions: list[Question]
    crashed: list[Agent]
    held: list[Agent]

    @property
    def count(self) -> int:
        return len(self.approvals) + len(self.questions) + len(self.crashed) + len(self.held)


def is_crashed(agent: Agent) -> bool:
    return agent.state == "crashed"


def is_held(agent: Agent) -> bool:
    return agent.held or agent.state == "held"


def needs(approvals: Iterable[Proposal], questions: Iterable[Question], agents: Sequence[Agent]) -> Needs:
    """Oldest first: who has waited longest is served first."""
    return Needs(
        approvals=sorted((p for p in approvals if p.state == "pending"), key=lambda p: p.id),
        questions=sorted((q for q in questions if q.state == "open"), key=lambda q: q.id),
        crashed=[agent for agent in agents if is_crashed(agent)],
        held=[agent for agent in agents if is_held(agent) and not is_crashed(agent)],
    )


def count_needs(status: HiveStatus, agents: Sequence[Agent]) -> int:
    """The same count without the lists themselves."""
    stuck = sum(1 for agent in agents if is_crashed(agent) or is_held(agent))
    return status.approvals_pending + status.questions_open + stuck


def by_need(agents: Iterable[Agent]) -> list[Agent]:
    """Crashed, held and parked ones first, then the manager, then by name, stopped ones last: an order that
    turns do not change, so that rows do not jump."""
    return sorted(agents, key=lambda a: (_FIRST.get(a.state, 3), a.role != "manager", a.name))
