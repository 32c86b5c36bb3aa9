"""Which other generations a running container can serve as it is.

On the bare platform a root holds nothing of its spec but a copy to read, so a container that was started from
one generation can serve another one, if the two differ in nothing that a container is made of.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from reconciler.model.activation import needs_restart
from reconciler.model.names import AgentName
from reconciler.store import deployments
from reconciler.store.db import Store

KNOWN_MAX = 4096


Interchangeable = Callable[[AgentName, str, str], Awaitable[bool]]
"""Whether a container of the agent that runs from one root serves another one as well."""


async def never(_name: AgentName, _runs: str, _wanted: str) -> bool:
    """Where a root holds more than its spec."""
    return False


class BareRoots:
    """By the specs of the generations; what a root was built from never changes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[AgentName, str, str], bool] = {}

    async def __call__(self, name: AgentName, runs: str, wanted: str) -> bool:
        key = (name, runs, wanted)
        if key not in self._known:
            specs = await deployments.specs_of_roots(self._store.state, name, (runs, wanted))
            if specs.keys() != {runs, wanted}:
                return False  # one of them is no generation of it (yet)
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[key] = not needs_restart(specs[runs], specs[wanted])
        return self._known[key]
