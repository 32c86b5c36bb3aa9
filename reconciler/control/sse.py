"""Server-sent events as bytes ↔ frames: a bounded incremental parser for the client, one encoder for both
servers.

Pure: no sockets here, so that hostile cuts of the byte stream can be tested. Follows the WHATWG algorithm for
what hived sends (id, event, data, comments); `retry` fields are read over.
"""

from __future__ import annotations

from dataclasses import dataclass

FRAME_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """One dispatched frame; `id` is None when the frame had none, `event` empty for the default type."""

    id: str | None
    event: str
    data: str


class FrameTooLargeError(ValueError):
    """A frame or line went over `FRAME_MAX_BYTES`; the stream must be dropped."""


class Parser:
    """Feed chunks cut anywhere, get the frames that are complete. Comments (pings) yield nothing."""

    def __init__(self, limit: int = FRAME_MAX_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._size = 0
        self._after_cr = False
        self._id: str | None = None
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Frame]:
        """Frames completed by `chunk`, in order; `FrameTooLargeError` when one grows over the limit."""
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the second half of a CRLF that was cut between the two
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        self._buffer += chunk
        lines = bytes(self._buffer).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._buffer = bytearray(lines.pop())
        frames: list[Frame] = []
        for line in lines:
            self._size += len(line)
            self._check(self._size)
            if line:
                self._field(line.decode("utf-8", "replace"))
            elif (frame := self._dispatch()) is not None:
                frames.append(frame)
        self._check(self._size + len(self._buffer))
        return frames

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise FrameTooLargeError(f"an event of more than {self._limit} bytes")

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
            case _:  # comments have an empty name; unknown fields are to be ignored
                pass

    def _dispatch(self) -> Frame | None:
        frame = Frame(self._id, self._event, "\n".join(self._data)) if self._data else None
        self._id, self._event, self._data, self._size = None, "", [], 0
        return frame


def encode(data: str, *, id: int | None = None, event: str = "") -> bytes:  # noqa: A002
    """One frame as bytes. `data` may have line breaks; `event` and `id` may not."""
    head = (f"id: {id}\n" if id is not None else "") + (f"event: {event}\n" if event else "")
    body = "".join(f"data: {line}\n" for line in data.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return f"{head}{body}\n".encode()
