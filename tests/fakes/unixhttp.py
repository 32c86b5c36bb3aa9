"""A small HTTP client on a unix socket for tests, and a child process that speaks as another user."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

# Prints the status and body of one request, or the name of the error that the connection met.
_CHILD = """
import socket, sys
path, request = sys.argv[1], sys.argv[2].encode()
s = socket.socket(socket.AF_UNIX)
s.settimeout(5)
try:
    s.connect(path)
    s.sendall(request)
    data = b""
    while chunk := s.recv(65536):
        data += chunk
except OSError as error:
    print(type(error).__name__)
else:
    print(data.split(b"\\r\\n", 1)[0].decode() if data else "closed")
    print(data.split(b"\\r\\n\\r\\n", 1)[-1].decode())
"""


# The interpreter of a virtual environment may lie where other users cannot go; the child needs no packages.
_PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers and body; `json` parses it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code; fails if the body is no envelope."""
        assert list(self.json) == ["error"]
        assert sorted(self.json["error"]) == ["code", "hint", "message"]
        return str(self.json["error"]["code"])


def error(answer: Answer) -> tuple[int, str]:
    """What went wrong: status and code."""
    return answer.status, answer.code


class Api:
    """Requests on one socket; `headers` go with each."""

    def __init__(self, path: Path, headers: dict[str, str] | None = None) -> None:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(path), force_close=True),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=20),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def call(self, method: str, path: str, body: object = None, **options: Any) -> Answer:
        """`body`: bytes as they are, anything else as JSON."""
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        data = None if raw is None else io.BytesIO(raw)
        async with self._http.request(method, f"http://hive{path}", data=data, **options) as answer:
            return Answer(answer.status, dict(answer.headers), await answer.read())

    def stream(self, path: str, **options: Any) -> Any:
        """A response to be read piece by piece, as a context manager."""
        return self._http.get(f"http://hive{path}", **options)


async def as_user(path: Path, request: str, *, uid: int, gid: int, groups: Sequence[int] = ()) -> str:
    """What a process of that user gets: the status line and body, "closed", or the name of an OSError."""
    child = await asyncio.create_subprocess_exec(
        _PYTHON,
        *("-I", "-c", _CHILD, str(path), request),
        user=uid,
        group=gid,
        extra_groups=list(groups),
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(10):
        out, _ = await child.communicate()
    return out.decode()


def get(path: str, *headers: str) -> str:
    """A request as text, after whose answer the connection is closed."""
    lines = [f"GET {path} HTTP/1.1", "Host: hive", "Connection: close", *headers]
    return "\r\n".join(lines) + "\r\n\r\n"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in another task or in the kernel, which nothing announces."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
