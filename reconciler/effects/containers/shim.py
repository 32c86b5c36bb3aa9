"""The parent of one systemd-nspawn on hosts without systemd: `python -m reconciler.effects.containers.shim
DIR`.

It outlives the daemon: own session, reparented to init. It holds the container's lock, so that no second
one of that name can run; it is a subreaper, so that the container's leader falls to it if nspawn is killed;
it writes the record (who runs, how it ended), the console log (bounded), and cleans up. It takes no
requests: the driver reads the record and signals nspawn. SIGTERM to the shim stops the container.

Standard library only, no asyncio: about 10 MB. The launching process stays until the leader is known, and
then prints one line: `running`, `busy` (another one lives) or `failed REASON`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

from reconciler.effects.containers import cgroups, mounts, proc, record
from reconciler.effects.containers.console import Console, append_line

_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

_NOTIFY = f"{mounts.NSPAWN_RUN}/hive-notify"  # private to the shim's mount namespace

_STOP_S = 10.0  # from SIGTERM to the shim until SIGKILL
_REAP_S = 10.0  # for everything to be gone after nspawn's end
_OOM_SCORE = 300  # agents go before the daemon when the host's memory ends

_libc = ctypes.CDLL(None, use_errno=True)


def main(argv: list[str]) -> int:
    """Daemonise and supervise; the launcher's status is 0 when the container runs, 3 if another lives,
    else 1."""
    directory = Path(argv[1]).absolute()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        os.setsid()
        _daemon_streams(directory)
        status = 1
        try:
            status = Shim(directory, writer).run()
        except BaseException:  # noqa: BLE001 - the last line of defence of a detached process: tell, then end
            _print_traceback()
            with contextlib.suppress(OSError):
                os.write(writer, b"failed the shim crashed, see shim.log\n")
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "r", errors="replace") as file:
        line = file.readline().strip() or "failed the shim died, see shim.log"
    sys.stdout.write(line + "\n")
    return {"running": 0, "busy": 3}.get(line.split()[0], 1)


class Shim:
    """One start of one container, from the order to the final record."""

    def __init__(self, directory: Path, report: int) -> None:
        self._directory = directory
        self._report_fd = report
        self._order = record.read_order(directory)
        self._group = cgroups.Group((), ())
        self._record = record.Record(
            name=self._order.name,
            invocation=self._order.invocation,
            toplevel=self._order.toplevel,
            world=proc.world_id(),
            started_at=time.time(),
            shim=proc.ref(os.getpid()),
        )

    def run(self) -> int:
        """Hold the lock, start, watch, clean up."""
        with record.locked(self._directory) as mine:
            if not mine or self._predecessor_lives():
                self._report("busy")
                return 3
            mounts.call(_libc.prctl, _PR_SET_NAME, b"hive-shim", 0, 0, 0)
            mounts.call(_libc.prctl, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            wakeup = _catch_signals()
            try:
                append_line(
                    self._directory, f"hive-shim: start {self._order.invocation} of {self._order.toplevel}"
                )
                mounts.make_private(self._order.hardened)
                self._make_groups()
                notify = _notify_socket()
                console = Console(self._directory)
                self._spawn(console)
            except OSError as error:
                self._give_up(error)
                return 1
            try:
                self._watch(notify, console, wakeup)
            finally:
                self._finish(console)
        return 0

    # ------------------------------------------------------------------------------------------- starting
    def _predecessor_lives(self) -> bool:
        """A container whose shim was killed still counts: its lock is free, its processes are not gone."""
        old = record.read_record(self._directory)
        if old is None or old.world != self._record.world:
            return False
        return any(process is not None and process.is_alive() for process in (old.nspawn, old.leader))

    def _make_groups(self) -> None:
        order = self._order
        self._group = cgroups.create(
            f"{order.name}.{order.invocation[:8]}",
            memory_bytes=order.memory_bytes,
            cpu_percent=order.cpu_percent,
            tasks=order.tasks,
        )
        # RLIMIT_NPROC bounds the tasks of each uid where no control group does.
        enforced = tuple(sorted({*self._group.enforced, "tasks"}))
        self._save(cgroups=self._group.paths, limits_enforced=enforced)

    def _spawn(self, console: Console) -> None:
        """Fork nspawn behind a gate: it goes on only when its pid is on disk, and not at all if the shim
        dies."""
        gate, key = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(key)
                if os.read(gate, 1) != b"g":
                    os._exit(125)
                self._exec_nspawn(console)
            except BaseException as error:  # noqa: BLE001 - after fork: tell on the console, never return
                os.write(2, f"hive-shim: cannot start nspawn: {error}\n".encode())
            finally:
                os._exit(126)
        os.close(gate)
        try:
            self._save(nspawn=proc.ref(pid))
            os.write(key, b"g")
        finally:
            os.close(key)
            console.close_writer()

    def _give_up(self, error: OSError) -> None:
        """The host refused something before nspawn ran: tell it where people look, on the console."""
        cgroups.remove(self._group.paths)
        append_line(self._directory, f"hive-shim: {error}")
        self._save(phase="exited", ended_at=time.time(), why=str(error))
        self._report(f"failed {error}")

    def _exec_nspawn(self, console: Console) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        _null_stdin()
        os.dup2(console.writer, 1)
        os.dup2(console.writer, 2)
        os.setsid()
        cgroups.enter(self._group.paths)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
        environment = {**self._order.env, "NOTIFY_SOCKET": _NOTIFY}
        os.execvpe(self._order.argv[0], list(self._order.argv), environment)  # noqa: S606 - that is its point

    # ------------------------------------------------------------------------------------------- running
    def _watch(self, notify: socket.socket, console: Console, wakeup: int) -> None:
        """Until nspawn ends: learn the leader, copy the console, pass SIGTERM on."""
        nspawn = self._record.nspawn
        assert nspawn is not None
        pidfd = os.pidfd_open(nspawn.pid)
        poller = select.poll()
        for descriptor in (pidfd, notify.fileno(), console.reader, wakeup):
            poller.register(descriptor, select.POLLIN)
        deadline: float | None = time.monotonic() + self._order.start_timeout_s
        while True:
            wait_s = console.pause_s()
            if deadline is not None:
                wait_s = min(wait_s, max(0.0, deadline - time.monotonic()))
            if wait_s == 0.0:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                deadline = None
                continue
            if console.is_paused():
                poller.modify(console.reader, 0)
            elif not console.ended:
                poller.modify(console.reader, select.POLLIN)
            events = dict(poller.poll(None if wait_s == float("inf") else wait_s * 1000))
            if console.reader in events and not console.copy():
                poller.unregister(console.reader)
            # Read every message, also those after the leader's: one left in the socket would wake the poll
            # for ever.
            if notify.fileno() in events and self._learn_leader(notify):
                deadline = None
            if wakeup in events and _asked_to_stop(wakeup):
                self._save(stop_asked=True)
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                deadline = time.monotonic() + _STOP_S
            if pidfd in events:
                os.close(pidfd)
                return

    def _learn_leader(self, notify: socket.socket) -> bool:
        """Take the leader's pid from nspawn's message, and only from nspawn's."""
        assert self._record.nspawn is not None
        data, ancillary, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(struct.calcsize("3i")))
        if self._record.leader is not None:
            return False
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                sender = struct.unpack("3i", payload[: struct.calcsize("3i")])[0]
                if sender != self._record.nspawn.pid:
                    return False
        for line in data.decode("ascii", "replace").splitlines():
            key, _, value = line.partition("=")
            if key == "X_NSPAWN_LEADER_PID" and value.isdigit():
                self._save(phase="running", leader=proc.ref(int(value)))
                self._report("running")
                return True
        return False

    # ------------------------------------------------------------------------------------------- ending
    def _finish(self, console: Console) -> None:
        """Nothing of the container is left: processes, groups (mounts go with the namespace); then the
        record."""
        nspawn = self._record.nspawn
        assert nspawn is not None
        nspawn.send(signal.SIGKILL)  # no effect if it ended by itself, and it is reaped only here
        _, status = os.waitpid(nspawn.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if self._record.leader is not None:
            self._record.leader.send(signal.SIGKILL)
        self._reap_orphans()
        cgroups.kill(self._group.paths)
        self._reap_orphans()
        oom = code != 0 and cgroups.oom_kills(self._group.paths) > 0
        cgroups.remove(self._group.paths)
        console.drain()
        why = (
            "" if self._record.leader is not None else f"nspawn ended with {code} before its leader was known"
        )
        self._save(
            phase="exited",
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            oom=oom,
            ended_at=time.time(),
            why=why,
        )
        self._report(f"failed {why}")

    def _reap_orphans(self) -> None:
        """End and reap what fell to us as the subreaper: the leader of a killed nspawn, above all."""
        deadline = time.monotonic() + _REAP_S
        while time.monotonic() < deadline:
            for pid in proc.children(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.002)

    def _save(self, **changes: Any) -> None:
        """Write the record; a full disk must not end the supervision (a record of dead pids reads as
        exited)."""
        self._record = self._record._replace(**changes)
        try:
            record.write_record(self._directory, self._record)
        except OSError:
            _print_traceback()

    def _report(self, line: str) -> None:
        """Tell the launcher, once; it may be gone."""
        if self._report_fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self._report_fd, line.encode("utf-8", "replace") + b"\n")
            os.close(self._report_fd)
            self._report_fd = -1


def _daemon_streams(directory: Path) -> None:
    os.chdir("/")
    os.umask(0o077)
    log = os.open(directory / record.SHIM_LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    _null_stdin()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _print_traceback() -> None:
    import traceback  # here: 6 ms of every start, for what hardly ever happens

    traceback.print_exc()


def _null_stdin() -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _catch_signals() -> int:
    """A descriptor that gets a byte per signal; SIGHUP and SIGINT of a terminal are not for us."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return reader


def _asked_to_stop(wakeup: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        return signal.SIGTERM in os.read(wakeup, 64)
    return False


def _notify_socket() -> socket.socket:
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    notify.bind(_NOTIFY)
    return notify


if __name__ == "__main__":
    sys.exit(main(sys.argv))
