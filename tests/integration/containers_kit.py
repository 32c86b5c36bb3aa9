"""Real containers for tests: a plain root directory, and a harness that does what the test says over its
socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from reconciler.config import Config, Harness
from reconciler.effects.containers.driver import ShimContainers
from reconciler.effects.containers.record import Record, read_record
from reconciler.effects.containers.systemd import SystemdContainers
from reconciler.effects.hostfiles import RealHostFiles
from reconciler.effects.protocols import Containers, ContainerSpec
from reconciler.model.names import AgentName
from reconciler.model.spec import Limits

needs_containers = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("systemd-nspawn") is None, reason="needs root and systemd-nspawn"
)
FIRST_BASE = 1_500_000 // 65536 * 65536 + 65536 * 4000  # far from what a hive on this machine assigns

# PID 1 of the test containers. /config/mode says how it behaves; then it takes orders as JSON lines.
HARNESS = """
import json, os, signal, socket, subprocess, sys
mode = open("/config/mode").read().split() or [""]
print("harness says hello", flush=True)
if mode[0] == "exit":
    print("leaving by itself", flush=True)
    sys.exit(int(mode[1]))
if mode[0] == "eat":
    hoard = []
    while True:
        hoard.append(bytearray(b"x" * (1 << 20)))
if mode[0] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print("ready", flush=True)
if not os.path.exists("/run/hive/agent.sock"):
    while True:
        signal.pause()
link = socket.socket(socket.AF_UNIX)
link.connect("/run/hive/agent.sock")
for line in link.makefile("r"):
    order = json.loads(line)
    if "exit" in order:
        os._exit(order["exit"])
    drop = ["/usr/bin/setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all", "--"]
    argv = (drop if order["uid"] else []) + ["/bin/sh", "-c", order["run"]]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    link.sendall(json.dumps([done.returncode, done.stdout, done.stderr]).encode() + b"\\n")
while True:  # its host went away: a container outlives that
    signal.pause()
"""

# PID 1 that lives as a harness does: says hello, waits for messages, consumes each, and comes back to a host
# that was away. It imports nothing that would take its time.
GREETER = """
import json, os, signal, socket, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
boot = os.urandom(16).hex()
print("ready", flush=True)

