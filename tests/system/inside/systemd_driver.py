"""Runs inside of a test bed (`tests/system/test_systemd_driver.py`): whoever dies, is stopped or is changed
by hand, the systemd driver sees it as it is and nothing is left over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.effects.containers import record, unitfile
from reconciler.effects.containers.systemd import ForeignEnd, SystemdContainers
from reconciler.effects.protocols import ContainerSpec, ContainerStatus
from reconciler.model.names import AgentName
from reconciler.model.spec import Limits
from tests.integration.containers_kit import Yard, inside

pytestmark = pytest.mark.asyncio
PROBE = AgentName("probe")
UNIT = unitfile.unit_name(PROBE)
CRASHES = int(os.environ.get("HIVE_TEST_CRASHES", "20"))
_TEMPLATE = Path("/etc/systemd/system") / unitfile.TEMPLATE
_GROUP = Path("/sys/fs/cgroup/hive.slice") / UNIT
_FOREIGN = """[Service]
ExecStart=/bin/sleep infinity
"""


@pytest_asyncio.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    place = Yard.make(tmp_path, "systemd")
    yield place
    await place.clean()


async def sh(script: str) -> str:
    """What an administrator does by hand."""
    done = await asyncio.to_thread(
        subprocess.run, ["/bin/sh", "-euc", script], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


async def until(
    driver: SystemdContainers, condition: Callable[[ContainerStatus], bool], *, within_s: float = 10
) -> ContainerStatus:
    async with asyncio.timeout(within_s):
        while not condition(status := await driver.status(PROBE)):  # noqa: ASYNC110 - signals are tested apart
            await asyncio.sleep(0.01)
    return status


def is_over(status: ContainerStatus) -> bool:
    return status.phase == "exited"


async def started(driver: SystemdContainers, spec: ContainerSpec) -> tuple[ContainerStatus, int, int]:
    """Running for good: status, pid of nspawn, pid of the container's first process."""
    status = await driver.start(spec)
    async with asyncio.timeout(10):
        while "ready" not in await driver.logs(PROBE, 5):  # noqa: ASYNC110 - nothing announces a line
            await asyncio.sleep(0.01)
    main = int(await sh(f"systemctl show --value --property=MainPID {UNIT}"))
    assert status.leader_pid is not None
    return status, main, status.leader_pid


async def assert_nothing_is_left(yard: Yard) -> None:
    assert "hive-" not in await sh("machinectl --no-legend list")
    assert not _GROUP.exists()
    assert str(yard.path) not in Path("/proc/self/mounts").read_text()
    assert str(yard.path) not in await sh("cat /proc/1/mounts")
    assert list(Path("/run/systemd/nspawn").rglob("*hive-*")) == []
    assert "/opt/hive/venv/bin/python" not in await sh("ps -eo args")
    assert await sh("systemctl list-jobs --no-legend") == ""


