"""The demo's world, with placeholders as services: what it holds, what it lets in, and what it leaves
behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.demo import cgroups, launch, place, services
from reconciler.demo.install import CLONE
from reconciler.demo.launch import World
from reconciler.demo.place import Place
from reconciler.demo.services import ENVIRONMENT, Credential, Service
from reconciler.demo.world import Plan
from tests.support.needs import needs_root

pytestmark = needs_root

BASE = 1_048_576 + 250 * 65536
SKELETON = """\
derivation {
  name = "skeleton"; system = builtins.currentSystem; builder = "/bin/sh"; preferLocalBuild = true;
  args = [ "-euc" ''
    for d in usr proc sys dev run tmp var root etc/alternatives state; do mkdir -p $out/$d; done
    for l in bin sbin lib lib64; do ln -s usr/$l $out/$l; done
    echo ID=hive > $out/etc/os-release; : > $out/etc/machine-id; : > $out/etc/resolv.conf
    echo root:x:0:0::/:/bin/sh > $out/etc/passwd
  '' ];
}
"""
SECRET = "sk-ant-not-a-real-key"
NIX_DAEMON = Service("nix-daemon", ("nix-daemon",), ENVIRONMENT | {"NIX_REMOTE": ""})
PAYLOAD = (
    "cat /proc/self/uid_map; setpriv --reuid=1000 --regid=1000 --clear-groups touch /state/made; "
    "grep -c : /proc/net/dev; exit 7"
)
# Containers start below the supervisor, as hived's do; a process that entered from outside has the host's
# groups.
CONTAINER_LOOP = (
    f"until [ -e {services.STATE}/container ]; do sleep 0.02; done; . {services.STATE}/container; "
    "echo ended $?; exec sleep 1000"
)
CONTAINER = Service(
    "container", ("sh", "-c", CONTAINER_LOOP), ENVIRONMENT | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
)
# Answers one caller with what it was passed, then ends; the supervisor starts it again.
ANSWER = (
    "import os, socket; taken = {n: os.environ[n] for n in ('LISTEN_FDS', 'LISTEN_FDNAMES')};"
    "mine = os.environ['LISTEN_PID'] == str(os.getpid()); fds = sorted(os.listdir('/proc/self/fd'));"
    "caller = socket.socket(fileno=3).accept()[0]; caller.sendall(repr((taken, mine, fds)).encode())"
)
ANSWERER = Service(
    "answerer", ("/usr/bin/python3", "-c", ANSWER), ENVIRONMENT, 64102, 64102,
    sockets=(services.Listening("probe", f"{services.RUN}/probe.sock", 0o640, 64101, 64102),),
)  # fmt: skip
SLEEPER = Service("sleeper", ("sleep", "1000"), ENVIRONMENT, 64101, 64101)


def plan_for(where: Place, *members: Service, credential: Credential | None = None) -> Plan:
    return Plan(
        folder=str(where.root),
        venv=str(CLONE / ".venv"),
        harness_venv=str(CLONE / ".venv-harness"),
        port=7999,
        credential=credential,
        proxies={},
        services=members,
    )


def eventually(is_so: Callable[[], bool], within_s: float = 60.0) -> bool:
    """Polls what no notification tells; the pause is a poll interval, not a guess at a duration."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if is_so():
            return True
        time.sleep(0.01)
    return False


