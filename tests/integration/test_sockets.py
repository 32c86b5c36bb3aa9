"""Unix sockets: a finished one or none, the right owner, and connections of the right peer only."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.errors import PermanentError
from reconciler.sockets import Listener, Peer, bind, peer_of
from tests.fakes.unixhttp import as_user, until
from tests.support.needs import needs_root

pytestmark = pytest.mark.asyncio


class Echo(asyncio.Protocol):
    """Says hello; `open` counts connections."""

    open = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        Echo.open += 1
        transport.write(b"hello")

    def connection_lost(self, exc: Exception | None) -> None:
        Echo.open -= 1


def make(path: Path, *, uid: int | None = None, gid: int | None = None, mode: int = 0o600) -> Listener:
    return serve(path, lambda _peer: True, uid=uid, gid=gid, mode=mode)


def serve(
    path: Path, admits: Callable[[Peer], bool], *, uid: int | None = None, gid: int | None = None,
    mode: int = 0o600, limit: int = 8,
) -> Listener:  # fmt: skip
    uid, gid = os.geteuid() if uid is None else uid, os.getegid() if gid is None else gid
    bound = bind(path, mode=mode, uid=uid, gid=gid)
    return Listener(bound, Echo, admits=admits, open_connections=lambda: Echo.open, limit=limit)


async def hello(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    async with asyncio.timeout(5):
        said = await reader.read(5)
    writer.close()
    return said


async def all_closed() -> None:
    """Transports of the other end close in their own time."""
    await until(lambda: Echo.open == 0)


@needs_root
async def test_owner_group_and_mode_are_set_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        listener = make(tmp_path / "s", uid=1234, gid=2345, mode=0o660)
    finally:
        os.umask(before)
    found = (tmp_path / "s").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 2345, 0o660)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    await listener.close()


async def test_a_new_socket_takes_the_place_of_the_old_one_without_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = make(path)
    second = make(path)
    assert not first.alive
    assert second.alive
    await first.close()  # must not remove what is no longer its own
    assert await hello(path) == b"hello"
    await second.close()
    assert not path.exists()


async def test_a_socket_whose_file_was_removed_or_replaced_knows_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = make(path)
    path.rename(tmp_path / "other")
    assert not listener.alive
    path.symlink_to(tmp_path / "other")
    assert not listener.alive
    await listener.close()
    assert path.is_symlink()


async def test_what_a_hostile_owner_of_the_folder_put_there_is_replaced_and_not_followed(
    tmp_path: Path,
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "s").symlink_to(victim)
    listener = make(folder / "s", mode=0o666)
    assert (folder / "s").is_socket()
    assert not (folder / "s").is_symlink()
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("precious", 0o600)
    await listener.close()
    folder_link = tmp_path / "link"
    folder_link.symlink_to(folder)
    with pytest.raises(PermanentError):
        bind(folder_link / "s", mode=0o600, uid=os.geteuid(), gid=os.getegid())


async def test_what_a_killed_process_left_of_the_same_socket_goes(tmp_path: Path) -> None:
    left, others = tmp_path / ".a.sock.0123abcd", [tmp_path / ".b.sock.0123abcd", tmp_path / ".a.sock.notes"]
    for path in (left, *others):
        path.touch()
    listener = make(tmp_path / "a.sock")
    assert not left.exists()
    assert all(path.exists() for path in others), "these are somebody else's"
    await listener.close()


async def test_a_folder_that_cannot_take_the_socket_is_a_clear_error_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    with pytest.raises(PermanentError, match="No such file"):
        bind(tmp_path / "missing" / "s", mode=0o600, uid=0, gid=0)
    (tmp_path / "s").mkdir()
    with pytest.raises(PermanentError, match="s: Is a directory"):
        bind(tmp_path / "s", mode=0o600, uid=os.geteuid(), gid=os.getegid())
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


async def test_paths_longer_than_a_socket_address_work(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    listener = make(folder / "s")
    fd = os.open(folder, os.O_PATH)
    assert await hello(Path(f"/proc/self/fd/{fd}/s")) == b"hello"
    os.close(fd)
    await listener.close()


async def test_the_kernel_names_the_peer() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
    assert peer.groups == {os.getegid(), *os.getgroups()}


@needs_root
async def test_a_refused_peer_gets_nothing_and_is_counted() -> None:
    nothing = ("closed", "ConnectionReset", "BrokenPipe")
    with tempfile.TemporaryDirectory(prefix="hive-") as folder:  # pytest's own cannot be entered by others
        Path(folder).chmod(0o755)
        path = Path(folder, "s")
        listener = serve(path, lambda peer: peer.uid == 54321 and 777 in peer.groups, mode=0o666)
        assert (await as_user(path, "x", uid=54321, gid=54321)).startswith(nothing)
        assert (await as_user(path, "x", uid=54322, gid=777)).startswith(nothing)
        assert listener.refused == 2
        assert await hello(path) == b""
        assert listener.refused == 3
        await listener.close()


async def test_more_connections_than_the_limit_are_closed_and_the_next_ones_served(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = serve(path, lambda _peer: True, limit=2)
    held = [await asyncio.open_unix_connection(str(path)) for _ in range(2)]
    for reader, _ in held:
        assert await reader.read(5) == b"hello"
    assert await hello(path) == b""
    assert listener.overflowed == 1
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    await all_closed()
    assert await hello(path) == b"hello"
    await listener.close()
    await all_closed()
