"""What needs the operator, counted and ordered the same way on every page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reconciler.control.models import Agent, HiveStatus, Hold, Proposal, Question

_FIRST = {"crashed": 0, "held": 1, "parked": 2, "stopped": 9}


@dataclass(frozen=True, slots=True)
class Needs:
    """Everything that waits for the operator. `hold`: the whole hive is frozen; its agents are not listed
    each."""

    approvals: list[Proposal]
    questions: list[Question]
    crashed: list[Agent]
    held: list[Agent]
    troubled: list[Agent]
    hold: Hold | None

    @property
    def count(self) -> int:
        lists = (self.approvals, self.questions, self.crashed, self.held, self.troubled)
        return sum(len(one) for one in lists) + (self.hold is not None)


def is_crashed(agent: Agent) -> bool:
    return agent.state == "crashed"


def is_held(agent: Agent) -> bool:
    return agent.held or agent.state == "held"


def _sort(agent: Agent, hold: Hold | None) -> str:
    """Which of the lists an agent is on: one at most."""
    if is_crashed(agent):
        return "crashed"
    if is_held(agent) and hold is None:
        return "held"
    return "troubled" if agent.trouble else ""


def needs(
    approvals: Iterable[Proposal],
    questions: Iterable[Question],
    agents: Sequence[Agent],
    hold: Hold | None = None,
) -> Needs:
    """Oldest first: who has waited longest is served first."""
    return Needs(
        approvals=sorted((p for p in approvals if p.state == "pending"), key=lambda p: p.id),
        questions=sorted((q for q in questions if q.state == "open"), key=lambda q: q.id),
        crashed=[agent for agent in agents if _sort(agent, hold) == "crashed"],
        held=[agent for agent in agents if _sort(agent, hold) == "held"],
        troubled=[agent for agent in agents if _sort(agent, hold) == "troubled"],
        hold=hold,
    )


def count_needs(status: HiveStatus, agents: Sequence[Agent]) -> int:
    """The same count without the lists themselves."""
    stuck = sum(1 for agent in agents if _sort(agent, status.hold))
    return status.approvals_pending + status.questions_open + stuck + (status.hold is not None)


def by_need(agents: Iterable[Agent]) -> list[Agent]:
    """Crashed, held and parked ones first, then the manager, then by name, stopped ones last: an order that
    turns do not change, so that rows do not jump."""
    return sorted(agents, key=lambda a: (_FIRST.get(a.state, 3), a.role != "manager", a.name))
