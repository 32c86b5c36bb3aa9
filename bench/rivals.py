"""Redis and NATS from Debian's packages, started for a measurement in a folder of their own, ended by pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.demohive import free_port

READY_S = 20.0
_PACKAGES = {"redis-server": "redis-server", "nats-server": "nats-server"}
_NEVER_START = Path("/usr/sbin/policy-rc.d")


def program(name: str) -> str:
    """Its path; installed from Debian's archive if it is not there, without starting it as a service."""
    path = os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"
    if shutil.which(name, path=path) is None:
        _install(_PACKAGES[name])
    found = shutil.which(name, path=path)
    if found is None:
        raise SystemExit(f"{name} is missing: apt-get install {_PACKAGES[name]}")
    return found


def _install(package: str) -> None:
    mine = not _NEVER_START.exists()
    if mine:
        _NEVER_START.write_text("#!/bin/sh\nexit 101\n")
        _NEVER_START.chmod(0o755)
    try:
        subprocess.run(
            [
                "apt-get",
                "-o",
                "DPkg::Lock::Timeout=120",
                "-qq",
                "-y",
                "--no-install-recommends",
                "install",
                package,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        )
    finally:
        if mine:
            _NEVER_START.unlink()


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Path]:
    """Its socket. Every write is on the disk before it is answered."""
    socket = folder / "redis.sock"
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "save": "",
    }
    argv = [
        program("redis-server"),
        *(word for key, value in options.items() for word in (f"--{key}", value)),
    ]
    with _running(argv, folder):
        _until(socket.exists)
        yield socket


@contextlib.contextmanager
def nats(folder: Path) -> Iterator[tuple[int, bool]]:
    """Its port, and whether every write is on the disk before it is answered (NATS 2.10 and newer can)."""
    server, port = program("nats-server"), free_port()
    config = folder / "nats.conf"
    for synced in (True, False):
        option = ", sync_interval: always" if synced else ""
        config.write_text(
            f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder}/jetstream"{option} }}\n'
        )
        if subprocess.run([server, "-t", "-c", config], capture_output=True, check=False).returncode == 0:
            break
    with _running([server, "-c", str(config)], folder):
        _until(lambda: _listens(port))
        yield port, synced


def version(name: str) -> str:
    """What it says of itself, cut to the number."""
    told = subprocess.run([program(name), "--version"], capture_output=True, text=True, check=True).stdout
    return next(word.strip("v=") for word in told.split() if word.strip("v=")[:1].isdigit())


@contextlib.contextmanager
def _running(argv: Sequence[str], folder: Path) -> Iterator[None]:
    running = subprocess.Popen(
        argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        running.terminate()
        running.wait(READY_S)


def _listens(port: int) -> bool:
    wanted = f"0100007F:{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1] == wanted and line.split()[3] == "0A" for line in lines)


def _until(holds: object) -> None:
    assert callable(holds)
    end = time.monotonic() + READY_S
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError("a server did not come up")
        time.sleep(0.02)
