"""Processes told apart for ever: pid and start time. Standard library only, as the shim imports it."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import NamedTuple

# Stopped, held by a tracer (who is stopped, too), over.
_STILL = frozenset("TtZX")
_FIRST_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO: the machine's own


class ProcessRef(NamedTuple):
    """A process: `start` is field 22 of /proc/PID/stat (clock ticks since boot), so that a reused pid is
    seen."""

    pid: int
    start: int

    def is_alive(self) -> bool:
        """Whether it runs; a zombie does not (its parent may be slow to reap)."""
        state, start = _stat(self.pid)
        return start == self.start and state not in {"Z", "X"}

    def state(self) -> str:
        """The one-letter state of /proc/PID/stat (`T` is stopped); `X` if it is gone, also if another one has
        its pid now."""
        state, start = _stat(self.pid)
        return state if start == self.start else "X"

    def open(self) -> int | None:
        """A pidfd of exactly this process, or None if it is gone. First the descriptor, then the check."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except (ProcessLookupError, OSError):
            return None
        if self.is_alive():
            return pidfd
        os.close(pidfd)
        return None

    def send(self, number: signal.Signals) -> bool:
        """Signal exactly this process; False if it is gone."""
        pidfd = self.open()
        if pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True

    def wait(self, timeout_s: float) -> bool:
        """Block until it has ended; False if it still runs after `timeout_s` seconds."""
        pidfd = self.open()
        if pidfd is None:
            return True
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            return bool(poller.poll(timeout_s * 1000))
        finally:
            os.close(pidfd)

    def catches(self, number: signal.Signals) -> bool:
        """Whether it has a handler for the signal; True if that cannot be read."""
        return _has_signal(self.pid, ("SigCgt:",), number)


def ref(pid: int) -> ProcessRef:
    """The reference of a process that runs now (start 0 if it is gone already)."""
    return ProcessRef(pid, _stat(pid)[1])


def world_id() -> str:
    """What pids are relative to: the boot and the pid namespace. References of another world are dead.

    The kernel gives the number of a namespace that is gone to the next one, so the start of its first process
    is part of the name. In a host that is a container itself that has to do: container managers cover boot_id
    with one of their own, which a unit with a /proc of its own (ProtectProc=) does not see, and others do.
    """
    namespace = str(Path("/proc/self/ns/pid").readlink())
    boot = ""
    if namespace == _FIRST_NAMESPACE:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{boot}/{namespace}/{_stat(1)[1]}"


def minds(pid: int, number: signal.Signals) -> bool:
    """Whether a process handles or deliberately ignores the signal; True if that cannot be read."""
    return _has_signal(pid, ("SigCgt:", "SigIgn:"), number)


def state_of(pid: int) -> str:
    """The one-letter state of /proc/PID/stat (`T` is stopped); `X` if it is gone."""
    return _stat(pid)[0]


def stands_still(pid: int) -> bool:
    """Whether no thread of the process can run before a SIGCONT: each is stopped or over, or will stop before
    it returns from the kernel. False if it is gone, as it may have been followed by another.

    Each thread is asked: the first may be over, and the process then reads as a zombie, while others run.
    """
    states = [_thread_state(f"/proc/{pid}/task/{thread}") for thread in _threads(pid)]
    return bool(states) and all(state in _STILL for state in states)


def descendants(pid: int) -> list[int]:
    """The process and all that descend from it, as far as the kernel tells; parents first."""
    found = [pid]
    for one in found:
        for thread in _threads(one):
            found += _children(one, thread)
    return found


def same_namespace(leader: int) -> list[int]:
    """All processes of the pid namespace that `leader` is in, in no order; empty if it is gone."""
    try:
        wanted = Path(f"/proc/{leader}/ns/pid").readlink()
    except OSError:
        return []
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if Path(entry.path, "ns/pid").readlink() == wanted:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def children(pid: int) -> list[int]:
    """Children of a process, as far as the kernel tells."""
    return _children(pid, pid)


def _children(pid: int, thread: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{thread}/children").read_text("ascii").split()]
    except (OSError, ValueError):
        return []


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 - names, not paths
    except OSError:
        return []


def _thread_state(thread: str) -> str:
    """Its letter; `T` also for one that is about to stop: SIGSTOP waits for its return from the kernel."""
    try:
        state = Path(thread, "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
        if state != "D":
            return state
        lines = Path(thread, "status").read_text("ascii", "replace").splitlines()
        pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
        return "T" if any(mask >> (signal.SIGSTOP - 1) & 1 for mask in pending) else state
    except (OSError, ValueError, IndexError):
        return "X"


def _has_signal(pid: int, sets: tuple[str, ...], number: signal.Signals) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
        found = [int(line.split()[1], 16) for line in lines if line.startswith(sets)]
    except (OSError, ValueError, IndexError):
        return True
    return not found or any(mask >> (number - 1) & 1 for mask in found)


def _stat(pid: int) -> tuple[str, int]:
    """Without the file objects of Python: each full read asks for two of these for each agent."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(descriptor, 4096).rpartition(b")")[2].split()
        finally:
            os.close(descriptor)
        return fields[0].decode("ascii"), int(fields[19])
    except (OSError, IndexError, ValueError):
        return "X", 0
