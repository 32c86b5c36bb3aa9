"""What every container driver does, the fake included."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.effects.containers.unitfile import unit_name
from reconciler.effects.protocols import Containers, ContainerSpec, ContainerStatus
from reconciler.errors import TemporaryError
from reconciler.model.names import AgentName
from reconciler.model.spec import Limits
from tests.fakes.containers import FakeContainers
from tests.fakes.stored import FileContainers
from tests.integration.containers_kit import Yard, needs_containers
from tests.support.mixed import MixedContainers

pytestmark = pytest.mark.asyncio
PROBE = AgentName("probe")


@dataclass(slots=True)
class World:
    """A driver, and what a test may do to its containers. `mode` is of the kit's harness (`exit 3`,
    `deaf`)."""

    containers: Containers
    spec: Callable[[str, str], Awaitable[ContainerSpec]]
    crash: Callable[[AgentName], Awaitable[None]]
    stop_by_hand: Callable[[AgentName], Awaitable[None]]
    restarted: Callable[[], Containers]

    async def until(self, name: AgentName, condition: Callable[[ContainerStatus], bool]) -> ContainerStatus:
        async with asyncio.timeout(10):
            while not condition(status := await self.containers.status(name)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return status

    async def until_logged(self, name: AgentName, text: str) -> None:
        """Wait for a line on the console: the container is that far."""
        async with asyncio.timeout(10):
            while not any(text in line for line in await self.containers.logs(name, 50)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def fake_world(fake: FakeContainers, restarted: Callable[[], Containers]) -> World:

    async def spec(name: str, mode: str) -> ContainerSpec:
        agent = AgentName(name)
        fake.deaf.discard(agent)
        if mode == "deaf":
            fake.deaf.add(agent)

        def act(start: object) -> None:
            for line in ("harness says hello", "leaving by itself" if mode.startswith("exit") else "ready"):
                fake.say(agent, line)
            if mode.startswith("exit"):
                fake.crash(agent, exit_code=int(mode.split()[1]))

        fake.on_start = act
        path = Path("/nowhere")
        return ContainerSpec(agent, "/nix/store/root", 1 << 20, path, path, False, Limits())

    async def crash(name: AgentName) -> None:
        fake.crash(name)

    async def stop_by_hand(name: AgentName) -> None:
        fake.stop_by_hand(name)

    return World(fake, spec, crash, stop_by_hand, restarted)


def real_world(yard: Yard, make: Callable[[], Containers]) -> World:
    driver = make()

    async def spec(name: str, mode: str) -> ContainerSpec:
        return await yard.spec(name, mode=mode)

    async def crash(name: AgentName) -> None:
        leader = (await driver.status(name)).leader_pid
        assert leader is not None
        os.kill(leader, signal.SIGKILL)

    async def stop_by_hand(name: AgentName) -> None:
        shim = yard.record(name).shim
        if shim is not None:
            shim.send(signal.SIGTERM)
        else:
            await asyncio.to_thread(subprocess.run, ["systemctl", "stop", unit_name(name)], check=True)

    return World(driver, spec, crash, stop_by_hand, make)


_REAL = [needs_containers, pytest.mark.integration]
# tests/system runs this file with the systemd driver, on hosts where that is PID 1.
_ON_SYSTEMD = os.environ.get("HIVE_TEST_DRIVER") == "systemd"
_DRIVERS = (
    [pytest.param("systemd", marks=_REAL)]
    if _ON_SYSTEMD
    else ["fake", "file", "mixed", pytest.param("shim", marks=_REAL)]
)


@pytest_asyncio.fixture(params=_DRIVERS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        fake = FakeContainers()
        yield fake_world(fake, lambda: fake)
        return
    if request.param == "mixed":  # two drivers as one: each name is of one of them, and both are seen
        fake = FakeContainers()
        mixed = MixedContainers(FakeContainers(), fake, lambda name: name != PROBE)
        yield dataclasses.replace(fake_world(fake, lambda: mixed), containers=mixed)
        return
    if request.param == "file":
        yield fake_world(FileContainers(tmp_path), lambda: FileContainers(tmp_path))
        return
    yard = Yard.make(tmp_path, request.param)
    yield real_world(yard, yard.systemd if request.param == "systemd" else yard.driver)
    await yard.clean()


async def test_a_container_that_was_never_started_is_absent(world: World) -> None:
    assert (await world.containers.status(PROBE)).phase == "absent"
    assert list(await world.containers.list()) == []
    assert list(await world.containers.logs(PROBE, 10)) == []


async def test_start_returns_when_the_leader_is_known(world: World) -> None:
    spec = await world.spec("probe", "")
    status = await world.containers.start(spec)
    assert (status.phase, status.toplevel, status.exit_code) == ("running", spec.toplevel, None)
    assert status.leader_pid
    assert status.invocation
    assert status.started_at
    assert await world.containers.status(PROBE) == status
    assert list(await world.containers.list()) == [PROBE]


async def test_a_second_start_changes_nothing_whatever_it_asks_for(world: World) -> None:
    spec = await world.spec("probe", "")
    first = await world.containers.start(spec)
    assert await world.containers.start(dataclasses.replace(spec, toplevel="/nix/store/another")) == first


async def test_two_starts_at_once_make_one_container(world: World) -> None:
    spec = await world.spec("probe", "")
    first, second = await asyncio.gather(world.containers.start(spec), world.containers.start(spec))
    assert first.invocation == second.invocation


async def test_stop_ends_with_the_payloads_own_status(world: World) -> None:
    await world.containers.start(await world.spec("probe", ""))
    await world.until_logged(PROBE, "ready")
    await world.containers.stop(PROBE)
    status = await world.containers.status(PROBE)
    assert (status.phase, status.exit_code, status.signal, status.leader_pid) == ("exited", 0, None, None)
    await world.containers.stop(PROBE)
    assert await world.containers.status(PROBE) == status


async def test_stop_right_after_start_still_ends_in_order(world: World) -> None:
    await world.containers.start(await world.spec("probe", ""))
    await world.containers.stop(PROBE)
    assert (await world.containers.status(PROBE)).exit_code == 0


async def test_stop_of_an_absent_container_is_nothing_to_do(world: World) -> None:
    await world.containers.stop(PROBE)
    assert (await world.containers.status(PROBE)).phase == "absent"


async def test_a_deaf_container_is_killed_after_the_deadline(world: World) -> None:
    await world.containers.start(await world.spec("probe", "deaf"))
    await world.until_logged(PROBE, "ready")
    await world.containers.stop(PROBE, timeout_s=0.2)
    status = await world.containers.status(PROBE)
    assert status.phase == "exited"
    assert (status.exit_code, status.signal) != (0, None)


async def test_a_container_that_ends_by_itself_leaves_its_status(world: World) -> None:
    await world.containers.start(await world.spec("probe", "exit 3"))
    status = await world.until(PROBE, lambda status: status.phase == "exited")
    assert (status.exit_code, status.signal, status.oom) == (3, None, False)
    assert (await world.containers.logs(PROBE, 1)) == ["leaving by itself"]


async def test_a_crash_is_seen_and_the_next_start_is_another_invocation(world: World) -> None:
    spec = await world.spec("probe", "")
    first = await world.containers.start(spec)
    await world.crash(PROBE)
    crashed = await world.until(PROBE, lambda status: status.phase == "exited")
    assert crashed.exit_code != 0
    assert crashed.invocation == first.invocation
    second = await world.containers.start(spec)
    assert second.phase == "running"
    assert second.invocation != first.invocation


async def test_clear_forgets_an_exited_container_and_refuses_a_running_one(world: World) -> None:
    await world.containers.start(await world.spec("probe", ""))
    with pytest.raises(TemporaryError) as refused:
        await world.containers.clear(PROBE)
    assert refused.value.code == "still-running"
    await world.containers.stop(PROBE, timeout_s=0)
    await world.containers.clear(PROBE)
    await world.containers.clear(PROBE)
    assert (await world.containers.status(PROBE)).phase == "absent"
    assert list(await world.containers.list()) == []


async def test_a_frozen_container_stands_still_until_it_is_thawed(world: World) -> None:
    await world.containers.start(await world.spec(PROBE, ""))
    await world.until_logged(PROBE, "ready")
    await world.containers.freeze(PROBE)
    await world.containers.freeze(PROBE)
    frozen = await world.containers.status(PROBE)
    assert frozen.phase == "running"
    assert frozen.frozen
    await world.containers.thaw(PROBE)
    await world.containers.thaw(PROBE)
    assert not (await world.until(PROBE, lambda status: not status.frozen)).frozen


async def test_a_frozen_container_can_be_stopped_in_order(world: World) -> None:
    await world.containers.start(await world.spec(PROBE, ""))
    await world.until_logged(PROBE, "ready")
    await world.containers.freeze(PROBE)
    await world.containers.stop(PROBE)
    status = await world.containers.status(PROBE)
    assert (status.phase, status.exit_code, status.frozen) == ("exited", 0, False)


async def test_only_a_running_container_can_be_frozen(world: World) -> None:
    with pytest.raises(TemporaryError) as caught:
        await world.containers.freeze(PROBE)
    assert caught.value.code == "not-running"
    await world.containers.thaw(PROBE)


async def test_a_stop_by_somebody_else_is_told_from_an_end_by_itself(world: World) -> None:
    await world.containers.start(await world.spec(PROBE, ""))
    await world.until_logged(PROBE, "ready")
    await world.stop_by_hand(PROBE)
    status = await world.until(PROBE, lambda status: status.phase == "exited")
    assert (status.stop_asked, status.exit_code, status.result) == (True, 0, "success")
    await world.containers.clear(PROBE)
    await world.containers.start(await world.spec(PROBE, "exit 0"))
    status = await world.until(PROBE, lambda status: status.phase == "exited")
    assert (status.stop_asked, status.exit_code, status.result) == (False, 0, "success")


async def test_user_namespaces_are_forbidden_in_a_running_container_only(world: World) -> None:
    with pytest.raises(TemporaryError) as refused:
        await world.containers.forbid_user_namespaces(PROBE)
    assert refused.value.code == "not-running"
    await world.containers.start(await world.spec("probe", ""))
    await world.containers.forbid_user_namespaces(PROBE)
    await world.containers.forbid_user_namespaces(PROBE)


async def test_logs_are_the_last_lines_oldest_first(world: World) -> None:
    await world.containers.start(await world.spec("probe", ""))
    await world.until_logged(PROBE, "ready")
    assert list(await world.containers.logs(PROBE, 2)) == ["harness says hello", "ready"]
    assert list(await world.containers.logs(PROBE, 0)) == []


async def test_containers_are_listed_by_name(world: World) -> None:
    await world.containers.start(await world.spec("beta", ""))
    await world.containers.start(await world.spec("alpha", ""))
    assert list(await world.containers.list()) == ["alpha", "beta"]


async def test_statuses_are_those_of_all_that_are_listed_at_once(world: World) -> None:
    assert await world.containers.statuses() == {}
    await world.containers.start(await world.spec("probe", ""))
    await world.containers.start(await world.spec("other", ""))
    await world.containers.stop(PROBE)
    names = await world.containers.list()
    assert await world.containers.statuses() == {n: await world.containers.status(n) for n in names}
    assert set(names) == {"probe", "other"}


async def test_changes_names_the_container_that_ended(world: World) -> None:
    await world.containers.start(await world.spec("quiet", ""))
    await world.containers.start(await world.spec("probe", ""))
    names: asyncio.Queue[AgentName] = asyncio.Queue()

    async def watch() -> None:
        async for name in world.containers.changes():
            names.put_nowait(name)

    watcher = asyncio.create_task(watch())
    try:
        for _ in range(3):  # a driver over others begins to watch them in tasks of its own
            await asyncio.sleep(0)
        await world.until(PROBE, lambda status: status.phase == "running")
        await world.crash(PROBE)
        async with asyncio.timeout(5):
            assert await names.get() == PROBE
        assert (await world.containers.status(PROBE)).phase == "exited"
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


async def test_a_restarted_daemon_sees_the_same_containers(world: World) -> None:
    before = await world.containers.start(await world.spec("probe", ""))
    again = world.restarted()
    assert await again.status(PROBE) == before
    await again.stop(PROBE)
    assert (await world.containers.status(PROBE)).phase == "exited"