def begin(root: Path, *members: Service, credential: Credential | None = None) -> World:
    where = Place.of(str(root))
    where.make()
    place.sync_source(CLONE, where)
    place.write_shell_files(where)
    lock = where.lock()
    try:
        return launch.start(plan_for(where, *members, credential=credential), lock)
    finally:
        os.close(lock)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One world for all tests that only look at it."""
    root = tmp_path_factory.mktemp("demo")
    started = begin(root, NIX_DAEMON, SLEEPER, CONTAINER, ANSWERER, credential=Credential(SECRET, "api-key"))
    daemon = Path(started.path("/nix/var/nix/daemon-socket/socket"))
    assert eventually(daemon.exists)
    yield started
    started.stop()


def inside(world: World, script: str, user: services.User | None = None) -> str:
    return world.run(["sh", "-euc", script], user=user).strip()


def mounts_below(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]


def test_the_world_is_invisible_in_the_hosts_mounts_and_names(world: World) -> None:
    assert mounts_below(world.place.root) == []
    assert "hive-gateway" not in Path("/etc/passwd").read_text()
    assert inside(world, "id -un 64102") == "hive-gateway"


def test_the_world_sees_the_products_paths_and_nothing_else_of_the_host(world: World) -> None:
    listed = inside(world, "ls -A /").split()
    assert set(listed) <= {
        *(
            "bin",
            "dev",
            "etc",
            "lib",
            "lib32",
            "lib64",
            "libx32",
            "nix",
            "opt",
            "proc",
            "root",
            "run",
            "sbin",
        ),
        *("sys", "tmp", "usr", "var"),
    }
    assert inside(world, "ls -A /root /tmp /old 2>/dev/null || true") == "/root:\n\n/tmp:"
    assert "PID   USER" not in inside(world, "ls /proc | grep -c '^[0-9]' ")
    assert int(inside(world, "ls /proc | grep -c '^[0-9]'")) < 12
    assert inside(world, "pwd; readlink /proc/self/cwd; ls") == "/\n/\n" + "\n".join(sorted(listed))


def test_the_program_can_be_read_by_unprivileged_users_and_written_by_nobody(world: World) -> None:
    read = "cat /opt/hyperhive/package.json > /dev/null; /opt/hyperhive/.venv/bin/python -c 'import aiohttp'"
    inside(world, read, user=services.UI)
    for path in ("/opt/hyperhive/x", "/opt/hyperhive/.venv/x", "/usr/x"):
        assert world.try_run(["touch", path]).returncode != 0


def test_only_the_gateway_reads_the_credential(world: World) -> None:
    path = services.CREDENTIAL_FILE
    assert inside(world, f"cat {path}", user=services.GATEWAY) == SECRET
    for user in (services.UI, services.BUILD, services.SCRIPTED):
        assert world.try_run(["cat", path], user=user).returncode != 0
    config = json.loads(inside(world, f"cat {services.CONFIG_FILE}"))
    assert SECRET not in json.dumps(config)
    assert config["gateway"]["upstream"] == services.REAL_UPSTREAM
    processes = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null || true"  # some end meanwhile
    assert SECRET not in inside(world, processes)


def test_a_service_cannot_read_the_logs_of_another(world: World) -> None:
    log = f"{services.STATE}/log/nix-daemon.log"
    inside(world, f"test -f {log}")
    assert world.try_run(["cat", log], user=services.UI).returncode != 0


def test_the_state_honours_no_setuid_bit_and_no_device(world: World) -> None:
    options = inside(world, "grep ' /var/lib/hyperhive ' /proc/self/mounts").split()[3].split(",")
    assert {"nosuid", "nodev"} <= set(options)


def test_the_build_user_builds_through_the_daemon_in_a_sandbox(world: World) -> None:
    store_path = build_skeleton(world)
    assert inside(world, f"stat -c %u {store_path}") == "0"
    as_ui = world.try_run(["nix", "store", "ping"], user=services.UI)
    assert as_ui.returncode != 0, "only the build user and root may speak to the daemon"


def build_skeleton(world: World) -> str:
    (world.place.state / "build" / "skeleton.nix").write_text(SKELETON)
    built = inside(world, 'cd "$HOME" && nix build --json --no-link -f skeleton.nix', user=services.BUILD)
    output = json.loads(built)[0]["outputs"]["out"]
    assert isinstance(output, str)
    return output


def test_a_container_with_its_own_uid_range_runs_over_a_store_path(world: World) -> None:
    root = build_skeleton(world)
    state = world.place.state / "agents" / "probe"
    state.mkdir(parents=True)
    os.chown(state, BASE + 1000, BASE + 1000)
    argv = [
        *(
            "systemd-nspawn",
            "--quiet",
            "--register=no",
            "--keep-unit",
            "--settings=no",
            "--machine=hive-probe",
        ),
        *(
            f"--directory={root}",
            "--read-only",
            f"--private-users={BASE}:65536",
            "--private-users-ownership=map",
        ),
        *("--private-network", "--no-new-privileges=yes", "--drop-capability=CAP_SYS_ADMIN,CAP_NET_ADMIN"),
        *("--system-call-filter=~@mount unshare setns", "--link-journal=no", "--resolv-conf=off"),
        *("--timezone=off", "--console=pipe", "--bind-ro=/usr", "--bind-ro=/etc/alternatives"),
        *(f"--bind={services.STATE}/agents/probe:/state", "/bin/sh", "-c", PAYLOAD),
    ]
    (world.place.state / "container.new").write_text(shlex.join(argv))
    (world.place.state / "container.new").rename(world.place.state / "container")
    log = world.place.state / "log/container.log"
    assert eventually(lambda: "ended " in log.read_text()), log.read_text()
    uid_map, interfaces, end = log.read_text().splitlines()[-3:]
    assert (uid_map.split(), end) == (["0", str(BASE), "65536"], "ended 7")
    assert interfaces == "1", "loopback only"
    assert (state / "made").stat().st_uid == BASE + 1000
    inside(world, f"nix-store --verify-path {root}")


def test_control_groups_of_the_world_are_its_own_and_it_sees_nothing_above_them(world: World) -> None:
    made = f"/hyperhive-demo-{world.pid}"
    for line in Path(f"/proc/{world.pid}/cgroup").read_text().splitlines():
        assert made in line
    mounts = Path(f"/proc/{world.pid}/mountinfo").read_text().splitlines()
    shown = [line.split()[3] for line in mounts if " - cgroup" in line]
    assert shown
    assert all(root.endswith(made) for root in shown)


def test_a_killed_service_is_started_again_as_its_own_user(world: World) -> None:
    find = "pgrep -u hive-ui -x sleep || true"
    first = inside(world, find)
    os.kill(host_pid(world, int(first)), signal.SIGKILL)
    assert eventually(lambda: inside(world, find) not in {"", first})


def test_callers_of_a_service_that_is_being_started_again_wait_and_are_answered(world: World) -> None:
    path = world.path(f"{services.RUN}/probe.sock")
    found = Path(path).stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (64101, 64102, 0o640)
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(60)
            caller.connect(path)
            answer = b"".join(iter(lambda: caller.recv(4096), b"")).decode()
        # standard streams, the socket, and the one that lists this directory
        expected = ({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "probe"}, True, ["0", "1", "2", "3", "4"])
        assert answer == repr(expected)


def host_pid(world: World, pid: int) -> int:
    """The host's number of a process of the world."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            continue
        numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
        if len(numbers) == 2 and int(numbers[1]) == pid and descends_from(int(numbers[0]), world.pid):
            return int(numbers[0])
    raise AssertionError(f"no process {pid} in the world")


