"""What is done in a hive with a manager and an agent while hived dies.

Whoever asks does so again after a lost answer, as people and harnesses do.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import os
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import wire
from reconciler.backup.reading import read
from reconciler.cli.api import Hive
from reconciler.cli.failure import Failure
from reconciler.control import models as api
from reconciler.control.client import ControlClient
from reconciler.effects.git.command import ENVIRONMENT
from reconciler.errors import HiveError
from reconciler.model.names import AgentName
from reconciler.model.states import Desired, Role
from tests.support.crash.harness import HostAway, Refused
from tests.support.crash.world import World, approve, done_before, new_agent

BOSS, SMITH, SCRIBE = AgentName("hm1nd"), AgentName("smith"), AgentName("scribe")
Done = Callable[[sqlite3.Connection], bool]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`act` does it, `done` knows from the rows that it took effect. `before`: what hived does undisturbed
    first."""

    act: Callable[[World], Awaitable[None]]
    done: Done
    hello_s: float = 20.0
    before: Callable[[World], Awaitable[None]] | None = None


async def build_base(world: World) -> None:
    """The hive that all scenarios begin with."""
    await approve(world, await new_agent(world, BOSS, role=Role.MANAGER))
    await world.at_rest()
    await approve(world, await new_agent(world, SMITH))
    await world.at_rest()


# ------------------------------------------------------------------------------------------------ deployments
async def _spawn(world: World) -> None:
    await approve(world, await new_agent(world, SCRIBE))


async def _apply(world: World) -> None:
    repository = world.directory / "state/repos/smith.git"
    commit = commit_on_main(repository, {"agent.nix": '{ hyperhive.model = "opus"; }\n'})
    request = api.Propose(agent=SMITH, commit=commit)
    made = await world.operator(lambda client: client.propose(request))
    await approve(world, made.id)


async def _draft(world: World) -> None:
    boss = world.harnesses[BOSS].link
    await world.acting(boss.post("drafts", wire.SpawnDraft(name=SCRIBE), wire.DraftMade))
    repository = world.directory / "state/repos/scribe.git"
    bundle, commit = make_bundle(repository, {"prompt.md": "You write.\n"})
    parts = {"bundle": bundle, "state": _tar({"notes.md": "first\n", "deep/er.txt": "x"})}
    await approve(world, await _upload(world, BOSS, f"drafts/{SCRIBE}/commit", commit, parts))


async def _upload(world: World, by: AgentName, path: str, commit: str, parts: dict[str, bytes]) -> int:
    """Propose until it is taken; the proposal."""
    query = {"commit": commit, "description": "a change"}
    while True:
        made = await world.acting(world.harnesses[by].link.upload(path, parts, wire.Proposed, query))
        if made.state != "invalid":
            return made.proposal


