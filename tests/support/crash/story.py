"""What happens in a hive over real effects, phase by phase: every kind of step of a pass is in one of them.

Each phase names the deaths that `make test` dies in it. `make test-full` dies everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from reconciler.control import models as api
from reconciler.control.client import ControlClient
from reconciler.model.states import Role
from tests.support.crash.points import Fault, Kind
from tests.support.crash.realworld import RealWorld
from tests.support.crash.scenarios import (
    BOSS,
    SMITH,
    Done,
    commit_on_main,
    deployed,
    has,
    has_not,
    make_bundle,
)
from tests.support.crash.world import approve, new_agent

Act = Callable[[RealWorld], Awaitable[None]]
LOOK_S = 0.01
SMITH_UID = 65536 * 5001

# A change of the limits needs another container; what a running one takes up is walked with fake ones.
OTHER = '{ hyperhive.model = "%s"; hyperhive.limits.tasksMax = %d; }\n'


@dataclass(frozen=True, slots=True)
class Phase:
    """`act` does it, `done` knows from the rows that it took effect. `deaths`: points without their number,
    of which the first is meant."""

    name: str
    act: Act
    done: Done
    deaths: tuple[tuple[Kind, str], ...] = ()

    @property
    def faults(self) -> list[Fault]:
        """The deaths of `make test`."""
        return [Fault(at if "#" in at else f"{at}#1", kind) for kind, at in self.deaths]


# ------------------------------------------------------------------------------------------------ acts
async def _manager(world: RealWorld) -> None:
    await approve(world, await new_agent(world, BOSS, role=Role.MANAGER))


async def _spawn(world: RealWorld) -> None:
    await approve(world, await new_agent(world, SMITH))


async def _apply(world: RealWorld) -> None:
    """The agent itself offers a commit."""
    repository = world.directory / "state/repos/smith.git"
    bundle, commit = make_bundle(repository, {"agent.nix": OTHER % ("opus", 256)})
    (world.directory / "state/agents/smith/config/bundle").write_bytes(bundle)
    request = api.NewMessage(to=SMITH, body=f"propose {commit}", key="an-offer-of-smith")
    await world.operator(partial(ControlClient.send, request=request))
    await _approve(world, commit)


async def _fails(world: RealWorld) -> None:
    """A commit whose container ends at once."""
    repository = world.directory / "state/repos/smith.git"
    commit = commit_on_main(repository, {"agent.nix": OTHER % ("sonnet", 128)})
    request = api.Propose(agent=SMITH, commit=commit)
    await approve(world, (await world.operator(lambda client: client.propose(request))).id)


async def _approve(world: RealWorld, commit: str) -> None:
    """Say yes to the proposal of a commit; one that was cut off is made again by who made it."""
    while True:
        found = (await world.operator(lambda client: client.proposals(agent=SMITH))).items
        for item in found:
            if item.commit == commit and item.state == "pending":
                return await approve(world, item.id)
        await asyncio.sleep(LOOK_S)


async def _rollback(world: RealWorld) -> None:
    async def once(client: ControlClient) -> None:
        with contextlib.closing(world.rows()) as db:
            if db.execute("SELECT 1 FROM proposals WHERE rollback_of IS NOT NULL").fetchone() is None:
                await client.rollback(SMITH, api.Rollback(generation=1))

    await world.operator(once)


async def _hold(world: RealWorld) -> None:
    for held in (True, False):
        await world.operator(partial(_set_hold, held=held))
        await world.acting(_until(partial(_is_frozen, world, held)))


async def _set_hold(client: ControlClient, *, held: bool) -> None:
    if bool((await client.holds()).items) != held:
        await (client.hold if held else client.release)(SMITH, api.Act(note="a look"))


def _is_frozen(world: RealWorld, held: bool) -> bool:
    return bool(world.containers._status(SMITH).frozen) == held


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(LOOK_S)


async def _crash(world: RealWorld) -> None:
    os.kill(world.leader(SMITH), signal.SIGKILL)


async def _drift(world: RealWorld) -> None:
    """Somebody removes a link, a tag and a socket, and takes a folder."""
    state = world.directory / "state"
    (state / "profiles/smith/system").unlink()
    (state / "repos/smith.git/refs/tags/deployed/2").unlink()
    (world.directory / "run/agents/smith/agent.sock").unlink()
    os.chown(state / "agents/smith/home", 0, 0)
    await world.acting(_until(partial(_is_mended, world)))


def _is_mended(world: RealWorld) -> bool:
    state = world.directory / "state"
    there = (
        state / "profiles/smith/system",
        state / "repos/smith.git/refs/tags/deployed/2",
        world.directory / "run/agents/smith/agent.sock",
    )
    return all(os.path.lexists(path) for path in there) and (state / "agents/smith/home").stat().st_uid != 0


async def _steer(world: RealWorld, verb: str, desired: str) -> None:
    async def once(client: ControlClient) -> None:
        if (await client.agent(SMITH)).desired != desired:
            await client.act(SMITH, verb)

    await world.operator(once)


async def _stop(world: RealWorld) -> None:
    await _steer(world, "stop", "stopped")


async def _start_without_root(world: RealWorld) -> None:
    """What should run is not in the store any more."""
    root = world.pins()[0][SMITH][2]
    for link in ("system-2-link", "system"):
        (world.directory / "state/profiles/smith" / link).unlink()
    environment = {**os.environ, **world.nix._environment}
    command = ["nix-store", "--delete", root]
    await asyncio.to_thread(subprocess.run, command, env=environment, check=True, capture_output=True)
    await _steer(world, "start", "running")


async def _purge(world: RealWorld) -> None:
    await _steer(world, "destroy", "destroyed")
    await world.at_rest()

    async def once(client: ControlClient) -> None:
        with contextlib.closing(world.rows()) as db:
            if db.execute("SELECT 1 FROM agents WHERE name = 'smith' AND purge_wanted = 0").fetchone():
                await client.purge(SMITH, api.Purge(confirm=SMITH))

    await world.operator(once)


STORY = (
    Phase("manager", _manager, deployed(BOSS, 1), (("die-after", "run git fast-import"),)),
    Phase(
        "spawn", _spawn, deployed(SMITH, 1),
        (
            ("die-amid", "run bwrap"),  # the examination
            ("die-amid", "run nix-build"),
            ("die-after", "nix.set_generation smith 1"),
            ("die-before", "containers.start smith"),
            ("die-after", "containers.start smith#2"),
            ("die-before", "nix.select smith 1"),
        ),
    ),
    Phase(
        "apply", _apply, deployed(SMITH, 2),
        (
            ("die-amid", "run git index-pack"),
            ("die-after", "run git fetch"),
            ("die-after", "containers.stop smith"),
            ("die-amid", "containers.start smith"),
        ),
    ),
    Phase(
        "hold", _hold, has_not("SELECT 1 FROM holds"),
        (("die-after", "containers.freeze smith"), ("die-before", "containers.thaw smith")),
    ),
    Phase(
        "drift", _drift, deployed(SMITH, 2),
        (
            ("die-after", f"hostfiles.ensure_agent smith {SMITH_UID}"),
            ("die-after", "bind smith/agent.sock"),
            ("die-before", "nix.set_generation smith 2"),
            ("die-before", "run git update-ref refs/tags/deployed/2"),
        ),
    ),
    Phase(
        "crash", _crash, has("SELECT 1 FROM agents WHERE crashes = 1"),
        (
            ("die-before", "commit state: agents,outbox"),
            ("die-after", "commit state: agents,outbox#2"),
            ("die-after", "containers.clear smith"),
        ),
    ),
    Phase(
        "stop", _stop, has("SELECT 1 FROM agents WHERE desired = 'stopped'"),
        (("die-before", "containers.stop smith"), ("die-before", "containers.clear smith")),
    ),
    Phase(
        "rebuild", _start_without_root, has("SELECT 1 FROM agents WHERE desired = 'running'"),
        (("die-amid", "run nix-build"), ("die-before", "nix.set_generation smith 2")),
    ),
    Phase(
        "rollback", _rollback, deployed(SMITH, 3),
        (("die-after", "nix.set_generation smith 3"), ("die-after", "containers.start smith")),
    ),
    Phase(
        "fails", _fails, has("SELECT 1 FROM proposals WHERE state = 'failed'"),
        (
            ("die-after", "containers.stop smith#2"),
            ("die-after", "containers.clear smith#2"),
        ),
    ),
    Phase(
        "purge", _purge, has_not("SELECT 1 FROM agents WHERE name = 'smith'"),
        (("die-after", "nix.drop_generations smith"), ("die-amid", "run rm")),
    ),
)  # fmt: skip
