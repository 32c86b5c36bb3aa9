"""Containers whose memory and notes are what a test says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.model.names import AgentName


@dataclass
class FakeMeasures:
    """`Measures` from two tables."""

    notes: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    async def notes_bytes(self, name: AgentName) -> int | None:
        return self.notes.get(name)

    async def memory_bytes(self, leaders: Mapping[AgentName, int]) -> Mapping[AgentName, int]:
        return {name: self.memory[name] for name in leaders if name in self.memory}
