"""The demo hive's first run: three agents, made by the operator's own command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from reconciler.demo import control, services
from reconciler.demo.launch import World
from reconciler.errors import PermanentError

HIVE = (services.PYTHON, "-m", "reconciler.cli")
# Name and the arguments of `hive new`.
AGENTS = (
    ("hm1nd", ("--role", "manager", "--allow", "git *", "--description", "drafts and proposes the others")),
    ("scout", ("--allow", "git *", "--description", "looks things up")),
    ("smith", ("--allow", "git *", "--description", "builds things")),
)
_MARKER = "seeded"
_READY_S = 60.0
_TICK_S = 0.1
_AT_WORK = frozenset({"idle", "thinking", "compacting", "napping"})


def is_seeded(world: World) -> bool:
    """Whether the first run was finished. An agent that the operator destroyed since does not come back."""
    return (world.place.state / _MARKER).exists()


def seed(world: World, tell: Callable[[str], None]) -> None:
    """Creates the agents that are not there yet (a first run may have been interrupted) and remembers it."""
    there = {agent["name"] for agent in agents(world)}
    for name, arguments in AGENTS:
        if name not in there:
            tell(f"creating {name}")
            world.run((*HIVE, "new", name, *arguments, "--approve"))
    (world.place.state / _MARKER).touch()


def agents(world: World) -> list[dict[str, Any]]:
    """The agents as the control API lists them."""
    items = control.get(world, "/v1/agents")["items"]
    assert isinstance(items, list)
    return items


def _is_at_work(agent: dict[str, Any]) -> bool:
    """On a generation that was good once; a first one under probe may be idle, too."""
    return agent["state"] in _AT_WORK and agent["generation"] is not None


def wait_until_at_work(world: World, tell: Callable[[str], None]) -> list[str]:
    """Waits until every agent that should run says hello; returns "name: state" of those that did not in
    time."""
    until = time.monotonic() + _READY_S
    while True:
        late = [
            f"{agent['name']}: {agent['state']}"
            for agent in agents(world)
            if agent["desired"] == "running" and not _is_at_work(agent)
        ]
        if not late or time.monotonic() > until:
            return late
        if world.has_ended:
            raise PermanentError("the demo's world ended while its agents were starting")
        tell(", ".join(late))
        time.sleep(_TICK_S)
