"""The function that runs programs: its limits are real, and nothing outlives it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from reconciler.effects import process
from reconciler.effects.process import Rlimits, run
from reconciler.errors import CommandError, DiskFullError, PermanentError
from tests.support.needs import needs_root

pytestmark = pytest.mark.asyncio


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def until(condition: Callable[[], bool]) -> None:
    """Poll a fact of the kernel or the disk that nothing announces."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def gone(pid: int) -> None:
    await until(lambda: not alive(pid))


async def test_output_and_status_come_back() -> None:
    done = await run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=5, accept=(3,))
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 3)


async def test_the_environment_is_only_what_was_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    done = await run(["env"], timeout_s=5, env={"A": "b"})
    assert sorted(line.split("=")[0] for line in done.text.splitlines()) == ["A", "LANG", "PATH"]


async def test_bytes_and_files_reach_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "in"
    file.write_bytes(b"y" * 200_000)
    assert (await run(["cat"], timeout_s=5, stdin=b"x" * 300_000)).stdout == b"x" * 300_000
    assert (await run(["cat"], timeout_s=5, stdin=file)).stdout == b"y" * 200_000
    assert (await run(["cat"], timeout_s=5)).stdout == b""


async def test_a_failing_program_raises_its_record() -> None:
    with pytest.raises(CommandError) as caught:
        await run(["sh", "-c", "echo reason >&2; exit 7"], timeout_s=5, cwd="/tmp")
    record = caught.value.record
    assert (record.exit_code, record.stderr_tail, record.cwd) == (7, "reason\n", "/tmp")
    assert not record.timed_out
    assert caught.value.code == "command-failed"
    assert "sh exited with 7" in str(caught.value)


async def test_a_program_past_its_deadline_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(CommandError) as caught:
        await run(["sh", "-c", f"sleep 60 & echo $! > {pids}; echo $$ >> {pids}; wait"], timeout_s=0.3)
    assert caught.value.code == "command-timeout"
    assert caught.value.record.timed_out
    for pid in pids.read_text().split():
        await gone(int(pid))


async def test_a_child_left_behind_by_a_good_program_is_killed_and_does_not_delay(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    started = time.monotonic()
    done = await run(["sh", "-c", f"sleep 60 & echo $! > {pids}"], timeout_s=20)
    assert done.exit_code == 0
    assert time.monotonic() - started < 5
    await gone(int(pids.read_text()))


async def test_endless_output_is_cut_and_the_program_killed() -> None:
    for stream in ("1", "2"):
        with pytest.raises(CommandError) as caught:
            await run(["sh", "-c", f"yes >&{stream}"], timeout_s=20, max_stdout=100_000, max_stderr=100_000)
        assert caught.value.code == "output-too-large"
        assert len(caught.value.record.stdout_tail) + len(caught.value.record.stderr_tail) <= 2 * 64 * 1024


async def test_a_cancelled_run_leaves_no_process(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    task = asyncio.create_task(run(["sh", "-c", f"echo $$ > {pid}; sleep 60"], timeout_s=60))
    await until(lambda: pid.exists() and pid.read_text().strip() != "")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(int(pid.read_text()))


async def test_lines_of_standard_error_are_streamed_and_bounded() -> None:
    lines: list[str] = []

    async def sink(line: str) -> None:
        lines.append(line)

    script = "printf 'one\\ntwo\\n' >&2; head -c 50000 /dev/zero | tr '\\0' x >&2; printf '\\nlast' >&2"
    await run(["sh", "-c", script], timeout_s=5, log=sink)
    assert lines[:2] == ["one", "two"]
    assert lines[-1] == "last"
    assert max(map(len, lines)) <= 4096


async def test_a_failing_log_sink_ends_the_program_and_is_told() -> None:
    async def sink(line: str) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        await run(["sh", "-c", "echo x >&2; sleep 60"], timeout_s=20, log=sink)


async def test_a_missing_program_or_user_is_a_clear_error() -> None:
    with pytest.raises(PermanentError, match="not installed"):
        await run(["no-such-program"], timeout_s=5)
    with pytest.raises(PermanentError, match="does not exist"):
        await run(["true"], timeout_s=5, user="no-such-user")


async def test_limits_bind_the_program() -> None:
    memory = Rlimits(address_space=1 << 28)
    with pytest.raises(CommandError):
        await run(["python3", "-c", "x = bytearray(1 << 30)"], timeout_s=10, rlimits=memory)
    with pytest.raises(CommandError):
        await run(["sh", "-c", "while :; do :; done"], timeout_s=20, rlimits=Rlimits(cpu_s=1))
    done = await run(["sh", "-c", "ulimit -c"], timeout_s=5)
    assert done.text.strip() == "0"


@needs_root
async def test_a_dropped_user_has_no_group_capability_or_new_privilege() -> None:
    script = "id -u; id -G; grep -E 'CapEff|CapInh|NoNewPrivs' /proc/self/status"
    done = await run(["sh", "-c", script], timeout_s=5, user=(54321, 54322))
    lines = done.text.split()
    assert lines[:2] == ["54321", "54322"]
    assert lines[2:] == ["CapInh:", "0" * 16, "CapEff:", "0" * 16, "NoNewPrivs:", "1"]


SAYS_FULL = ["/bin/sh", "-c", "echo 'cp: x: No space left on device' >&2; exit 1"]


async def test_a_full_disk_is_told_from_other_failures() -> None:
    with pytest.raises(DiskFullError, match="cp: x: No space left"):
        await process.run(SAYS_FULL, timeout_s=10)


@pytest.mark.parametrize("short", ["", "bytes", "files"])
async def test_words_of_an_agent_about_the_disk_count_only_where_it_is_short_of_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: str
) -> None:
    asked: list[Path] = []

    def room(path: Path) -> SimpleNamespace:
        asked.append(path)
        free = 100 if short == "bytes" else 1 << 40
        files = 100 if short == "files" else 1 << 30
        return SimpleNamespace(f_bavail=free, f_frsize=1, f_files=1 << 31, f_favail=files)

    monkeypatch.setattr(os, "statvfs", room)
    with pytest.raises(CommandError) as caught:
        await process.run(SAYS_FULL, timeout_s=10, room_in=())
    assert caught.value.code == "command-failed"
    with pytest.raises(DiskFullError if short else CommandError):
        await process.run(SAYS_FULL, timeout_s=10, room_in=(tmp_path / "not/yet/there",))
    assert asked == [tmp_path]


async def test_what_a_console_says_of_the_disk_does_not_hide_that_it_says_too_much() -> None:
    words = ["/bin/sh", "-c", "yes 'No space left on device' | head -c 200000"]
    with pytest.raises(CommandError) as caught:
        await process.run(words, timeout_s=10, max_stdout=100_000, room_in=())
    assert caught.value.code == "output-too-large"


async def test_a_long_line_is_looked_through_in_linear_time() -> None:
    """A pattern that began at each character took 20 s for the output of one hostile tree."""
    assert process._no_room("x" * 8_000_000) is None
    assert process._no_room("y" * 8_000_000 + "No space left on device") is not None