def call(link, method, path, body=b""):
    link.write((
        f"{method} /v1/{path} HTTP/1.1\\r\\nHost: host\\r\\nX-Hive-Wire: 1\\r\\nX-Hive-Boot: {boot}\\r\\n"
        f"Content-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    ).encode() + body)
    link.flush()
    status, length = int(link.readline().split()[1]), 0
    while line := link.readline().strip():
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    if status != 200:
        raise OSError(status)
    return json.loads(link.read(length))

while True:
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect("/run/hive/agent.sock")
            with link.makefile("rwb") as link:
                call(link, "POST", "hello", json.dumps({"wire": 1, "boot": boot}).encode())
                while True:
                    found = call(link, "GET", "inbox?wait=30&max=10")
                    if found["lease"] is not None:
                        call(link, "POST", f"leases/{found['lease']}/ack")
    except (OSError, ValueError, IndexError):  # the host is away, or went in the middle of an answer
        time.sleep(0.05)
"""


def plain_root(directory: Path) -> Path:
    """A root skeleton as `modules/bare` builds it, without Nix."""
    mount_points = ("usr", "proc", "sys", "dev", "run", "tmp", "var", "root", "etc/alternatives", "state",
                    "home/agent", "config", "agents", "opt/hive/lib/harness", "opt/hive/venv")  # fmt: skip
    for name in mount_points:
        (directory / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (directory / name).symlink_to(f"usr/{name}")
    users = "root:x:0:0::/:/usr/sbin/nologin\nagent:x:1000:1000::/home/agent:/bin/bash\n"
    files = {
        "passwd": users,
        "group": "root:x:0:\nagent:x:1000:\n",
        "hosts": "127.0.0.1 localhost\n",
        "os-release": "ID=hive\n",
        "machine-id": "",
        "resolv.conf": "",
    }
    for name, text in files.items():
        (directory / "etc" / name).write_text(text)
    return directory


@dataclass(slots=True)
class Yard:
    """A place for real containers: configuration, directories, and what to clean up."""

    path: Path
    config: Config
    root: Path
    files: RealHostFiles
    bases: dict[AgentName, int] = field(default_factory=dict)
    hung: list[SystemdContainers] = field(default_factory=list)

    @classmethod
    def make(cls, path: Path, driver: Literal["shim", "systemd"] = "shim", *, harness: str = HARNESS) -> Yard:
        package, venv = path / "package", path / "venv/bin"
        package.mkdir(parents=True)
        venv.mkdir(parents=True)
        (package / "__main__.py").write_text(harness)
        (venv / "python").symlink_to("/usr/bin/python3")
        plain_root(path / "root")
        return cls.at(path, driver)

    @classmethod
    def at(cls, path: Path, driver: Literal["shim", "systemd"] = "shim") -> Yard:
        """A place that was made before."""
        config = Config(
            state_dir=str(path / "state"),
            run_dir=str(path / "run"),
            driver=driver,
            harness=Harness(package=str(path / "package"), venv=str(path / "venv")),
        )
        return cls(path, config, path / "root", RealHostFiles(config))

    def driver(self) -> ShimContainers:
        """A driver as a daemon just started has it."""
        return ShimContainers(self.config)

    def systemd(self) -> SystemdContainers:
        """The same over systemd; where that is PID 1."""
        self.hung.append(SystemdContainers(self.config))
        return self.hung[-1]

    async def spec(
        self, name: str = "probe", *, mode: str = "", limits: Limits | None = None, manager: bool = False
    ) -> ContainerSpec:
        agent = AgentName(name)
        base = self.bases.setdefault(agent, FIRST_BASE + 65536 * len(self.bases))
        await self.files.ensure_agent(agent, base, manager=manager)
        home = Path(self.config.state_dir) / "agents" / agent
        (home / "config/mode").write_text(mode + "\n")
        return ContainerSpec(
            name=agent,
            toplevel=str(self.root),
            uid_base=base,
            state_dir=home,
            run_dir=Path(self.config.run_dir) / "agents" / agent,
            manager=manager,
            limits=limits or Limits(),
        )

    def directory(self, name: str = "probe") -> Path:
        """Where the driver keeps the container's record."""
        return Path(self.config.state_dir) / "containers" / name

    def record(self, name: str = "probe") -> Record:
        record = read_record(self.directory(name))
        assert record is not None
        return record

    async def clean(self) -> None:
        driver = self.systemd() if self.config.driver == "systemd" else self.driver()
        for name in await driver.list():
            await driver.stop(name, timeout_s=0)
            if self.config.driver == "systemd":  # a failed unit outlives the test's directory
                await driver.clear(name)
        for hung in self.hung:
            hung.close()


class Inside:
    """Orders to the harness of a running container."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""

    async def sh(self, script: str, *, uid: int = 1000) -> tuple[int, str, str]:
        """Run a shell script inside; status, output, error output."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._connection, json.dumps({"run": script, "uid": uid}).encode() + b"\n")
        async with asyncio.timeout(20):
            while b"\n" not in self._buffer:
                data = await loop.sock_recv(self._connection, 1 << 16)
                assert data, "the harness went away"
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        status, out, err = json.loads(line)
        return status, out, err

    async def exit(self, status: int) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._connection, json.dumps({"exit": status}).encode() + b"\n")


@contextlib.asynccontextmanager
async def served(spec: ContainerSpec) -> AsyncIterator[socket.socket]:
    """The agent's socket, listening as the daemon serves it: owner BASE, mode 0600."""
    path = spec.run_dir / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        os.chown(path, spec.uid_base, spec.uid_base)
        path.chmod(0o600)
        listener.listen(8)
        listener.setblocking(False)
        yield listener


@contextlib.asynccontextmanager
async def inside(driver: Containers, spec: ContainerSpec) -> AsyncIterator[Inside]:
    """Start the container and talk to its harness."""
    async with served(spec) as listener:
        await driver.start(spec)
        async with asyncio.timeout(10):
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        with connection:
            connection.setblocking(False)
            yield Inside(connection)