async def test_the_rendered_unit_has_nothing_to_complain_of(yard: Yard) -> None:
    driver = yard.systemd()
    await driver.start(await yard.spec())
    done = await asyncio.to_thread(
        subprocess.run, ["systemd-analyze", "verify", UNIT], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_a_killed_leader_is_a_crash_and_leaves_nothing(yard: Yard) -> None:
    driver = yard.systemd()
    before, _, leader = await started(driver, await yard.spec())
    os.kill(leader, signal.SIGKILL)
    status = await until(driver, is_over)
    assert (status.exit_code, status.signal, status.result) == (1, None, "exit-code")
    assert (status.stop_asked, status.oom, status.invocation) == (False, False, before.invocation)
    assert status.started_at is not None
    assert status.ended_at is not None
    assert status.ended_at >= status.started_at
    await assert_nothing_is_left(yard)


async def test_a_killed_nspawn_takes_all_along_and_starts_again_at_once(yard: Yard) -> None:
    driver, spec = yard.systemd(), await yard.spec()
    _, main, leader = await started(driver, spec)
    os.kill(main, signal.SIGKILL)
    status = await until(driver, is_over)
    assert (status.exit_code, status.signal, status.result) == (None, signal.SIGKILL, "signal")
    assert not status.stop_asked
    assert not Path(f"/proc/{leader}").exists()
    await assert_nothing_is_left(yard)
    assert (await driver.start(spec)).phase == "running"


@pytest.mark.parametrize(("code", "result"), [(0, "success"), (5, "exit-code")])
async def test_an_end_by_itself_is_known_with_its_status(yard: Yard, code: int, result: str) -> None:
    driver = yard.systemd()
    await driver.start(await yard.spec(mode=f"exit {code}"))
    status = await until(driver, is_over)
    assert (status.exit_code, status.result, status.stop_asked) == (code, result, False)
    assert (await driver.logs(PROBE, 5))[-1] == "leaving by itself"
    await assert_nothing_is_left(yard)


async def test_a_restart_by_hand_is_another_invocation_of_the_same_root(yard: Yard) -> None:
    driver, spec = yard.systemd(), await yard.spec()
    before, _, leader = await started(driver, spec)
    await sh(f"systemctl restart {UNIT}")
    after = await driver.status(PROBE)
    assert (after.phase, after.toplevel) == ("running", spec.toplevel)
    assert after.invocation != before.invocation
    assert not Path(f"/proc/{leader}").exists()
    await driver.stop(PROBE)
    assert (await driver.status(PROBE)).exit_code == 0


async def test_a_frozen_container_stopped_by_hand_ends_in_order_or_not_at_all(yard: Yard) -> None:
    driver = yard.systemd()
    await started(driver, await yard.spec())
    await driver.freeze(PROBE)
    assert "frozen 1" in (_GROUP / "cgroup.events").read_text()
    told = await sh(f"systemctl stop {UNIT} 2>&1 || true")
    if told:  # systemd 257
        assert "Cannot perform operation on frozen unit" in told
        assert (await driver.status(PROBE)).frozen
        await driver.stop(PROBE)
    status = await driver.status(PROBE)
    assert (status.phase, status.exit_code, status.stop_asked) == ("exited", 0, True)


async def test_a_new_manager_knows_the_container_and_tells_of_its_end(yard: Yard) -> None:
    driver = yard.systemd()
    before, _, leader = await started(driver, await yard.spec())
    await sh("systemctl daemon-reexec")
    assert await until(driver, lambda status: status.phase == "running") == before
    hints = driver.changes()
    waiting = asyncio.ensure_future(anext(hints))
    await asyncio.sleep(0)
    await driver.status(PROBE)
    os.kill(leader, signal.SIGKILL)
    async with asyncio.timeout(5):
        assert await waiting == PROBE
    assert is_over(await driver.status(PROBE))
    await hints.aclose()  # type: ignore[attr-defined]


async def test_an_end_while_the_bus_is_away_is_found_by_the_read_after(yard: Yard) -> None:
    driver = yard.systemd()
    _, _, leader = await started(driver, await yard.spec())
    names: asyncio.Queue[AgentName] = asyncio.Queue()

    async def watch() -> None:
        async for name in driver.changes():
            names.put_nowait(name)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    await driver.status(PROBE)
    await sh("systemctl stop dbus.socket dbus.service")
    os.kill(leader, signal.SIGKILL)
    async with asyncio.timeout(5):
        while Path(f"/proc/{leader}").exists():  # noqa: ASYNC110 - a fact of the kernel
            await asyncio.sleep(0.01)
    await sh("systemctl start dbus.socket")
    async with asyncio.timeout(10):
        assert await names.get() == PROBE
    status = await until(driver, is_over)
    assert (status.exit_code, status.result) == (1, "exit-code")
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)


async def test_an_end_that_no_daemon_saw_is_told_by_the_next_one(yard: Yard) -> None:
    first = yard.systemd()
    before, _, leader = await started(first, await yard.spec())
    first.close()
    os.kill(leader, signal.SIGKILL)
    await sh(f"while systemctl --quiet is-active {UNIT}; do sleep 0.01; done; systemctl reset-failed {UNIT}")
    status = await until(yard.systemd(), is_over)
    assert (status.invocation, status.exit_code, status.result) == (before.invocation, 1, "exit-code")
    assert status.ended_at is not None


async def test_without_the_note_of_its_end_systemd_is_asked(yard: Yard) -> None:
    driver = yard.systemd()
    before, main, _ = await started(driver, await yard.spec())
    (yard.directory() / record.START).unlink()  # what the unit's helper reads first
    os.kill(main, signal.SIGKILL)
    status = await until(driver, is_over)
    assert yard.record().phase == "running"
    assert (status.signal, status.result, status.invocation) == (9, "signal", before.invocation)
    assert status.ended_at is not None


async def test_a_start_that_fails_comes_back_as_exited_with_the_reason(yard: Yard) -> None:
    driver, spec = yard.systemd(), await yard.spec()
    (Path(spec.toplevel) / "etc/os-release").unlink()
    (Path(spec.toplevel) / "usr").rmdir()
    status = await driver.start(spec)
    assert (status.phase, status.toplevel, status.exit_code) == ("exited", spec.toplevel, 1)
    assert status.result in {"exit-code", "protocol"}
    assert any("doesn't look like" in line for line in await driver.logs(PROBE, 5))
    await assert_nothing_is_left(yard)


async def test_a_container_of_the_shim_goes_on_under_it_and_then_under_systemd(yard: Yard) -> None:
    shim, driver, spec = yard.driver(), yard.systemd(), await yard.spec()
    old = await shim.start(spec)
    assert await driver.status(PROBE) == old
    assert await driver.start(spec) == old
    await driver.stop(PROBE)
    assert (await driver.status(PROBE)).exit_code == 0
    new = await driver.start(spec)
    assert new.unit == UNIT
    assert new.phase == "running"


