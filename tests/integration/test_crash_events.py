"""Ends of real containers under a whole hived: told once each, within a second, with what the host knows."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from reconciler.app import Effects, Hived, Supervisor
from reconciler.config import Timeouts
from reconciler.control import models as api
from reconciler.effects.clock import SystemClock
from reconciler.effects.containers import cgroups, proc
from reconciler.effects.containers.record import Record
from reconciler.model.names import AgentName
from reconciler.model.states import UserRole
from reconciler.notify import Notifier
from reconciler.services import Actor
from reconciler.store.db import Store
from tests.fakes.git import FakeGit
from tests.fakes.measures import FakeMeasures
from tests.fakes.nix import FakeNix
from tests.integration.containers_kit import Yard, needs_containers

pytestmark = [pytest.mark.asyncio, pytest.mark.integration, needs_containers]
SMITH = AgentName("smith")
ROOT = Actor("unix:root", UserRole.OPERATOR)
CRASHES = 200 if os.environ.get("HYPOTHESIS_PROFILE") == "full" else 15


@dataclass
class Hive:
    """A hived over real containers, whose agents' generations were deployed before."""

    yard: Yard
    store: Store
    nix: FakeNix
    git: FakeGit

    @asynccontextmanager
    async def hived(self) -> AsyncIterator[Hived]:
        """One hived process's worth of it, from its start to its orderly end."""
        effects = Effects(
            self.yard.driver(),
            self.nix,
            self.git,
            self.yard.files,
            SystemClock(),
            lambda: None,
            FakeMeasures(),
        )
        alone = Supervisor(Notifier.from_environment({}), {})
        hived, stop = Hived(self.yard.config, self.store, effects, alone), asyncio.Event()
        task = asyncio.create_task(hived.run(stop))
        try:
            yield hived
        finally:
            stop.set()
            async with asyncio.timeout(15):
                await task
            await hived.close()

    async def agent(self, name: str, *, role: str = "agent", mode: str = "") -> None:
        """An agent that should run, as a deployment has left it."""
        path = str(self.yard.root)
        self.nix.store.add(path)
        self.nix.profiles[AgentName(name)] = {1: path}
        self.nix.pointers[AgentName(name)] = 1
        spec = await self.yard.spec(name, mode=mode, manager=role == "manager")
        async with self.store.state.transaction() as tx:
            made = await tx.run(
                "INSERT INTO proposals (kind, agent, commit_id, state, spec, requested_by, created_at) "
                "VALUES ('spawn', ?, ?, 'deployed', '{}', 'operator', 1)",
                *(name, "c" * 40),
            )
            await tx.run(
                "INSERT INTO agents (name, role, uid_base, desired, generation, session_id, created_at) "
                "VALUES (?, ?, ?, 'running', 1, ?, 1)",
                *(name, role, spec.uid_base, f"session-{name}"),
            )
            await tx.run(
                "INSERT INTO generations (agent, number, proposal_id, commit_id, store_path, spec, "
                "spec_digest, state, created_at) VALUES (?, 1, ?, ?, ?, '{}', 'd', 'deployed', 1)",
                *(name, made.row_id, "c" * 40, path),
            )

    def mode(self, name: str, mode: str) -> None:
        """How its next start behaves."""
        (Path(self.yard.config.state_dir) / "agents" / name / "config/mode").write_text(mode + "\n")

    async def running(self, name: str = "smith", other_than: str | None = None) -> Record:
        """Wait until it runs (under another invocation), its payload is up, and hived knows."""
        driver = self.yard.driver()

        async def runs() -> bool:
            status = await driver.status(AgentName(name))
            ready = status.phase == "running" and status.invocation != other_than
            return ready and "ready" in await driver.logs(AgentName(name), 3) and not _starting()

        await until(runs)
        return self.yard.record(name)

    async def told(self, recipient: str, prefix: str = "container_crash") -> list[str]:
        rows = await self.store.state.all(
            "SELECT body FROM messages WHERE recipient = ? AND body LIKE ? ORDER BY id",
            *(recipient, prefix + "%"),
        )
        return [row["body"] for row in rows]

    async def events(self, kind: str) -> list[dict[str, Any]]:
        rows = await self.store.events.all("SELECT data FROM events WHERE kind = ? ORDER BY id", kind)
        return [json.loads(row["data"]) for row in rows]

    async def recorded(self, kind: str) -> None:
        """Wait for an event: it is a row of another database, and comes after what it tells of."""

        async def is_there() -> bool:
            return bool(await self.events(kind))

        await until(is_there)


