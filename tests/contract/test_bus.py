"""The connection to D-Bus against a genuine dbus-daemon, which the tests start and kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from dbus_next.constants import MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

from reconciler.effects import bus as module
from reconciler.effects.bus import Call, Signal, SystemBus, Typed
from reconciler.errors import PermanentError, TemporaryError

pytestmark = [pytest.mark.asyncio, pytest.mark.integration]
_CONFIG = """<busconfig>
  <type>session</type>
  <listen>unix:path={path}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
_ECHO = ("org.hive.Peer", "/org/hive/Peer", "org.hive.Peer")
_MATCH = "type='signal',interface='org.hive.Peer',member='Told'"


@dataclass(slots=True)
class Daemon:
    """A private bus; stopped and started again at the same address."""

    directory: Path
    process: subprocess.Popen[str] | None = None

    @property
    def socket(self) -> Path:
        return self.directory / "bus"

    @property
    def address(self) -> str:
        return f"unix:path={self.socket}"

    def start(self) -> None:
        config = self.directory / "bus.conf"
        config.write_text(_CONFIG.format(path=self.socket))
        self.process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address=1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("unix:")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None
        self.socket.unlink(missing_ok=True)


@dataclass(slots=True)
class Peer:
    """Somebody else on the bus: answers `Echo`, never answers `Silence`, sends `Told`."""

    connection: module._Connection
    asked: list[str] = field(default_factory=list)

    @classmethod
    async def on(cls, daemon: Daemon) -> Peer:
        peer = cls(module._Connection(bus_address=daemon.address))
        await peer.connection.connect()
        peer.connection.add_message_handler(peer.answer)
        await peer.connection.call(
            Message(
                destination="org.freedesktop.DBus", path="/org/freedesktop/DBus",
                interface="org.freedesktop.DBus", member="RequestName", signature="su", body=[_ECHO[0], 0],
            )
        )  # fmt: skip
        return peer

    def answer(self, message: Message) -> Message | bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        self.asked.append(str(message.member))
        if message.member == "Echo":
            return Message.new_method_return(message, message.signature, message.body)
        if message.member == "Fail":
            return Message.new_error(message, message.body[0], "it is so")
        return True

    async def tell(self, *values: str, member: str = "Told") -> None:
        for value in values:
            await self.connection.send(
                Message.new_signal(_ECHO[1], _ECHO[2], member, "v", [Variant("(sa{sv})", [value, {}])])
            )

    def hang_up(self) -> None:
        self.connection.release()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    place = Daemon(tmp_path)
    place.start()
    yield place
    place.kill()


@pytest_asyncio.fixture
async def bus(daemon: Daemon) -> AsyncIterator[SystemBus]:
    made = SystemBus(address=daemon.address, matches=[_MATCH], greeting=[_echo("s", "hello")])
    yield made
    made.close()
    await asyncio.sleep(0)


@pytest_asyncio.fixture
async def peer(daemon: Daemon) -> AsyncIterator[Peer]:
    made = await Peer.on(daemon)
    yield made
    made.hang_up()
    await asyncio.sleep(0)


def _echo(signature: str, *body: Any) -> Call:
    return Call(*_ECHO, "Echo", signature, body)


def _told(value: str) -> Signal:
    return Signal(_ECHO[1], _ECHO[2], "Told", ([value, {}],))


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


async def test_values_come_back_as_they_went_without_their_variants(bus: SystemBus, peer: Peer) -> None:
    assert await bus.call(_echo("", *())) == ()
    assert await bus.call(_echo("su", "word", 7)) == ("word", 7)
    body = (True, (("MemoryMax", Typed("t", 1 << 40)), ("Names", Typed("as", ("a", "b")))))
    assert await bus.call(_echo("ba(sv)", *body)) == (
        True,
        [["MemoryMax", 1 << 40], ["Names", ["a", "b"]]],
    )
    assert await bus.call(_echo("a{sv}", {"key": Typed("(uo)", (3, "/job"))})) == ({"key": [3, "/job"]},)