async def test_limits_are_set_and_told_as_the_kernel_has_them(yard: Yard) -> None:
    driver = yard.systemd()
    limits = Limits(memoryMax="64M", tasksMax=50, cpuQuota="50%")
    async with inside(driver, await yard.spec(limits=limits)) as harness:
        shown = await sh(f"systemctl show --property=MemoryMax,TasksMax,CPUQuotaPerSecUSec {UNIT}")
        assert sorted(shown.split()) == ["CPUQuotaPerSecUSec=500ms", "MemoryMax=67108864", "TasksMax=50"]
        status = await driver.status(PROBE)
        # The bed's kernel has its controllers in v1, which the guest cannot reach: only the rlimit is left.
        there = set((_GROUP / "cgroup.controllers").read_text().split())
        assert ("memory" in status.limits_enforced) == ("memory" in there)
        assert "tasks" in status.limits_enforced
        assert "50" in (await harness.sh("grep 'Max processes' /proc/self/limits"))[1].split()


async def test_what_others_change_is_seen_and_mended_without_touching_processes(yard: Yard) -> None:
    driver = yard.systemd()
    before, _, _ = await started(driver, await yard.spec())
    assert before.drift == ()
    await sh(f"""
        sed -i 's/^OOMPolicy=.*/OOMPolicy=kill/' {_TEMPLATE}
        mkdir -p /etc/systemd/system/{UNIT}.d
        printf '[Service]\\nNice=5\\n' > /etc/systemd/system/{UNIT}.d/override.conf
        systemctl daemon-reload
        systemctl set-property --runtime {UNIT} MemoryMax=1G IOWeight=50
    """)
    status = await driver.status(PROBE)
    told = "\n".join(status.drift)
    assert "OOMPolicy=" in told
    assert "override.conf" in told
    assert "50-IOWeight.conf" in told
    assert f"memory_max is {1 << 30}" in told
    await driver.refresh(PROBE)
    assert await driver.status(PROBE) == before
    assert (Path(f"/etc/systemd/system/{UNIT}.d") / "override.conf.hive-saved").exists()
    assert await sh(f"systemctl show --value --property=NeedDaemonReload {UNIT}") == "no\n"
    await sh(f"sed -i 's/^TimeoutStopSec=.*/TimeoutStopSec=99/' {_TEMPLATE}")
    assert len((await driver.status(PROBE)).drift) == 2, "the file, and that systemd did not read it"
    await driver.refresh(PROBE)
    assert await driver.status(PROBE) == before
    await sh(f"rm -r /etc/systemd/system/{UNIT}.d")


async def test_reading_wakes_nobody(yard: Yard) -> None:
    """Reading a unit that is not loaded would load it, which is a change that others see, who read it …"""
    driver = yard.systemd()
    over, never = AgentName("over"), AgentName("never")
    await driver.start(await yard.spec("over", mode="exit 0"))
    await started(driver, await yard.spec())
    names: asyncio.Queue[AgentName] = asyncio.Queue()

    async def watch() -> None:
        async for name in driver.changes():
            names.put_nowait(name)

    async def silence() -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                await asyncio.wait_for(names.get(), 0.3)

    watcher = asyncio.create_task(watch())
    await silence()  # what the starts and the end set going
    for _ in range(5):
        for name in (PROBE, over, never):
            await driver.status(name)
            await driver.logs(name, 5)
        await driver.statuses()
        await driver.list()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(names.get(), 0.3)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)


async def test_containers_of_the_host_are_watched_and_never_touched(yard: Yard) -> None:
    driver = yard.systemd()
    template = Path("/etc/systemd/system/container@.service")
    template.write_text(_FOREIGN)
    ends: asyncio.Queue[ForeignEnd] = asyncio.Queue()

    async def watch() -> None:
        async for end in driver.foreign():
            ends.put_nowait(end)

    await sh("systemctl daemon-reload; systemctl start container@one.service")
    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    await driver.list()
    await sh("systemctl start container@two.service")
    await sh("systemctl kill --signal=KILL container@two.service; systemctl stop container@one.service")
    async with asyncio.timeout(5):
        found = {(end := await ends.get()).unit: (end.active_state, end.result) for _ in range(2)}
    assert found["container@two.service"] == ("failed", "signal")
    assert found["container@one.service"][0] == "inactive"
    assert await driver.list() == []
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    await sh("systemctl reset-failed container@two.service")
    template.unlink()
    await sh("systemctl daemon-reload")


async def test_every_crash_of_many_in_a_row_is_seen_once_and_nothing_is_left(yard: Yard) -> None:
    driver, spec = yard.systemd(), await yard.spec()
    names: asyncio.Queue[AgentName] = asyncio.Queue()

    async def watch() -> None:
        async for name in driver.changes():
            names.put_nowait(name)

    watcher = asyncio.create_task(watch())
    ends: list[str | None] = []
    for turn in range(CRASHES):
        status = await driver.start(spec)
        victim = status.leader_pid if turn % 2 else yard.record().nspawn.pid  # type: ignore[union-attr]
        assert victim is not None
        while not names.empty():
            names.get_nowait()
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(5):
            while not is_over(status := await driver.status(PROBE)):
                assert await names.get() == PROBE
        assert (status.signal, status.exit_code) in {(9, None), (None, 1)}
        assert not status.stop_asked
        ends.append(status.invocation)
    assert len(set(ends)) == CRASHES
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    await assert_nothing_is_left(yard)
