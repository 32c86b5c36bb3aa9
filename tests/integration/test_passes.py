"""Passes over a real store and fake effects: deployments, roll-backs, crashes, hived dying at every call."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from reconciler.effects.protocols import ContainerStatus
from reconciler.errors import TemporaryError
from reconciler.model.instants import micros
from reconciler.model.names import AgentName, Commit
from reconciler.model.states import ProposalState, Role
from reconciler.passes.apply import Applier, Paths
from reconciler.passes.builds import Builds
from reconciler.passes.loop import Passes, Presence
from reconciler.plan.facts import Bounds
from reconciler.plan.steps import Again, Failed, Outcome, Settled, Waiting
from reconciler.store import attachments, holds
from reconciler.store.db import Store
from tests.fakes.containers import FakeContainers, Start
from tests.fakes.faults import Died, Faults
from tests.fakes.hostfiles import FakeHostFiles
from tests.fakes.nix import FakeNix
from tests.fakes.unixhttp import until

SMITH = AgentName("smith")
BASE = 1_048_576


class FakeClock:
    """Time that moves only when somebody waits."""

    def __init__(self) -> None:
        self.at = 10_000.0

    def now(self) -> float:
        self.at += 0.001
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds
        await asyncio.sleep(0)


class FakeTrees:
    """The part of git that a deployment reads."""

    async def extract(self, name: AgentName, commit: Commit, into: Path) -> None:
        (into / "agent.nix").write_text("{ }")

    async def read(self, name: AgentName, commit: Commit, path: str, limit: int) -> str | None:
        return f"prompt of {name} at {commit[:4]}"

    async def remove(self, name: AgentName) -> None:
        pass


@dataclass
class Memory:
    """What only this hived process knows: gone when it dies."""

    hellos: dict[AgentName, float] = field(default_factory=dict)
    busy: set[AgentName] = field(default_factory=set)
    served: set[AgentName] = field(default_factory=set)
    draining: set[AgentName] = field(default_factory=set)


@dataclass
class FakeTags:
    """Tags of proposals; `gone`: somebody removed them from these agents' repositories."""

    gone: set[AgentName] = field(default_factory=set)

    async def are_there(self, name: AgentName) -> bool:
        return name not in self.gone

    async def restore(self, name: AgentName) -> None:
        self.gone.discard(name)


@dataclass
class Told:
    """What harnesses are told directly."""

    gone: list[str] = field(default_factory=list)

    async def harness_gone(self, agent: AgentName) -> None:
        self.gone.append(agent)


