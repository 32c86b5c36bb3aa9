"""A demo hive as a person starts it: used by the end-to-end tests, the benchmarks and the screenshots."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
CLONE = Path(__file__).resolve().parents[2]
START_S = 180
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class DemoHive:
    """A running demo: its folder, its port, what it printed."""

    folder: Path
    port: int
    process: subprocess.Popen[str]
    printed: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"http://localhost:{self.port}"

    def hive(self, *arguments: str, check: bool = True, timeout_s: float = 90) -> str:
        """Run `hive` in the world; its standard output."""
        done = subprocess.run(
            [str(self.folder / "bin/hive"), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode in {0, 3}, (
                f"hive {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done.stdout if check else f"{done.returncode}\n{done.stdout}\n{done.stderr}"

    def json(self, *arguments: str) -> Any:
        """What `hive … --json` prints."""
        return json.loads(self.hive(*arguments, "--json"))

    def agent(self, name: str) -> dict[str, Any]:
        return dict(self.json("agents", name))

    def until(self, look: Callable[[], T | None], what: str, timeout_s: float = 60) -> T:
        """Wait for something to become true; the last look is in the failure."""
        end = time.monotonic() + timeout_s
        while True:
            seen = look()
            if seen:
                return seen
            assert time.monotonic() < end, (
                f"{what}: not within {timeout_s} s; last seen: {seen!r}\n{self.tail()}"
            )
            time.sleep(0.1)

    def state_file(self, *parts: str) -> Path:
        return self.folder.joinpath("state", *parts)

    def tail(self) -> str:
        """The ends of the logs, for a failure's report."""
        logs = sorted(self.state_file("log").glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)

    def pid_of(self, module: str) -> int:
        """The pid (as the host sees it) of a service of this world, by its command line."""
        for found in self.pids_of(module):
            return found
        raise AssertionError(f"{module} does not run")

    def pids_of(self, module: str) -> list[int]:
        """All pids below the demo whose arguments hold `module` as one word."""
        below = descendants(self.process.pid)
        return [pid for pid in below if module in arguments_of(pid)]


def arguments_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def descendants(root: int) -> list[int]:
    """All processes below `root`, parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        below = sorted(children.get(pid, []))
        found += below
        queue += below
    return found


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_demo(folder: Path, port: int, *, timeout_s: float = START_S) -> DemoHive:
    """Start the demo as `make demo` does and wait for its login link."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/root"),
        "DEMO_DIR": str(folder),
        "HIVE_PORT": str(port),
        "LANG": "C.UTF-8",
    }
    process = subprocess.Popen(
        ["/usr/bin/python3", "-u", "-m", "reconciler.demo"],
        cwd=CLONE,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    demo = DemoHive(folder, port, process)
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                demo.printed.append(line.rstrip("\n"))
                if "/login/" in line:
                    ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True, name="demo-output").start()
    if not ready.wait(timeout_s) or process.poll() is not None:
        stop_demo(demo)
        raise AssertionError("the demo did not come up:\n" + "\n".join(demo.printed) + demo.tail())
    return demo


def stop_demo(demo: DemoHive) -> int:
    """Ctrl-C, and wait; its exit status."""
    if demo.process.poll() is None:
        demo.process.send_signal(signal.SIGINT)
    status = demo.process.wait(timeout=60)
    if demo.reader is not None:
        demo.reader.join(timeout=10)
    return status


def login_link(demo: DemoHive) -> str:
    """A fresh one-time link."""
    return str(re.findall(r"http://\S+/login/\S+", demo.hive("login"))[0])
