"""The one connection to a D-Bus message bus, and the only file that imports dbus_next.

Low-level messages only: no introspection, no proxies, nothing exported (calls to us are dropped without an
answer). Every call has a deadline. A connection that breaks is made anew, with its match rules and greeting,
by whoever calls or watches next; watchers are then told that they may have missed something. Signals are
hints: anybody on the bus can send some, so readers ask the called service what is true.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType, MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

from reconciler.errors import HiveError, PermanentError, TemporaryError

log = structlog.get_logger("bus")

CALL_S = 5.0
_CONNECT_S = 3.0
_FIRST_RETRY_S, _LAST_RETRY_S = 0.02, 2.0
_PATIENCE_S = 1.0  # how long a call waits for a bus that is being restarted
_WATCH_LIMIT = 10_000
_CALLS_AT_ONCE = 64  # a bus allows 128 calls without an answer for each connection
_LINE_LIMIT = 4096
_DRIVER = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")

# Last part of the error's name → code of our error. What is not here is temporary, code `bus-failed`.
_TEMPORARY = {
    "NoReply": "bus-timeout", "Timeout": "bus-timeout", "TimedOut": "bus-timeout", "Disconnected": "bus-lost",
    "ServiceUnknown": "bus-away", "NameHasNoOwner": "bus-away", "NoServer": "bus-away",
}  # fmt: skip
_PERMANENT = {
    "NoSuchUnit": "no-such-unit", "UnknownObject": "no-such-object", "UnknownMethod": "bus-unknown",
    "UnknownInterface": "bus-unknown", "UnknownProperty": "bus-unknown", "InvalidArgs": "bus-invalid",
    "AccessDenied": "bus-refused", "AuthFailed": "bus-refused", "NotSupported": "not-supported",
    "InteractiveAuthorizationRequired": "bus-refused", "UnitMasked": "unit-masked",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Typed:
    """A variant to send: a D-Bus signature and a value of it."""

    signature: str
    value: Any


@dataclass(frozen=True, slots=True)
class Call:
    """A method call. `body` has one value per complete type of `signature`; structs are tuples or lists,
    variants `Typed`."""

    destination: str
    path: str
    interface: str
    member: str
    signature: str = ""
    body: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal that matched one of the rules; variants in `body` are unwrapped, structs are lists."""

    path: str
    interface: str
    member: str
    body: tuple[Any, ...]


class Watch(Protocol):
    """Signals from the moment it was made."""

    async def next(self, timeout_s: float | None = None) -> Signal | None:
        """The next signal; None when some may have been missed, first of all at the beginning: read
        everything anew. `TimeoutError` after `timeout_s` seconds."""
        ...


class Bus(Protocol):
    """What the drivers need of a message bus."""

    async def call(self, call: Call, *, timeout_s: float = CALL_S) -> tuple[Any, ...]:
        """The body of the reply, variants unwrapped. `TemporaryError` or `PermanentError`, by the name of the
        D-Bus error; `TemporaryError` code `bus-timeout` after the deadline, `bus-away` without a bus, and
        `bus-lost` when it went away meanwhile (nobody knows whether the call was carried out)."""
        ...

    def watch(self) -> AbstractContextManager[Watch]:
        """Watch signals while the context lasts."""
        ...

    def close(self) -> None:
        """Hang up. The next call or watch connects again."""
        ...


class _Connection(MessageBus):
    """dbus_next's connection, without three of its faults (each has a test of its name)."""

    _released = False

    def _setup_socket(self) -> None:
        """The library's leaks its socket when nobody listens, and may block the loop when the backlog is
        full."""
        transport, options = self._bus_address[0]
        place = options.get("path") or "\0" + options.get("abstract", "")
        if transport != "unix" or place == "\0":
            raise PermanentError(f"cannot use a bus at {transport}:{options}", code="bus-invalid")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._sock.connect(place)
        except OSError:
            self._sock.close()
            raise
        self._stream = self._sock.makefile("rwb")
        self._fd = self._sock.fileno()

    async def _auth_readline(self) -> str:
        """The library's never returns to the loop once the bus hangs up during authentication."""
        line = b""
        while not line.endswith(b"\r\n"):
            data = await self._loop.sock_recv(self._sock, 1)
            if not data or len(line) > _LINE_LIMIT:
                raise EOFError("the bus hung up during authentication")
            line += data
        return line[:-2].decode("ascii", "replace")

    def release(self) -> None:
        """Close its descriptors, once; the library only shuts the socket down."""
        if self._released:
            return  # its number may be somebody else's by now
        self._released = True
        self._user_disconnect = True
        self._finalize(None)  # type: ignore[no-untyped-call]
        if self._disconnect_future.done():
            self._disconnect_future.exception()  # seen; the loop complains of what nobody looked at
        with contextlib.suppress(OSError, ValueError):  # what was not sent yet cannot be flushed
            self._stream.close()
        self._sock.close()


class _Watch:
    def __init__(self, bus: SystemBus) -> None:
        self._bus = bus
        self._signals: deque[Signal] = deque()
        self._news = asyncio.Event()
        self._missed = True

    async def next(self, timeout_s: float | None = None) -> Signal | None:
        async with asyncio.timeout(timeout_s):
            while True:
                await self._bus.connected()
                if self._missed:
                    self._missed = False
                    self._signals.clear()
                    return None
                if self._signals:
                    return self._signals.popleft()
                self._news.clear()
                await self._news.wait()

    def put(self, signal: Signal) -> None:
        if len(self._signals) >= _WATCH_LIMIT:
            self.miss()
        else:
            self._signals.append(signal)
            self._news.set()

    def miss(self) -> None:
        self._missed = True
        self._news.set()


