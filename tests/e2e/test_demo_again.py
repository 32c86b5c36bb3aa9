"""The demo stopped and started again in the same folder: nothing is left between, nothing is lost after."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from tests.support.demohive import DemoHive, descendants, free_port, start_demo, stop_demo
from tests.support.needs import needs_root

pytestmark = needs_root


def traces(folder: Path, pid: str) -> list[str]:
    """Mounts of the host that name the demo, and control groups of the world with that first process."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    groups = Path("/sys/fs/cgroup").rglob(f"hyperhive-demo-{pid}")
    return [line for line in mounts if str(folder) in line] + [str(path) for path in groups]


def crashes(demo: DemoHive) -> list[str]:
    return [m["body"] for m in demo.json("messages")["items"] if "crash" in m["body"]]


def test_a_second_run_goes_on_where_the_first_was_stopped(tmp_path: Path) -> None:
    first = start_demo(tmp_path / "demo", free_port())
    try:
        generations = {a["name"]: a["generation"] for a in first.json("agents")["items"]}
        assert generations == {"hm1nd": 1, "scout": 1, "smith": 1}
        below = descendants(first.process.pid)
        assert len(below) > 10
        world = (first.folder / "world").read_text().split()[0]
        assert traces(tmp_path, world) != [], "its control groups"
    finally:
        status = stop_demo(first)
    assert status == 0
    assert [pid for pid in below if Path(f"/proc/{pid}").exists()] == []
    assert traces(tmp_path, world) == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", first.port))
    gone = subprocess.run([first.folder / "bin/hive", "agents"], capture_output=True, text=True, check=False)
    assert (gone.returncode, "the demo is not running" in gone.stderr) == (1, True)

    second = start_demo(tmp_path / "demo", free_port())
    try:
        assert {a["name"]: a["generation"] for a in second.json("agents")["items"]} == generations
        assert [a["state"] for a in second.json("agents")["items"]] == ["idle"] * 3
        assert crashes(second) == [], "the end of the world is no crash of an agent"
        assert not any("demo hive" in line for line in second.printed), "made once, on the first run"
    finally:
        stop_demo(second)
