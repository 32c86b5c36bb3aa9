"""Which settings a running container can take up, and for which it has to be started anew. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IN_PLACE = frozenset({
    "model", "models", "bash", "tools", "network", "send", "budget", "mcpServers", "prompt", "compact",
    "notes",
})  # fmt: skip
"""Settings that are decided on the host, or that the harness takes up between two turns. All others are parts
of the container itself; so is whatever is added here and not named."""


def needs_restart(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a container that was started for the spec `before` must be started anew to serve `after`."""
    options = before.keys() | after.keys()
    return any(before.get(option) != after.get(option) for option in options - IN_PLACE)
