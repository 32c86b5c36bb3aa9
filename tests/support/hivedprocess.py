"""The genuine hived as a process, with a supervisor that is played: its sockets and its notifications."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from reconciler.sockets import Bound, bind

CLONE = Path(__file__).resolve().parents[2]
START_S = 30.0


class Supervised:
    """One hive in `directory`; `start` and `stop` as often as you like."""

    def __init__(self, directory: Path, *, activated: bool = True, watchdog_s: float = 0.0) -> None:
        self.directory = directory
        self.run = directory / "run"
        self.heard: list[str] = []
        self.process: asyncio.subprocess.Process | None = None
        self._watchdog_s = watchdog_s
        self._sockets: list[Bound] = []
        self.run.mkdir()
        config = {
            "state_dir": str(directory / "state"), "run_dir": str(self.run), "ui_user": "root",
            "gateway_user": "root", "build_user": "nobody", "operator_group": "root",
        }  # fmt: skip
        (directory / "config.json").write_text(json.dumps(config))
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._notify.bind(str(directory / "notify"))
        if activated:
            for name in ("control.sock", "ui.sock"):
                self._sockets.append(bind(self.run / name, mode=0o600, uid=os.geteuid(), gid=os.getegid()))

    async def start(self, *, argv: Sequence[str] = ("-m", "reconciler"), **environment: str) -> None:
        """Start hived and wait until it says that it is ready."""
        variables = {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(CLONE), **environment,
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "HIVE_CONFIG": str(self.directory / "config.json"),
        }  # fmt: skip
        if self._watchdog_s:
            variables["WATCHDOG_USEC"] = str(int(self._watchdog_s * 1e6))
        passed = [bound.sock.fileno() for bound in self._sockets]
        moves = ""
        if passed:
            variables |= {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "control.sock:ui.sock"}
            moves = f"exec 3<&{passed[0]} 4<&{passed[1]}; export LISTEN_PID=$$; "
        with (self.directory / "hived.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *("/bin/bash", "-c", f'{moves}exec "$@"', "sh", sys.executable, *argv),
                env=variables, stdout=log, stderr=log, pass_fds=passed,
            )  # fmt: skip
        await self.told("READY=1")

    async def told(self, message: str, within_s: float = START_S) -> None:
        """Wait for a notification that begins so, among those since the last start."""
        self.heard.clear()
        until = time.monotonic() + within_s
        while not any(one.startswith(message) for one in self.heard):
            assert self.process is not None
            assert self.process.returncode is None, self.log()
            assert time.monotonic() < until, f"hived did not say {message}: {self.heard}\n{self.log()}"
            self.listen()
            await asyncio.sleep(0.005)

    def listen(self) -> None:
        """Take what has come."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard.append(self._notify.recv(4096).decode())

    async def stop(self) -> float:
        """SIGTERM; the seconds until it has ended."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            status = await self.process.wait()
        assert status == 0, self.log()
        return time.monotonic() - began

    def somebody_waits(self) -> bool:
        """Whether a connection waits at our sockets that nobody has accepted."""
        return bool(select.select([bound.sock for bound in self._sockets], [], [], 0)[0])

    def log(self) -> str:
        """What hived wrote."""
        return (self.directory / "hived.log").read_text()

    def close(self) -> None:
        """Nothing of it is left."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
        for bound in self._sockets:
            bound.sock.close()
        self._notify.close()


@contextlib.asynccontextmanager
async def supervised(directory: Path, **more: Any) -> AsyncIterator[Supervised]:
    """A hive that is not started yet."""
    made = Supervised(directory, **more)
    try:
        yield made
    finally:
        made.close()
        if made.process is not None:
            await made.process.wait()
