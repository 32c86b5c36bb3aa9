"""Reads the control API of a running world from outside, with the standard library only.

A path through /proc/PID/root reaches the socket without entering the world, which makes waiting cheap.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from reconciler.demo import services
from reconciler.demo.launch import World
from reconciler.errors import TemporaryError

_DEADLINE_S = 5.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("hive", timeout=_DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_DEADLINE_S)
        self.sock.connect(self._path)


def get(world: World, path: str) -> Any:
    """The JSON at a path of the control API; `TemporaryError` while hived does not answer."""
    connection = _Connection(world.path(f"{services.RUN}/control.sock"))
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise TemporaryError(f"GET {path}: {answer.status} {body[:200]!r}")
        return json.loads(body)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TemporaryError(f"GET {path}: {error}") from error
    finally:
        connection.close()
