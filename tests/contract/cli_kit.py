"""`hive` run against a real control server with fake services."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.cli.main import main
from reconciler.control.auth import Ids
from reconciler.control.server import ControlServer
from tests.fakes.services import FakeServices

ROOT = Path(__file__).parents[2]


@dataclass
class Ran:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def a_server(services: FakeServices, run_dir: Path) -> ControlServer:
    return ControlServer(services.bundle(), run_dir, Ids(os.getegid(), os.geteuid(), os.getegid()))


async def hive(*arguments: str, stdin: bytes | None = None) -> Ran:
    """Run a command in a thread of this process (never on a terminal)."""
    out, err = io.StringIO(), io.StringIO()

    def run() -> int:
        source = io.TextIOWrapper(io.BytesIO(stdin or b""))
        before, sys.stdin = sys.stdin, source
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                return main(arguments)
        finally:
            sys.stdin = before

    return Ran(await asyncio.to_thread(run), out.getvalue(), err.getvalue())


async def on_terminal(*arguments: str, answer: str = "", **env: str) -> Ran:
    """Run a command on a terminal of its own; type `answer` when it asks."""

    def run() -> Ran:
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "reconciler.cli", *arguments]
        environment = {**os.environ, "TERM": "xterm", **env}
        child = subprocess.Popen(
            command, cwd=ROOT, stdin=follower, stdout=follower, stderr=follower, env=environment
        )
        os.close(follower)
        seen, typed = b"", False
        with contextlib.suppress(OSError):  # EIO: the other end was closed
            while chunk := os.read(leader, 65536):
                seen += chunk
                if not typed and b"[y/N]" in seen:
                    os.write(leader, f"{answer}\n".encode())
                    typed = True
        os.close(leader)
        return Ran(child.wait(10), seen.decode().replace("\r\n", "\n"), "")

    return await asyncio.to_thread(run)
