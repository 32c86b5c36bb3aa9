"""The control API over `control.sock`, with nothing but the standard library.

Answers are the API's JSON as Python values. What hived refuses is raised as `Failure` with its own words; no
answer at all as `Unreachable`.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import quote, urlencode

from reconciler.cli.failure import Failure, Unreachable, WentAway

DEADLINE_S = 20.0
SILENCE_S = 45.0  # hived pings streams every 15 s
ANSWER_MAX_BYTES = 32 << 20
LINE_MAX_BYTES = 2 << 20

Json = dict[str, Any]


def socket_path() -> str:
    """Where hived listens: `$HIVE_RUN/control.sock`."""
    return os.path.join(os.environ.get("HIVE_RUN") or "/run/hyperhive", "control.sock")  # noqa: PTH118


class _Connection(http.client.HTTPConnection):
    """An HTTP connection on a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("hive", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        folder, name = os.path.split(self._path)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:  # the detour lifts the limit of 108 bytes on paths
            self.sock.connect(f"/proc/self/fd/{descriptor}/{name}")
        finally:
            os.close(descriptor)


class Hive:
    """One hived. Every call uses a connection of its own, so that a restart of hived breaks none."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path or socket_path()

    def get(self, path: str, *, deadline_s: float = DEADLINE_S, **query: str | int | None) -> Json:
        """GET /v1<path>; parameters that are None are left out."""
        return self._call("GET", path, None, query, deadline_s)

    def post(self, path: str, body: Json | None = None, *, deadline_s: float = DEADLINE_S) -> Json:
        """POST /v1<path> with a JSON body."""
        return self._call("POST", path, {} if body is None else body, {}, deadline_s)

    @contextmanager
    def download(self, path: str, silence_s: float, **query: str | int) -> Iterator[http.client.HTTPResponse]:
        """GET /v1<path>, an answer of any size: to be read within the block, never silent for longer than
        `silence_s`."""
        connection = _Connection(self.path, silence_s)
        try:
            with (
                closing(connection),
                self._ask(connection, "GET", f"/v1{path}?{urlencode(query)}", None) as answer,
            ):
                if answer.status != 200:
                    raise _refusal(answer.status, answer.read(ANSWER_MAX_BYTES))
                yield answer
        except TimeoutError as error:
            raise WentAway(f"hived was silent for {silence_s:g} s", "try again", code="timeout") from error
        except (ConnectionError, FileNotFoundError, PermissionError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error

    def stream(self, after: int) -> Iterator[Json]:
        """Events after that id, then live ones, until hived ends the stream."""
        connection = _Connection(self.path, SILENCE_S)
        try:
            with (
                closing(connection),
                self._ask(connection, "GET", f"/v1/stream?after={after}", None) as answer,
            ):
                if answer.status != 200:
                    raise _refusal(answer.status, answer.read(ANSWER_MAX_BYTES))
                while line := answer.readline(LINE_MAX_BYTES):
                    if line.startswith(b"data: "):
                        yield json.loads(line[6:])
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error

    def _call(
        self, method: str, path: str, body: Json | None, query: dict[str, str | int | None], deadline_s: float
    ) -> Json:
        given = {name: value for name, value in query.items() if value is not None}
        target = f"/v1{path}" + (f"?{urlencode(given)}" if given else "")
        data = None if body is None else json.dumps(body).encode()
        try:
            connection = _Connection(self.path, deadline_s)
            # An answer is closed by itself, too: with "Connection: close" it outlives its connection.
            with closing(connection), self._ask(connection, method, target, data) as answer:
                content = answer.read(ANSWER_MAX_BYTES + 1)
        except TimeoutError as error:
            raise WentAway(
                f"hived did not answer {method} {target[:200]} within {deadline_s:g} s",
                "it may be busy: try again",
                code="timeout",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        if len(content) > ANSWER_MAX_BYTES:
            raise Failure("hived's answer is too large", code="protocol")
        if not 200 <= answer.status < 300:
            raise _refusal(answer.status, content)
        try:
            value = json.loads(content)
        except ValueError as error:
            raise Failure("hived's answer is no JSON", code="protocol") from error
        if not isinstance(value, dict):
            raise Failure("hived's answer is no object", code="protocol")
        return value

    @staticmethod
    def _ask(
        connection: _Connection, method: str, target: str, data: bytes | None
    ) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"} if data is not None else {}
        # A refusal that came before the whole body was sent can still be read.
        with suppress(BrokenPipeError):
            connection.request(method, target, data, headers)
        return connection.getresponse()

    def _unreachable(self, error: Exception) -> Unreachable:
        start = "start it: `systemctl start hived`, or `make demo` in a clone and `. .demo/env` here"
        if os.environ.get("HIVE_DEMO"):  # set by the demo's own `hive`
            start = "the demo starts it again by itself: try again, or look at the terminal of `make demo`"
        if isinstance(error, PermissionError):
            hint = "operators are root and the members of the group hive; log in anew after joining it"
            return Unreachable(f"you may not open {self.path}", hint, code="forbidden")
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            why = f"hived is not running: there is no {self.path}"
            return Unreachable(why, f"{start}; HIVE_RUN names another place", code="unavailable")
        if isinstance(error, ConnectionRefusedError):
            return Unreachable(
                f"hived is not running: nobody listens at {self.path}", start, code="unavailable"
            )
        return WentAway(
            f"hived went away: {str(error) or type(error).__name__}", "try again", code="unavailable"
        )


def segment(text: str) -> str:
    """A name as a path segment that stays one, whatever it holds."""
    if text in {"", ".", ".."}:  # the only ones that quoting cannot save
        raise Failure(f"{text!r} is not an agent name", "`hive agents` lists them", code="invalid")
    return quote(text, safe="")


def _refusal(status: int, content: bytes) -> Failure:
    """The error that hived's envelope tells of."""
    try:
        error = json.loads(content)["error"]
        return Failure(str(error["message"]), str(error.get("hint", "")), code=str(error["code"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Failure(f"hived answered {status} without saying why", code="protocol")