async def until(condition: Callable[[], Awaitable[bool]], deadline_s: float = 20.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not await condition():  # noqa: ASYNC110 - a fact of other processes, not announced
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def hive(tmp_path: Path) -> AsyncIterator[Hive]:
    yard = Yard.make(tmp_path)
    timeouts = Timeouts(resync_s=0.5)
    people = {"ui_user": "root", "gateway_user": "root", "build_user": "root", "operator_group": "root"}
    yard.config = yard.config.model_copy(update={"timeouts": timeouts, **people})
    store = await Store.open(Path(yard.config.state_dir))
    yield Hive(yard, store, FakeNix(), FakeGit())
    await store.close()
    await yard.clean()


def kill_leader(found: Record) -> None:
    assert found.leader is not None
    found.leader.send(signal.SIGKILL)


def kill_nspawn(found: Record) -> None:
    assert found.nspawn is not None
    found.nspawn.send(signal.SIGKILL)


@pytest.mark.parametrize(
    ("kill", "how"),
    [(kill_leader, "exited with 1"), (kill_nspawn, "killed by signal 9")],
    ids=["the leader is killed", "nspawn is killed"],
)
async def test_a_killed_container_is_told_to_the_manager_within_a_second_and_comes_back(
    hive: Hive, kill: Callable[[Record], None], how: str
) -> None:
    await hive.agent("boss", role="manager")
    await hive.agent("smith")
    async with hive.hived():
        before = await hive.running("smith")
        await hive.running("boss")
        began = time.monotonic()
        kill(before)

        async def told() -> bool:
            return bool(await hive.told("boss"))

        await until(told)
        took_s = time.monotonic() - began
        after = await hive.running("smith", other_than=before.invocation)
        await hive.recorded("agent.crashed")
        assert after.nspawn is not None
        assert after.nspawn.is_alive()
    (body,) = await hive.told("boss")
    assert f"container_crash: smith ended and nobody asked for it: {how}" in body
    assert f"invocation: {before.invocation}" in body
    assert "unit: hive-smith" in body
    assert "out of memory: no" in body
    assert "harness says hello" in body, "the console's last lines"
    (event,) = await hive.events("agent.crashed")
    assert (event["invocation"], event["count"], event["how"]) == (before.invocation, 1, how)
    assert took_s < 1.0
    assert await hive.told("operator") == []


@pytest.mark.parametrize("status", [0, 5])
async def test_a_harness_that_ends_by_itself_is_a_crash_whatever_its_status(hive: Hive, status: int) -> None:
    await hive.agent("smith", mode=f"exit {status}")
    async with hive.hived():

        async def told() -> bool:
            return bool(await hive.told("operator"))

        await until(told)
    body = (await hive.told("operator"))[0]  # there is no manager
    assert f"exited with {status}" in body
    assert f"result: {'exit-code' if status else 'success'}" in body
    assert "leaving by itself" in body


async def test_a_crash_of_the_manager_is_told_to_the_operator(hive: Hive) -> None:
    await hive.agent("boss", role="manager")
    async with hive.hived():
        before = await hive.running("boss")
        kill_leader(before)
        await hive.running("boss", other_than=before.invocation)
    assert await hive.told("boss") == []
    assert len(await hive.told("operator")) == 1


async def test_what_eats_all_its_memory_is_told_as_that(hive: Hive) -> None:
    if cgroups.create("probe.of-tests", memory_bytes=1 << 26, cpu_percent=100, tasks=64).enforced == ():
        pytest.fail("no control group of this machine can bound memory")
    cgroups.remove(tuple(str(path) for path in Path("/sys/fs/cgroup").glob("**/hyperhive/probe.of-tests")))
    await hive.agent("smith", mode="eat")
    async with hive.store.state.transaction() as tx:
        await tx.run("""UPDATE generations SET spec = '{"limits": {"memoryMax": "64M"}}'""")
    async with hive.hived():

        async def told() -> bool:
            return bool(await hive.told("operator"))

        await until(told)
        await hive.recorded("agent.crashed")
    body = (await hive.told("operator"))[0]
    assert "out of memory: yes" in body
    assert "result: oom-kill" in body
    assert (await hive.events("agent.crashed"))[0]["oom"] is True


async def test_a_unit_stopped_by_hand_is_told_as_that_and_started_again(hive: Hive) -> None:
    await hive.agent("boss", role="manager")
    await hive.agent("smith")
    async with hive.hived():
        await hive.running("boss")
        before = await hive.running("smith")
        assert before.shim is not None
        before.shim.send(signal.SIGTERM)
        await hive.running("smith", other_than=before.invocation)
        await hive.recorded("agent.stopped_by_hand")
    assert await hive.told("boss") == []
    (body,) = await hive.told("boss", "container_stopped")
    assert "by hand" in body
    assert await hive.events("agent.crashed") == []
    assert len(await hive.events("agent.stopped_by_hand")) == 1


async def test_the_operators_own_stop_is_told_to_nobody(hive: Hive) -> None:
    await hive.agent("smith")
    async with hive.hived() as hived:
        before = await hive.running()
        await hived.agents.stop(ROOT, "smith", api.Act())

        async def gone() -> bool:
            return (await hive.yard.driver().status(SMITH)).phase == "absent"

        await until(gone)
        await hived.agents.start(ROOT, "smith", api.Act())
        await hive.running(other_than=before.invocation)
    assert await hive.told("operator", "container") == []


async def test_a_crash_while_hived_was_away_is_found_and_told_once(hive: Hive) -> None:
    await hive.agent("smith")
    async with hive.hived():
        before = await hive.running()
    kill_leader(before)

    async def ended() -> bool:
        return (await hive.yard.driver().status(SMITH)).phase == "exited"

    await until(ended)
    for _ in range(2):
        async with hive.hived():
            await hive.running(other_than=before.invocation)
            await hive.recorded("agent.crashed")
    assert len(await hive.told("operator")) == 1
    assert len(await hive.events("agent.crashed")) == 1


async def test_after_a_restart_of_the_machine_it_runs_again_and_no_crash_is_told(
    hive: Hive, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hive.agent("smith")
    async with hive.hived():
        before = await hive.running()
    # Its processes go without a word, and the records are of another boot: as after a power cut.
    for process in (before.shim, before.nspawn, before.leader):
        assert process is not None
        process.send(signal.SIGKILL)
        await asyncio.to_thread(process.wait, 5.0)
    real = proc.world_id()
    monkeypatch.setattr(proc, "world_id", lambda: f"next-{real}")
    async with hive.hived():

        async def cleared() -> bool:
            status = await hive.yard.driver().status(SMITH)
            return status.invocation != before.invocation

        await until(cleared)
    assert await hive.told("operator") == []


async def test_many_crashes_in_a_row_are_as_many_events_and_leave_nothing(hive: Hive) -> None:
    await hive.agent("smith")
    seen: list[str] = []
    async with hive.hived() as hived:
        found: Record | None = None
        for _ in range(CRASHES):
            found = await hive.running(other_than=seen[-1] if seen else None)
            seen.append(found.invocation)
            kill_leader(found)

            async def told(count: int = len(seen)) -> bool:
                return len(await hive.events("agent.crashed")) == count

            await until(told)
            # The operator starts it again: the count, and the back-off with it, begin anew.
            await hived.agents.start(ROOT, "smith", api.Act())
        last = await hive.running(other_than=seen[-1])
        await hived.agents.stop(ROOT, "smith", api.Act())

        async def gone() -> bool:
            return (await hive.yard.driver().status(SMITH)).phase == "absent"

        await until(gone)
    events = await hive.events("agent.crashed")
    assert [event["invocation"] for event in events] == seen
    assert len(set(seen)) == CRASHES
    assert len(await hive.told("operator")) == CRASHES
    assert last.leader is not None
    assert not last.leader.is_alive()
    left = [pid for pid in _pids() if bytes(hive.yard.path) in _command(pid)]
    assert left == [], "no orphaned process"
    assert str(hive.yard.path) not in Path("/proc/self/mounts").read_text(), "no mount"
    groups = {path.name for path in Path("/sys/fs/cgroup").glob("**/hyperhive/smith.*")}
    assert not groups & {f"smith.{invocation[:8]}" for invocation in seen}, "no control group"


def _starting() -> bool:
    """Whether a start is still waited for: a hived that is stopped in it ends what it began."""
    tasks = Path("/proc/self/task").glob("*/children")
    pids = [pid for children in tasks for pid in children.read_text().split()]
    return any(b"reconciler.effects.containers.shim" in _command(int(pid)) for pid in pids)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
