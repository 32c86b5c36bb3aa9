"""hived killed at random under load: messages, questions and deployments of several agents at once.

Ten seconds in `make test`, ten minutes in `make test-full`; HIVE_CRASH_MINUTES is another time, and
HIVE_CRASH_SEED, which a failure tells, the same chance again.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from functools import partial

import pytest

from reconciler.control import models as api
from reconciler.control.client import ControlClient
from tests.support.crash.endstate import check_laws
from tests.support.crash.scenarios import BOSS, SMITH, commit_on_main
from tests.support.crash.walk import Ground, ground
from tests.support.crash.world import World, approve, done_before
from tests.support.needs import needs_root

pytestmark = needs_root
FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
SECONDS = 60 * float(os.environ.get("HIVE_CRASH_MINUTES", "10" if FULL else "0.17"))
SEED = int(os.environ.get("HIVE_CRASH_SEED", time.time_ns() % 1_000_000))
PAUSE_S = 0.1


@pytest.fixture(scope="module")
def place() -> Iterator[Ground]:
    with ground() as found:
        yield found


class Load:
    """What people ask of the hive until `until`, and how much of it was taken."""

    def __init__(self, world: World, until: float) -> None:
        self.world = world
        self.until = until
        self.errands: list[str] = []
        self.questions = 0
        self.deployments = 0

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    async def kill(self, chance: random.Random) -> None:
        while self.goes_on:
            await asyncio.sleep(chance.uniform(0.05, 1.5))
            self.world.kill()

    async def talk(self) -> None:
        while self.goes_on:
            errand = f"errand-{len(self.errands):05}"
            self.errands.append(errand)
            request = api.NewMessage(to=SMITH, body=f"tell manager: {errand}", key=errand)
            await self.world.operator(partial(ControlClient.send, request=request))
            await asyncio.sleep(PAUSE_S)

    async def question(self) -> None:
        while self.goes_on:
            self.questions += 1
            key = f"question-{self.questions:05}"
            request = api.NewMessage(to=BOSS, body=f"ask: {key}?", key=key)
            await self.world.operator(partial(ControlClient.send, request=request))
            await self.answer()
            await asyncio.sleep(PAUSE_S)

    async def answer(self) -> None:
        """Whatever is asked now."""
        for asked in (await self.world.operator(ControlClient.questions)).items:
            with done_before():
                answer = api.Answer(text=f"yes to {asked.question}")
                await self.world.operator(partial(ControlClient.answer, question=asked.id, request=answer))

    async def deploy(self) -> None:
        repository = self.world.directory / "state/repos/smith.git"
        while self.goes_on:
            number = self.deployments + 1
            model = ("haiku", "opus")[number % 2]
            tasks = (512, 256)[number // 2 % 2]  # every second change needs another container
            limits = f"hyperhive.limits.tasksMax = {tasks};"
            text = f'# change {number}\n{{ hyperhive.model = "{model}"; {limits} }}\n'
            request = api.Propose(agent=SMITH, commit=commit_on_main(repository, {"agent.nix": text}))
            made = await self.world.operator(partial(ControlClient.propose, request=request))
            await approve(self.world, made.id)
            self.deployments = number
            await self.world.until(partial(_is_deployed, made.id))


def _is_deployed(proposal: int, db: sqlite3.Connection) -> bool:
    sql = "SELECT 1 FROM proposals WHERE id = ? AND state = 'deployed'"
    return db.execute(sql, (proposal,)).fetchone() is not None


async def _load_and_kill(place: Ground) -> Load:
    async with place.world((), 20.0) as world:
        await world.at_rest()
        load = Load(world, time.monotonic() + SECONDS)
        async with asyncio.TaskGroup() as group:
            for work in (load.kill(random.Random(SEED)), load.talk(), load.question(), load.deploy()):
                group.create_task(work)
        await world.operator(ControlClient.status)
        await _until_all_is_answered(load)
        await world.at_rest()
        world.kill()
        check_laws(world)
        _check(load)
        return load


async def _until_all_is_answered(load: Load) -> None:
    async with asyncio.timeout(60):
        while True:
            await load.answer()
            db = load.world.rows()
            (answered,) = db.execute("SELECT COUNT(*) FROM questions WHERE state = 'answered'").fetchone()
            db.close()
            if answered == load.questions:
                return
            await asyncio.sleep(0.02)


def _check(load: Load) -> None:
    """Everything that was taken was done, and once."""
    db = load.world.rows()
    rows = db.execute("SELECT sender, recipient, body, kind FROM messages ORDER BY body").fetchall()
    errands = [row[2].removeprefix("tell manager: ") for row in rows if row[2].startswith("tell manager: ")]
    assert errands == load.errands
    assert [row[2] for row in rows if row[0] == SMITH and row[1] == BOSS] == load.errands, "told on once each"
    assert sum(row[3] == "answer" for row in rows) == load.questions
    generations = db.execute(
        "SELECT number FROM generations WHERE agent = 'smith' ORDER BY number"
    ).fetchall()
    assert [row[0] for row in generations] == list(range(1, load.deployments + 2))
    db.close()
    with load.world.containers.kept.world():
        starts = [start for start in load.world.containers.history if start.spec.name == SMITH]
    assert len(starts) == load.deployments // 2 + 1, "one start for each deployment that needs one"
    state = load.world.directory / "state"
    left = [
        path for part in ("trees", "staged", "incoming", "quarantine") for path in state.glob(f"{part}/*")
    ]
    assert left == []


@pytest.mark.timeout(SECONDS + 300)
def test_nothing_is_lost_or_done_twice_when_hived_is_killed_at_random_under_load(place: Ground) -> None:
    print(f"HIVE_CRASH_SEED={SEED}")
    load = asyncio.run(_load_and_kill(place))
    told = f"{len(load.errands)} errands, {load.questions} questions, {load.deployments} deployments"
    print(f"{load.world.kills} kills, {told}")
    assert load.world.kills > SECONDS / 3
    assert load.errands
    assert load.questions
    assert load.deployments
