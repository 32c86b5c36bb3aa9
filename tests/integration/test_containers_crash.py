"""Whoever dies (daemon, shim, nspawn, leader, machine), the container is seen as it is and nothing is
left over."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.config import Config
from reconciler.effects.containers import arguments, proc, record, suspend
from reconciler.effects.containers.driver import ShimContainers
from reconciler.effects.containers.proc import ProcessRef
from reconciler.effects.protocols import ContainerSpec
from reconciler.errors import TemporaryError
from reconciler.model.names import AgentName
from tests.integration.containers_kit import Yard, inside, needs_containers, served

pytestmark = [pytest.mark.asyncio, pytest.mark.integration, needs_containers]
PROBE = AgentName("probe")


@pytest_asyncio.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    place = Yard.make(tmp_path)
    yield place
    await place.clean()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a fact of the kernel that nothing announces
            await asyncio.sleep(0.005)


def processes(yard: Yard) -> tuple[ProcessRef, ProcessRef, ProcessRef]:
    found = yard.record()
    assert found.shim is not None
    assert found.nspawn is not None
    assert found.leader is not None
    return found.shim, found.nspawn, found.leader


def assert_nothing_is_left(yard: Yard) -> None:
    assert not any(process.is_alive() for process in processes(yard))
    assert [path for path in yard.record().cgroups if Path(path).exists()] == []
    for hierarchy in Path("/sys/fs/cgroup").glob("**/hyperhive"):
        assert not list(hierarchy.glob(f"{PROBE}.{yard.record().invocation[:8]}"))
    assert str(yard.path) not in Path("/proc/self/mounts").read_text()
    leftovers = Path("/run/systemd/nspawn").rglob(f"*hive-{PROBE}*")
    assert list(leftovers) == []


async def test_nothing_is_left_after_a_stop(yard: Yard) -> None:
    driver = yard.driver()
    await driver.start(await yard.spec())
    assert yard.record().cgroups
    await driver.stop(PROBE)
    assert_nothing_is_left(yard)


async def test_without_a_freezer_every_process_is_stopped_by_signal(yard: Yard) -> None:
    driver = yard.driver()
    async with inside(driver, await yard.spec()) as harness:
        await harness.sh("sleep 600 > /dev/null 2>&1 &")
        found = yard.record()._replace(cgroups=())
        assert found.leader is not None
        everybody = proc.same_namespace(found.leader.pid)
        assert len(everybody) >= 2
        assert not suspend.is_suspended(found)
        assert suspend.suspend(found, 5.0)
        assert suspend.is_suspended(found)
        assert {proc.state_of(pid) for pid in everybody} <= {"T", "Z"}
        suspend.resume(found)
        assert (await harness.sh("echo it goes on"))[1] == "it goes on\n"


async def test_kill_9_of_the_daemon_does_not_touch_its_containers(yard: Yard) -> None:
    spec = await yard.spec()
    program = textwrap.dedent(f"""
        import asyncio, os, signal
        from pathlib import Path
        from reconciler.config import Config
        from reconciler.effects.containers.driver import ShimContainers
        from reconciler.effects.protocols import ContainerSpec
        from reconciler.model.spec import Limits

        async def main():
            driver = ShimContainers(Config.model_validate_json({yard.config.model_dump_json()!r}))
            state, run = Path({str(spec.state_dir)!r}), Path({str(spec.run_dir)!r})
            words = ({spec.name!r}, {spec.toplevel!r}, {spec.uid_base}, state, run, False, Limits())
            await driver.start(ContainerSpec(*words))
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
    """)
    command = [sys.executable, "-c", program]
    daemon = await asyncio.to_thread(subprocess.run, command, check=False, timeout=30)
    assert daemon.returncode == -signal.SIGKILL
    driver = yard.driver()
    before = await driver.status(PROBE)
    assert before.phase == "running"
    assert (await driver.start(spec)).invocation == before.invocation
    await driver.stop(PROBE)
    assert (await driver.status(PROBE)).exit_code == 0
    assert_nothing_is_left(yard)


async def test_a_daemon_killed_between_order_and_shim_leaves_a_container_that_can_start(yard: Yard) -> None:
    driver, spec = yard.driver(), await yard.spec()
    yard.directory().mkdir(parents=True)
    (yard.directory() / "start.json").write_text('{"name": ')
    assert (await driver.status(PROBE)).phase == "absent"
    assert (await driver.start(spec)).phase == "running"


async def test_nspawn_killed_takes_its_leader_along_and_starts_again_at_once(yard: Yard) -> None:
    driver, spec = yard.driver(), await yard.spec()
    await driver.start(spec)
    shim, nspawn, leader = processes(yard)
    nspawn.send(signal.SIGKILL)
    await until(lambda: not shim.is_alive())
    assert not leader.is_alive()
    status = await driver.status(PROBE)
    assert (status.phase, status.exit_code, status.signal) == ("exited", None, signal.SIGKILL)
    assert_nothing_is_left(yard)
    assert (await driver.start(spec)).phase == "running"


async def test_a_killed_shim_leaves_a_running_container_that_can_be_stopped(yard: Yard) -> None:
    driver, spec = yard.driver(), await yard.spec()
    started = await driver.start(spec)
    shim, nspawn, _ = processes(yard)
    shim.send(signal.SIGKILL)
    await until(lambda: not shim.is_alive())
    status = await driver.status(PROBE)
    assert (status.phase, status.invocation) == ("running", started.invocation)
    assert (await driver.start(spec)).invocation == started.invocation
    assert nspawn.is_alive()
    await driver.stop(PROBE)
    status = await driver.status(PROBE)
    assert (status.phase, status.exit_code, status.signal) == ("exited", None, None)
    assert_nothing_is_left(yard)


async def test_no_second_container_of_a_name_can_run_even_past_the_driver(yard: Yard) -> None:
    driver = yard.driver()
    await driver.start(await yard.spec())
    command = [sys.executable, "-S", "-m", "reconciler.effects.containers.shim", str(yard.directory())]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}

    def second() -> str:
        done = subprocess.run(
            command, check=False, env=environment, capture_output=True, text=True, timeout=30, cwd="/"
        )
        return done.stdout.strip()

    assert await asyncio.to_thread(second) == "busy"
    shim, nspawn, _ = processes(yard)
    shim.send(signal.SIGKILL)
    await until(lambda: not shim.is_alive())
    assert await asyncio.to_thread(second) == "busy"
    assert nspawn.is_alive()


async def test_a_leader_without_nspawn_and_shim_still_counts_as_running(yard: Yard) -> None:
    driver, spec = yard.driver(), await yard.spec()
    # Its payload runs: before that, the leader still waits for nspawn and ends with it.
    async with inside(driver, spec):
        started = await driver.status(PROBE)
        shim, nspawn, leader = processes(yard)
        for victim in (shim, nspawn):
            victim.send(signal.SIGKILL)
            await until(lambda victim=victim: not victim.is_alive())  # type: ignore[misc]
        assert leader.is_alive()
        assert (await driver.status(PROBE)).phase == "running"
        assert (await driver.start(spec)).invocation == started.invocation
    await driver.stop(PROBE)
    assert_nothing_is_left(yard)


async def test_a_record_of_another_boot_is_exited_and_can_be_started_over(yard: Yard) -> None:
    driver, spec = yard.driver(), await yard.spec()
    await driver.start(spec)
    old = yard.record()
    await driver.stop(PROBE)
    # As a power cut leaves it: it says running, and its pids belong to others now.
    me = proc.ref(os.getpid())
    record.write_record(
        yard.directory(), old._replace(world="another/pid:[1]", shim=me, nspawn=me, leader=me)
    )
    status = await driver.status(PROBE)
    assert (status.phase, status.exit_code, status.invocation) == ("exited", None, old.invocation)
    await driver.stop(PROBE)
    assert (await driver.start(spec)).phase == "running"


async def test_a_reused_pid_is_not_taken_for_the_container(yard: Yard) -> None:
    driver, spec = yard.driver(), await yard.spec()
    await driver.start(spec)
    await driver.stop(PROBE)
    gone = ProcessRef(os.getpid(), 1)
    record.write_record(
        yard.directory(),
        yard.record()._replace(phase="running", shim=gone, nspawn=gone, leader=gone),
    )
    assert (await driver.status(PROBE)).phase == "exited"
    await driver.stop(PROBE)
    assert proc.ref(os.getpid()).is_alive()


async def test_sigterm_to_the_shim_stops_the_container_in_order(yard: Yard) -> None:
    driver, spec = yard.driver(), await yard.spec()
    async with inside(driver, spec):
        shim, _, _ = processes(yard)
        shim.send(signal.SIGTERM)
        await until(lambda: not shim.is_alive())
    assert (await driver.status(PROBE)).exit_code == 0
    assert_nothing_is_left(yard)


async def test_a_start_that_the_host_refuses_is_exited_with_the_reason_on_the_console(yard: Yard) -> None:
    driver, spec = yard.driver(), await yard.spec()
    status = await driver.start(dataclasses.replace(spec, toplevel="/nix/store/missing"))
    assert status.phase == "exited"
    assert status.exit_code not in {0, None}
    assert "/nix/store/missing" in "\n".join(await driver.logs(PROBE, 5))
    status = await driver.start(dataclasses.replace(spec, manager=True))
    assert status.phase == "exited"
    assert "mount" in (await driver.logs(PROBE, 1))[0]
    assert (await driver.start(spec)).phase == "running"


async def test_a_missing_nspawn_is_told(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    real = arguments.container_command

    def without(spec: ContainerSpec, config: Config) -> arguments.ContainerCommand:
        return dataclasses.replace(real(spec, config), argv=("no-such-nspawn",))

    monkeypatch.setattr("reconciler.effects.containers.driver.container_command", without)
    driver = yard.driver()
    assert (await driver.start(await yard.spec())).phase == "exited"
    assert "cannot start nspawn" in (await driver.logs(PROBE, 1))[0]


async def test_the_container_sees_its_sockets_come_back(yard: Yard) -> None:
    """The directory is bound, so a daemon that serves again by rename is reached without a restart."""
    driver, spec = yard.driver(), await yard.spec()
    async with inside(driver, spec) as box, served(spec) as second:
        status, _, err = await box.sh(
            "python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/run/hive/agent.sock\")'",
            uid=0,
        )
        assert (status, err) == (0, "")
        connection, _ = await asyncio.get_running_loop().sock_accept(second)
        connection.close()


async def test_clear_waits_for_the_end(yard: Yard) -> None:
    driver: ShimContainers = yard.driver()
    await driver.start(await yard.spec())
    with pytest.raises(TemporaryError):
        await driver.clear(PROBE)
    await driver.stop(PROBE)
    await driver.clear(PROBE)
    assert not yard.directory().exists()


async def test_an_idle_container_costs_its_shim_no_time(yard: Yard) -> None:
    # One message of nspawn left unread would wake the shim's poll for ever.
    await yard.driver().start(await yard.spec())
    shim, _, _ = processes(yard)
    await asyncio.sleep(0.5)  # nspawn has said all that it says at a start
    before = _cpu_ticks(shim.pid)
    await asyncio.sleep(1.0)  # the measured second
    assert _cpu_ticks(shim.pid) - before <= 5, "hundredths of a second"


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
