"""A booted bed: a Debian host with systemd as PID 1, run by `systemd-nspawn`, thrown away at its end.

The guest's root is an overlay over the cached image, so units, users and configuration may be changed at
will; what containers and Nix write lies in real directories, because overlayfs cannot be idmapped. The guest
has no network but its loopback. All of it runs in a PID namespace whose first process dies with this one:
nothing outlives the bed, whatever happens to the test.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from checks.bed import groups, settings
from checks.bed.images import Image, readable
from reconciler.demo.install import CLONE

BOOT_S = 60.0
STOP_S = 30.0
SOURCE = Path("/opt/hyperhive")
# Real directories of the bed, by their place in the guest. /bed is for whoever runs something in it.
_SHARED = {"state": "/var/lib/hyperhive", "nix": "/nix", "io": "/bed"}
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "TMPDIR": "/bed/tmp",
    "PYTHONPATH": str(SOURCE),
    "PYTHONDONTWRITEBYTECODE": "1",
}
_REBOOT_STATUS = 133  # what nspawn says when the guest asked to be started again
# Ends with its parent, and everything below with it: the kernel kills a PID namespace with its first process.
_CAGE = (
    *("setpriv", "--pdeathsig=KILL", "--", "unshare", "--mount", "--propagation=private", "--pid"),
    *("--fork", "--kill-child=KILL", "--mount-proc", "--", "/bin/sh", "-euc"),
)
_BEGIN = """
root=$1; shift
mount -t overlay overlay -o "lowerdir=$root,upperdir=$PWD/upper,workdir=$PWD/work" "$PWD/root"
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended in the guest: its status (or minus the signal), and both outputs, as text."""

    status: int
    stdout: str
    stderr: str


class BedCommandError(AssertionError):
    """A command in the guest ended with another status than 0, or not in time."""


@dataclass(slots=True)
class Bed:
    """One throw-away host. `with Bed(image) as bed` boots it and leaves nothing; made and used in one thread,
    which the guest does not outlive.

    `place` is its directory on the machine; see `path` for what of it the guest sees.
    """

    image: Image
    place: Path = field(default_factory=lambda: _place())  # noqa: PLW0108 (defined below)
    machine_id: uuid.UUID = field(default_factory=uuid.uuid4)
    boots: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _nspawn: int = 0
    _leader: int = 0
    _units: int = 0
    _groups: tuple[Path, ...] = ()
    _lock: str = ""

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        shutil.rmtree(self.place)

    # ------------------------------------------------------------------------------------ life
    def boot(self) -> None:
        """Start it and return when its systemd says that everything was started; state of earlier boots is
        there."""
        assert self._process is None, "the bed is running"
        self._prepare()
        self.boots += 1
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            path = self.place / f"notify-{self.boots}"
            notify.bind(str(path))
            environment = _ENVIRONMENT | {
                "NOTIFY_SOCKET": str(path), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"
            }  # fmt: skip
            self._groups = groups.make(self.place.name)
            with self._console().open("ab") as console:
                self._process = subprocess.Popen(
                    [*_CAGE, groups.JOIN + _BEGIN, "bed", *groups.files(self._groups), "--",
                     str(self.image.root), *self._nspawn_argv()],
                    cwd=self.place, env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                    start_new_session=True,
                )  # fmt: skip
            self._await_ready(notify)
        self._nspawn = _only_child(self._process.pid)
        self._leader = _only_child(self._nspawn)
        root = Path(f"/proc/{self._nspawn}/root{self.place}/root").stat()
        self._lock = f"inode-{root.st_dev}:{root.st_ino}"

    def power_off(self) -> None:
        """Shut the guest down in order: its systemd stops all units first."""
        os.kill(self._nspawn, signal.SIGTERM)
        self._await_end()

    def reboot(self) -> None:
        """An orderly reboot, asked for inside; not of logind, which a test may have left without a bus."""
        self.run("systemctl", "--no-block", "start", "reboot.target")
        status = self._await_end()
        assert status == _REBOOT_STATUS, f"the bed ended with {status} instead of a reboot\n{self.console()}"
        self.boot()

    def cut(self) -> None:
        """Pull the plug: every process of the guest is killed at once. Nothing to do when it is off."""
        if self._process is not None:
            # Its first process, which unshare(1) then reaps; without that parent it would wait for PID 1.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._nspawn or self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_S)
        self._ended()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # ------------------------------------------------------------------------------------ inside
    def enter(self, *argv: str) -> list[str]:
        """The machine's command line that runs `argv` inside."""
        assert self._leader, "the bed is not running"
        return ["nsenter", f"--target={self._leader}", "--all", "--wd", "--", *argv]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """That of commands inside: nothing of the machine's own."""
        return _ENVIRONMENT | dict(more or {})

    def run(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        input: str = "",  # noqa: A002 (as subprocess.run calls it)
        timeout_s: float = 60.0,
        check: bool = True,
    ) -> Done:
        """Run a command as root in the guest, as from an operator's shell; a non-zero status raises
        `BedCommandError` unless `check` is False. Output is kept in memory, undecodable bytes replaced."""
        process = subprocess.Popen(
            self.enter(*argv), env=self.environment(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            out, err = process.communicate(input, timeout_s)
        except BaseException as error:
            told = _kill(process)
            if isinstance(error, subprocess.TimeoutExpired):
                message = f"{argv} in the bed was still running after {timeout_s} s\n{told}"
                raise BedCommandError(message) from None
            raise
        if check and process.returncode != 0:
            raise BedCommandError(f"{argv} in the bed ended with {process.returncode}\n{out}{err}")
        return Done(process.returncode, out, err)

    def sh(self, script: str, *, timeout_s: float = 60.0, check: bool = True) -> Done:
        """Run a shell script as root in the guest; it ends at the first failing command."""
        return self.run("/bin/sh", "-euc", script, timeout_s=timeout_s, check=check)

    def unit(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        properties: Sequence[str] = (),
        timeout_s: float = 60.0,
        check: bool = True,
    ) -> Done:
        """Run a command in the guest as a unit of its own (so in a control group that systemd empties when it
        ends). `properties` are those of systemd-run: `Delegate=yes`."""
        self._units += 1
        name = f"bed-{self.boots}-{self._units}.service"
        options = [f"--property={given}" for given in properties]
        options += [f"--setenv={key}={value}" for key, value in self.environment(env).items()]
        try:
            return self.run(
                *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--unit={name}"),
                *("--service-type=exec", *options, "--", *argv),
                timeout_s=timeout_s,
                check=check,
            )
        except BedCommandError:
            self.run("systemctl", "kill", "--signal=KILL", name, check=False)
            raise

    def path(self, inside: str) -> Path:
        """Where the machine sees a file of the guest: directly in the shared directories, else through its
        first process (then only while it runs)."""
        for name, guest in _SHARED.items():
            if Path(inside).is_relative_to(guest):
                return self.place / name / Path(inside).relative_to(guest)
        return Path(f"/proc/{self._leader}/root") / inside.lstrip("/")

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
        """Ask `condition` again and again until it holds; at the deadline fail with `what` was awaited."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s: {what}")
            time.sleep(0.02)

    def processes(self) -> list[int]:
        """Every process of the guest and of its nspawn, by the machine's numbers; also after its end."""
        return [pid for group in self._groups for pid in groups.members(group)]

    def journal(self) -> str:
        """The guest's journal of all its boots, or what its console said when it cannot be asked."""
        if self.is_running() and self._leader:
            with contextlib.suppress(AssertionError):
                return self.run("journalctl", "--no-pager", "--output=short-precise").stdout
        directory = self.place / "upper/var/log/journal"
        argv = ["journalctl", "--no-pager", "--output=short-precise", "--directory", str(directory)]
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False, timeout=60)
        return done.stdout if done.returncode == 0 else self.console()

    def console(self) -> str:
        """What nspawn and the guest's console printed."""
        with contextlib.suppress(FileNotFoundError):
            return self._console().read_text(errors="replace")
        return ""

    # ------------------------------------------------------------------------------------ parts
    def _console(self) -> Path:
        return self.place / "console"

    def _prepare(self) -> None:
        with readable():
            if not self.boots:
                settings.write(self.place / "upper")
            for name in ("upper", "work", "root", *_SHARED, "io/tmp"):
                (self.place / name).mkdir(exist_ok=True)
        (self.place / "io/tmp").chmod(0o1777)

    def _nspawn_argv(self) -> list[str]:
        binds = [f"--bind={self.place / name}:{guest}" for name, guest in _SHARED.items()]
        binds += [f"--bind-ro={CLONE}:{SOURCE}", f"--bind-ro={self.image.venv}:{SOURCE}/.venv"]
        binds += [f"--bind-ro={self.image.harness_venv}:{SOURCE}/.venv-harness"]
        return [
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--machine={self.place.name}"),
            *(f"--directory={self.place / 'root'}", "--private-network", "--console=pipe"),
            *(f"--uuid={self.machine_id}", "--notify-ready=yes"),
            *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
            *binds,
            "--boot",
        ]  # fmt: skip

    def _await_ready(self, notify: socket.socket) -> None:
        """READY=1 comes when the guest's first transaction is done; its end before that is a failure."""
        assert self._process is not None
        deadline = time.monotonic() + BOOT_S
        notify.settimeout(0.2)
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in notify.recv(4096).split(b"\n"):
                    return
        raise AssertionError(f"the bed of {self.image.suite} did not boot\n{self.console()}")

    def _await_end(self) -> int:
        assert self._process is not None
        try:
            status = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the bed did not end within {STOP_S} s\n{self.journal()[-8000:]}") from None
        self._ended()
        return status

    def _ended(self) -> None:
        self._process, self._nspawn, self._leader = None, 0, 0
        groups.remove(self._groups)
        _forget(self.place.name, self._lock)


def _place() -> Path:
    """A new directory; its name is the guest's name, too, so letters, digits and dashes only. Directories of
    beds whose makers were killed are removed."""
    above = Path(tempfile.gettempdir())
    for old in above.glob("hive-bed-*-*"):
        if not Path("/proc", old.name.split("-")[2]).exists():
            groups.remove(groups.named(old.name))
            _forget(old.name, "")
            shutil.rmtree(old, ignore_errors=True)
    place = above / f"hive-bed-{os.getpid()}-{secrets.token_hex(4)}"
    place.mkdir(mode=0o700)
    return place


def _only_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1, f"process {pid} has the children {children}"
    return int(children[0])


def _kill(process: subprocess.Popen[str]) -> str:
    """End the command's whole session; what it had printed. A unit that has the pipes as well is not waited
    for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with process:
        try:
            return "".join(process.communicate(timeout=0.5))
        except subprocess.TimeoutExpired as error:
            return (error.stdout or b"").decode(errors="replace")


def _forget(machine: str, lock: str) -> None:
    """What a killed nspawn cannot remove itself: its directories below /run, and its lock on the root."""
    run = Path("/run/systemd/nspawn")
    for left in run.glob(f"*/{machine}"):
        shutil.rmtree(left)
    if lock:
        (run / "locks" / lock).unlink(missing_ok=True)
