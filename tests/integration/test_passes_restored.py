"""Passes over a store that has lost what agents should run: a restored hive's, or one that was collected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.model.states import ProposalState
from reconciler.plan.steps import Outcome, Settled, Waiting
from tests.support.passbench import SMITH, PassBench, pass_bench


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[PassBench]:
    async with pass_bench(tmp_path) as made:
        yield made


async def _restored(bench: PassBench) -> str:
    """A hive whose store lost what its agent runs, as after a restore on another host: that path."""
    await bench.approve("haiku")
    await bench.settle()
    (path,) = bench.nix.store
    await bench.containers.stop(SMITH)
    await bench.containers.clear(SMITH)
    for lost in (bench.nix.store, bench.nix.profiles, bench.nix.pointers, bench.nix.held):
        lost.clear()
    await bench.die()
    return path


async def _rebuild(bench: PassBench) -> Outcome:
    outcome = await bench.settle()
    while bench.builds.again.tasks:
        await asyncio.gather(*bench.builds.again.tasks.values(), return_exceptions=True)
        outcome = await bench.settle()
    return outcome


@pytest.mark.asyncio
async def test_what_should_run_and_is_not_in_the_store_is_built_again_and_starts(bench: PassBench) -> None:
    path = await _restored(bench)
    assert await _rebuild(bench) == Settled()
    assert bench.containers.running() == {SMITH: path}
    assert bench.nix.profiles == {SMITH: {1: path}}
    assert bench.nix.pointers == {SMITH: 1}
    assert bench.nix.builds == [SMITH, SMITH]


@pytest.mark.asyncio
async def test_a_rebuild_that_gives_another_path_is_refused_with_what_to_do(bench: PassBench) -> None:
    await _restored(bench)
    async with bench.store.state.transaction() as tx:
        await tx.run('UPDATE generations SET spec = \'{"model": "opus"}\'')
    outcome = await _rebuild(bench)
    assert isinstance(outcome, Waiting)
    assert "propose the commit of smith again" in outcome.on
    assert bench.containers.running() == {}
    assert bench.nix.profiles == {}
    await bench.clock.sleep(61)
    assert await _rebuild(bench) == outcome, "it is tried again"
    assert len(bench.nix.builds) == 3


@pytest.mark.asyncio
async def test_a_build_that_was_approved_and_lost_is_built_again_before_it_is_activated(
    bench: PassBench,
) -> None:
    number = await bench.approve("haiku")
    await bench.passes.run_pass(SMITH)
    await bench.built(SMITH)
    bench.nix.store.clear()
    bench.nix.held.clear()
    assert await _rebuild(bench) == Settled()
    assert await bench.state_of(number) is ProposalState.DEPLOYED
    assert bench.nix.builds == [SMITH, SMITH]
