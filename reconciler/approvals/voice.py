"""What approvals say to harnesses; the broker speaks it. Messages go through the outbox instead."""

from __future__ import annotations

from typing import Protocol

from reconciler.model.names import AgentName


class Voice(Protocol):
    """The part of `reconciler.services.Broker` that is needed here."""

    async def direct(self, agent: AgentName, kind: str, **data: object) -> None:
        """An order to the agent's harness."""
        ...
