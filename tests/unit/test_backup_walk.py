"""Walking a hostile tree ends: every bound is kept, told, and what lies within it is still read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.backup import walk as walking
from reconciler.backup.walk import Entry, walk


class Told(dict[str, str]):
    """What was left out, and why."""

    def __call__(self, path: str, why: str) -> None:
        self[path] = why


def paths(top: Path, told: Told) -> list[str]:
    return [entry.path for entry in walk(top, told)]


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def told() -> Told:
    return Told()


def test_directories_come_before_what_is_in_them_and_names_in_order(tmp_path: Path, told: Told) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x").touch()
    (tmp_path / "a").touch()
    (tmp_path / "c").touch()
    assert paths(tmp_path, told) == ["", "a", "b", "b/x", "c"]
    assert told == {}


def test_a_tree_that_is_not_there_or_is_a_link_is_nothing(tmp_path: Path, told: Told) -> None:
    assert paths(tmp_path / "nothing", told) == []
    (tmp_path / "link").symlink_to("/etc")
    assert paths(tmp_path / "link", told) == []
    (tmp_path / "file").touch()
    assert paths(tmp_path / "file", told) == []


def test_files_are_open_while_they_are_looked_at_and_closed_after_it(tmp_path: Path, told: Told) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    before = _open_files()
    entries: Iterator[Entry] = walk(tmp_path, told)
    assert next(entries).is_directory
    for name in ("a", "b"):
        entry = next(entries)
        assert entry.fd is not None
        assert os.pread(entry.fd, 10, 0).decode() == name
    entries.close()  # type: ignore[attr-defined] # it is a generator
    assert _open_files() == before


def test_too_many_entries_end_the_walk(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "ENTRIES_MAX", 5)
    for number in range(20):
        (tmp_path / f"{number:02}").touch()
    assert len(paths(tmp_path, told)) == 1 + 5
    assert "more than 5 entries" in told[""]


def test_names_in_memory_are_bounded(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "LISTED_MAX", 10)
    for number in range(20):
        (tmp_path / f"{number:02}").touch()
    assert len(paths(tmp_path, told)) == 1 + 10
    assert "more than 10 entries" in told[""]


def test_depth_is_bounded_and_the_rest_is_read(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walking, "DEPTH_MAX", 3)
    (tmp_path / "a/b/c/d").mkdir(parents=True)
    (tmp_path / "z").touch()
    assert paths(tmp_path, told) == ["", "a", "a/b", "a/b/c", "z"]
    assert set(told) == {"a/b/c"}


def test_a_second_name_is_a_link_to_the_first(tmp_path: Path, told: Told) -> None:
    (tmp_path / "a").write_text("one")
    os.link(tmp_path / "a", tmp_path / "b")
    entries = {entry.path: (entry.target, entry.data_bytes) for entry in walk(tmp_path, told)}
    assert entries == {"": (None, 0), "a": (None, 3), "b": ("a", 0)}


def test_ten_thousand_names_of_one_file_are_read_once(tmp_path: Path, told: Told) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    for number in range(10_000):
        os.link(tmp_path / "a", tmp_path / f"b{number}")
    assert sum(entry.data_bytes for entry in walk(tmp_path, told)) == 100_000


def test_files_with_several_names_are_bounded(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walking, "LINKED_MAX", 1)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        os.link(tmp_path / name, tmp_path / f"{name}2")
    assert paths(tmp_path, told) == ["", "a", "a2"]
    assert set(told) == {"b", "b2"}


def test_only_the_data_of_a_sparse_file_counts(tmp_path: Path, told: Told) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"x" * 4096)
    (entry,) = [entry for entry in walk(tmp_path, told) if entry.path]
    assert entry.status.st_size == 1 << 40
    assert entry.extents is not None
    assert entry.data_bytes < 1 << 20


def test_a_file_of_too_many_pieces_is_left_out(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walking, "EXTENTS_MAX", 3)
    with (tmp_path / "pieces").open("wb") as file:
        for number in range(8):
            file.seek(number << 20)
            file.write(b"x" * 4096)
        file.truncate(9 << 20)
    assert paths(tmp_path, told) == [""]
    assert "more than 3 pieces" in told["pieces"]


def test_more_bytes_than_the_file_system_has_are_not_read(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    real = os.fstatvfs

    class Room:
        f_frsize = 1
        f_blocks = 2500

    monkeypatch.setattr(os, "fstatvfs", lambda fd: Room() if fd >= 0 else real(fd))
    assert paths(tmp_path, told) == ["", "a", "b"]
    assert "more bytes" in told["c"]


def test_what_is_neither_file_nor_directory_nor_link_is_told(tmp_path: Path, told: Told) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("pipe")
    found = {entry.path: entry.target for entry in walk(tmp_path, told)}
    assert found == {"": None, "link": "pipe"}
    assert set(told) == {"pipe", "socket"}


def test_what_lies_on_another_file_system_is_told(tmp_path: Path, told: Told) -> None:
    (tmp_path / "mounted").mkdir()
    state = walking._Walk(device=-1, skip=told, bytes_left=10, entries_left=10)
    here = os.open(tmp_path, os.O_RDONLY)
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, here)
        assert walking._look(state, here, "mounted", "mounted", opened) is None
    assert "another file system" in told["mounted"]


def test_what_goes_away_meanwhile_was_never_there(tmp_path: Path, told: Told) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    seen = []
    for entry in walk(tmp_path, told):
        seen.append(entry.path)
        if entry.path == "a":
            (tmp_path / "b/x").unlink()
            (tmp_path / "b").rmdir()
    assert seen == ["", "a", "a/x"]
    assert told == {}


def test_a_file_on_which_somebody_holds_a_lease_ends_no_walk(tmp_path: Path, told: Told) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    asked, answer = os.pipe()
    holder = os.fork()
    if holder == 0:  # as any program of an agent may, without a right of its own
        os.close(asked)
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fcntl.fcntl(os.open(tmp_path / "a", os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.write(answer, b"held")
        signal.pause()
        os._exit(0)
    os.close(answer)
    try:
        assert os.read(asked, 4) == b"held"
        assert paths(tmp_path, told) == ["", "b"]
        assert told == {"a": "a program of the agent's holds a lease on it"}
    finally:
        os.close(asked)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


def test_a_sparse_file_that_is_cut_while_it_is_measured_ends_no_walk(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"data")
    seek = os.lseek

    def cut(fd: int, at: int, how: int) -> int:
        if how == os.SEEK_HOLE:
            os.truncate(tmp_path / "a", 0)
        return seek(fd, at, how)

    monkeypatch.setattr(os, "lseek", cut)
    assert paths(tmp_path, told) == ["", "a"]
