"""A container that is none: bubblewrap with the paths, the user and the three capabilities of the real one.

The real one is systemd-nspawn with a user namespace. This one starts in milliseconds, needs root, and has
its own process ids, so that a harness in it is PID 1 and may kill everything of the agent's uid; the network
is a loopback of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
VENV = REPO / ".venv-harness"
AGENT = 1000
_BIND = "/opt/hive/lib"


def missing() -> str:
    """Why such a container cannot be made here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root: the harness starts the CLI as another user"
    for program in ("bwrap", "setpriv", "git"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not any(VENV.glob("lib/python3*/site-packages/claude_agent_sdk/_bundled/claude")):
        return ".venv-harness with the Claude CLI is not installed"
    return ""


needs_container = pytest.mark.skipif(bool(missing()), reason=missing())


def signal_first(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Sends a signal to the first process inside; bubblewrap itself would die of it and kill the rest."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        for pid in children.read_text().split():
            os.kill(int(pid), number)


def processes_of_agent(process: asyncio.subprocess.Process) -> list[int]:
    """Pids, as seen from here, of all processes of the agent's user in this container."""
    first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
    inside = Path(f"/proc/{first}/ns/pid").readlink()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == AGENT and (folder / "ns/pid").readlink() == inside:
                found.append(int(folder.name))
    return found


def command_of(pid: int) -> str:
    """The words of a process, joined by blanks; empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


class Container:
    """A folder with the container's `run`, `state`, `home`, `config` and `agents`, and programs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "home", "config", "agents"):
            (folder / name).mkdir()
            os.chown(folder / name, AGENT, AGENT)
            (folder / name).chmod(0o700)
        (folder / "run").mkdir(mode=0o700)
        (folder / "passwd").write_text(
            "root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/bash\n"
        )
        (folder / "group").write_text("root:x:0:\nagent:x:1000:\n")

    @property
    def run(self) -> Path:
        """Where the host puts the sockets."""
        return self.folder / "run"

    def argv(self, program: Sequence[str], environment: Mapping[str, str], *, as_pid_1: bool) -> list[str]:
        """The command line around a program."""
        here = str(self.folder)
        argv = [
            "bwrap",
            "--unshare-pid",
            "--unshare-net",
            "--unshare-ipc",
            "--unshare-uts",
            "--die-with-parent",
        ]
        argv += ["--as-pid-1"] if as_pid_1 else []
        argv += ["--clearenv", "--setenv", "PYTHONPATH", _BIND, "--setenv", "PYTHONDONTWRITEBYTECODE", "1"]
        argv += ["--setenv", "PATH", "/usr/bin:/bin"]
        for name, value in environment.items():
            argv += ["--setenv", name, value]
        argv += ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib64"):
            argv += ["--symlink", f"usr/{name}", f"/{name}"]
        for parent in ("/etc", "/opt", "/opt/hive", _BIND, "/home", "/run"):
            argv += ["--perms", "0755", "--dir", parent]
        argv += ["--ro-bind", f"{here}/passwd", "/etc/passwd", "--ro-bind", f"{here}/group", "/etc/group"]
        argv += ["--ro-bind", "/etc/alternatives", "/etc/alternatives"]
        argv += ["--dev", "/dev", "--proc", "/proc", "--perms", "1777", "--tmpfs", "/tmp"]
        argv += [
            "--ro-bind",
            str(REPO / "harness"),
            f"{_BIND}/harness",
            "--ro-bind",
            str(VENV),
            "/opt/hive/venv",
        ]
        argv += ["--bind", f"{here}/state", "/state", "--bind", f"{here}/home", "/home/agent"]
        argv += ["--bind", f"{here}/config", "/config", "--bind", f"{here}/agents", "/agents"]
        argv += ["--ro-bind", f"{here}/run", "/run/hive", "--chdir", "/"]
        argv += ["--cap-drop", "ALL"]
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_KILL"):
            argv += ["--cap-add", capability]
        return [*argv, "--", *program]

    @contextlib.asynccontextmanager
    async def running(
        self, program: Sequence[str], environment: Mapping[str, str] | None = None, *, as_pid_1: bool = True
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """The program, running; at the end it is told to stop and then killed. Its log is `console.log`."""
        with (self.folder / "console.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.argv(program, environment or {}, as_pid_1=as_pid_1),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=32 * 1024 * 1024,
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                signal_first(process, signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(10):
                        await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()

    def harness(
        self, environment: Mapping[str, str] | None = None
    ) -> contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]:
        """The genuine harness as PID 1."""
        return self.running(["/opt/hive/venv/bin/python", "-m", "harness"], environment)

    def console(self) -> str:
        """What the harness wrote."""
        return (self.folder / "console.log").read_text(errors="replace")