async def test_many_calls_at_once_get_each_its_own_answer(bus: SystemBus, peer: Peer) -> None:
    answers = await asyncio.gather(*(bus.call(_echo("u", number)) for number in range(1000)))
    assert answers == [(number,) for number in range(1000)]


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("org.freedesktop.systemd1.NoSuchUnit", PermanentError, "no-such-unit"),
        ("org.freedesktop.DBus.Error.AccessDenied", PermanentError, "bus-refused"),
        ("org.freedesktop.DBus.Error.UnknownMethod", PermanentError, "bus-unknown"),
        ("org.freedesktop.DBus.Error.NoReply", TemporaryError, "bus-timeout"),
        ("org.freedesktop.systemd1.TransactionIsDestructive", TemporaryError, "bus-failed"),
    ],
    ids=lambda value: value.rpartition(".")[2] if isinstance(value, str) else value.__name__,
)
async def test_an_error_of_the_service_is_ours_by_its_name(
    bus: SystemBus, peer: Peer, name: str, kind: type[PermanentError | TemporaryError], code: str
) -> None:
    with pytest.raises(kind, match="Fail failed: it is so") as caught:
        await bus.call(Call(*_ECHO, "Fail", "s", (name,)))
    assert caught.value.code == code


async def test_a_service_that_is_not_there_is_away(daemon: Daemon) -> None:
    bus = SystemBus(address=daemon.address)
    with pytest.raises(TemporaryError) as caught:
        await bus.call(Call("org.hive.Nobody", "/", "org.hive.Nobody", "Speak"))
    assert caught.value.code == "bus-away"
    bus.close()


async def test_a_call_that_nobody_answers_ends_at_its_deadline(bus: SystemBus, peer: Peer) -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(TemporaryError, match="did not answer Silence") as caught:
        await bus.call(Call(*_ECHO, "Silence"), timeout_s=0.1)
    assert caught.value.code == "bus-timeout"
    assert loop.time() - begin < 1
    assert await bus.call(_echo("s", "still there")) == ("still there",)


async def test_a_watch_begins_with_a_full_read_and_gets_what_was_asked_for(
    bus: SystemBus, peer: Peer
) -> None:
    with bus.watch() as watch, bus.watch() as second:
        assert await watch.next(5) is None
        assert await second.next(5) is None
        await peer.tell("noise", member="Whispered")
        await peer.tell("one", "two")
        assert [await watch.next(5), await watch.next(5)] == [_told("one"), _told("two")]
        assert await second.next(5) == _told("one")
        with pytest.raises(TimeoutError):
            await watch.next(0.05)


async def test_a_signal_that_somebody_addresses_to_us_is_nobodys(bus: SystemBus, peer: Peer) -> None:
    with bus.watch() as watch:
        assert await watch.next(5) is None
        assert bus._connection is not None
        forged = Message.new_signal(_ECHO[1], _ECHO[2], "Told", "s", ["forged"])
        forged.destination = bus._connection.unique_name  # type: ignore[assignment] # the library says None
        await peer.connection.send(forged)
        await peer.tell("true")
        assert await watch.next(5) == _told("true")


