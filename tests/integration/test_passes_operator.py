"""Passes and the operator: holds, stops by hand, drift, attachments, purge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.effects.protocols import ContainerStatus
from reconciler.errors import TemporaryError
from reconciler.model.instants import micros
from reconciler.model.names import AgentName
from reconciler.model.states import ProposalState
from reconciler.passes.loop import WORKERS
from reconciler.plan.steps import Failed, Settled, Step, Waiting
from reconciler.store import attachments, holds
from reconciler.store.deployments import AgentFacts
from tests.support.passbench import SMITH, PassBench, future_path, pass_bench


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[PassBench]:
    async with pass_bench(tmp_path) as made:
        yield made


async def hold(bench: PassBench, scope: str = "smith") -> None:
    async with bench.store.state.transaction() as tx:
        await holds.put(tx, scope, "unix:root", "")


async def release(bench: PassBench, scope: str = "smith") -> None:
    async with bench.store.state.transaction() as tx:
        await holds.lift(tx, scope)


async def events(bench: PassBench, kind: str) -> list[dict[str, Any]]:
    rows = await bench.store.state.all("SELECT data FROM outbox WHERE kind = 'event'")
    return [found for row in rows if (found := json.loads(row["data"]))["kind"] == kind]


@pytest.mark.asyncio
@pytest.mark.parametrize("scope", ["smith", "*"])
async def test_a_held_agent_is_suspended_and_goes_on_where_it_was(bench: PassBench, scope: str) -> None:
    await bench.approve("haiku")
    await bench.settle()
    await hold(bench, scope)
    assert await bench.settle() == Waiting("the operator to release it")
    assert (await bench.containers.status(SMITH)).frozen
    await bench.die()
    assert await bench.settle() == Waiting("the operator to release it")
    await release(bench, scope)
    assert await bench.settle() == Settled()
    assert not (await bench.containers.status(SMITH)).frozen
    assert len(bench.containers.history) == 1


@pytest.mark.asyncio
async def test_a_hold_waits_for_no_agent_that_is_slow_to_stop(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    stuck, hanging = asyncio.Event(), asyncio.Event()
    stop, slow = bench.applier.apply, 0

    async def apply(step: Step, facts: AgentFacts, status: ContainerStatus) -> None:
        nonlocal slow
        if facts.desired.name != SMITH:
            slow += 1
            if slow == WORKERS:
                hanging.set()
            await stuck.wait()
        await stop(step, facts, status)

    bench.applier.apply = apply  # type: ignore[method-assign]
    others = [AgentName(f"slow-{number}") for number in range(WORKERS)]
    async with bench.store.state.transaction() as tx:
        for number, name in enumerate(others, 2):
            await tx.run(
                "INSERT INTO agents (name, role, uid_base, desired, session_id, created_at) "
                "VALUES (?, 'agent', ?, 'destroyed', 's', ?)",
                *(name, number << 22, tx.now),
            )
            await tx.run("UPDATE agents SET purge_wanted = 1 WHERE name = ?", name)
    running = asyncio.create_task(bench.passes.run())
    try:
        async with asyncio.timeout(20):
            for name in others:
                bench.passes.wake(name)
            await hanging.wait()
            await hold(bench)
            bench.passes.hold(SMITH)
            while not (await bench.containers.status(SMITH)).frozen:  # noqa: ASYNC110 - the world is asked
                await asyncio.sleep(0.001)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.asyncio
async def test_nothing_of_a_held_agent_is_built_or_started(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    await hold(bench)
    bench.containers.crash(SMITH)
    later = await bench.approve("opus")
    await bench.settle()
    assert bench.containers.running() == {}
    assert bench.nix.builds == [SMITH]
    assert [key for key in await bench.notes() if key.startswith("crash-")], "its crash is told all the same"
    await release(bench)
    await bench.settle()
    assert await bench.state_of(later) is ProposalState.DEPLOYED


@pytest.mark.asyncio
async def test_a_probe_that_was_held_begins_anew_and_is_not_blamed_for_the_time(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    bench.mute |= {path async for path in future_path(bench, "opus")}
    proposal = await bench.approve("opus")
    while await bench.state_of(proposal) is not ProposalState.ACTIVATING or len(bench.containers.history) < 2:
        await bench.passes.run_pass(SMITH)
        if bench.builds.running(SMITH):
            await bench.built(SMITH)
    await hold(bench)
    await bench.settle()
    await bench.clock.sleep(3600)
    bench.mute.clear()
    await release(bench)
    assert await bench.settle() == Settled()
    assert await bench.state_of(proposal) is ProposalState.DEPLOYED


@pytest.mark.asyncio
async def test_a_unit_stopped_by_hand_is_told_and_started_again_but_is_no_crash(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    bench.containers.stop_by_hand(SMITH)
    await bench.settle()
    assert SMITH in bench.containers.running()
    assert (await bench.agent())["crashes"] == 0
    told = [body for key, body in (await bench.notes()).items() if key.startswith("stopped-")]
    assert len(told) == 1
    assert "by hand" in told[0]
    assert len(await events(bench, "agent.stopped_by_hand")) == 1


@pytest.mark.asyncio
async def test_what_is_stopped_by_hand_while_it_is_probed_is_probed_again(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    proposal = await bench.approve("opus")
    bench.containers.on_start = lambda start: bench.containers.stop_by_hand(start.spec.name)
    for _ in range(8):
        await bench.passes.run_pass(SMITH)
        if bench.builds.running(SMITH):
            await bench.built(SMITH)
    bench.containers.on_start = bench.say_hello
    await bench.settle()
    assert await bench.state_of(proposal) is ProposalState.DEPLOYED


@pytest.mark.asyncio
async def test_drift_is_mended_in_place_and_written_down_but_nothing_is_restarted(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    generation = (await bench.agent())["generation"]
    await bench.approve("opus")
    await bench.settle()
    bench.memory.busy.add(SMITH)
    starts = len(bench.containers.history)
    bench.containers.tamper(SMITH, "its unit file was changed")
    bench.nix.pointers[SMITH] = generation
    bench.tags.gone.add(SMITH)
    bench.memory.served.clear()
    assert await bench.settle() == Settled()
    assert len(bench.containers.history) == starts
    assert bench.nix.pointers[SMITH] == (await bench.agent())["generation"]
    assert (await bench.containers.status(SMITH)).drift == ()
    assert bench.tags.gone == set()
    repaired = [event["data"]["step"] for event in await events(bench, "agent.repaired")]
    assert sorted(repaired) == ["pin_generation", "refresh_unit", "restore_tags", "serve_sockets"]


@pytest.mark.asyncio
async def test_a_uid_range_edited_in_the_database_is_reported_and_nothing_touched(
    bench: PassBench,
) -> None:
    await bench.approve("haiku")
    await bench.settle()
    async with bench.store.state.transaction() as tx:
        await tx.run("UPDATE agents SET uid_base = uid_base + 65536")
    outcome = await bench.passes._guarded(SMITH)
    assert isinstance(outcome, Failed)
    assert "were made for" in outcome.error
    assert bench.passes.error_of(SMITH) == outcome.error
    assert len(bench.troubles) == 1
    await bench.passes._guarded(SMITH)
    assert len(bench.troubles) == 1, "the same trouble is told once"
    assert SMITH in bench.containers.running()
    async with bench.store.state.transaction() as tx:
        await tx.run("UPDATE agents SET uid_base = uid_base - 65536")
    assert await bench.passes._guarded(SMITH) == Settled()
    assert bench.passes.error_of(SMITH) is None


@pytest.mark.asyncio
async def test_an_attached_person_holds_up_drift_repair_by_restart_and_activation(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    async with bench.store.state.transaction() as tx:
        await attachments.attach(tx, "a" * 16, SMITH, "unix:root", micros(bench.clock.now() + 60))
    later = await bench.approve("opus")
    assert isinstance(await bench.settle(), Waiting)
    assert await bench.state_of(later) is ProposalState.BUILDING
    await bench.clock.sleep(61)
    await bench.settle()
    assert await bench.state_of(later) is ProposalState.DEPLOYED


@pytest.mark.asyncio
async def test_a_purged_agent_leaves_its_history_and_nothing_else(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    async with bench.store.state.transaction() as tx:
        await tx.run("UPDATE agents SET desired = 'destroyed'")
    await bench.settle()
    assert bench.files.agents, "what is destroyed is kept"
    async with bench.store.state.transaction() as tx:
        await tx.run("UPDATE agents SET purge_wanted = 1")
    assert await bench.settle() == Settled()
    assert await bench.agent() is None
    assert (bench.files.agents, bench.nix.profiles, bench.nix.pointers) == ({}, {}, {})
    row = await bench.store.state.one("SELECT COUNT(*) AS n, MIN(purged) AS purged FROM proposals")
    assert row is not None
    assert (row["n"], row["purged"]) == (1, 1)


@pytest.mark.asyncio
async def test_nothing_is_purged_while_a_backup_reads_it(bench: PassBench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    async with bench.store.state.transaction() as tx:
        await tx.run("UPDATE agents SET desired = 'destroyed', purge_wanted = 1")
    async with bench.applier._deletions:
        with pytest.raises(TemporaryError, match="a backup is being made"):
            await bench.passes.run_pass(SMITH)
        assert bench.files.agents
    assert await bench.settle() == Settled()
    assert bench.files.agents == {}
