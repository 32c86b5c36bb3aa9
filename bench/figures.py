"""What a benchmark gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """Samples of one quantity in `unit`, and of what it is compared with."""

    name: str
    unit: str
    samples: list[float]
    baseline_name: str = ""
    baseline: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "unit": self.unit,
            "samples": self.samples,
            "baseline_name": self.baseline_name,
            "baseline": self.baseline,
        }