class Bench:
    """One hive with fakes; `hived()` makes a new process over the same world."""

    def __init__(self, store: Store, trees: Path, clock: FakeClock) -> None:
        self.store, self.trees, self.clock = store, trees, clock
        self.faults = Faults()
        self.containers = FakeContainers(self.faults, now=clock.now)
        self.nix = FakeNix(self.faults)
        self.files = FakeHostFiles(self.faults)
        self.told = Told()
        self.tags = FakeTags()
        self.mute: set[str] = set()
        self.memory = Memory()
        self.logs: list[str] = []
        self.woken: set[AgentName] = set()
        self.troubles: list[str] = []
        self.containers.on_start = self._say_hello
        self.passes = self.hived()

    def _say_hello(self, start: Start) -> None:
        if start.spec.toplevel not in self.mute:
            self.memory.hellos[start.spec.name] = self.clock.now()

    def hived(self) -> Passes:
        memory = self.memory = Memory()
        # Harnesses that live on say hello again to the new hived.
        for name in self.containers.running():
            if self.containers.running()[name] not in self.mute:
                memory.hellos[name] = self.clock.now()

        async def serve(name: AgentName, uid_base: int, role: Role) -> None:
            memory.served.add(name)

        async def drop(name: AgentName) -> None:
            memory.served.discard(name)

        async def phase(name: AgentName, status: ContainerStatus, outcome: Outcome) -> None:
            pass

        def drain(agent: AgentName, *, on: bool) -> None:
            (memory.draining.add if on else memory.draining.discard)(agent)

        async def append_log(proposal: int, lines: list[str]) -> None:
            self.logs += lines

        sockets = SimpleNamespace(serve=serve, drop=drop, is_served=lambda name: name in memory.served)
        git: Any = FakeTrees()
        self.builds = Builds(
            self.store, git, self.nix, self.trees, parallel=2, append_log=append_log,
            wake=self.woken.add, clock=self.clock,
        )  # fmt: skip
        self.applier = Applier(
            store=self.store, containers=self.containers, nix=self.nix, git=git, host_files=self.files,
            sockets=sockets, voice=self.told, tags=self.tags, builds=self.builds, clock=self.clock,
            append_log=append_log, paths=Paths(agents=self.trees, sockets=self.trees, staged=self.trees),
        )  # fmt: skip
        return Passes(
            store=self.store, containers=self.containers, nix=self.nix, tags=self.tags,
            host_files=self.files, sockets=sockets, builds=self.builds, applier=self.applier,
            clock=self.clock, bounds=Bounds(), resync_s=10,
            after_step=lambda: None, on_failure=lambda name, error: self.troubles.append(error),
            presence=Presence(
                memory.hellos.get, memory.hellos.__contains__, memory.busy.__contains__, phase, drain
            ),
        )  # fmt: skip

    async def die(self) -> None:
        """Hived is gone and a new one starts."""
        await self.builds.close()
        self.passes = self.hived()

    async def settle(self, name: AgentName = SMITH) -> Outcome:
        """Passes until the agent rests; builds finish, time goes by."""
        for _ in range(200):
            self.woken.discard(name)
            outcome = await self.passes.run_pass(name)
            if self.builds.running(name):
                await self._built(name)
                continue
            if name in self.woken:  # the build ended while the pass said that it waits for it
                continue
            match outcome:
                case Settled() | Waiting():
                    return outcome
                case Again(after_s):
                    await self.clock.sleep(max(after_s, 0.01))
                case Failed():
                    await self.clock.sleep(0.5)
        raise AssertionError("it never rests")

    async def _built(self, name: AgentName) -> None:
        async with asyncio.timeout(60):
            while self.builds.running(name):
                await asyncio.sleep(0)
                for task in list(self.builds.tasks.values()):
                    with contextlib.suppress(Died, asyncio.CancelledError):
                        await task
                    if not task.cancelled() and isinstance(task.exception(), Died):
                        raise Died("in a build")

    async def approve(self, model: str) -> int:
        """An approved proposal of smith, as the approvals service leaves it."""
        spec = {"model": model, "role": "agent"}
        async with self.store.state.transaction() as tx:
            done = await tx.run(
                "INSERT INTO proposals (kind, agent, commit_id, state, spec, spec_digest, requested_by, "
                "created_at) VALUES ('apply', 'smith', ?, 'approved', ?, 'd', 'hm1nd', ?)",
                f"{model:0<40}".encode().hex()[:40], json.dumps(spec), tx.now,
            )  # fmt: skip
            return done.row_id

    async def state_of(self, proposal: int) -> ProposalState:
        row = await self.store.state.one("SELECT state FROM proposals WHERE id = ?", proposal)
        assert row is not None
        return ProposalState(row["state"])

    async def notes(self) -> dict[str, str]:
        """Messages of the system that are committed, by key; a key twice is an error here."""
        found: dict[str, str] = {}
        for row in await self.store.state.all("SELECT data FROM outbox WHERE kind = 'notify'"):
            told = json.loads(row["data"])
            assert told["key"] not in found, told["key"]
            found[told["key"]] = told["body"]
        return found

    async def agent(self) -> Any:
        return await self.store.state.one("SELECT * FROM agents WHERE name = 'smith'")


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    clock = FakeClock()
    store = await Store.open(tmp_path / "db", now=clock.now)
    async with store.state.transaction() as tx:
        await tx.run(
            "INSERT INTO agents (name, role, uid_base, desired, session_id, created_at) "
            "VALUES ('smith', 'agent', ?, 'running', 's', ?)", BASE, tx.now,
        )  # fmt: skip
    made = Bench(store, tmp_path, clock)
    yield made
    await made.builds.close()
    await store.close()


