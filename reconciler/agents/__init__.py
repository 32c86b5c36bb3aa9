"""Agents as the operator sees and steers them: `ports.py` is what that needs of others, `reading.py` what is
shown, `service.py` what is done. Only desired state is written; passes make it so."""

from __future__ import annotations

from reconciler.agents.ports import Now
from reconciler.agents.service import AgentService

__all__ = ["AgentService", "Now"]
