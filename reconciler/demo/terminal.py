"""What the installer and `make demo` print: one line per step, with progress for long ones.

On a terminal a running step shows its elapsed seconds and the last line of the tool's output; elsewhere
(a log, CI) it says every ten seconds that it is still at work. `NO_COLOR` is honoured.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from reconciler.errors import PermanentError

_TICK_S = 0.2
_NOTICE_S = 10.0
_KEPT_LINES = 20
_WIDTH = 26


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, code: str) -> str:
    """`text` in an SGR colour where the reader can see colours."""
    if not _is_terminal() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def say(text: str = "") -> None:
    """One line, at once (also through a pipe), in place of a running step's."""
    print(("\r\x1b[K" if _is_terminal() else "") + text, flush=True)


def complain(message: str, hint: str = "") -> None:
    """An error as a person reads it: what is wrong, then what to do."""
    print(paint("error: ", "31;1") + message, file=sys.stderr, flush=True)
    for line in hint.splitlines():
        print(f"  {line}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Step:
    """A running step; `result` becomes the end of its line."""

    label: str
    result: str = "ok"
    started: float = field(default_factory=time.monotonic)
    _noticed: float = field(default_factory=time.monotonic)

    def tick(self, detail: str = "") -> None:
        """Shows that the step is alive; cheap, call it as often as you like."""
        now = time.monotonic()
        if _is_terminal():
            room = max(10, min(shutil.get_terminal_size().columns, 110) - _WIDTH - 12)
            shown = "".join(c if c.isprintable() else " " for c in detail)[:room]
            took = now - self.started
            print(f"\r\x1b[K  {self.label:<{_WIDTH}} {took:4.0f} s  {shown}", end="", flush=True)
        elif now - self._noticed >= _NOTICE_S:
            self._noticed = now
            say(f"  {self.label:<{_WIDTH}} … {now - self.started:.0f} s")

    def end(self, result: str) -> None:
        """The step's final line, with its duration when that is worth reading."""
        took = time.monotonic() - self.started
        say(f"  {self.label:<{_WIDTH}} {result}" + (f"  ({took:.1f} s)" if took >= 1 else ""))


@contextmanager
def step(label: str) -> Iterator[Step]:
    """Runs the body as one step: prints its line when it ends, well or badly."""
    running = Step(label)
    if _is_terminal():
        running.tick()
    try:
        yield running
    except BaseException as error:
        running.end(paint("failed", "31") if isinstance(error, Exception) else "interrupted")
        raise
    running.end(running.result)


def run(
    at: Step,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    deadline_s: float,
    finish: bool = False,
) -> None:
    """Runs a long program as part of a step, in a process group of its own.

    `PermanentError` carries the last lines of its output when it fails or outlives `deadline_s`. An exception
    in here (Ctrl-C) ends the whole group first, or with `finish` (for what must not be cut in the middle)
    waits until it has ended by itself.
    """
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    process = subprocess.Popen(
        argv, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        ended = _follow(process, at, last, time.monotonic() + deadline_s)
    except BaseException:
        if finish:
            say(f"  letting {argv[0]} finish first")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=deadline_s)
        _end_group(process)
        raise
    if not ended:
        _end_group(process)
        raise _failure(argv, f"was still running after {deadline_s:.0f} s", last)
    if process.returncode != 0:
        raise _failure(argv, f"exited with {process.returncode}", last)


def _follow(process: subprocess.Popen[bytes], at: Step, last: deque[str], until: float) -> bool:
    """Reads the program's output until it ends; False at the deadline."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector, process.stdout as output:
        selector.register(output, selectors.EVENT_READ)
        pending = b""
        while time.monotonic() < until:
            at.tick(last[-1] if last else "")
            if not selector.select(_TICK_S):
                continue
            data = os.read(output.fileno(), 65536)
            if not data:
                process.wait(timeout=max(1.0, until - time.monotonic()))
                return True
            *lines, pending = (pending + data)[-65536:].split(b"\n")
            last.extend(line.decode(errors="replace").strip() for line in lines if line.strip())
    return False


def _end_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=5)
    except ProcessLookupError:
        process.wait(timeout=5)


def _failure(argv: Sequence[str], what: str, last: deque[str]) -> PermanentError:
    return PermanentError(f"{' '.join(argv[:4])} … {what}", hint="\n".join(last), code="command-failed")
