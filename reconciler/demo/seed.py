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
_SEED_S = 60.0
_TICK_S = 0.1
_AT_WORK = frozenset({"idle", "thinking", "compacting", "napping"})


def is_seeded(world: World) -> bool:
    """Whether the first run was finished. An agent that the operator destroyed since does not come back."""
    return (world.place.state / _MARKER).exists()


def seed(world: World, tell: Callable[[str], None]) -> None:
    """Gets a first commit of every agent approved, from wherever an interrupted run left it; `PermanentError`
    if that takes too long. Remember it by `mark` when they are at work."""
    until = time.monotonic() + _SEED_S
    for name, arguments in AGENTS:
        while _step(world, name, arguments, tell):
            if time.monotonic() > until:
                raise PermanentError(
                    f"{name} was not on its way within {_SEED_S:.0f} s",
                    hint=f"see {world.place.state}/log/hived.log; the next run goes on from here",
                )
            time.sleep(_TICK_S)


def mark(world: World) -> None:
    """Remembers that the first run is over."""
    (world.place.state / _MARKER).touch()


def _step(world: World, name: str, arguments: tuple[str, ...], tell: Callable[[str], None]) -> bool:
    """What is to be done next for an agent, if anything; False when its proposal is on its way by itself."""
    proposals: list[dict[str, Any]] = control.get(world, f"/v1/proposals?agent={name}")["items"]
    newest = proposals[0] if proposals else {"state": ""}
    match newest["state"]:
        case "examining":
            tell(f"examining {name}")
        case "pending":
            world.run((*HIVE, "approve", str(newest["id"]), "--yes"))
        case "approved" | "building" | "activating" | "deployed":
            return False
        case _ if any(agent["name"] == name for agent in agents(world)):
            tell(f"trying {name} again")
            world.run((*HIVE, "propose", name, newest["commit"], "--approve", "--yes"))
        case _:
            tell(f"creating {name}")
            world.run((*HIVE, "new", name, *arguments, "--approve"))
    return True


def agents(world: World) -> list[dict[str, Any]]:
    """The agents as the control API lists them."""
    items = control.get(world, "/v1/agents")["items"]
    assert isinstance(items, list)
    return items


def _is_at_work(agent: dict[str, Any]) -> bool:
    """On a generation that was good once; a first one under probe may be idle, too."""
    return agent["state"] in _AT_WORK and agent["generation"] is not None


def held(world: World) -> list[str]:
    """What says of every held agent how it is released; one sentence if the hive is held as a whole."""
    scopes = [hold["scope"] for hold in control.get(world, "/v1/holds")["items"]]
    if "*" in scopes:
        return ["the hive is held: `hive release --all`"]
    return [f"{scope} is held: `hive release {scope}`" for scope in scopes]


def wait_until_at_work(world: World, tell: Callable[[str], None]) -> list[str]:
    """Waits until every agent that should and may run says hello (a held one waits for its operator);
    returns "name: state" of those that did not in time."""
    until = time.monotonic() + _READY_S
    while True:
        late = [
            f"{agent['name']}: {agent['state']}"
            for agent in agents(world)
            if agent["desired"] == "running" and not agent["held"] and not _is_at_work(agent)
        ]
        if not late or time.monotonic() > until:
            return late
        if world.has_ended:
            raise PermanentError("the demo's world ended while its agents were starting")
        tell(", ".join(late))
        time.sleep(_TICK_S)
