"""What hived tells its service manager, and what it does where there is none."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler import startstop
from reconciler.notify import Notifier
from reconciler.startstop import extending, prove_life
from tests.fakes.unixhttp import until


class Manager:
    """The receiving end; `heard` empties what has come."""

    def __init__(self, address: str | bytes) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.bind(address)

    def heard(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.sock.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.sock.close()


def notifier(manager: Manager, **more: str) -> Notifier:
    return Notifier.from_environment({"NOTIFY_SOCKET": manager.sock.getsockname(), **more})


def test_each_call_is_one_datagram_of_the_protocol(manager: Manager) -> None:
    told = notifier(manager, WATCHDOG_USEC="30000000")
    told.status("migrating\nREADY=1")
    told.status("migrating READY=1")
    told.extend(1.5)
    told.ready()
    told.alive()
    told.stopping()
    assert manager.heard() == [
        "STATUS=migrating READY=1", "EXTEND_TIMEOUT_USEC=1500000", "READY=1", "WATCHDOG=1", "STOPPING=1",
    ]  # fmt: skip


def test_an_abstract_address_is_reached() -> None:
    name = f"hive-test-{secrets.token_hex(8)}"
    manager = Manager(b"\0" + name.encode())
    Notifier.from_environment({"NOTIFY_SOCKET": f"@{name}"}).ready()
    assert manager.heard() == ["READY=1"]
    manager.sock.close()


@pytest.mark.parametrize("address", ["", "vsock:2:9999", "relative"])
def test_without_an_address_that_we_know_nothing_is_said_and_nothing_fed(address: str) -> None:
    told = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
    told.ready()
    told.alive()
    assert told.watchdog_s is None


def test_the_variables_are_taken_out_of_the_environment() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1", "PATH": "/bin"}
    Notifier.from_environment(environment)
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("every", "pid", "wanted"),
    [
        ("5000000", str(os.getpid()), 5.0),
        ("5000000", "1", None),
        ("0", str(os.getpid()), None),
        ("x", "", None),
    ],
)
def test_the_watchdog_is_fed_only_if_it_is_meant_for_this_process(
    manager: Manager, every: str, pid: str, wanted: float | None
) -> None:
    told = notifier(manager, WATCHDOG_USEC=every, WATCHDOG_PID=pid)
    assert told.watchdog_s == wanted
    told.alive()
    assert manager.heard() == (["WATCHDOG=1"] if wanted else [])


def test_a_manager_that_is_gone_or_full_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.notify._SEND_S", 0.01)
    manager = Manager(str(tmp_path / "notify"))
    told = notifier(manager)
    for number in range(2000):  # more than a datagram socket's queue holds
        told.status(f"line {number}")
        if number > 50 and told._deaf:
            break
    assert told._deaf, "the queue was never full: this tests nothing"
    manager.sock.close()
    (tmp_path / "notify").unlink()
    told.stopping()


@pytest.mark.asyncio
async def test_the_watchdog_starves_while_something_is_stuck_and_is_fed_again_after_it(
    manager: Manager,
) -> None:
    why: list[str | None] = [None]
    looked = asyncio.Event()

    def stuck() -> str | None:
        looked.set()
        return why[0]

    told = notifier(manager, WATCHDOG_USEC="30000")

    async def next_looks() -> list[str]:
        for _ in range(3):
            looked.clear()
            await looked.wait()
        return manager.heard()

    life = asyncio.create_task(prove_life(told, stuck, lambda: "serving"))
    assert {"WATCHDOG=1", "STATUS=serving"} <= set(await next_looks())
    why[0] = "the pass of smith has not moved for 400 s"
    await next_looks()
    assert await next_looks() == []
    why[0] = None
    await next_looks()
    assert "WATCHDOG=1" in await next_looks()
    life.cancel()


@pytest.mark.asyncio
async def test_a_long_start_is_given_more_time_while_it_goes_on_and_not_for_ever(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startstop, "EXTEND_S", 0.01)
    done = asyncio.Event()

    async def migrate() -> str:
        await done.wait()
        return "migrated"

    work = asyncio.create_task(extending(migrate(), notifier(manager)))
    for _ in range(2):
        await until(lambda: bool(manager.heard()))
    done.set()
    assert await work == "migrated"

    monkeypatch.setattr(startstop, "MIGRATE_MAX_S", -1.0)
    done.clear()
    work = asyncio.create_task(extending(migrate(), notifier(manager)))
    manager.heard()
    for _ in range(10):
        await asyncio.sleep(0)
    assert manager.heard() == []
    done.set()
    await work
