"""The host's hold on a running world: starts it, hears its happenings, runs programs inside, ends it.

The chain is `setpriv --pdeathsig` → `unshare --kill-child` → PID 1 of the world: when this process dies,
however it dies, the kernel kills unshare, then PID 1, then everything in the world.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from reconciler.demo import cgroups, services
from reconciler.demo.install import CLONE
from reconciler.demo.place import Place, start_time
from reconciler.demo.world import Plan
from reconciler.errors import PermanentError

_START_S = 15.0
_STOP_S = 20.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Happening:
    """What the supervisor tells: `event` is started, ended or killed; None as `service` when the world
    ended."""

    event: str
    service: str
    details: dict[str, object]


@dataclass(slots=True)
class World:
    """A started world. `pid` is its first process, in the host's numbers."""

    place: Place
    pid: int
    happenings: queue.SimpleQueue[Happening]
    _unshare: subprocess.Popen[str]
    _reader: threading.Thread = field(repr=False)

    @property
    def has_ended(self) -> bool:
        return self._unshare.poll() is not None

    def path(self, inside: str) -> str:
        """A path of the world as the host's root reaches it."""
        return f"/proc/{self.pid}/root{inside}"

    def run(self, argv: Sequence[str], *, user: services.User | None = None, deadline_s: float = 60.0) -> str:
        """Runs a program inside to its end and returns its output; `PermanentError` when it fails."""
        done = self.try_run(argv, user=user, deadline_s=deadline_s)
        if done.returncode != 0:
            raise PermanentError(
                f"{' '.join(argv)} exited with {done.returncode} in the demo's world",
                hint=(done.stdout + done.stderr)[-4000:].strip(),
                code="command-failed",
            )
        return done.stdout

    def try_run(
        self, argv: Sequence[str], *, user: services.User | None = None, deadline_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """The same, with the result as it is."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--root", "--wd", "--"]
        become = (
            ["setpriv", f"--reuid={user.uid}", f"--regid={user.uid}", "--clear-groups", "--"] if user else []
        )
        environment = services.ENVIRONMENT | {"HOME": user.home if user else "/root"}
        return subprocess.run(
            [*enter, *become, *argv],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=deadline_s,
            check=False,
        )

    def stop(self) -> None:
        """Ends everything, in order if that is quick; when it returns no process and no mount is left."""
        if not self.has_ended:
            try:
                os.kill(self.pid, signal.SIGTERM)
                self._unshare.wait(timeout=_STOP_S)
            except ProcessLookupError:
                pass
            except subprocess.TimeoutExpired:
                self._unshare.kill()
        self._unshare.wait(
            timeout=_STOP_S
        )  # unshare ends after its child, and that after all of the namespace
        self._reader.join(timeout=_STOP_S)
        cgroups.remove(self.pid)
        self.place.record.unlink(missing_ok=True)


def start(plan: Plan, lock: int) -> World:
    """Builds the world and starts its supervisor. `lock` (see `Place.lock`) stays held until the world is
    gone."""
    place = Place.of(plan.folder)
    cgroups.remove_stale()
    process = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig=KILL", "--"),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--"),
            *(sys.executable, "-P", "-B", "-m", "reconciler.demo.world"),
        ],
        env={"PATH": _PATH, "PYTHONPATH": str(CLONE), "LANG": "C.UTF-8"},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(lock,),
        start_new_session=True,  # Ctrl-C is for us; we end the world in order
    )
    try:
        return _greet(process, place, plan)
    except BaseException:  # a signal, too: nothing may be left of a half-made world
        process.kill()
        process.wait(timeout=_STOP_S)
        raise


def _greet(process: subprocess.Popen[str], place: Place, plan: Plan) -> World:
    """Hands the plan over and waits until the world stands."""
    assert process.stdin is not None
    process.stdin.write(plan.to_json())
    process.stdin.close()
    happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(process, happenings), name="world", daemon=True)
    reader.start()
    try:
        first = happenings.get(timeout=_START_S)
    except queue.Empty:
        raise PermanentError(f"the demo's world was not there after {_START_S:.0f} s") from None
    if first.event != "world":
        raise PermanentError(
            "the demo's world could not be made",
            hint=f"{first.details['stderr']}\nit needs CAP_SYS_ADMIN, and mount, PID and user namespaces",
        )
    pid = first.details["pid"]
    assert isinstance(pid, int)
    place.record.write_text(f"{pid} {start_time(pid)}\n")
    return World(place, pid, happenings, process, reader)


def _read(process: subprocess.Popen[str], happenings: queue.SimpleQueue[Happening]) -> None:
    """Turns the supervisor's lines into happenings; the last one is `gone`, with what it wrote to stderr."""
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout as lines, process.stderr as errors:
        for line in lines:
            data = json.loads(line)
            happenings.put(Happening(data.pop("event"), data.pop("service"), data))
        happenings.put(Happening("gone", "", {"stderr": errors.read()[-4000:].strip()}))
