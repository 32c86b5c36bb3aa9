"""PID 1 of real containers: it says hello, takes messages as long as it lives, and comes back to a host that
was away. Standard library only, and little of it: a start costs some milliseconds.

A message `propose COMMIT` makes it offer the bundle that lies in /config. Each start writes a line to
/state/starts: how often there was one is seen from inside, too. A root whose model is `sonnet` ends at once.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

BOOT = os.urandom(16).hex()
AGENT_UID = 1000


def note_start() -> None:
    """A line in a file of /state, which belongs to the agent and not to the root that we are."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    os.setresgid(AGENT_UID, AGENT_UID, AGENT_UID)
    os.setresuid(AGENT_UID, AGENT_UID, AGENT_UID)
    with Path("/state/starts").open("a") as file:
        file.write("started\n")
    os._exit(0)


class Link:
    """One connection to the host; `OSError` when it is away or refuses."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect("/run/hive/agent.sock")
        self._file = self._socket.makefile("rwb")

    def call(self, method: str, path: str, body: bytes = b"", content: str = "application/json") -> Any:
        """The answer to one call."""
        self._file.write(
            f"{method} /v1/{path} HTTP/1.1\r\nHost: host\r\nX-Hive-Wire: 1\r\nX-Hive-Boot: {BOOT}\r\n"
            f"Content-Type: {content}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        self._file.flush()
        status, length = int(self._file.readline().split()[1]), 0
        while line := self._file.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        answer = self._file.read(length)
        if status != 200:
            raise OSError(status, answer)
        return json.loads(answer)

    def close(self) -> None:
        """At once."""
        self._file.close()
        self._socket.close()


def live() -> None:
    """Until the host goes away."""
    link = Link()
    try:
        link.call("POST", "hello", json.dumps({"wire": 1, "boot": BOOT}).encode())
        while True:
            found = link.call("GET", "inbox?wait=30&max=10")
            if found["lease"] is None:
                continue
            for message in found["messages"]:
                word, _, commit = message["body"].partition(" ")
                if word == "propose":
                    bundle = Path("/config/bundle").read_bytes()
                    link.call("POST", f"proposals?commit={commit}", bundle, "application/octet-stream")
            link.call("POST", f"leases/{found['lease']}/ack")
    finally:
        link.close()


def main() -> None:
    """For ever."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    note_start()
    if json.loads(Path("/etc/hyperhive/spec.json").read_text())["model"] == "sonnet":
        print("this model does not agree with me", flush=True)
        sys.exit(5)
    while True:
        try:
            live()
        except (OSError, ValueError, IndexError):  # the host is away, or went in the middle of an answer
            time.sleep(0.02)


if __name__ == "__main__":
    main()
