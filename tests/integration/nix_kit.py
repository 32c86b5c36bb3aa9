"""A private Nix: a daemon with a store of its own below /tmp, for tests that evaluate and build for real."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.config import Config, Timeouts
from reconciler.effects.nix import RealNix

MODULES = Path(__file__).parents[2] / "modules"
# An user of its own for what tests count as left over; nobody's processes may be another test's.
BUILD_USER = next(
    user for user in ("uucp", "news", "nobody") if user in {entry.pw_name for entry in pwd.getpwall()}
)
needs_nix = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("nix-daemon", "bwrap", "busybox"))),
    reason="needs root, nix, bubblewrap and busybox",
)
_CONFIGURATION = """\
sandbox = true
sandbox-paths = /bin/sh=/bin/busybox /meeting={path}/meeting
build-users-group =
trusted-users =
allowed-users = *
substituters =
experimental-features = nix-command flakes
"""


@dataclass(frozen=True, slots=True)
class PrivateNix:
    """`environment` brings any Nix client to this daemon and store; all is below `path`, open to the
    build user. Builders see `path/meeting` as /meeting: pipes there let a test wait for them, and they for
    it."""

    path: Path
    environment: dict[str, str]
    daemon: subprocess.Popen[bytes]

    def config(self, **timeouts: float) -> Config:
        return Config(
            state_dir=str(self.path / "state"),
            run_dir=str(self.path / "run"),
            modules=str(self.path / "modules"),
            build_user=BUILD_USER,
            timeouts=Timeouts(**timeouts),
        )

    def effect(self, **timeouts: float) -> RealNix:
        return RealNix(self.config(**timeouts), self.environment)

    def run(self, *argv: str) -> str:
        """A Nix command as root; its standard output."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.path), **self.environment}
        return subprocess.run(argv, check=True, env=env, capture_output=True, text=True, timeout=60).stdout


@contextlib.contextmanager
def private_nix() -> Iterator[PrivateNix]:
    # Not pytest's tmp_path: its parents are closed to other users.
    path = Path(tempfile.mkdtemp(prefix="hive-test-nix-"))
    path.chmod(0o755)
    for name in ("etc", "var", "log", "state", "meeting"):
        (path / name).mkdir()
    (path / "etc/nix.conf").write_text(_CONFIGURATION.format(path=path))
    shutil.copytree(MODULES, path / "modules")
    places = {
        "NIX_CONF_DIR": str(path / "etc"),
        "NIX_STORE_DIR": str(path / "store"),
        "NIX_STATE_DIR": str(path / "var"),
        "NIX_LOG_DIR": str(path / "log"),
        "NIX_DAEMON_SOCKET_PATH": str(path / "daemon.sock"),
    }
    with (path / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen(
            ["nix-daemon"],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(path), **places},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 15
        while not (path / "daemon.sock").exists():
            assert daemon.poll() is None, (path / "daemon.log").read_text()
            assert time.monotonic() < deadline, "the daemon did not listen"
            time.sleep(0.02)
        yield PrivateNix(path, {**places, "NIX_REMOTE": "daemon"}, daemon)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait(10)
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def nix() -> Iterator[PrivateNix]:
    with private_nix() as found:
        yield found
