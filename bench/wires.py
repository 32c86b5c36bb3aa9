"""The smallest clients that do the work: HTTP on a unix socket, RESP (Redis) and NATS, over streams."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

Reply = bytes | int | None | list["Reply"]


class Http:
    """One kept connection; `call` gives the JSON of a 200."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: str) -> None:
        self._reader, self._writer, self._headers = reader, writer, headers

    @classmethod
    async def connect(cls, socket: Path, headers: str) -> Http:
        """`headers`: whole lines that go with every call."""
        reader, writer = await asyncio.open_unix_connection(str(socket))
        return cls(reader, writer, headers)

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call at a time."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: hive\r\n{self._headers}Content-Length: {len(data)}\r\n\r\n"
        self._writer.write(head.encode() + data)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        length = next(int(line[15:]) for line in answer if line.lower().startswith(b"content-length:"))
        text = await self._reader.readexactly(length)
        if not answer[0].startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{method} {path}: {answer[0]!r}: {text[:300]!r}")
        found: dict[str, Any] = json.loads(text)
        return found

    def close(self) -> None:
        """End the connection."""
        self._writer.close()


class Resp:
    """One connection to Redis; a command waits for its reply."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, socket: Path) -> Resp:
        reader, writer = await asyncio.open_unix_connection(str(socket))
        return cls(reader, writer)

    async def call(self, *words: str | bytes) -> Reply:
        """The reply; `RuntimeError` for an error."""
        parts = [word if isinstance(word, bytes) else word.encode() for word in words]
        lines = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self._writer.write(b"*%d\r\n%s" % (len(parts), lines))
        return await self._reply()

    async def _reply(self) -> Reply:
        line = (await self._reader.readuntil(b"\r\n"))[:-2]
        match line[:1]:
            case b"+":
                return line[1:]
            case b":":
                return int(line[1:])
            case b"$":
                size = int(line[1:])
                return None if size < 0 else (await self._reader.readexactly(size + 2))[:-2]
            case b"*":
                return [await self._reply() for _ in range(max(0, int(line[1:])))]
            case _:
                raise RuntimeError(line.decode())

    def close(self) -> None:
        """End the connection."""
        self._writer.close()


class Nats:
    """One connection to NATS. `request` waits for the first message on a reply subject of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        self._reader, self._writer = reader, writer
        self._prefix = f"_INBOX.{name}."
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[tuple[str, bytes]]] = {}
        self._reading = asyncio.ensure_future(self._read())
        connect = {"verbose": False, "pedantic": False, "headers": True, "lang": "bench", "version": "0"}
        writer.write(f"CONNECT {json.dumps(connect)}\r\nSUB {self._prefix}* 1\r\n".encode())

    @classmethod
    async def connect(cls, port: int, name: str) -> Nats:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        return cls(reader, writer, name)

    async def request(self, subject: str, data: bytes) -> tuple[str, bytes]:
        """Publish, and wait: the reply subject of the answer and its data."""
        number = str(next(self._numbers))
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self.publish(subject, data, self._prefix + number)
        found: tuple[str, bytes] = await answer
        return found

    def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send, without waiting for anything."""
        self._writer.write(f"PUB {subject} {reply} {len(data)}\r\n".encode() + data + b"\r\n")

    async def _read(self) -> None:
        while line := await self._reader.readline():
            words = line.decode().split()
            match words[:1]:
                case ["PING"]:
                    self._writer.write(b"PONG\r\n")
                case ["MSG"] | ["HMSG"]:
                    data = (await self._reader.readexactly(int(words[-1]) + 2))[:-2]
                    if words[0] == "HMSG":
                        data = data[int(words[-2]) :]
                        reply = words[3] if len(words) == 6 else ""
                    else:
                        reply = words[3] if len(words) == 5 else ""
                    waiter = self._waiting.pop(self._number(words[1]), None)
                    if waiter is not None and not waiter.done():
                        waiter.set_result((reply, data))
                case ["-ERR"]:
                    raise RuntimeError(line.decode())
                case _:
                    pass

    def _number(self, subject: str) -> str:
        """Of the request that this answers. A message of a stream comes under its own subject: it is for the
        one who waits."""
        if subject.startswith(self._prefix):
            return subject.removeprefix(self._prefix)
        return next(iter(self._waiting), "")

    def close(self) -> None:
        """End the connection."""
        self._reading.cancel()
        self._writer.close()