async def test_a_watch_that_is_not_read_loses_signals_and_says_so(
    bus: SystemBus, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WATCH_LIMIT", 3)
    with bus.watch() as watch, bus.watch() as reader:
        assert await watch.next(5) is None
        assert await reader.next(5) is None
        for value in "abcde":
            await peer.tell(value)
            assert await reader.next(5) == _told(value)
        assert await watch.next(5) is None
        await peer.tell("later")
        assert await watch.next(5) == _told("later")


async def test_after_a_restart_of_the_bus_everything_is_as_before_and_watchers_read_anew(
    bus: SystemBus, peer: Peer, daemon: Daemon
) -> None:
    with bus.watch() as watch:
        assert await watch.next(5) is None
        waiting = asyncio.create_task(watch.next(10))
        pending = asyncio.create_task(bus.call(Call(*_ECHO, "Silence")))
        async with asyncio.timeout(5):
            while "Silence" not in peer.asked:  # noqa: ASYNC110 - told by another connection
                await asyncio.sleep(0.005)
        daemon.kill()
        with pytest.raises(TemporaryError) as caught:
            await pending
        assert caught.value.code == "bus-lost"
        peer.hang_up()
        daemon.start()
        again = await Peer.on(daemon)
        assert await waiting is None
        assert again.asked == ["Echo"], "the greeting belongs to each connection"
        await again.tell("after")
        assert await watch.next(5) == _told("after")
        assert await bus.call(_echo("s", "and")) == ("and",)
        again.hang_up()


async def test_without_a_bus_a_call_gives_up_soon_and_no_descriptor_is_left(tmp_path: Path) -> None:
    bus = SystemBus(address=f"unix:path={tmp_path}/nothing")
    before = _descriptors()
    with pytest.raises(TemporaryError, match="cannot reach the message bus") as caught:
        await bus.call(Call("a.b", "/", "a.b", "C"))
    assert caught.value.code == "bus-away"
    assert _descriptors() == before


async def test_a_bus_that_hangs_up_during_authentication_does_not_stop_the_loop(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        listener.listen(8)
        listener.setblocking(False)
        loop = asyncio.get_running_loop()

        async def hang_up() -> None:
            while True:
                connection, _ = await loop.sock_accept(listener)
                await loop.sock_recv(connection, 1)
                connection.close()

        rude = asyncio.create_task(hang_up())
        bus = SystemBus(address=f"unix:path={tmp_path}/bus")
        before = _descriptors()
        with pytest.raises(TemporaryError) as caught:
            async with asyncio.timeout(5):
                await bus.call(Call("a.b", "/", "a.b", "C"))
        assert caught.value.code == "bus-away"
        rude.cancel()
        await asyncio.gather(rude, return_exceptions=True)
        assert _descriptors() <= before


async def test_a_bus_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONNECT_S", 0.1)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        listener.listen(8)
        bus = SystemBus(address=f"unix:path={tmp_path}/bus")
        with pytest.raises(TemporaryError, match="TimeoutError"):
            await bus.call(Call("a.b", "/", "a.b", "C"))


async def test_calls_to_us_are_not_answered(bus: SystemBus, peer: Peer) -> None:
    ours = str((await bus.connected()).unique_name)
    call = Message(
        destination=ours, path="/", interface="org.freedesktop.DBus.Introspectable", member="Introspect"
    )
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(peer.connection.call(call), 0.2)
    assert await bus.call(_echo("s", "we live")) == ("we live",)


async def test_hanging_up_leaves_nothing_and_the_next_call_connects_again(daemon: Daemon) -> None:
    bus = SystemBus(address=daemon.address)
    listing = Call(*module._DRIVER, "ListNames")
    before = _descriptors()
    for _ in range(3):
        (names,) = await bus.call(listing)
        assert "org.freedesktop.DBus" in names
        bus.close()
        await asyncio.sleep(0)
        assert _descriptors() == before


async def test_nonsense_from_the_bus_is_a_lost_connection(tmp_path: Path) -> None:
    """An impostor that speaks well until after the greeting, and then sends no D-Bus."""
    path = tmp_path / "bus"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        listener.setblocking(False)
        loop = asyncio.get_running_loop()

        async def speak() -> None:
            connection, _ = await loop.sock_accept(listener)
            with connection:
                connection.setblocking(False)
                await loop.sock_recv(connection, 4096)
                await loop.sock_sendall(connection, b"OK 0123456789abcdef0123456789abcdef\r\n")
                heard = b""
                while b"Hello" not in heard:
                    heard += await loop.sock_recv(connection, 4096)
                hello = Message(
                    message_type=MessageType.METHOD_RETURN, reply_serial=1, serial=1, signature="s",
                    body=[":1.1"],
                )  # fmt: skip
                await loop.sock_sendall(connection, bytes(hello._marshall()))  # type: ignore[no-untyped-call]
                await loop.sock_recv(connection, 4096)
                with contextlib.suppress(OSError):
                    await loop.sock_sendall(connection, b"\xff" * 4096)

        impostor = asyncio.create_task(speak())
        bus = SystemBus(address=f"unix:path={path}")
        with pytest.raises(TemporaryError) as caught:
            await bus.call(Call("a.b", "/", "a.b", "C"), timeout_s=5)
        assert caught.value.code == "bus-lost"
        await impostor
        bus.close()
        await asyncio.sleep(0)


async def test_the_library_is_imported_by_one_file_only() -> None:
    root = Path(module.__file__).parents[1]
    users = [path.name for path in root.rglob("*.py") if "dbus_next" in path.read_text()]
    assert users == ["bus.py"]
