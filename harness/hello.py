"""The first `hello`, with nothing but the standard library, so that it is out before the larger imports
begin.

The host measures a container's start by it. Later hellos (after the host was away) are said by
`harness.link`.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator

WELCOME_MAX_BYTES = 4 * 1024 * 1024
_ATTEMPT_S = 20.0


def backoff() -> Iterator[float]:
    """Pauses between attempts while the host is away: 50 ms, growing by half to 1 s, then for ever."""
    pause = 0.05
    while True:
        yield pause
        pause = min(1.0, pause * 1.5)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("hive", timeout=_ATTEMPT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def say_hello(path: str, boot: str, wire: int, sleep: Callable[[float], None] = time.sleep) -> bytes:
    """The host's answer to `hello` as JSON text; waits for the host without end, as there is nothing else to
    do.

    A refusal is printed once per text (to the console log) and tried again: the host may be about to approve
    something.
    """
    body = json.dumps({"wire": wire, "boot": boot, "turn": None, "resident": False}).encode()
    told = ""
    for pause in backoff():
        connection = _UnixConnection(path)
        try:
            connection.request("POST", "/v1/hello", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read(WELCOME_MAX_BYTES + 1)
            if answer.status == http.HTTPStatus.OK and len(text) <= WELCOME_MAX_BYTES:
                return text
            trouble = f"the host refused hello with {answer.status}: {text[:500].decode('utf-8', 'replace')}"
        except (OSError, http.client.HTTPException) as error:
            trouble = f"the host is away: {error}"
        finally:
            connection.close()
        if trouble != told:
            sys.stderr.write(f"harness: {trouble}\n")
            told = trouble
        sleep(pause)
    raise AssertionError  # backoff() does not end