def descends_from(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def test_orphans_are_reaped_by_the_supervisor(world: World) -> None:
    inside(world, "(sleep 0.01 &) ")
    assert eventually(lambda: "Z" not in inside(world, "cut -d' ' -f3 /proc/[0-9]*/stat | tr -d '\\n'"))


def test_the_shell_file_puts_hive_on_the_path_and_hive_enters_the_world(world: World) -> None:
    env = world.place.root / "env"
    script = f". {env}; . {env}; command -v hive; echo $PATH | grep -o {world.place.root} | wc -l"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.split() == [str(world.place.root / "bin/hive"), "1"]
    probe = subprocess.run(
        [world.place.root / "bin/hive", "no such verb", "--json"],
        env={"PATH": os.environ["PATH"], "ANTHROPIC_API_KEY": "x"},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert probe.returncode == 2, "a wrong verb is a usage error of the command line inside"


def test_hive_says_so_when_no_demo_runs(tmp_path: Path) -> None:
    where = Place.of(str(tmp_path / "demo"))
    where.make()
    place.write_shell_files(where)
    for record in (None, f"{os.getpid()} 1\n", "", "garbage\n"):
        if record is not None:
            where.record.write_text(record)
        ran = subprocess.run(
            [where.root / "bin/hive", "agents"], capture_output=True, text=True, check=False, timeout=20
        )
        assert (ran.returncode, ran.stdout) == (1, "")
        assert "the demo is not running" in ran.stderr


def ended(world: World, pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in (world.pid, *pids))


def tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in tree(int(child)))]


def test_nothing_is_left_when_the_world_is_stopped(tmp_path: Path) -> None:
    world = begin(tmp_path / "demo", NIX_DAEMON, SLEEPER)
    assert eventually(lambda: len(tree(world.pid)) == 3)
    pids = tree(world.pid)
    world.stop()
    assert ended(world, pids)
    assert mounts_below(tmp_path) == []
    assert not list(Path("/sys/fs/cgroup").rglob(f"hyperhive-demo-{world.pid}"))
    assert not world.place.record.exists()
    assert not world.place.is_locked()
    assert list(world.place.mount_point.iterdir()) == []


def test_nothing_is_left_when_make_demo_itself_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from tests.integration import test_demo_world as t; from pathlib import Path;"
        "world = t.begin(Path(sys.argv[1]), t.SLEEPER); print(world.pid, flush=True); time.sleep(1000)"
    )
    starter = subprocess.Popen(
        [CLONE / ".venv/bin/python", "-c", script, str(tmp_path / "demo")],
        env=os.environ | {"PYTHONPATH": str(CLONE)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        where = Place.of(str(tmp_path / "demo"))
        assert where.is_locked()
        starter.kill()
    assert eventually(lambda: not Path(f"/proc/{pid}").exists() and not where.is_locked())
    assert mounts_below(tmp_path) == []
    cgroups.remove_stale()
    assert not list(Path("/sys/fs/cgroup").rglob(f"hyperhive-demo-{pid}")), "the next demo tidies up"
