"""What a container is, tried from inside: as uid 1000 (the CLI and its shell) and as container root (the
harness)."""

from __future__ import annotations

import asyncio
import hashlib
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from reconciler.effects.containers.arguments import UID_COUNT
from reconciler.effects.containers.driver import ShimContainers
from reconciler.effects.protocols import ContainerSpec
from reconciler.model.names import AgentName
from reconciler.model.spec import Limits
from tests.integration.containers_kit import Inside, Yard, inside, needs_containers

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.integration, needs_containers]
PROBE = AgentName("probe")


@dataclass(frozen=True, slots=True)
class Box:
    """One running container for the tests that change nothing."""

    yard: Yard
    driver: ShimContainers
    spec: ContainerSpec
    harness: Inside

    async def sh(self, script: str, *, uid: int = 1000) -> tuple[int, str, str]:
        return await self.harness.sh(script, uid=uid)

    async def leader(self) -> int:
        pid = (await self.driver.status(PROBE)).leader_pid
        assert pid is not None
        return pid


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Box]:
    yard = Yard.make(tmp_path_factory.mktemp("box"))
    driver, spec = yard.driver(), await yard.spec(manager=True)
    async with inside(driver, spec) as harness:
        await driver.forbid_user_namespaces(PROBE)
        yield Box(yard, driver, spec, harness)
    await yard.clean()


def tree_digest(root: Path) -> str:
    """Names, kinds and times of everything below."""
    lines = [
        f"{p.relative_to(root)} {p.lstat().st_mode} {p.lstat().st_mtime_ns}" for p in sorted(root.rglob("*"))
    ]
    return hashlib.sha256("\n".join([*lines, str(root.stat().st_mtime_ns)]).encode()).hexdigest()


async def test_uid_0_inside_is_the_agents_own_range_outside(box: Box) -> None:
    words = Path(f"/proc/{await box.leader()}/uid_map").read_text().split()
    assert [int(word) for word in words] == [0, box.spec.uid_base, UID_COUNT]
    assert Path(f"/proc/{await box.leader()}").stat().st_uid == box.spec.uid_base


async def test_a_file_made_inside_belongs_to_the_range_outside(box: Box) -> None:
    for place, outside in (
        ("/state", "state"),
        ("/home/agent", "home"),
        ("/config", "config"),
        ("/agents", "agents"),
    ):
        status, _, err = await box.sh(f"echo hi > {place}/made")
        assert (status, err) == (0, "")
        assert (box.spec.state_dir / outside / "made").stat().st_uid == box.spec.uid_base + 1000


async def test_writable_places_are_mounted_nosuid_and_nodev(box: Box) -> None:
    _, out, _ = await box.sh("cat /proc/self/mountinfo")
    options = {line.split()[4]: line.split()[5].split(",") for line in out.splitlines()}
    for place in ("/state", "/home/agent", "/config", "/agents", "/tmp", "/dev/shm"):
        assert {"rw", "nosuid", "nodev"} <= set(options[place]), place
    for place in ("/", "/usr", "/etc/alternatives", "/opt/hive/lib/harness", "/opt/hive/venv", "/run/hive"):
        assert "ro" in options[place], place


async def test_the_harness_has_three_capabilities_and_the_agent_none(box: Box) -> None:
    script = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status | tr -s '\\t ' ' '"
    _, root, _ = await box.sh(script, uid=0)
    _, agent, _ = await box.sh(script)
    expected = "00000000000000e0"
    assert f"CapEff: {expected}" in root
    assert f"CapBnd: {expected}" in root
    for line in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert f"{line}: {'0' * 16}" in agent
    for found in (root, agent):
        assert "NoNewPrivs: 1" in found
        assert "Seccomp: 2" in found


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize(
    "script",
    [
        "unshare -Ur true",
        "unshare -m true",
        "mount -t tmpfs none /tmp",
        "mount --bind /state /config",
        "umount /run/hive",
        "nsenter -t 1 -n true",
        "touch /made",
        "touch /usr/made",
        "touch /etc/made",
        "touch /opt/hive/lib/harness/made",
        "touch /run/hive/made",
        "rm -f /run/hive/agent.sock && test ! -e /run/hive/agent.sock",
        "mknod /state/null c 1 3",
        "echo 1 > /proc/sys/user/max_user_namespaces",
        "echo 0 > /proc/sys/kernel/randomize_va_space",
        "hostname other",
        "python3 -c 'import os; os.nice(-5)'",
        "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
    ],
)
async def test_inside_it_cannot(box: Box, script: str, uid: int) -> None:
    status, out, err = await box.sh(script, uid=uid)
    assert status != 0, out + err


@pytest.mark.parametrize(
    "script",
    [
        "kill -9 1",
        "cat /proc/1/environ",
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/run/hive/agent.sock\")'",
        "ls /run/hive",
        "cat /proc/1/root/run/hive/agent.sock",
        "su -c true",
        "chown 0 /state",
        "touch /run/made",
    ],
)
async def test_the_agent_cannot(box: Box, script: str) -> None:
    status, out, err = await box.sh(script)
    assert status != 0, out + err


