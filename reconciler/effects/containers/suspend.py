"""Suspend and resume all processes of a container: by its group where that has a freezer, else by SIGSTOP.

The state is read from the kernel, never remembered. Blocking, bounded by `timeout_s`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from reconciler.effects.containers import cgroups, proc
from reconciler.effects.containers.record import Record

_PAUSE_S = 0.002


def is_suspended(found: Record) -> bool:
    """Whether the container stands still. Without a freezer its first process tells."""
    frozen = cgroups.is_frozen(found.cgroups)
    if frozen is not None:
        return frozen
    return found.leader is not None and proc.state_of(found.leader.pid) == "T"


def suspend(found: Record, timeout_s: float) -> bool:
    """Suspend; False if some of it still ran after `timeout_s` seconds (a fork bomb without a freezer)."""
    deadline = time.monotonic() + timeout_s
    if cgroups.freeze(found.cgroups, frozen=True):
        while not cgroups.is_frozen(found.cgroups):
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE_S)
        return True
    if found.leader is None:
        return False
    # The first process first: it is what starts others, and what is asked whether all stand still.
    first = found.leader.pid
    while running := _running(first):
        for pid in sorted(running, key=lambda pid: pid != first):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
    return True


def resume(found: Record) -> None:
    """Let it go on; nothing to do if it runs or is gone."""
    if cgroups.freeze(found.cgroups, frozen=False) or found.leader is None:
        return
    others = [pid for pid in proc.same_namespace(found.leader.pid) if pid != found.leader.pid]
    for pid in (*others, found.leader.pid):  # the one that is asked last
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _running(leader: int) -> list[int]:
    return [pid for pid in proc.same_namespace(leader) if proc.state_of(pid) not in {"T", "Z", "X"}]
