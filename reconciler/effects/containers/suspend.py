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


def is_restless(found: Record) -> bool:
    """Whether a container that is suspended by signals has processes that run all the same: they were started
    while it was suspended, and it took too long to catch them."""
    if found.leader is None or cgroups.is_frozen(found.cgroups) is not None:
        return False
    return not all(map(proc.stands_still, proc.descendants(found.leader.pid)))


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
    calm = 0
    while calm < 2:  # what was started while the first of two looks was taken is seen by the second
        moving = [pid for pid in proc.same_namespace(first) if not proc.stands_still(pid)]
        calm = 0 if moving else calm + 1
        for pid in sorted(moving, key=lambda pid: pid != first):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        if moving and time.monotonic() > deadline:
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