async def test_there_is_only_loopback_and_it_is_up(box: Box) -> None:
    _, out, _ = await box.sh("cat /proc/net/dev | tail -n +3 | cut -d: -f1")
    assert out.split() == ["lo"]
    script = (
        "import socket; s=socket.create_server(('127.0.0.1',0)); socket.create_connection(s.getsockname())"
    )
    assert (await box.sh(f'python3 -c "{script}"'))[0] == 0
    status, _, _ = await box.sh(
        "python3 -c \"import socket; socket.create_connection(('192.0.2.1', 80), 2)\""
    )
    assert status != 0


async def test_the_environment_holds_nothing_of_the_host(box: Box) -> None:
    _, out, _ = await box.sh("tr '\\0' '\\n' < /proc/1/environ", uid=0)
    names = {line.split("=")[0] for line in out.splitlines() if line}
    assert names <= {
        "PATH", "LANG", "HOME", "USER", "LOGNAME", "TERM", "container", "container_uuid", "container_host_id",
        "container_host_version_id", "NOTIFY_SOCKET", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE",
        "PYTHONSAFEPATH", "PYTHONUNBUFFERED",
    }  # fmt: skip


async def test_a_setuid_file_left_in_the_state_gives_nothing(box: Box) -> None:
    status, _, err = await box.sh(
        "cp /bin/busybox /state/sid 2>/dev/null || cp /usr/bin/id /state/sid; chmod 4755 /state/sid"
    )
    assert (status, err) == (0, "")
    made = (box.spec.state_dir / "state/sid").stat()
    assert stat.S_IMODE(made.st_mode) & stat.S_ISUID
    assert made.st_uid == box.spec.uid_base + 1000  # never an uid of the host


async def test_memory_backed_places_have_a_size(box: Box) -> None:
    _, out, _ = await box.sh("df --output=target,size -B1 /tmp /dev/shm | tail -n +2")
    sizes = {line.split()[0]: int(line.split()[1]) for line in out.splitlines()}
    assert sizes == {"/tmp": 1024**3, "/dev/shm": 64 * 1024**2}


async def test_the_root_directory_is_not_changed_by_a_start(tmp_path: Path) -> None:
    yard = Yard.make(tmp_path)
    before = tree_digest(yard.root)
    driver = yard.driver()
    for _ in range(2):
        await driver.start(await yard.spec())
        await driver.stop(PROBE)
    assert tree_digest(yard.root) == before


async def test_several_containers_share_a_root_and_have_ranges_of_their_own(tmp_path: Path) -> None:
    yard = Yard.make(tmp_path)
    driver = yard.driver()
    specs = [await yard.spec(name) for name in ("alpha", "beta", "gamma")]
    await asyncio.gather(*(driver.start(spec) for spec in specs))
    leaders = [(await driver.status(spec.name)).leader_pid for spec in specs]
    maps = {Path(f"/proc/{leader}/uid_map").read_text() for leader in leaders}
    assert len(maps) == 3
    await yard.clean()


async def test_reaching_the_memory_limit_kills_and_is_told_as_oom(tmp_path: Path) -> None:
    yard = Yard.make(tmp_path)
    driver, spec = yard.driver(), await yard.spec(limits=Limits(memoryMax="64M"))
    async with inside(driver, spec) as box:
        if "memory" not in (await driver.status(PROBE)).limits_enforced:
            await yard.clean()
            pytest.skip("no memory controller can be written here")
        status, _, _ = await box.sh("python3 -c 'x = bytearray(1 << 28)'")
        assert status != 0
        await box.exit(1)
        async with asyncio.timeout(10):
            while (ended := await driver.status(PROBE)).phase != "exited":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert (ended.exit_code, ended.oom) == (1, True)


async def test_more_tasks_than_allowed_cannot_be_made(tmp_path: Path) -> None:
    yard = Yard.make(tmp_path)
    driver, spec = yard.driver(), await yard.spec(limits=Limits(tasksMax=32))
    async with inside(driver, spec) as box:
        status, out, _ = await box.sh("i=0; while [ $i -lt 100 ]; do sleep 1 & i=$((i+1)); done; echo all")
        assert (status, "all" in out) != (0, True)
        await yard.clean()


async def test_a_flood_on_the_console_is_bounded(tmp_path: Path) -> None:
    yard = Yard.make(tmp_path)
    driver, spec = yard.driver(), await yard.spec()
    async with inside(driver, spec) as box:
        await box.sh("timeout 2 yes > /proc/1/fd/1", uid=0)
        sizes = [
            (yard.directory() / name).stat().st_size
            for name in ("console.log", "console.log.1")
            if (yard.directory() / name).exists()
        ]
        assert 0 < sum(sizes) <= 16 * 1024**2
        assert all(len(line) <= 2000 for line in await driver.logs(PROBE, 100))
        await yard.clean()