class SystemBus:
    """`Bus` over dbus_next: the system bus, or the one at `address` (`unix:path=…`).

    `matches` are match rules, `greeting` calls (such as systemd's Subscribe) that belong to each new
    connection. Used from one event loop; connects when first needed.
    """

    def __init__(
        self, *, address: str | None = None, matches: Sequence[str] = (), greeting: Sequence[Call] = ()
    ) -> None:
        self._address = address
        self._greeting = [Call(*_DRIVER, "AddMatch", "s", (rule,)) for rule in matches] + list(greeting)
        self._connection: _Connection | None = None
        self._guard: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._free = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._watches: set[_Watch] = set()

    async def call(self, call: Call, *, timeout_s: float = CALL_S) -> tuple[Any, ...]:
        """See `Bus`."""
        try:
            async with self._free, asyncio.timeout(timeout_s):
                connection = await self.connected(_PATIENCE_S)
                return await _call(connection, call)
        except TimeoutError as error:
            raise TemporaryError(
                f"{call.destination} did not answer {call.member} within {timeout_s:g} s", code="bus-timeout"
            ) from error

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watch]:
        """See `Bus`."""
        watch = _Watch(self)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    def close(self) -> None:
        """See `Bus`."""
        if self._connection is not None:
            self._lose(self._connection)

    async def connected(self, patience_s: float = float("inf")) -> _Connection:
        """The connection, made anew if need be, with back-off; `TemporaryError` code `bus-away` when
        `patience_s` seconds of trying were in vain."""
        loop = asyncio.get_running_loop()
        deadline, pause_s = loop.time() + patience_s, _FIRST_RETRY_S
        while True:
            async with self._connecting:
                if self._connection is not None and self._connection.connected:
                    return self._connection
                try:
                    return await self._connect()
                except TemporaryError:
                    if loop.time() + pause_s > deadline:
                        raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_RETRY_S)

    async def _connect(self) -> _Connection:
        if self._connection is not None:
            self._lose(self._connection)
        connection = None
        try:
            async with asyncio.timeout(_CONNECT_S):
                connection = _Connection(bus_address=self._address, bus_type=BusType.SYSTEM)  # type: ignore[arg-type]
                await connection.connect()
                connection.add_message_handler(self._receive)
                for call in self._greeting:
                    await _call(connection, call)
        except BaseException as error:
            if connection is not None:
                connection.release()
            if isinstance(error, PermanentError) or not isinstance(error, Exception):
                raise
            # Whatever an impostor or a dying bus makes the library stumble over, there is no bus now.
            reason = str(error) or type(error).__name__
            raise TemporaryError(f"cannot reach the message bus: {reason}", code="bus-away") from error
        self._connection = connection
        self._guard = asyncio.create_task(self._await_loss(connection), name="bus-guard")
        return connection

    async def _await_loss(self, connection: _Connection) -> None:
        waiting = asyncio.ensure_future(connection.wait_for_disconnect())  # type: ignore[no-untyped-call]
        await asyncio.wait([waiting])
        error = waiting.exception()  # EOFError when the bus went; anything when it sent nonsense
        if error is not None:
            log.warning("bus.lost", error=repr(error))
        self._lose(connection)

    def _lose(self, connection: _Connection) -> None:
        connection.release()
        if self._connection is connection:
            self._connection = None
            for watch in self._watches:
                watch.miss()

    def _receive(self, message: Message) -> bool:
        """Keep signals; True (handled, so not answered) for calls to us.

        What services tell everybody comes by our match rules, which name the sender. A signal addressed to us
        comes past them, and any user of the machine may send one.
        """
        if message.message_type is MessageType.SIGNAL and not message.destination:
            body = tuple(_plain(value) for value in message.body)
            signal = Signal(message.path or "", message.interface or "", message.member or "", body)
            for watch in self._watches:
                watch.put(signal)
        return message.message_type is MessageType.METHOD_CALL


async def _call(connection: _Connection, call: Call) -> tuple[Any, ...]:
    message = Message(
        destination=call.destination,
        path=call.path,
        interface=call.interface,
        member=call.member,
        signature=call.signature,
        body=[_marshalled(value) for value in call.body],
    )
    try:
        reply = await connection.call(message)
    except Exception as error:
        if connection.connected:
            raise
        # The library hands whatever its reader died of to everybody who waits for an answer.
        raise TemporaryError(f"the message bus went away during {call.member}", code="bus-lost") from error
    if reply is None:
        raise TemporaryError(f"the message bus was closed during {call.member}", code="bus-lost")
    if reply.message_type is MessageType.ERROR:
        raise _translated(call, reply)
    return tuple(_plain(value) for value in reply.body)


def _translated(call: Call, reply: Message) -> HiveError:
    """Our error for a D-Bus error; the service's words are cut at 500 characters."""
    name = str(reply.error_name)
    said = reply.body[0] if reply.body and isinstance(reply.body[0], str) else name
    message = f"{call.member} failed: {said[:500]}"
    last = name.rpartition(".")[2]
    if last in _PERMANENT:
        return PermanentError(message, code=_PERMANENT[last])
    return TemporaryError(message, code=_TEMPORARY.get(last, "bus-failed"))


def _plain(value: Any) -> Any:
    """A value without its variants."""
    if isinstance(value, Variant):
        return _plain(value.value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _marshalled(value: Any) -> Any:
    """A value as dbus_next wants it."""
    if isinstance(value, Typed):
        return Variant(value.signature, _marshalled(value.value))
    if isinstance(value, list | tuple):
        return [_marshalled(one) for one in value]
    if isinstance(value, dict):
        return {key: _marshalled(one) for key, one in value.items()}
    return value


__all__ = ["Bus", "Call", "Signal", "SystemBus", "Typed", "Watch"]
