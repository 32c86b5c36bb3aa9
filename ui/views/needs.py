"""What needs the operator, counted and ordered the same way on every page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reconciler.control.models import Agent, HiveStatus, Hold, Loop, Proposal, Question

_FIRST = {"crashed": 0, "held": 1, "parked": 2, "stopped": 9}


@dataclass(frozen=True, slots=True)
class Needs:
    """Everything that waits for the operator. `hold`: the whole hive is frozen; agents are listed that have
    a hold of their own too. `gone`: stuck ones that are destroyed, by name."""

    approvals: list[Proposal]
    questions: list[Question]
    crashed: list[Agent]
    held: list[Agent]
    troubled: list[Agent]
    gone: list[str]
    loops: list[Loop]
    hold: Hold | None

    @property
    def count(self) -> int:
        lists = (
            self.approvals,
            self.questions,
            self.crashed,
            self.held,
            self.troubled,
            self.gone,
            self.loops,
        )
        return sum(len(one) for one in lists) + (self.hold is not None)


def needs(
    approvals: Iterable[Proposal],
    questions: Iterable[Question],
    loops: Iterable[Loop],
    agents: Sequence[Agent],
    status: HiveStatus,
) -> Needs:
    """Oldest first: who has waited longest is served first. Which agents are held or stuck hived says, so
    that the page and `hive status` count the same."""
    stuck = [agent for agent in agents if agent.name in status.stuck]
    known = {agent.name for agent in agents}
    return Needs(
        approvals=sorted((p for p in approvals if p.state == "pending"), key=lambda p: p.id),
        questions=sorted((q for q in questions if q.state == "open"), key=lambda q: q.id),
        crashed=[agent for agent in stuck if agent.state == "crashed"],
        held=[agent for agent in agents if agent.name in status.held],
        troubled=[agent for agent in stuck if agent.state != "crashed"],
        loops=[loop for loop in loops if loop.state == "held"],
        gone=[name for name in status.stuck if name not in known],
        hold=status.hold,
    )


def by_need(agents: Iterable[Agent]) -> list[Agent]:
    """Crashed, held and parked ones first, then the manager, then by name, stopped ones last: an order that
    turns do not change, so that rows do not jump."""
    return sorted(agents, key=lambda a: (_FIRST.get(a.state, 3), a.role != "manager", a.name))
