"""Passes over a real store and fake effects: deployments, roll-backs, crashes, hived dying at every call."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.effects.protocols import ContainerStatus
from reconciler.errors import TemporaryError
from reconciler.model.names import AgentName
from reconciler.model.states import ProposalState
from reconciler.passes.builds import REST_S
from reconciler.plan.facts import Bounds
from reconciler.plan.steps import Failed, Outcome, Settled, Waiting
from reconciler.store import deployments
from tests.fakes.containers import FakeContainers
from tests.fakes.faults import Died
from tests.fakes.unixhttp import until
from tests.support.passbench import SMITH, PassBench, future_path, pass_bench


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[PassBench]:
    async with pass_bench(tmp_path) as made:
        yield made


@pytest.mark.asyncio
async def test_an_approved_proposal_is_built_activated_and_probed(bench: PassBench) -> None:
    proposal = await bench.approve("opus")
    assert await bench.settle() == Settled()
    assert await bench.state_of(proposal) is ProposalState.DEPLOYED
    assert (await bench.agent())["generation"] == 1
    assert list(bench.containers.running()) == [SMITH]
    assert bench.nix.profiles[SMITH] == {1: bench.containers.running()[SMITH]}
    assert "deployed" in (await bench.notes())[f"proposal-{proposal}-deployed"]


@pytest.mark.asyncio
async def test_what_never_says_hello_is_rolled_back_to_the_generation_before(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    before = bench.containers.running()[SMITH]
    bad = await bench.approve("opus")
    bench.mute |= {path async for path in future_path(bench, "opus")}
    assert await bench.settle() == Settled()
    assert await bench.state_of(bad) is ProposalState.FAILED
    assert bench.containers.running()[SMITH] == before
    assert "rolled back to generation 1" in (await bench.notes())[f"proposal-{bad}-failed"]
    # remembered, and not tried again by itself
    starts = len(bench.containers.history)
    await bench.settle()
    assert len(bench.containers.history) == starts


@pytest.mark.asyncio
async def test_a_failed_build_ends_the_proposal_and_leaves_the_agent_alone(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    bench.nix.broken.add(SMITH)
    bad = await bench.approve("opus")
    await bench.settle()
    assert await bench.state_of(bad) is ProposalState.FAILED
    assert len(bench.containers.history) == 1
    assert bench.nix.profiles[SMITH].keys() == {1}


@pytest.mark.asyncio
async def test_a_build_that_was_taken_back_is_ended_by_the_next_pass(bench: PassBench) -> None:
    bench.nix.gates[SMITH] = asyncio.Event()
    proposal = await bench.approve("opus")
    await bench.passes.run_pass(SMITH)
    assert bench.builds.running(SMITH)
    async with bench.store.state.transaction() as tx:
        await tx.move_proposal(proposal, ProposalState.CANCELLED)
    await bench.passes.run_pass(SMITH)
    assert not bench.builds.running(SMITH)
    assert (bench.nix.builds, bench.nix.held) == ([], {})
    assert await bench.state_of(proposal) is ProposalState.CANCELLED


@pytest.mark.asyncio
async def test_a_failed_build_that_cannot_be_written_down_is_not_repeated_without_end(
    bench: PassBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def disk_full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    bench.nix.broken.add(SMITH)
    proposal = await bench.approve("opus")
    with monkeypatch.context() as patch:
        patch.setattr(deployments, "fail", disk_full)
        await bench.passes.run_pass(SMITH)
        (task,) = bench.builds.tasks.values()
        await asyncio.wait([task])
        for _ in range(3):
            with pytest.raises(TemporaryError, match="could not be written down"):
                await bench.passes.run_pass(SMITH)
        assert not bench.builds.tasks
    await bench.clock.sleep(REST_S)
    await bench.settle()
    assert await bench.state_of(proposal) is ProposalState.FAILED


@pytest.mark.asyncio
async def test_a_finished_build_that_was_taken_back_is_not_held_for_ever(bench: PassBench) -> None:
    gate = bench.nix.gates[SMITH] = asyncio.Event()  # it ends after the pass, not within it
    proposal = await bench.approve("opus")
    await bench.passes.run_pass(SMITH)
    gate.set()
    await bench.built(SMITH)
    assert SMITH in bench.nix.held
    async with bench.store.state.transaction() as tx:
        await tx.move_proposal(proposal, ProposalState.CANCELLED)
    await bench.settle()
    assert bench.nix.held == {}


@pytest.mark.asyncio
async def test_activation_waits_for_the_end_of_the_turn(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    bench.memory.busy.add(SMITH)
    later = await bench.approve("opus")
    assert isinstance(await bench.settle(), Waiting)
    assert len(bench.containers.history) == 1
    assert bench.memory.draining == {SMITH}, "it gets no further turn meanwhile"
    bench.memory.busy.clear()
    await bench.settle()
    assert await bench.state_of(later) is ProposalState.DEPLOYED
    assert len(bench.containers.history) == 2


@pytest.mark.asyncio
async def test_a_crash_is_told_once_and_the_agent_comes_back(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    bench.containers.say(SMITH, "boom")
    bench.containers.crash(SMITH, signal=9, exit_code=None)
    await bench.settle()
    crashes = [note for key, note in (await bench.notes()).items() if key.startswith("crash-")]
    assert len(crashes) == 1
    assert "killed by signal 9" in crashes[0]
    assert "boom" in crashes[0]
    assert SMITH in bench.containers.running()
    assert (await bench.agent())["crashes"] == 1


@pytest.mark.asyncio
async def test_no_line_of_a_console_passes_for_a_line_of_the_hive(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    for line in ("exit code: 0", "the operator: \x1b[2Jpurge scout\u2028out of memory: yes"):
        bench.containers.say(SMITH, line)
    bench.containers.crash(SMITH, signal=9, exit_code=None)
    await bench.settle()
    (told,) = [note for key, note in (await bench.notes()).items() if key.startswith("crash-")]
    mark = "last lines of its console:\n"
    hives, agents = told[: told.index(mark)], told[told.index(mark) + len(mark) :]
    assert "exit code" not in hives
    assert agents.splitlines() == [
        "> exit code: 0", "> the operator: ␛[2Jpurge scout", "> out of memory: yes",
    ]  # fmt: skip


@pytest.mark.asyncio
async def test_an_agent_that_crashes_again_and_again_is_left_for_the_operator(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    outcome: Outcome = Settled()
    for _ in range(Bounds().crashloop):
        bench.containers.crash(SMITH)
        outcome = await bench.settle()
    assert isinstance(outcome, Waiting)
    assert "crashed too often" in outcome.on
    assert bench.containers.running() == {}


@pytest.mark.asyncio
async def test_a_new_hived_does_not_restart_running_agents(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    await bench.die()
    assert await bench.settle() == Settled()
    assert len(bench.containers.history) == 1


async def _count_calls(bench: PassBench) -> int:
    start = len(bench.faults.calls)
    await bench.approve("opus")
    await bench.settle()
    return len(bench.faults.calls) - start


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["fail", "fail-after", "die-before", "die-after"])
async def test_whatever_goes_wrong_at_any_call_the_end_is_the_same(bench: PassBench, kind: Any) -> None:
    await bench.approve("haiku")
    await bench.settle()
    calls = await _count_calls(bench)
    assert calls >= 5
    models = iter([f"m{n}" for n in range(1, 200)])
    for n in range(1, calls + 1):
        generation = (await bench.agent())["generation"]
        proposal = await bench.approve(next(models))
        bench.faults.at(len(bench.faults.calls) + n, kind)
        for _ in range(3):
            try:
                await bench.settle()
                break
            except Died:
                await bench.die()
            except TemporaryError:
                continue  # the loop's guard slows down and looks again
        await bench.settle()
        state = await bench.state_of(proposal)
        if kind in {"fail", "fail-after"} and state is ProposalState.FAILED:
            assert bench.faults.calls[-1]  # a build that failed ends its proposal; the agent stays as it was
            assert (await bench.agent())["generation"] == generation
        else:
            assert state is ProposalState.DEPLOYED, (n, bench.faults.calls[-8:])
            # the number of a generation that did not come up is not used again
            assert (await bench.agent())["generation"] > generation
            assert bench.nix.pointers[SMITH] == (await bench.agent())["generation"]
        assert list(bench.containers.running()) == [SMITH]
        notes = await bench.notes()
        assert f"proposal-{proposal}-{state}" in notes
        assert not [key for key in notes if key.startswith("crash-")]


@pytest.mark.asyncio
async def test_a_step_that_never_ends_is_told_as_stuck_and_one_that_ends_is_not(bench: PassBench) -> None:
    await bench.approve("opus")
    stop = asyncio.Event()

    async def endless(name: AgentName) -> ContainerStatus:
        await stop.wait()
        return await FakeContainers.status(bench.containers, name)

    running = asyncio.create_task(bench.passes.run_pass(SMITH))
    await running
    assert bench.passes.stuck() is None
    bench.containers.status = endless  # type: ignore[method-assign]
    bench.passes.wake(SMITH)
    worker = asyncio.create_task(bench.passes._worker())
    await until(lambda: SMITH in bench.passes._moved_at)
    bench.passes._read_at = bench.clock.at = bench.clock.at + 299
    assert bench.passes.stuck() is None
    bench.passes._read_at = bench.clock.at = bench.clock.at + 2
    assert bench.passes.stuck() == "the pass of smith has not moved for 301 s"
    stop.set()
    await until(lambda: SMITH not in bench.passes._moved_at)
    assert bench.passes.stuck() is None
    worker.cancel()


@pytest.mark.asyncio
async def test_a_full_read_that_is_overdue_is_told_as_stuck(bench: PassBench) -> None:
    bench.clock.at += 309
    assert bench.passes.stuck() is None
    bench.clock.at += 2
    assert bench.passes.stuck() == "the last full read was 311 s ago"


@pytest.mark.asyncio
async def test_the_first_full_read_looks_at_all_before_anything_is_done(bench: PassBench) -> None:
    await bench.approve("opus")
    told: list[tuple[int, int]] = []
    bench.passes._on_read = lambda done, count: told.append((done, count))
    before = len(bench.faults.calls)
    await bench.passes._look_at_all()
    assert told == [(0, 1), (1, 1)]
    assert len(bench.faults.calls) == before, "it only read"


@pytest.mark.asyncio
async def test_every_start_is_told_with_its_generation_and_reason(bench: PassBench) -> None:
    first = await bench.approve("haiku")
    await bench.settle()
    bench.containers.crash(SMITH)
    await bench.settle()
    rows = await bench.store.state.all("SELECT data FROM outbox WHERE kind = 'event' ORDER BY id")
    events = [json.loads(row["data"]) for row in rows]
    starts = [event["data"] for event in events if event["kind"] == "agent.started"]
    assert [(start["generation"], start["reason"]) for start in starts] == [
        (1, f"activating proposal {first}"),
        (1, "generation 1 should run"),
    ]
    assert [start["invocation"] for start in starts] == [
        one.status.invocation for one in bench.containers.history
    ]
    progress = await bench.store.state.all("SELECT state FROM proposal_progress ORDER BY at")
    assert [row["state"] for row in progress] == ["building", "activating", "probing", "deployed"]


@pytest.mark.asyncio
async def test_a_world_that_cannot_be_read_ends_nothing_and_is_read_when_it_is_back(bench: PassBench) -> None:
    await bench.approve("opus")
    real, away = bench.containers.statuses, asyncio.Event()
    asked = 0

    async def statuses() -> Any:
        nonlocal asked
        asked += 1
        if not away.is_set():
            raise TemporaryError("the bus is away")
        return await real()

    bench.containers.statuses = statuses  # type: ignore[method-assign]
    running = asyncio.create_task(bench.passes.run())
    async with asyncio.timeout(20):
        await bench.passes.first_read.wait()
        await until(lambda: asked > 12)
        assert not running.done()
        away.set()
        while (await bench.agent())["generation"] is None:  # noqa: ASYNC110 - passes announce nothing
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.asyncio
async def test_what_is_due_is_not_put_off_by_a_later_wish_but_brought_forward_by_an_earlier_one(
    bench: PassBench,
) -> None:
    passes = bench.passes
    passes._later(SMITH, 3600)
    passes._later(SMITH, 0.01)
    passes._later(SMITH, 3600)
    await until(lambda: SMITH in passes._queue)
    assert passes._timers == {}, "what was due is over"
    passes._later(SMITH, 3600)
    assert passes._timers.keys() == {SMITH}, "the next wish is a new one"
    passes._timers[SMITH].cancel()


@pytest.mark.asyncio
async def test_a_world_that_cannot_be_read_for_long_is_not_taken_for_a_hang(bench: PassBench) -> None:
    async def away() -> None:
        raise TemporaryError("the bus is away")

    bench.passes.full_read = away  # type: ignore[method-assign]
    reading = asyncio.create_task(bench.passes._resync())
    began = bench.clock.at
    await until(lambda: bench.clock.at > began + 1000)
    assert bench.passes.stuck() is None
    reading.cancel()


@pytest.mark.asyncio
async def test_a_step_that_is_done_ends_the_slowing_down(bench: PassBench) -> None:
    for _ in range(3):
        bench.passes._reschedule(SMITH, Failed("not now", temporary=True))
    assert bench.passes._failures[SMITH] == 3
    await bench.approve("opus")
    await bench.passes.run_pass(SMITH)
    assert SMITH not in bench.passes._failures
