"""PID 1 of the container: reaps whatever is orphaned, passes stop signals on, ends with the harness's status.

Imported before anything else and kept to the standard library's cheapest parts. Signals are blocked before
the fork and taken with `sigwait`, so that none can arrive between two lines and be lost: the kernel drops a
signal to PID 1 for which nothing is set up.
"""

from __future__ import annotations

import os
import signal

_TAKEN = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)


def split_off_init() -> None:
    """Forks. Returns in the child, which becomes the harness; the parent never returns and exits with the
    child's status (128 + n if signal n ended it)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TAKEN)
        return
    for taken in (signal.SIGTERM, signal.SIGINT):
        # Never run, as sigwait takes them: what stops the container sees in /proc that they are listened to.
        signal.signal(taken, _ignore)
    while True:
        number = signal.sigwait(_TAKEN)
        if number == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                os._exit(status)
        else:
            os.kill(child, number)


def _ignore(_number: int, _frame: object) -> None:
    pass


def _reap(child: int) -> int | None:
    """Reaps all that ended; the exit status of `child` if it was among them."""
    found = None
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            code = os.waitstatus_to_exitcode(raw)
            found = code if code >= 0 else 128 - code
