"""The conversation goes on after every kind of crash: the model sees what was said before.

One case of each kind; `make test-full` (HYPOTHESIS_PROFILE=full) runs them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.fakes import model as scripted
from tests.fakes.agenthost import FakeHost, welcome
from tests.fakes.container import Container, command_of, needs_container, processes_of_agent, signal_first
from tests.support.harnesses import World, calling, scenario

pytestmark = [needs_container, pytest.mark.asyncio]

FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
PLANS = [
    scenario("remember", {"text": "The word is tulip."}),
    scenario("work", calling("Bash", command="git --version"), {"stall": {"seconds": 600}}),
    scenario(".", {"text": "fine"}),
]
Crash = Callable[[World], None]


@contextlib.asynccontextmanager
async def lives(folder: Path) -> AsyncIterator[Callable[[], contextlib.AbstractAsyncContextManager[World]]]:
    """A container with its host and model, in which a harness is started again and again."""
    container = Container(folder)
    host = FakeHost(container.run, welcome())
    await host.start()
    try:
        async with scripted.serving(container.run / "model.sock", PLANS) as model:

            @contextlib.asynccontextmanager
            async def life() -> AsyncIterator[World]:
                greeted = len(host.hellos)
                async with container.harness() as process:
                    world = World(container, host, model)
                    world.process = process
                    await host.until(lambda: len(host.hellos) > greeted)
                    yield world

            yield life
    finally:
        await host.stop()


def kill_cli(world: World) -> None:
    for pid in world.agents_processes():
        if "stream-json" in command_of(pid):
            os.kill(pid, signal.SIGKILL)


def kill_harness(world: World) -> None:
    assert world.process is not None
    signal_first(world.process, signal.SIGKILL)


def kill_container(world: World) -> None:
    assert world.process is not None
    for pid in processes_of_agent(world.process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    world.process.kill()


def transcripts(folder: Path) -> list[Path]:
    return sorted((folder / "home/.claude/projects").glob("*/*.jsonl"))


def whole(_file: Path) -> None:
    """The host went down in an orderly way."""


def half_a_line(file: Path) -> None:
    """A power cut in the middle of a write."""
    with file.open("ab") as end:
        end.write(b'{"type":"assistant","message":{"role":"assis')


def emptied(file: Path) -> None:
    """A power cut before anything reached the disk but the name."""
    file.write_bytes(b"")


def zeros(file: Path) -> None:
    """A power cut before the blocks of the last write reached the disk."""
    with file.open("ab") as end:
        end.write(b"\0" * 4096)


@pytest.mark.parametrize("crash", [kill_cli, kill_harness, kill_container] if FULL else [kill_harness])
async def test_a_turn_that_was_killed_comes_again_in_the_same_conversation(
    tmp_path: Path, crash: Crash
) -> None:
    async with lives(tmp_path) as life:
        async with life() as world:
            await world.turn("remember")
            await world.host.deliver("work")
            await world.host.until(lambda: world.host.turns.get(2) and world.host.turns[2].of("tool_result"))
            crash(world)
            if crash is kill_cli:
                turn = await world.host.ended(2)
                assert turn.end is not None
                assert turn.end.outcome == "crashed"
                await world.host.until(
                    lambda: 3 in world.host.turns and world.host.turns[3].of("tool_result")
                )
                assert "The word is tulip." in world.model.said()
                return
            assert world.process is not None
            await asyncio.wait_for(world.process.wait(), 20)
        async with life() as world:
            await world.host.until(lambda: len(world.model.requests) > 3)
            said = world.model.said()
            assert "The word is tulip." in said
            assert "redelivered" in said
            assert world.model.requests[-1]["session"] == world.host.told.session_id


@pytest.mark.parametrize("damage", [whole, half_a_line, zeros] if FULL else [half_a_line])
async def test_the_conversation_goes_on_after_the_host_went_down(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with lives(tmp_path) as life:
        async with life() as world:
            await world.turn("remember")
            world.host.told = welcome(resume=True)
            kill_container(world)
        [file] = transcripts(tmp_path)
        damage(file)
        async with life() as world:
            turn = await world.turn("again")
            assert turn.end is not None
            assert turn.end.outcome == "ok"
            assert "The word is tulip." in world.model.said()


@pytest.mark.parametrize("damage", [emptied, Path.unlink] if FULL else [emptied])
async def test_an_agent_whose_conversation_is_lost_works_all_the_same_and_is_told(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with lives(tmp_path) as life:
        async with life() as world:
            await world.turn("remember")
            world.host.told = welcome(resume=True)
            kill_container(world)
        [file] = transcripts(tmp_path)
        damage(file)
        async with life() as world:
            turn = await world.turn("again")
            assert turn.end is not None
            assert turn.end.outcome == "ok"
            assert any("begins anew" in one["text"] for one in turn.of("note"))
            assert "What you noted is in /state/notes.md" in world.model.said()
            assert "tulip" not in world.model.said()
            after = await world.turn("and again")
            assert not after.of("note")
