"""Records, console and control groups of the shim driver, without a container."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from reconciler.effects.containers import cgroups, console, proc, record
from reconciler.effects.containers.console import Console
from reconciler.effects.containers.proc import ProcessRef

RECORD = record.Record(
    name="scout",
    invocation="ab" * 16,
    toplevel="/nix/store/x",
    world="boot/pid:[1]",
    started_at=1.5,
    phase="running",
    shim=ProcessRef(10, 100),
    nspawn=ProcessRef(11, 101),
    leader=None,
    cgroups=("/sys/fs/cgroup/a",),
    limits_enforced=("memory",),
)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record.write_record(tmp_path, RECORD)
    assert record.read_record(tmp_path) == RECORD
    assert (tmp_path / "record.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 1}', "null", "\x00\xff"])
def test_a_damaged_record_reads_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    assert record.read_record(tmp_path) is None


def test_the_lock_is_held_once(tmp_path: Path) -> None:
    with record.locked(tmp_path) as first, record.locked(tmp_path) as second:
        assert (first, second) == (True, False)
    with record.locked(tmp_path) as again:
        assert again


def test_a_lock_in_a_directory_that_was_cleared_meanwhile_is_not_held(tmp_path: Path) -> None:
    with record.locked(tmp_path / "gone") as mine:
        assert not mine


def test_a_process_is_told_from_a_later_one_with_its_pid() -> None:
    me = proc.ref(os.getpid())
    assert me.is_alive()
    other = ProcessRef(me.pid, me.start - 1)
    assert not other.is_alive()
    assert not other.send(signal.SIGKILL)
    assert other.wait(0)


def test_a_zombie_counts_as_gone() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    zombie = proc.ref(pid)
    assert zombie.start > 0
    assert not zombie.is_alive()
    os.waitpid(pid, 0)


def fill(directory: Path, data: bytes) -> Console:
    tty = Console(directory)
    for start in range(0, len(data), 32768):
        os.write(tty.writer, data[start : start + 32768])
        tty.copy()
    tty.close_writer()
    tty.drain()
    return tty


def test_the_console_keeps_two_bounded_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "MAX_FILE_BYTES", 100_000)
    fill(tmp_path, b"x" * 99 + b"\n" + (b"y" * 999 + b"\n") * 300)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"console.log", "console.log.1"}
    assert all(size <= 100_000 for size in sizes.values())
    lines = console.last_lines(tmp_path, 150)
    assert 90 < len(lines) <= 150  # a rotation loses the oldest, never the newest
    assert set(lines[1:]) == {"y" * 999}


def test_a_flood_pauses_the_copying_until_the_second_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "MAX_BYTES_PER_S", 50_000)
    tty = fill(tmp_path, b"z" * 90_000)
    assert tty.is_paused()
    assert 0 < tty.pause_s() <= 1.0
    monkeypatch.setattr("time.monotonic", lambda: 1e12)
    assert not tty.is_paused()


def test_lines_are_cut_and_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    fill(tmp_path, b"\xff\xfe\n" + b"l" * 5000 + b"\nlast without end")
    assert [len(line) for line in console.last_lines(tmp_path, 10)] == [2, 2000, 16]
    assert console.last_lines(tmp_path, 1) == ["last without end"]
    assert console.last_lines(tmp_path / "absent", 5) == []


def test_limits_are_not_claimed_where_no_control_group_can_be_written(tmp_path: Path) -> None:
    group = cgroups.create("scout.abc", memory_bytes=1, cpu_percent=100, tasks=5, root=tmp_path)
    assert group == cgroups.Group((), ())
    assert cgroups.kill(group.paths)
    assert cgroups.oom_kills(group.paths) == 0


def test_oom_kills_are_read_in_both_versions(tmp_path: Path) -> None:
    for name, file, text in (
        ("v2", "memory.events", "low 0\noom 2\noom_kill 3\n"),
        ("v1", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    assert cgroups.oom_kills((str(tmp_path / "v2"),)) == 3
    assert cgroups.oom_kills((str(tmp_path / "v2"), str(tmp_path / "v1"))) == 4


def test_an_order_comes_back_as_it_was_written(tmp_path: Path) -> None:
    order = record.Order("scout", "i", "/t", ("a", "b"), {"A": "1"}, ("/s",), 1, 2, 3, 4.0)
    record.write_order(tmp_path, order)
    assert record.read_order(tmp_path) == order
    (tmp_path / "start.json").write_text('{"name": "x"}')
    with pytest.raises(ValueError, match="damaged"):
        record.read_order(tmp_path)