def make_bundle(repository: Path, files: dict[str, str]) -> tuple[bytes, str]:
    """A bundle of one commit on top of `main`."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone.git")
        _git(clone, "clone", "--quiet", "--bare", str(repository), str(clone))
        commit = commit_on_main(clone, files)
        _git(clone, "update-ref", "refs/heads/main", commit)
        _git(clone, "bundle", "create", "--quiet", f"{folder}/bundle", "refs/heads/main")
        return Path(folder, "bundle").read_bytes(), commit


def commit_on_main(repository: Path, files: dict[str, str]) -> str:
    """A commit on top of `main` with some files changed, on no branch: the same for the same."""
    _git(repository, "read-tree", "refs/heads/main")
    for name, text in files.items():
        blob = _git(repository, "hash-object", "-w", "--stdin", text=text)
        _git(repository, "update-index", "--add", "--cacheinfo", f"100644,{blob},{name}")
    tree = _git(repository, "write-tree")
    (repository / "index").unlink()
    return _git(repository, "commit-tree", tree, "-p", "refs/heads/main", "-m", "a change")


def _git(repository: Path, *words: str, text: str | None = None) -> str:
    who = {"NAME": "agent", "EMAIL": "agent@hive", "DATE": "1750000000 +0000"}
    env = {**os.environ, **ENVIRONMENT, "GIT_DIR": str(repository)}
    env |= {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    done = subprocess.run(["git", *words], env=env, input=text, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _tar(files: dict[str, str]) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return memory.getvalue()


# ------------------------------------------------------------------------------------------------ talk
async def _message(world: World) -> None:
    request = api.NewMessage(to=SMITH, body="tell manager: tell operator: all is well", key="errand-01")
    await world.operator(lambda client: client.send(request))


async def _question(world: World) -> None:
    request = api.NewMessage(to=SMITH, body="ask: tea or coffee?", key="errand-02")
    await world.operator(lambda client: client.send(request))
    while not (found := (await world.operator(lambda client: client.questions())).items):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    with done_before():
        await world.operator(lambda client: client.answer(found[0].id, api.Answer(text="tea")))


# ------------------------------------------------------------------------------------------------ steering
def _steer(verb: str, desired: Desired) -> Callable[[World], Awaitable[None]]:
    async def once(client: ControlClient) -> None:
        if (await client.agent(SMITH)).desired != desired:
            await client.act(SMITH, verb)

    async def act(world: World) -> None:
        await world.operator(once)

    return act


async def _applied(world: World) -> None:
    await _apply(world)
    await world.at_rest(deployed(SMITH, 2))


async def _rollback(world: World) -> None:
    async def once(client: ControlClient) -> None:
        with contextlib.closing(world.rows()) as db:
            if db.execute("SELECT 1 FROM proposals WHERE rollback_of IS NOT NULL").fetchone() is None:
                await client.rollback(SMITH, api.Rollback(generation=1))

    await world.operator(once)


async def _destroyed(world: World) -> None:
    await _steer("destroy", Desired.DESTROYED)(world)
    await world.at_rest()


async def _purge(world: World) -> None:
    async def once(client: ControlClient) -> None:
        with contextlib.closing(world.rows()) as db:
            if db.execute("SELECT 1 FROM agents WHERE name = 'smith' AND purge_wanted = 0").fetchone():
                await client.purge(SMITH, api.Purge(confirm=SMITH))

    await world.operator(once)


async def _hold(world: World) -> None:
    async def once(client: ControlClient, *, held: bool) -> None:
        if bool((await client.holds()).items) != held:
            await (client.hold if held else client.release)(SMITH, api.Act(note="a look"))

    await world.operator(partial(once, held=True))
    await world.until(lambda _: world.containers.current(SMITH).status.frozen)
    await world.operator(partial(once, held=False))


async def _crash(world: World) -> None:
    world.containers.crash(SMITH, exit_code=None, signal=9)


async def _backup(world: World) -> None:
    """Until a whole one came, as who writes the file sees it."""
    link = Hive(str(world.directory / "run/control.sock"))

    def take() -> bool:
        try:
            with link.download("/backup", 30.0, state=1) as answer:
                return read(io.BytesIO(answer.read())).members > 0
        except (HiveError, Failure, OSError, http.client.HTTPException):
            return False

    while True:
        await world.up()
        if await asyncio.to_thread(take):
            return
        await asyncio.sleep(0.005)


# ------------------------------------------------------------------------------------------------ done
def deployed(agent: str, generation: int) -> Done:
    return has("SELECT 1 FROM agents WHERE name = ? AND generation = ?", agent, generation)


def has(sql: str, *values: str | int) -> Done:
    return lambda db: db.execute(sql, values).fetchone() is not None


def has_not(sql: str) -> Done:
    return lambda db: db.execute(sql).fetchone() is None


SCENARIOS: dict[str, Scenario] = {
    "spawn": Scenario(_spawn, deployed(SCRIBE, 1)),
    "draft": Scenario(_draft, deployed(SCRIBE, 1)),
    "apply": Scenario(_apply, deployed(SMITH, 2)),
    "message": Scenario(_message, has("SELECT 1 FROM messages WHERE body = 'all is well'")),
    "question": Scenario(_question, has("SELECT 1 FROM messages WHERE kind = 'answer' AND state = 'acked'")),
    "destroy": Scenario(
        _steer("destroy", Desired.DESTROYED), has("SELECT 1 FROM agents WHERE desired = 'destroyed'")
    ),
    "stop": Scenario(_steer("stop", Desired.STOPPED), has("SELECT 1 FROM agents WHERE desired = 'stopped'")),
    "rollback": Scenario(_rollback, deployed(SMITH, 3), before=_applied),
    "purge": Scenario(_purge, has_not("SELECT 1 FROM agents WHERE name = 'smith'"), before=_destroyed),
    "hold": Scenario(_hold, has_not("SELECT 1 FROM holds")),
    "backup": Scenario(_backup, has("SELECT 1 FROM audit WHERE action = 'hive.backup'")),
    "crash": Scenario(_crash, has("SELECT 1 FROM agents WHERE crashes = 1")),
}

__all__ = ["SCENARIOS", "HostAway", "Refused", "Scenario", "build_base", "commit_on_main"]
