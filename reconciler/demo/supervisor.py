"""PID 1 of the demo's world: starts the services, starts them again when they end, reaps everybody's orphans.

Its end is the end of the world: the kernel then kills what is left in the PID namespace, containers included.
Reads /run/supervisor.json (the services), writes one JSON line per happening to its standard output, which
`make demo` reads. Containers' shims are orphans by design: they outlive hived and become children of this
process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from reconciler.demo.services import SERVICES_FILE, STATE, Service, read_services
from reconciler.sockets import bind

_LOGS = Path(STATE) / "log"
_LOG_LIMIT_BYTES = 8 << 20
_FIRST_DELAY_S = 1.0
_LAST_DELAY_S = 30.0
# A service that lived this long had a good start: its next delay is the first one again.
_GOOD_LIFE_S = 5.0
_STOP_S = 4.0
_HOUSEKEEPING_S = 15.0
_FIRST_FD = 3  # sd_listen_fds(3)


@dataclass(slots=True)
class _Running:
    """A service and its process, or the time of its next start (monotonic seconds)."""

    service: Service
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    delay_s: float = _FIRST_DELAY_S


@dataclass(slots=True)
class Supervisor:
    """The services in the order of their start, and what has become of them.

    `host_pid` is the number that the host knows this process by.
    """

    services: tuple[Service, ...]
    host_pid: int
    _members: list[_Running] = field(default_factory=list)
    _stopping: bool = False

    def run(self) -> None:
        """Returns after SIGTERM or SIGINT, when the services have ended."""
        self._members = [_Running(service) for service in self.services]
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        # Not before the handlers: a signal without one is nothing to PID 1.
        _tell("world", "", pid=self.host_pid)
        housekeeping_at = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(wake_read, selectors.EVENT_READ)
            while not self._stopping:
                self._reap()
                self._start_due()
                if time.monotonic() >= housekeeping_at:
                    housekeeping_at = time.monotonic() + _HOUSEKEEPING_S
                    self._trim_logs()
                if selector.select(self._pause(housekeeping_at)):
                    _drain(wake_read)
        self._end()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _pause(self, housekeeping_at: float) -> float:
        """Seconds until something is due; a signal ends the pause sooner."""
        due = [member.start_at for member in self._members if member.process is None]
        return max(0.0, min([*due, housekeeping_at]) - time.monotonic())

    def _start_due(self) -> None:
        now = time.monotonic()
        for member in self._members:
            if member.process is None and member.start_at <= now:
                self._start(member)

    def _start(self, member: _Running) -> None:
        service = member.service
        member.started_at = time.monotonic()
        with _log_file(service.name).open("ab") as log:
            os.fchmod(log.fileno(), 0o600)  # what hived says is not for the other services
            try:
                argv, environment, passed = _with_sockets(service)
                member.process = subprocess.Popen(
                    argv,
                    env=environment,
                    pass_fds=passed,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    user=service.uid,
                    group=service.gid,
                    extra_groups=[],
                    umask=0o022,
                )
            except OSError as error:
                log.write(f"cannot start {service.argv[0]}: {error}\n".encode())
                self._ended(member, f"did not start: {error.strerror}")
                return
        _tell("started", service.name, pid=member.process.pid)

    def _reap(self) -> None:
        """Collects every dead child: services, and orphans of anybody in this world."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for member in self._members:
                if member.process is not None and member.process.pid == pid:
                    code = os.waitstatus_to_exitcode(status)
                    member.process.returncode = code
                    how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
                    self._ended(member, how)

    def _ended(self, member: _Running, how: str) -> None:
        now = time.monotonic()
        if now - member.started_at >= _GOOD_LIFE_S:
            member.delay_s = _FIRST_DELAY_S
        member.process = None
        member.start_at = now + member.delay_s
        if not self._stopping:
            _tell("ended", member.service.name, how=how, again_in_s=member.delay_s)
        member.delay_s = min(_LAST_DELAY_S, member.delay_s * 2)

    def _end(self) -> None:
        """SIGTERM in waves, each with a deadline.

        First whoever watches the containers, or their end would look like a crash to it; then all others,
        the orphans among them: shims, which stop their containers in order.
        """
        watchers = [m for m in self._members if m.service.is_watcher and m.process is not None]
        for wave in ([m.process.pid for m in watchers if m.process is not None], _children()):
            for pid in wave:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if not self._wait(partial(_are_gone, wave), _STOP_S):
                _tell("late", "", pids=[pid for pid in wave if pid in _children()])
            for pid in set(wave) & set(_children()):
                os.kill(pid, signal.SIGKILL)

    def _wait(self, is_done: Callable[[], bool], deadline_s: float) -> bool:
        until = time.monotonic() + deadline_s
        while time.monotonic() < until:
            self._reap()
            if is_done():
                return True
            time.sleep(0.02)
        return False

    def _trim_logs(self) -> None:
        """Bounds every log to twice the limit: one file in use (opened for appending) and one before it."""
        for path in _LOGS.iterdir():
            if path.suffix != ".old" and path.stat().st_size > _LOG_LIMIT_BYTES:
                shutil.copy(path, f"{path}.old")  # with its mode
                os.truncate(path, 0)


def _with_sockets(service: Service) -> tuple[tuple[str, ...], dict[str, str], tuple[int, ...]]:
    """Command, environment and descriptors of a service: those of its sockets, if it has some."""
    count = len(service.sockets)
    if not count:
        return service.argv, service.environment, ()
    names = ":".join(one.name for one in service.sockets)
    environment = service.environment | {"LISTEN_FDS": str(count), "LISTEN_FDNAMES": names}
    # Only the child knows its own number.
    argv = ("/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *service.argv)
    return argv, environment, tuple(range(_FIRST_FD, _FIRST_FD + count))


def _are_gone(pids: list[int]) -> bool:
    return not set(pids) & set(_children())


def _log_file(name: str) -> Path:
    return _LOGS / f"{name}.log"


def _children() -> list[int]:
    return [int(pid) for pid in Path("/proc/1/task/1/children").read_text().split()]


def _drain(handle: int) -> None:
    try:
        while os.read(handle, 4096):
            pass
    except BlockingIOError:
        return


def _tell(event: str, service: str, **details: object) -> None:
    """Nobody may be reading any more; that must not end the world in disorder."""
    try:
        print(json.dumps({"event": event, "service": service, **details}), flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for the rest of this process


def _listen(services: tuple[Service, ...]) -> None:
    """Bind the sockets of the one service that has some, as descriptors 3 and up: where it looks for them."""
    sockets = [one for service in services for one in service.sockets]
    for number, one in enumerate(sockets, _FIRST_FD):
        made = bind(Path(one.path), mode=one.mode, uid=one.uid, gid=one.gid).sock.detach()
        if made != number:
            with contextlib.suppress(OSError):  # what lies there (the lock of `make demo`) is kept elsewhere
                fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD + len(sockets))
            os.dup2(made, number, inheritable=False)
            os.close(made)


def main() -> int:
    """Runs until told to stop."""
    _LOGS.mkdir(mode=0o755, exist_ok=True)
    services = read_services(SERVICES_FILE)
    _listen(services)
    Supervisor(services, host_pid=int(sys.argv[1])).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
