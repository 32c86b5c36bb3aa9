"""A process that has imported all of hived and forks one for each start: milliseconds instead of a second.

Single-threaded, so that a fork is whole. What it forks dies with it, and it with the test.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.support.crash.points import Fault

_PR_SET_PDEATHSIG = 1
CLONE = Path(__file__).resolve().parents[3]


class Forks:
    """The test's end."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.support.crash.forks", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=CLONE,
                env={**os.environ, "PYTHONPATH": str(CLONE)},
            )
        self._link = ours

    def fork(self, directory: Path, faults: Sequence[Fault], hello_s: float) -> int:
        """A hived in `directory`; its pid. It is nobody's zombie when it ends."""
        told = [asdict(fault) for fault in faults]
        request = {"directory": str(directory), "faults": told, "hello_s": hello_s}
        self._link.send(json.dumps(request).encode())
        return int(self._link.recv(100))

    def close(self) -> None:
        """End the server and all that it forked."""
        self._link.close()
        self._server.wait(10)


def serve(link: socket.socket) -> None:
    """Fork for each request until the test is gone."""
    from tests.support.crash.hived import main

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    while data := link.recv(65536):
        pid = os.fork()
        if pid:
            link.send(str(pid).encode())
            continue
        link.close()
        request: dict[str, Any] = json.loads(data)
        directory = Path(request["directory"])
        faults = [Fault(**fault) for fault in request["faults"]]
        _prepare(directory / "hived.log")
        status = 1
        try:
            main(directory, faults, request["hello_s"])
            status = 0
        except BaseException:  # noqa: BLE001 - the test reads it in the log
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


def _prepare(log: Path) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
