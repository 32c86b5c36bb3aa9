"""Without a freezer, processes are suspended by signals: also those that hide from it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.effects.containers import proc, suspend
from reconciler.effects.containers.record import Record

pytestmark = pytest.mark.integration

# The first process of a pid namespace: starts a program, says when that is where it wants to be, and waits.
_LEADER = """
import signal, subprocess, sys
program = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], stdout=subprocess.PIPE)
program.stdout.readline()
print("there", flush=True)
while True:
    signal.pause()
"""
_HEADLESS = """
import ctypes, os, sys, threading, time
def work():
    while True:
        os.utime(sys.argv[1])
        time.sleep(0.001)
threading.Thread(target=work).start()
print("there", flush=True)
ctypes.CDLL(None).pthread_exit(None)  # the first thread is over: /proc calls the process a zombie
"""
_IN_VFORK = """
import os, sys
print("there", flush=True)
waits = [(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)]  # for somebody who writes into the pipe
os.posix_spawn("/bin/true", ["true"], {}, file_actions=waits)
os.mkfifo(sys.argv[1] + ".over")
"""


@contextlib.contextmanager
def contained(program: str, *argv: str) -> Iterator[Record]:
    """What `suspend` needs to know of a pid namespace in which the program runs."""
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", _LEADER]
    outer = subprocess.Popen([*command, textwrap.dedent(program), *argv], stdout=subprocess.PIPE)
    try:
        assert outer.stdout is not None
        assert outer.stdout.readline() == b"there\n"
        (leader,) = proc.children(outer.pid)
        yield Record("", "", "", "", 0.0, leader=proc.ref(leader))
    finally:
        outer.kill()
        outer.communicate()


def until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_a_process_whose_first_thread_is_over_is_suspended_like_others(tmp_path: Path) -> None:
    (heart := tmp_path / "heart").touch()
    with contained(_HEADLESS, str(heart)) as found:
        assert found.leader is not None
        (headless,) = proc.children(found.leader.pid)
        until(lambda: proc.state_of(headless) == "Z")
        beat = heart.stat().st_mtime_ns
        until(lambda: heart.stat().st_mtime_ns != beat)
        assert suspend.suspend(found, 5.0)
        beat = heart.stat().st_mtime_ns
        assert not threading.Event().wait(0.1)
        assert heart.stat().st_mtime_ns == beat
        suspend.resume(found)
        until(lambda: heart.stat().st_mtime_ns != beat)


def test_a_process_that_waits_for_its_vfork_is_no_reason_to_try_for_ever(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    with contained(_IN_VFORK, str(pipe)) as found:
        assert found.leader is not None
        (waiting,) = proc.children(found.leader.pid)
        until(lambda: proc.state_of(waiting) == "D")
        assert suspend.suspend(found, 5.0)
        assert suspend.is_suspended(found)
        assert not suspend.is_restless(found)
        suspend.resume(found)
        pipe.write_bytes(b"")
        until((tmp_path / "pipe.over").exists)


def test_what_runs_in_a_suspended_container_is_seen_and_caught(tmp_path: Path) -> None:
    (heart := tmp_path / "heart").touch()
    with contained(_HEADLESS, str(heart)) as found:
        assert found.leader is not None
        (headless,) = proc.children(found.leader.pid)
        assert suspend.suspend(found, 5.0)
        assert not suspend.is_restless(found)
        os.kill(headless, signal.SIGCONT)  # as if it had been missed
        until(lambda: suspend.is_restless(found))
        assert suspend.is_suspended(found)
        assert suspend.suspend(found, 5.0)
        assert not suspend.is_restless(found)