@pytest.mark.asyncio
async def test_an_approved_proposal_is_built_activated_and_probed(bench: Bench) -> None:
    proposal = await bench.approve("opus")
    assert await bench.settle() == Settled()
    assert await bench.state_of(proposal) is ProposalState.DEPLOYED
    assert (await bench.agent())["generation"] == 1
    assert list(bench.containers.running()) == [SMITH]
    assert bench.nix.profiles[SMITH] == {1: bench.containers.running()[SMITH]}
    assert "deployed" in (await bench.notes())[f"proposal-{proposal}-deployed"]


@pytest.mark.asyncio
async def test_what_never_says_hello_is_rolled_back_to_the_generation_before(bench: Bench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    before = bench.containers.running()[SMITH]
    bad = await bench.approve("opus")
    bench.mute |= {path async for path in _future_path(bench, "opus")}
    assert await bench.settle() == Settled()
    assert await bench.state_of(bad) is ProposalState.FAILED
    assert bench.containers.running()[SMITH] == before
    assert "rolled back to generation 1" in (await bench.notes())[f"proposal-{bad}-failed"]
    # remembered, and not tried again by itself
    starts = len(bench.containers.history)
    await bench.settle()
    assert len(bench.containers.history) == starts


async def _future_path(bench: Bench, model: str) -> AsyncIterator[str]:
    async def quiet(line: str) -> None:
        pass

    yield await FakeNix().build(SMITH, bench.trees, {"model": model, "role": "agent"}, quiet)


@pytest.mark.asyncio
async def test_a_failed_build_ends_the_proposal_and_leaves_the_agent_alone(bench: Bench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    bench.nix.broken.add(SMITH)
    bad = await bench.approve("opus")
    await bench.settle()
    assert await bench.state_of(bad) is ProposalState.FAILED
    assert len(bench.containers.history) == 1
    assert bench.nix.profiles[SMITH].keys() == {1}


@pytest.mark.asyncio
async def test_a_build_that_was_taken_back_is_ended_by_the_next_pass(bench: Bench) -> None:
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
async def test_a_finished_build_that_was_taken_back_is_not_held_for_ever(bench: Bench) -> None:
    proposal = await bench.approve("opus")
    await bench.passes.run_pass(SMITH)
    await bench._built(SMITH)
    assert SMITH in bench.nix.held
    async with bench.store.state.transaction() as tx:
        await tx.move_proposal(proposal, ProposalState.CANCELLED)
    await bench.settle()
    assert bench.nix.held == {}


@pytest.mark.asyncio
async def test_activation_waits_for_the_end_of_the_turn(bench: Bench) -> None:
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
async def test_a_crash_is_told_once_and_the_agent_comes_back(bench: Bench) -> None:
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
async def test_an_agent_that_crashes_again_and_again_is_left_for_the_operator(bench: Bench) -> None:
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
async def test_a_new_hived_does_not_restart_running_agents(bench: Bench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    await bench.die()
    assert await bench.settle() == Settled()
    assert len(bench.containers.history) == 1


async def hold(bench: Bench, scope: str = "smith") -> None:
    async with bench.store.state.transaction() as tx:
        await holds.put(tx, scope, "unix:root", "")


async def release(bench: Bench, scope: str = "smith") -> None:
    async with bench.store.state.transaction() as tx:
        await holds.lift(tx, scope)


async def events(bench: Bench, kind: str) -> list[dict[str, Any]]:
    rows = await bench.store.state.all("SELECT data FROM outbox WHERE kind = 'event'")
    return [found for row in rows if (found := json.loads(row["data"]))["kind"] == kind]


@pytest.mark.asyncio
@pytest.mark.parametrize("scope", ["smith", "*"])
async def test_a_held_agent_is_suspended_and_goes_on_where_it_was(bench: Bench, scope: str) -> None:
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
async def test_nothing_of_a_held_agent_is_built_or_started(bench: Bench) -> None:
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
async def test_a_probe_that_was_held_begins_anew_and_is_not_blamed_for_the_time(bench: Bench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    bench.mute |= {path async for path in _future_path(bench, "opus")}
    proposal = await bench.approve("opus")
    while await bench.state_of(proposal) is not ProposalState.ACTIVATING or len(bench.containers.history) < 2:
        await bench.passes.run_pass(SMITH)
        if bench.builds.running(SMITH):
            await bench._built(SMITH)
    await hold(bench)
    await bench.settle()
    await bench.clock.sleep(3600)
    bench.mute.clear()
    await release(bench)
    assert await bench.settle() == Settled()
    assert await bench.state_of(proposal) is ProposalState.DEPLOYED


@pytest.mark.asyncio
async def test_a_unit_stopped_by_hand_is_told_and_started_again_but_is_no_crash(bench: Bench) -> None:
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
async def test_what_is_stopped_by_hand_while_it_is_probed_is_probed_again(bench: Bench) -> None:
    await bench.approve("haiku")
    await bench.settle()
    proposal = await bench.approve("opus")
    bench.containers.on_start = lambda start: bench.containers.stop_by_hand(start.spec.name)
    for _ in range(8):
        await bench.passes.run_pass(SMITH)
        if bench.builds.running(SMITH):
            await bench._built(SMITH)
    bench.containers.on_start = bench._say_hello
    await bench.settle()
    assert await bench.state_of(proposal) is ProposalState.DEPLOYED


@pytest.mark.asyncio
async def test_drift_is_mended_in_place_and_written_down_but_nothing_is_restarted(bench: Bench) -> None:
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
    assert await bench.settle() == Settled()
    assert len(bench.containers.history) == starts
    assert bench.nix.pointers[SMITH] == (await bench.agent())["generation"]
    assert (await bench.containers.status(SMITH)).drift == ()
    assert bench.tags.gone == set()
    repaired = [event["data"]["step"] for event in await events(bench, "agent.repaired")]
    assert sorted(repaired) == ["pin_generation", "refresh_unit", "restore_tags"]


@pytest.mark.asyncio
async def test_a_uid_range_edited_in_the_database_is_reported_and_nothing_is_touched(bench: Bench) -> None:
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
async def test_an_attached_person_holds_up_drift_repair_by_restart_and_activation(bench: Bench) -> None:
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
async def test_a_purged_agent_leaves_its_history_and_nothing_else(bench: Bench) -> None:
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
async def test_nothing_is_purged_while_a_backup_reads_it(bench: Bench) -> None:
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


async def _count_calls(bench: Bench) -> int:
    start = len(bench.faults.calls)
    await bench.approve("opus")
    await bench.settle()
    return len(bench.faults.calls) - start


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["fail", "fail-after", "die-before", "die-after"])
async def test_whatever_goes_wrong_at_any_call_the_end_is_the_same(bench: Bench, kind: Any) -> None:
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
async def test_a_step_that_never_ends_is_told_as_stuck_and_one_that_ends_is_not(bench: Bench) -> None:
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
async def test_a_full_read_that_is_overdue_is_told_as_stuck(bench: Bench) -> None:
    bench.clock.at += 309
    assert bench.passes.stuck() is None
    bench.clock.at += 2
    assert bench.passes.stuck() == "the last full read was 311 s ago"


@pytest.mark.asyncio
async def test_the_first_full_read_looks_at_all_before_anything_is_done(bench: Bench) -> None:
    await bench.approve("opus")
    told: list[tuple[int, int]] = []
    bench.passes._on_read = lambda done, count: told.append((done, count))
    before = len(bench.faults.calls)
    await bench.passes._look_at_all()
    assert told == [(0, 1), (1, 1)]
    assert len(bench.faults.calls) == before, "it only read"
